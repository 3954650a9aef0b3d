//! What went wrong, for people, and the exit code for scripts.

use std::{fmt, io, process::ExitCode};

use common::text::printable;
use serde_json::Value;

/// What a command gives.
pub(crate) type CliResult<T = ()> = Result<T, CliError>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// The command line asks for what cannot be. Exit code 2.
    Usage(String),
    /// No answer from a gateway. Exit code 3.
    Unreachable { url: String, problem: String },
    /// The gateway refuses. Exit code 1.
    Refused(Refusal),
    /// Something else. Exit code 1.
    Failed(String),
    /// Somebody pressed Ctrl-C during long work. Exit code 130, as shells have it.
    Interrupted(String),
    /// The reader of the output is gone, such as `head`. Not an error.
    OutputClosed,
}

/// A gateway's answer that says no.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) request_id: Option<String>,
}

impl Refusal {
    /// From any shape of errors: of the Open Job Spec (`error`), a problem (`detail`), or health (`reason`).
    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = body.get("error").filter(|error| error.is_object()).unwrap_or(&body);
        let text = |name: &str| error.get(name).and_then(Value::as_str).map(|text| printable(text.as_bytes()));
        let message = text("message").or_else(|| text("detail")).or_else(|| text("title")).or_else(|| text("reason"));
        Self {
            status,
            code: text("code").unwrap_or_else(|| "unknown".to_owned()),
            message: message.unwrap_or_else(|| format!("the gateway answered with status {status}")),
            hint: text("hint"),
            request_id: text("request_id"),
        }
    }

    /// What to do about it.
    fn advice(&self) -> Option<String> {
        let own = match self.status {
            401 => {
                "set GALLEY_KEY to a key of this gateway; `galley keys create`, or `gateway keys create` beside the \
                    gateway, makes one"
            }
            403 if self.code == "scope_required" => {
                "use a key that may do this: `galley keys list` shows what each may"
            }
            _ => "",
        };
        match (&self.hint, own) {
            (hint, "") => hint.clone(),
            (None, own) => Some(own.to_owned()),
            (Some(hint), own) => Some(format!("{hint}; {own}")),
        }
    }
}

impl CliError {
    /// The exit code after Ctrl-C.
    pub(crate) const INTERRUPTED: u8 = 130;

    pub(crate) fn usage(problem: impl Into<String>) -> Self {
        Self::Usage(problem.into())
    }

    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self::Failed(problem.into())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Refused(_) | Self::Failed(_) => ExitCode::FAILURE,
            Self::Usage(_) => ExitCode::from(2),
            Self::Unreachable { .. } => ExitCode::from(3),
            Self::Interrupted(_) => ExitCode::from(Self::INTERRUPTED),
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problem) | Self::Failed(problem) | Self::Interrupted(problem) => f.write_str(problem),
            Self::OutputClosed => Ok(()),
            Self::Unreachable { url, problem } => write!(
                f,
                "no gateway answers at {url}: {problem}\n  start one with `galley dev`, or name yours with --url or \
                 GALLEY_URL"
            ),
            Self::Refused(refusal) => {
                write!(f, "{} ({})", refusal.message, refusal.code)?;
                if let Some(advice) = refusal.advice() {
                    write!(f, "\n  {advice}")?;
                }
                match &refusal.request_id {
                    Some(id) if refusal.status >= 500 => write!(f, "\n  request {id} in the log of the gateway"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::OutputClosed } else { Self::Failed(error.to_string()) }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_errors_are_read_and_nothing_hidden_is_shown() {
        let ojs = Refusal::read(404, br#"{"error":{"code":"not_found","message":"no job \u001b[31mx","hint":"look"}}"#);
        assert_eq!((ojs.code.as_str(), ojs.message.as_str()), ("not_found", "no job \\u{1b}[31mx"));
        assert_eq!(CliError::Refused(ojs).to_string(), "no job \\u{1b}[31mx (not_found)\n  look");
        let problem = Refusal::read(401, br#"{"code":"unauthenticated","title":"x","detail":"no key"}"#);
        assert!(CliError::Refused(problem).to_string().starts_with("no key (unauthenticated)\n  set GALLEY_KEY"));
        let other = Refusal::read(502, b"<html>");
        assert_eq!(other.message, "the gateway answered with status 502");
    }
}
