//! Identifies one attempt, for every call that ends it or keeps it alive.

use redis::ScriptInvocation;

use super::{claimed_job::ClaimedJob, fence::Fence, record::JobRecord};
use crate::keys::{self, QueueKeys};
use common::id::EntryId;

/// An attempt of a job. Only the current one can be ended or kept alive; `fence` proves which one the caller means.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The job.
    pub job: &'a JobRecord,
    /// Its stream entry.
    pub entry: EntryId,
    /// Proof of the attempt.
    pub fence: &'a Fence,
}

impl<'a> Attempt<'a> {
    /// The attempt that a claim started.
    #[must_use]
    pub fn of(claimed: &'a ClaimedJob, fence: &'a Fence) -> Self {
        Self { job: &claimed.job, entry: claimed.entry, fence }
    }

    pub(crate) fn queue_keys(&self) -> QueueKeys {
        QueueKeys::new(&self.job.queue)
    }

    /// Starts a script call about this attempt: KEYS 1 to 3 are the stream, the active attempts and the leases; ARGV 1
    /// to 5 are the entry, the attempt's name and the fence, as `lua/fence.lua` reads them.
    pub(crate) fn call<'s>(&self, script: &'s redis::Script) -> ScriptInvocation<'s> {
        let mut call = call_about(script, self.job, self.entry);
        call.arg(&self.fence.args());
        call
    }
}

/// The same KEYS 1 to 3 and ARGV 1 and 2, for scripts without a fence.
pub(super) fn call_about<'s>(script: &'s redis::Script, job: &JobRecord, entry: EntryId) -> ScriptInvocation<'s> {
    let keys = QueueKeys::new(&job.queue);
    let mut call = script.prepare_invoke();
    call.key(keys.stream(job.priority)).key(keys.active()).key(keys.leases());
    call.arg(entry.to_string()).arg(keys::attempt_name(job.priority, entry));
    call
}
