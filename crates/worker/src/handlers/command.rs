//! Runs a job as a program. `docs/commands.md` describes its input and its output.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use common::time;
use delivery::command::{
    Command, CommandFailure, CommandOutcome, CommandProgress, CommandSettings, LineSink, ProgramInput, code,
};
use model::job::RetryAdvice;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::{Context, ContextError, HandlerError, HandlerOutcome, HandlerResult};

/// Minimum time between two recorded progress reports; only the latest is recorded.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What a line of standard error begins with that is the job's checkpoint.
const CHECKPOINT_PREFIX: &str = "@checkpoint ";

/// What the program wants to be saved: the latest counts.
#[derive(Default)]
struct Checkpoints {
    latest: watch::Sender<Option<Arc<RawValue>>>,
    /// What is saved.
    saved: Mutex<Option<Arc<RawValue>>>,
}

impl Checkpoints {
    /// Takes a line that is a checkpoint; false for any other.
    fn take(&self, line: &str) -> bool {
        let state = line.strip_prefix(CHECKPOINT_PREFIX).and_then(|json| serde_json::from_str(json).ok());
        state.map(|state: Box<RawValue>| self.latest.send_replace(Some(state.into()))).is_some()
    }

    /// Saves the latest one, unless it is saved.
    async fn save(&self, context: &Context) -> Result<(), ContextError> {
        let Some(latest) = self.latest.borrow().clone() else { return Ok(()) };
        let is_saved = self.saved().as_ref().is_some_and(|saved| Arc::ptr_eq(saved, &latest));
        if !is_saved {
            context.checkpoint(&&*latest).await?;
            *self.saved() = Some(latest);
        }
        Ok(())
    }

    fn saved(&self) -> std::sync::MutexGuard<'_, Option<Arc<RawValue>>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves them while the program runs; never returns.
    async fn forward(&self, context: &Context) -> Infallible {
        let mut latest = self.latest.subscribe();
        while latest.changed().await.is_ok() {
            match self.save(context).await {
                Ok(()) => {}
                Err(ContextError::Stale) => break,
                Err(error) => tracing::debug!(id = %context.id(), %error, "checkpoint not saved"),
            }
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
        std::future::pending().await
    }
}

/// Runs the program with the job as its input and converts its exit into a handler result.
pub(crate) async fn run(command: &Command, context: &Context) -> HandlerResult {
    let timeout_ms = command.settings().timeout_ms;
    let (progress, reports) = watch::channel(None);
    let checkpoints = Arc::new(Checkpoints::default());
    let input = ProgramInput {
        stdin: context.job_json(None).into_bytes(),
        env: environment(context, timeout_ms),
        stop: context.cancellation_with_grace(command.max_stop_duration()),
        progress,
        lines: lines_of(context, checkpoints.clone()),
    };
    let ending = tokio::select! {
        ending = command.run_with_progress(input) => ending,
        never = forward_progress(context, reports) => match never {},
        never = checkpoints.forward(context) => match never {},
    };
    // Also that of a program that failed at once: the next attempt goes on from there
    if let Err(error) = checkpoints.save(context).await {
        tracing::warn!(id = %context.id(), %error, "the last checkpoint of a program is not saved");
    }
    match ending {
        CommandOutcome::Succeeded(result) => Ok(HandlerOutcome::Completed(result.filter(|result| result != "null"))),
        CommandOutcome::Failed(CommandFailure { code, message, advice, stderr }) => {
            Err(HandlerError::new(code, message, advice).with_output(stderr))
        }
        // The attempt knows why it stopped the program: time limit, cancellation or release
        CommandOutcome::Stopped { stderr } => {
            let message = "the program was stopped".to_owned();
            Err(HandlerError::new(code::TIMEOUT, message, RetryAdvice::ByPolicy).with_output(stderr))
        }
    }
}

/// Standard error becomes the job's log, but for checkpoints.
fn lines_of(context: &Context, checkpoints: Arc<Checkpoints>) -> LineSink {
    let context = context.clone();
    LineSink::new(move |line| {
        if !checkpoints.take(line) {
            context.log(line);
        }
    })
}

/// Describes what the rule does, for `queue-worker check`.
pub(crate) fn describe(settings: &CommandSettings) -> String {
    let mut words = vec![format!("{:?}", settings.program)];
    words.extend(settings.args.iter().map(|arg| format!("{arg:?}")));
    let memory = settings.memory_limit_bytes.map(|bytes| format!(", memory {bytes} bytes")).unwrap_or_default();
    let cpu = settings.cpu_limit_ms.map(|ms| format!(", processor time {ms} ms")).unwrap_or_default();
    format!("gives it to the program {} (within {} ms{memory}{cpu})", words.join(" "), settings.timeout_ms)
}

/// The environment variables that the program gets.
fn environment(context: &Context, timeout_ms: u64) -> Vec<(&'static str, String)> {
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
    variables.extend(context.trace().environment());
    variables
}

/// Records the latest progress report at most once per [`PROGRESS_INTERVAL`]; never returns.
async fn forward_progress(context: &Context, mut reports: watch::Receiver<Option<CommandProgress>>) -> Infallible {
    while reports.changed().await.is_ok() {
        let Some(CommandProgress { progress, message }) = reports.borrow_and_update().clone() else { continue };
        let data = message.map(|message| serde_json::json!({ "message": message }));
        let noted = match data {
            Some(data) => context.progress_with(Some(progress), &data).await,
            None => context.progress(progress).await,
        };
        match noted {
            Ok(()) => {}
            Err(ContextError::Stale) => break,
            Err(error) => tracing::debug!(id = %context.id(), %error, "progress not recorded"),
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
    std::future::pending().await
}
