//! A job in an attempt.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::record::JobRecord;
use common::{id::EntryId, time::Millis};

/// A claimed job.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    /// The job.
    pub job: JobRecord,
    /// Its stream entry, which is part of every fence.
    pub entry: EntryId,
    /// The token of a pulled attempt.
    pub token: Option<String>,
    /// When it was claimed, by Redis's clock.
    pub started_at: Millis,
    /// Whether its handler logged something.
    pub(crate) has_log: HasLog,
}

/// A mark that is set while many share the job.
#[derive(Debug, Default)]
pub(crate) struct HasLog(AtomicBool);

impl Clone for HasLog {
    fn clone(&self) -> Self {
        Self(AtomicBool::new(self.0.load(Relaxed)))
    }
}

impl ClaimedJob {
    /// An attempt that was claimed earlier.
    #[must_use]
    pub fn new(job: JobRecord, entry: EntryId, token: Option<String>, started_at: Millis) -> Self {
        Self { job, entry, token, started_at, has_log: HasLog::default() }
    }

    /// Whether its handler logged something.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.has_log.0.load(Relaxed)
    }

    /// Notes that its handler logs something.
    pub fn mark_log(&self) {
        self.has_log.0.store(true, Relaxed);
    }

    /// How long the job waited for this attempt, in milliseconds.
    #[must_use]
    pub fn waited_ms(&self) -> Millis {
        self.started_at - self.job.waits_since()
    }
}
