//! What a worker reports, and the directives for it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use common::time::Millis;

/// Whether a worker claims new jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It claims jobs.
    Running,
    /// It claims none, and finishes the running ones.
    Quiet,
    /// It claims none, finishes the running ones, and then ends.
    Terminating,
}

/// A job that a worker runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningJob {
    /// Its id.
    pub id: String,
    /// Details, if reported.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub details: Option<RunningDetails>,
}

/// A queue-worker's details of a job that it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is named as it is in a job")]
pub struct RunningDetails {
    #[serde(rename = "type")]
    pub job_type: String,
    pub queue: String,
    pub attempt: u32,
    pub started_at: String,
}

/// A worker's report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name for people.
    pub name: String,
    /// Its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it claims new jobs.
    pub state: WorkerState,
    /// The queues that it serves.
    #[serde(default)]
    pub queues: Vec<String>,
    /// Maximum number of jobs at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Number of running jobs.
    #[serde(default)]
    pub active_jobs: usize,
    /// Its longest running jobs.
    #[serde(default)]
    pub jobs: Vec<RunningJob>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it reported.
    pub last_seen_at: String,
}

/// What a worker does when it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerAction {
    /// It asks for jobs, which a worker that was told to terminate does not.
    Fetch,
    /// It learns of its directive.
    Heartbeat,
}

impl WorkerAction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Heartbeat => "heartbeat",
        }
    }
}

impl WorkerRecord {
    /// What tells this process from another one with the same id, as far as it says; empty if it does not.
    pub(super) fn instance(&self) -> String {
        let hostname = self.hostname.as_deref().unwrap_or_default();
        self.pid.map_or_else(|| hostname.to_owned(), |pid| format!("{hostname}/{pid}"))
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

/// A directive for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directive {
    /// Claim jobs again.
    Running,
    /// Claim no new jobs.
    Quiet,
    /// Finish the running jobs and end.
    Terminate,
}

impl Directive {
    /// Its word in the worker protocol.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Quiet => "quiet",
            Self::Terminate => "terminate",
        }
    }
}

/// An issued directive: `<directive> <ms>`, and then perhaps who learned of it. The time distinguishes it from an earlier
/// equal one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuedDirective {
    /// The directive.
    pub directive: Directive,
    /// When it was issued.
    pub issued_at: Millis,
}

impl fmt::Display for IssuedDirective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.directive.as_str(), self.issued_at)
    }
}

impl FromStr for IssuedDirective {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let (word, given_at) = (words.next().ok_or(())?, words.next().ok_or(())?);
        let directives = [Directive::Running, Directive::Quiet, Directive::Terminate];
        let directive = directives.into_iter().find(|directive| directive.as_str() == word).ok_or(())?;
        Ok(Self { directive, issued_at: given_at.parse().map_err(|_| ())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back_and_noise_is_none() {
        let order = IssuedDirective { directive: Directive::Quiet, issued_at: 7 };
        assert_eq!(order.to_string().parse(), Ok(order));
        assert_eq!("quiet 7 running host/1".parse(), Ok(order), "somebody learned of it");
        for noise in ["", "quiet", "quiet x", "dance 7"] {
            assert_eq!(noise.parse::<IssuedDirective>(), Err(()));
        }
    }
}
