//! Delivers to a program of this worker's configuration. `docs/commands.md` describes its input and exit.

use std::time::Duration;

use common::{name::CommandName, reloadable::Reloadable, telemetry::WorkScope, time};
use delivery::command::{CommandOutcome, Commands};
use model::{job::RetryAdvice, subscription::Subscription};
use tokio_util::sync::CancellationToken;

use super::{DeliveryAttempt, DeliveryError, DeliveryFailure};

pub(super) async fn deliver(
    subscription: &Subscription,
    name: &CommandName,
    commands: &Reloadable<Commands>,
    delivery: DeliveryAttempt<'_>,
    (deadline, abandon): (Duration, &CancellationToken),
) -> Result<(), DeliveryError> {
    let Some(command) = commands.current().get(name) else {
        // Another worker may have the command, or this one after its file is reloaded
        let message = format!("this worker knows no command {name}");
        return Err(DeliveryFailure::error("command_unknown", message, RetryAdvice::ByPolicy));
    };
    let DeliveryAttempt { channel, message, attempt } = delivery;
    let mut env = vec![
        ("GALLEY_SUBSCRIPTION", subscription.name.to_string()),
        ("GALLEY_CHANNEL", channel.to_string()),
        ("GALLEY_MESSAGE_ID", message.position.to_string()),
        ("GALLEY_MESSAGE_TIME", time::format(message.published_at)),
        ("GALLEY_CONTENT_TYPE", message.content_type.clone().unwrap_or_default()),
        ("GALLEY_ATTEMPT", attempt.to_string()),
    ];
    env.extend(WorkScope::current().trace().environment());
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
        CommandOutcome::Succeeded(_) => Ok(()),
        CommandOutcome::Stopped { .. } if abandon.is_cancelled() => Err(DeliveryError::Abandoned),
        CommandOutcome::Stopped { stderr } => {
            let message = format!("the program took longer than {} ms", deadline.as_millis());
            Err(DeliveryFailure::error("timeout", message, RetryAdvice::ByPolicy).with_output(stderr))
        }
        CommandOutcome::Failed(failure) => {
            Err(DeliveryFailure::error(failure.code, failure.message, failure.advice).with_output(failure.stderr))
        }
    }
}
