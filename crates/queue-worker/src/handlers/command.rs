//! Doing a job with a program: `docs/commands.md` says what it gets and what its output means.

use std::{collections::BTreeMap, convert::Infallible, path::PathBuf, time::Duration};

use common::{
    command::{Ending, Failure, Input, Program, ProgramSettings, Progress},
    job::Advice,
    time,
};
use tokio::sync::watch;

use super::{Context, ContextError, Done, HandlerError, HandlerResult};

/// Reports of progress that follow one another faster are not all noted.
const BETWEEN_REPORTS: Duration = Duration::from_millis(200);

/// After its grace a program is killed and what it wrote is read: the attempt waits for that too.
const AFTER_GRACE: Duration = Duration::from_secs(12);

/// What a rule says of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandSettings {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) pass_env: Vec<String>,
    pub(crate) directory: Option<PathBuf>,
    /// Longest run, if the job does not say a shorter one.
    pub(crate) timeout_ms: u64,
    pub(crate) stop_grace_ms: u64,
    pub(crate) output_limit_bytes: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) cpu_limit_ms: Option<u64>,
    pub(crate) not_retryable_exit_codes: Vec<u8>,
}

/// A program that jobs are given to.
pub(crate) struct CommandRule {
    settings: CommandSettings,
    program: Program,
}

impl CommandRule {
    /// Checks what a rule says; the error is for people.
    pub(crate) fn new(settings: CommandSettings) -> Result<Self, String> {
        let given = settings.clone();
        let program = Program::new(ProgramSettings {
            args: given.args,
            env: given.env,
            pass_env: given.pass_env,
            directory: given.directory,
            stop_grace: Duration::from_millis(given.stop_grace_ms),
            output_limit_bytes: usize::try_from(given.output_limit_bytes).unwrap_or(usize::MAX),
            memory_limit_bytes: given.memory_limit_bytes,
            cpu_limit: given.cpu_limit_ms.map(Duration::from_millis),
            not_retryable_exit_codes: given.not_retryable_exit_codes.into_iter().map(i32::from).collect(),
            ..ProgramSettings::new(given.program)
        });
        Ok(Self { program: program.map_err(|error| error.to_string())?, settings })
    }

    pub(crate) fn settings(&self) -> &CommandSettings {
        &self.settings
    }

    pub(crate) async fn run(&self, context: &Context) -> HandlerResult {
        let grace = Duration::from_millis(self.settings.stop_grace_ms);
        let stop = context.cancellation_within(grace + AFTER_GRACE).child_token();
        let (progress, reports) = watch::channel(None);
        let input = Input {
            stdin: context.job_json(None).into_bytes(),
            env: variables(context, self.settings.timeout_ms),
            stop: stop.clone(),
            progress,
        };
        let limit = Duration::from_millis(self.settings.timeout_ms);
        let in_time = async {
            tokio::time::sleep(limit).await;
            stop.cancel();
            // Ends with the program, not before
            std::future::pending::<Infallible>().await
        };
        let ending = tokio::select! {
            ending = self.program.run(input) => ending,
            never = in_time => match never {},
            never = note_progress(context, reports) => match never {},
        };
        match ending {
            Ending::Succeeded(result) => Ok(Done::Result(result.filter(|result| result != "null"))),
            Ending::Failed(Failure { code, message, advice, stderr }) => {
                Err(HandlerError::new(code, message, advice).with_output(stderr))
            }
            // When the job's own time is over that is said by whoever stopped it
            Ending::Stopped { stderr } => {
                let message = format!("the program took longer than {} ms", self.settings.timeout_ms);
                Err(HandlerError::new("timeout", message, Advice::ByPolicy).with_output(stderr))
            }
        }
    }

    pub(crate) fn in_words(&self) -> String {
        let settings = &self.settings;
        let mut words = vec![format!("{:?}", settings.program)];
        words.extend(settings.args.iter().map(|arg| format!("{arg:?}")));
        let memory = settings.memory_limit_bytes.map(|bytes| format!(", memory {bytes} bytes")).unwrap_or_default();
        let cpu = settings.cpu_limit_ms.map(|ms| format!(", processor time {ms} ms")).unwrap_or_default();
        format!("gives it to the program {} (within {} ms{memory}{cpu})", words.join(" "), settings.timeout_ms)
    }
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
