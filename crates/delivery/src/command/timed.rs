//! A configured program and its time limit.

use std::{path::PathBuf, pin::pin, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{CommandOutcome, CommandSettings, LineSink, Program, ProgramInput, ProgramSettings, StandardOutput};

/// Time after the grace to kill a program and read its output; a caller that stops a program waits for it, too.
const KILL_MARGIN: Duration = Duration::from_secs(12);

/// A configured program.
#[derive(Debug)]
pub struct Command {
    settings: CommandSettings,
    program: Program,
}

impl Command {
    /// Validates the settings; `output` says what happens to standard output.
    ///
    /// # Errors
    /// A setting that can never work, as a message for people.
    pub fn new(settings: CommandSettings, output: StandardOutput) -> Result<Self, String> {
        let given = settings.clone();
        let program = Program::new(ProgramSettings {
            args: given.args,
            env: given.env,
            pass_env: given.pass_env,
            directory: given.directory,
            stop_grace: Duration::from_millis(given.stop_grace_ms),
            output,
            output_limit_bytes: usize::try_from(given.output_limit_bytes).unwrap_or(usize::MAX),
            memory_limit_bytes: given.memory_limit_bytes,
            cpu_limit: given.cpu_limit_ms.map(Duration::from_millis),
            not_retryable_exit_codes: given.not_retryable_exit_codes.into_iter().map(i32::from).collect(),
            ..ProgramSettings::new(given.program)
        });
        Ok(Self { program: program.map_err(|error| error.to_string())?, settings })
    }

    /// Starts it with another binary whose `main` calls [`launch::intercept`](super::launch::intercept).
    #[must_use]
    pub fn with_launcher(mut self, launcher: PathBuf) -> Self {
        self.program.0.launcher = Some(launcher);
        self
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &CommandSettings {
        &self.settings
    }

    /// The time limit of a run.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.settings.timeout_ms)
    }

    /// The longest time from a stop to the end of a run.
    #[must_use]
    pub fn max_stop_duration(&self) -> Duration {
        Duration::from_millis(self.settings.stop_grace_ms) + KILL_MARGIN
    }

    /// Runs the program within its time limit, without progress reports.
    pub async fn run(
        &self,
        stdin: Vec<u8>,
        env: Vec<(&'static str, String)>,
        stop: CancellationToken,
    ) -> CommandOutcome {
        self.run_with_progress(ProgramInput {
            stdin,
            env,
            stop,
            progress: watch::Sender::new(None),
            lines: LineSink::default(),
        })
        .await
    }

    /// Like [`Command::run`], with progress reports. [`CommandOutcome::Stopped`] means that `stop` was cancelled;
    /// after the time limit the run fails with [`code::TIMEOUT`](super::code::TIMEOUT).
    pub async fn run_with_progress(&self, input: ProgramInput) -> CommandOutcome {
        let asked = input.stop;
        let stop = asked.child_token();
        let mut running = pin!(self.program.run(ProgramInput { stop: stop.clone(), ..input }));
        let (ending, is_late) = tokio::select! {
            ending = &mut running => (ending, false),
            () = sleep(self.timeout()) => {
                let is_late = !asked.is_cancelled();
                stop.cancel();
                (running.await, is_late)
            }
        };
        match ending {
            CommandOutcome::Stopped { stderr } if is_late => {
                CommandOutcome::timed_out(self.settings.timeout_ms, &stderr)
            }
            ending => ending,
        }
    }
}
