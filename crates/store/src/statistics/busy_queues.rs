//! In which queues something happens, from what processes send for the history: so that the leader measures these and leaves
//! idle ones alone.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::name::QueueName;

use super::flushes::{FlushEntry, SeenFlushes};
use crate::{StoreResult, jobs::Jobs, keys};

/// Entries of one read, and reads at a time.
const MAX_ENTRIES: usize = 64;
const MAX_READS: usize = 16;

/// Queues in which something happened since somebody took them.
#[derive(Debug, Default)]
pub(crate) struct BusyQueues(Mutex<BusyState>);

#[derive(Debug, Default)]
struct BusyState {
    queues: HashMap<QueueName, QueueChange>,
    seen: SeenFlushes,
    /// The newest entry.
    last: (u64, u64),
}

/// What happened in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueChange {
    /// Jobs that came, less those that ended. What is on its way from another process may be missing.
    pub(crate) net: i64,
    /// Whether something failed, so that jobs may wait for another attempt or are dead letters.
    pub(crate) has_failed: bool,
}

impl BusyQueues {
    /// Notes what entries hold. Those that were noted are left out, so several may read the same.
    pub(super) fn note(&self, entries: &[FlushEntry]) {
        let mut state = self.lock();
        for entry in entries {
            let id = entry_id(&entry.id);
            if id <= state.last {
                continue;
            }
            state.last = id;
            for flushed in state.seen.read(entry) {
                let Ok(queue) = flushed.queue.parse::<QueueName>() else { continue };
                let (change, tally) = (state.queues.entry(queue).or_default(), &flushed.tally);
                let ended = tally.completed + tally.discarded + tally.cancelled;
                change.net += i64::try_from(tally.enqueued).unwrap_or(0) - i64::try_from(ended).unwrap_or(0);
                change.has_failed |= tally.failed + tally.discarded > 0;
            }
        }
    }

    /// Reads what processes sent and nobody has folded yet.
    pub(crate) async fn read(&self, jobs: &Jobs) -> StoreResult<()> {
        for _ in 0..MAX_READS {
            let after = match self.lock().last {
                (0, 0) => "-".to_owned(),
                (time, sequence) => format!("({time}-{sequence}"),
            };
            let mut command = redis::cmd("XRANGE");
            command.arg(keys::STATISTICS_FLUSHES).arg(after).arg("+").arg("COUNT").arg(MAX_ENTRIES);
            let entries: Vec<FlushEntry> = command.query_async(&mut jobs.store().redis.clone()).await?;
            self.note(&entries);
            if entries.len() < MAX_ENTRIES {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn take(&self) -> HashMap<QueueName, QueueChange> {
        std::mem::take(&mut self.lock().queues)
    }

    fn lock(&self) -> MutexGuard<'_, BusyState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry_id(id: &str) -> (u64, u64) {
    let parts = id.split_once('-').unwrap_or((id, "0"));
    (parts.0.parse().unwrap_or(0), parts.1.parse().unwrap_or(0))
}
