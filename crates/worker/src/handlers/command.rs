//! Doing a job with a program: `docs/commands.md` says what it gets and what its output means.

use std::{convert::Infallible, time::Duration};

use common::time;
use delivery::command::{Command, CommandSettings, Ending, Failure, Input, Progress, code};
use model::job::Advice;
use tokio::sync::watch;

use super::{Context, ContextError, Done, HandlerError, HandlerResult};

/// Reports of progress that follow one another faster are not all noted.
const BETWEEN_REPORTS: Duration = Duration::from_millis(200);

/// Gives a job to a program and makes of its end what is recorded.
pub(crate) async fn run(command: &Command, context: &Context) -> HandlerResult {
    let timeout_ms = command.settings().timeout_ms;
    let (progress, reports) = watch::channel(None);
    let input = Input {
        stdin: context.job_json(None).into_bytes(),
        env: variables(context, timeout_ms),
        stop: context.cancellation_within(command.longest_stop()),
        progress,
    };
    let ending = tokio::select! {
        ending = command.run_reporting(input) => ending,
        never = note_progress(context, reports) => match never {},
    };
    match ending {
        Ending::Succeeded(result) => Ok(Done::Result(result.filter(|result| result != "null"))),
        Ending::Failed(Failure { code, message, advice, stderr }) => {
            Err(HandlerError::new(code, message, advice).with_output(stderr))
        }
        // Whoever stopped it says why: the job's own time is over, or it is cancelled or handed back
        Ending::Stopped { stderr } => {
            let message = "the program was stopped".to_owned();
            Err(HandlerError::new(code::TIMEOUT, message, Advice::ByPolicy).with_output(stderr))
        }
    }
}

/// What is done with a job, in words.
pub(crate) fn in_words(settings: &CommandSettings) -> String {
    let mut words = vec![format!("{:?}", settings.program)];
    words.extend(settings.args.iter().map(|arg| format!("{arg:?}")));
    let memory = settings.memory_limit_bytes.map(|bytes| format!(", memory {bytes} bytes")).unwrap_or_default();
    let cpu = settings.cpu_limit_ms.map(|ms| format!(", processor time {ms} ms")).unwrap_or_default();
    format!("gives it to the program {} (within {} ms{memory}{cpu})", words.join(" "), settings.timeout_ms)
}

/// What a program is told in its environment.
fn variables(context: &Context, timeout_ms: u64) -> Vec<(&'static str, String)> {
    let own = context.started_at().saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
    let deadline = context.deadline_ms().map_or(own, |deadline| deadline.min(own));
    let mut variables = vec![
        ("GALLEY_JOB_ID", context.id().to_string()),
        ("GALLEY_JOB_TYPE", context.job_type().to_string()),
        ("GALLEY_QUEUE", context.queue().to_string()),
        ("GALLEY_ATTEMPT", context.attempt().to_string()),
        ("GALLEY_MAX_ATTEMPTS", context.max_attempts().to_string()),
        ("GALLEY_FENCING_TOKEN", context.fencing_token()),
        ("GALLEY_DEADLINE", time::format(deadline)),
    ];
    variables.extend(context.traceparent().map(|traceparent| ("TRACEPARENT", traceparent.to_owned())));
    variables
}

/// Notes the latest report again and again; never ends.
async fn note_progress(context: &Context, mut reports: watch::Receiver<Option<Progress>>) -> Infallible {
    while reports.changed().await.is_ok() {
        let Some(Progress { percent, message }) = reports.borrow_and_update().clone() else { continue };
        let data = message.map(|message| serde_json::json!({ "message": message }));
        let noted = match data {
            Some(data) => context.progress_with(Some(percent / 100.0), &data).await,
            None => context.progress(percent / 100.0).await,
        };
        match noted {
            Ok(()) => {}
            Err(ContextError::Stale) => break,
            Err(error) => tracing::debug!(id = %context.id(), %error, "progress not noted"),
        }
        tokio::time::sleep(BETWEEN_REPORTS).await;
    }
    std::future::pending().await
}
