//! To a program of this worker's configuration: `docs/commands.md` says what it gets and what its end means.

use std::time::Duration;

use common::{name::CommandName, reloadable::InForce, time};
use delivery::command::{Commands, Ending};
use model::{job::Advice, subscription::Subscription};
use tokio_util::sync::CancellationToken;

use super::{Delivery, Failure, NotDelivered};

pub(super) async fn deliver(
    subscription: &Subscription,
    name: &CommandName,
    commands: &InForce<Commands>,
    delivery: Delivery<'_>,
    (deadline, abandon): (Duration, &CancellationToken),
) -> Result<(), NotDelivered> {
    let Some(command) = commands.now().get(name) else {
        // Another worker may know it, or this one after its file was read again
        let message = format!("this worker knows no command {name}");
        return Err(Failure::of("command_unknown", message, Advice::ByPolicy));
    };
    let Delivery { channel, message, attempt } = delivery;
    let env = vec![
        ("GALLEY_SUBSCRIPTION", subscription.name.to_string()),
        ("GALLEY_CHANNEL", channel.to_string()),
        ("GALLEY_MESSAGE_ID", message.position.to_string()),
        ("GALLEY_MESSAGE_TIME", time::format(message.at)),
        ("GALLEY_CONTENT_TYPE", message.content_type.clone().unwrap_or_default()),
        ("GALLEY_ATTEMPT", attempt.to_string()),
    ];
    let stop = abandon.child_token();
    let running = command.run(message.body.clone(), env, stop.clone());
    let mut running = std::pin::pin!(running);
    let ending = tokio::select! {
        ending = &mut running => ending,
        () = tokio::time::sleep(deadline) => {
            stop.cancel();
            running.await
        }
    };
    match ending {
        Ending::Succeeded(_) => Ok(()),
        Ending::Stopped { .. } if abandon.is_cancelled() => Err(NotDelivered::Abandoned),
        Ending::Stopped { stderr } => {
            let message = format!("the program took longer than {} ms", deadline.as_millis());
            let (code, advice) = ("timeout".to_owned(), Advice::ByPolicy);
            Err(NotDelivered::Failed(Failure { code, message, advice, output: stderr, is_gone: false }))
        }
        Ending::Failed(failure) => Err(NotDelivered::Failed(Failure {
            code: failure.code.to_owned(),
            message: failure.message,
            advice: failure.advice,
            output: failure.stderr,
            is_gone: false,
        })),
    }
}
