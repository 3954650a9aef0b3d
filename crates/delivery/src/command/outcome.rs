//! What a program's end means for its work. Pure.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use common::{
    json::{self, JsonError},
    text::printable,
};
use model::job::RetryAdvice;
use nix::sys::signal::Signal;
use serde_json::value::RawValue;

use super::{ExitCause, Program, TRY_AGAIN_EXIT_CODE, launch::LaunchToken, pipes::StdoutBuffer};

/// Characters of a program's output in a message.
const MAX_EXCERPT_CHARS: usize = 256;
/// Levels of a result, as many as readers of JSON commonly follow.
const MAX_RESULT_DEPTH: usize = 128;

/// Codes of errors, for retry policies and for those who look at failed jobs.
pub mod code {
    /// The program ended with an exit code that says no more than that.
    pub const FAILED: &str = "command_failed";
    /// A signal ended it.
    pub const KILLED: &str = "command_killed";
    /// It could not be started.
    pub const NOT_STARTED: &str = "command_not_started";
    /// It asked to be run again later.
    pub const TRY_AGAIN: &str = "command_try_again";
    /// It took longer than it may.
    pub const TIMEOUT: &str = "timeout";
    /// What it wrote is not JSON.
    pub const INVALID_RESULT: &str = "invalid_result";
    /// It wrote too much.
    pub const RESULT_TOO_LARGE: &str = "result_too_large";
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Exit code 0; the result is the JSON that it wrote, if it wrote any.
    Succeeded(Option<String>),
    /// It did not do the job.
    Failed(CommandFailure),
    /// It was stopped because it was asked for. What it had done by then is not known.
    Stopped {
        /// The end of what it said.
        stderr: String,
    },
}

/// Why a program did not do its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandFailure {
    /// One of [`code`].
    pub code: &'static str,
    /// For people; the last line of stderr is in it where it helps.
    pub message: String,
    /// By policy, or never again.
    pub advice: RetryAdvice,
    /// The end of what it said.
    pub stderr: String,
}

impl CommandOutcome {
    /// Another attempt may find it installed, or find room for one more process.
    pub(super) fn not_started(message: String) -> Self {
        Self::failed(code::NOT_STARTED, message, RetryAdvice::ByPolicy, "")
    }

    /// It was stopped because its time was over.
    pub(super) fn timed_out(timeout_ms: u64, stderr: &str) -> Self {
        let message = format!("the program took longer than {timeout_ms} ms");
        Self::failed(code::TIMEOUT, message, RetryAdvice::ByPolicy, stderr)
    }

    fn failed(code: &'static str, message: String, advice: RetryAdvice, stderr: &str) -> Self {
        Self::Failed(CommandFailure { code, message, advice, stderr: stderr.to_owned() })
    }
}

impl Program {
    /// What has become of the job.
    pub(super) fn classify_exit(
        &self,
        cause: ExitCause,
        status: Option<ExitStatus>,
        output: StdoutBuffer,
        stderr: &str,
        token: &LaunchToken,
    ) -> CommandOutcome {
        let output = output.finish();
        match (cause, status, output) {
            (ExitCause::Stopped, ..) => CommandOutcome::Stopped { stderr: stderr.to_owned() },
            (ExitCause::OutputTooLarge, _, Err(limit)) => too_large(limit, stderr),
            (_, Some(status), output) => match (status.code(), output) {
                (Some(0), Ok(output)) => parse_result(&output, stderr),
                (Some(0), Err(limit)) => too_large(limit, stderr),
                (Some(exit_code), _) => match token.failure_report(exit_code, stderr) {
                    Some(report) => CommandOutcome::not_started(report.to_owned()),
                    None => self.exited(exit_code, stderr),
                },
                (None, _) => self.killed(status.signal().unwrap_or_default(), stderr),
            },
            // It cannot even be killed
            (_, None, _) => {
                let message = "the program has not ended when it was killed".to_owned();
                CommandOutcome::failed(code::KILLED, message, RetryAdvice::ByPolicy, stderr)
            }
        }
    }

    fn exited(&self, exit_code: i32, stderr: &str) -> CommandOutcome {
        let last_line = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty());
        let said = last_line.map(|line| format!(": {}", excerpt(line))).unwrap_or_default();
        if exit_code == TRY_AGAIN_EXIT_CODE {
            let message = format!("the program asks to be run again (exit code {exit_code}){said}");
            return CommandOutcome::failed(code::TRY_AGAIN, message, RetryAdvice::ByPolicy, stderr);
        }
        let is_final = self.0.not_retryable_exit_codes.contains(&exit_code);
        let advice = if is_final { RetryAdvice::Never } else { RetryAdvice::ByPolicy };
        CommandOutcome::failed(
            code::FAILED,
            format!("the program ended with exit code {exit_code}{said}"),
            advice,
            stderr,
        )
    }

    fn killed(&self, signal: i32, stderr: &str) -> CommandOutcome {
        let signal = Signal::try_from(signal);
        let name = signal.map_or_else(|_| "a real-time signal".to_owned(), |signal| signal.as_str().to_owned());
        let message = match (signal, self.0.cpu_limit, self.0.memory_limit_bytes) {
            (Ok(Signal::SIGXCPU), Some(limit), _) => {
                format!("the program was killed by SIGXCPU: it used more processor time than its limit of {limit:?}")
            }
            (Ok(Signal::SIGKILL), Some(limit), _) => {
                format!("the program was killed by SIGKILL; its limit of processor time is {limit:?}")
            }
            // How programs commonly end that get no more memory
            (
                Ok(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGTRAP | Signal::SIGKILL),
                _,
                Some(limit),
            ) => {
                format!("the program was killed by {name}; its memory is limited to {limit} bytes")
            }
            _ => format!("the program was killed by {name}"),
        };
        CommandOutcome::failed(code::KILLED, message, RetryAdvice::ByPolicy, stderr)
    }
}

fn too_large(limit: usize, stderr: &str) -> CommandOutcome {
    let message = format!("the program wrote more than {limit} bytes on its standard output");
    CommandOutcome::failed(code::RESULT_TOO_LARGE, message, RetryAdvice::Never, stderr)
}

/// A program that writes what is not JSON has done the job, and would do it again: that helps nobody.
fn parse_result(output: &[u8], stderr: &str) -> CommandOutcome {
    if output.trim_ascii().is_empty() {
        return CommandOutcome::Succeeded(None);
    }
    let message = match json::parse::<&RawValue>(output, MAX_RESULT_DEPTH) {
        Ok(result) => return CommandOutcome::Succeeded(Some(result.get().to_owned())),
        Err(JsonError::TooDeep { limit }) => {
            format!("the program's result is nested too deeply: at most {limit} levels are allowed")
        }
        Err(_) => {
            let text = String::from_utf8_lossy(output);
            format!("the program's standard output has to be JSON or empty, it is: {}", excerpt(text.trim()))
        }
    };
    CommandOutcome::failed(code::INVALID_RESULT, message, RetryAdvice::Never, stderr)
}

/// The beginning of a text, in printable characters.
fn excerpt(text: &str) -> String {
    let end = text.char_indices().nth(MAX_EXCERPT_CHARS).map_or(text.len(), |(end, _)| end);
    printable(&text.as_bytes()[..end])
}
