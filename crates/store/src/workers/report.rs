//! What a worker reports, and what can be asked of it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use common::time::Millis;

/// What a worker does with new jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Takes them.
    Running,
    /// Takes none, and finishes those it has.
    Quiet,
    /// The same, and then ends.
    Terminating,
}

/// A job that a worker has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningJob {
    /// Its id.
    pub id: String,
    /// What else is known of it.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub details: Option<RunningDetails>,
}

/// What a queue-worker knows of a job that it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is named as it is in a job")]
pub struct RunningDetails {
    #[serde(rename = "type")]
    pub job_type: String,
    pub queue: String,
    pub attempt: u32,
    pub started_at: String,
}

/// What a worker reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Its name for people.
    pub name: String,
    /// The machine it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its process there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it does with new jobs.
    pub state: WorkerState,
    /// The queues it works on.
    #[serde(default)]
    pub queues: Vec<String>,
    /// Jobs that it takes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// How many it has.
    #[serde(default)]
    pub active_jobs: usize,
    /// Those it has had for longest.
    #[serde(default)]
    pub jobs: Vec<RunningJob>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it reported.
    pub last_seen_at: String,
}

impl WorkerRecord {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(super) fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

/// What can be asked of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Directive {
    /// To take jobs again.
    Running,
    /// To take no new ones.
    Quiet,
    /// To finish those it has and end.
    Terminate,
}

impl Directive {
    /// The word for it, as the worker protocol has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Quiet => "quiet",
            Self::Terminate => "terminate",
        }
    }
}

/// A directive that was given: `<directive> <ms>`. The time tells it from the same one given before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuedDirective {
    /// What is asked.
    pub directive: Directive,
    /// When it was asked.
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
        let (word, given_at) = text.split_once(' ').ok_or(())?;
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
        for noise in ["", "quiet", "quiet x", "dance 7"] {
            assert_eq!(noise.parse::<IssuedDirective>(), Err(()));
        }
    }
}
