//! What a program's exit means for its work. Pure.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use common::{
    json::{self, JsonError},
    json_repair,
    text::printable,
};
use model::job::RetryAdvice;
use nix::sys::signal::Signal;
use serde_json::value::RawValue;

use super::{ExitCause, Program, TRY_AGAIN_EXIT_CODE, launch::LaunchToken, pipes::StdoutBuffer};

/// Maximum number of a program's output characters in a message.
const MAX_EXCERPT_CHARS: usize = 256;
/// Maximum nesting of a result, as deep as common JSON parsers allow.
const MAX_RESULT_DEPTH: usize = 128;

/// Error codes, for retry policies and for people who inspect failed jobs.
pub mod code {
    /// The program exited with an unspecific exit code.
    pub const FAILED: &str = "command_failed";
    /// A signal killed it.
    pub const KILLED: &str = "command_killed";
    /// It could not be started.
    pub const NOT_STARTED: &str = "command_not_started";
    /// It asked for a later retry.
    pub const TRY_AGAIN: &str = "command_try_again";
    /// It exceeded its time limit.
    pub const TIMEOUT: &str = "timeout";
    /// Its output is not JSON.
    pub const INVALID_RESULT: &str = "invalid_result";
    /// Its output is too large.
    pub const RESULT_TOO_LARGE: &str = "result_too_large";
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Exit code 0; the result is the JSON on standard output, if any.
    Succeeded(Option<String>),
    /// It did not do the work.
    Failed(CommandFailure),
    /// It was stopped on request. What it had done by then is unknown.
    Stopped {
        /// The end of its stderr.
        stderr: String,
    },
}

/// Why a program did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandFailure {
    /// One of [`code`].
    pub code: &'static str,
    /// For people; with the last line of stderr where that helps.
    pub message: String,
    /// Whether to retry: by policy, or never.
    pub advice: RetryAdvice,
    /// The end of its stderr.
    pub stderr: String,
}

impl CommandOutcome {
    /// Retryable: the program may be installed, or a process limit may allow it, later.
    pub(super) fn not_started(message: String) -> Self {
        Self::failed(code::NOT_STARTED, message, RetryAdvice::ByPolicy, "")
    }

    /// The program was stopped at its time limit.
    pub(super) fn timed_out(timeout_ms: u64, stderr: &str) -> Self {
        let message = format!("the program took longer than {timeout_ms} ms");
        Self::failed(code::TIMEOUT, message, RetryAdvice::ByPolicy, stderr)
    }

    fn failed(code: &'static str, message: String, advice: RetryAdvice, stderr: &str) -> Self {
        Self::Failed(CommandFailure { code, message, advice, stderr: stderr.to_owned() })
    }
}

impl Program {
    /// The outcome of a run.
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
            // The usual exits of programs that get no more memory
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

/// A program whose output is not JSON did the work, and would do it again: so the failure is permanent.
fn parse_result(output: &[u8], stderr: &str) -> CommandOutcome {
    if output.trim_ascii().is_empty() {
        return CommandOutcome::Succeeded(None);
    }
    let message = match json::parse::<&RawValue>(&json_repair::repair(output), MAX_RESULT_DEPTH) {
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

/// The start of a text, in printable characters.
fn excerpt(text: &str) -> String {
    let end = text.char_indices().nth(MAX_EXCERPT_CHARS).map_or(text.len(), |(end, _)| end);
    printable(&text.as_bytes()[..end])
}
