//! Names of consumers in the pending lists of streams.

use std::{fmt, time::Duration};

const POSTPONED: &str = "postponed";
/// How long a job is postponed at least.
const POSTPONED_LEASE: Duration = Duration::from_secs(5);

/// The consumer of all jobs pulled over HTTP.
pub const PULL_CONSUMER: &str = "pull";

/// The name of a queue-worker process in pending lists. It contains the worker's lease, so that a process that
/// reclaims its jobs applies that lease and not its own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    name: String,
    lease: Duration,
}

impl Consumer {
    /// A unique name.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self { name: format!("w-{}-{}", lease.as_millis(), uuid::Uuid::new_v4().simple()), lease }
    }

    /// Holds the entries of jobs that failed when Redis had no room for their records: maintenance releases them when
    /// there is room. The attempt does not count.
    pub(crate) fn postponed() -> Self {
        let lease = POSTPONED_LEASE;
        Self { name: format!("w-{}-{POSTPONED}", lease.as_millis()), lease }
    }

    /// Whether it holds postponed jobs.
    pub(crate) fn is_postponed(&self) -> bool {
        self.name.ends_with(POSTPONED)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The worker's lease: how long it may stay silent.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Parses a name; none if it is not a queue-worker's.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (lease, _) = name.strip_prefix("w-")?.split_once('-')?;
        Some(Self { name: name.to_owned(), lease: Duration::from_millis(lease.parse().ok()?) })
    }
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
