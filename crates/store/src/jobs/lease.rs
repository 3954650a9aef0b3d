//! Keeps attempts alive. Every call is fenced: a stale attempt is reported as such and changes nothing.

use std::time::Duration;

use super::{
    Attempt, ClaimedJob, Consumer, JobRecord, Jobs, PULL_CONSUMER, attempt::call_about, enqueue::parse_entry_id,
};
use crate::connection::notification::Notification;
use crate::{
    StoreResult,
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::EntryId,
    name::{Priority, QueueName, WorkerId},
    time::Millis,
};

impl Jobs {
    /// Renews the lease of a pulled job and records its progress, if given: a JSON object of members to show. False if
    /// the attempt is not the current one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn heartbeat(&self, attempt: Attempt<'_>, progress: Option<&str>) -> StoreResult<bool> {
        let Attempt { job, entry, fence } = attempt;
        let ([_, token, worker], keys) = (fence.args(), QueueKeys::new(&job.queue));
        let renewed: i64 = call_about(&script::HEARTBEAT, job, entry)
            .arg(token)
            .arg(worker)
            .arg(progress.map_or_else(String::new, |progress| self.seal_progress(job, entry, progress)))
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(self.store.redis.lease_start(keys.prefix()))
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        count_renewals(usize::from(renewed == 1), usize::from(renewed != 1));
        Ok(renewed == 1)
    }

    /// Records the progress of a job in a queue-worker; false if the attempt is not the current one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn record_progress(
        &self,
        job: &JobRecord,
        entry: EntryId,
        consumer: &Consumer,
        progress: &str,
    ) -> StoreResult<bool> {
        let noted: i64 = call_about(&script::RECORD_PROGRESS, job, entry)
            .arg(consumer.name())
            .arg(self.seal_progress(job, entry, progress))
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        Ok(noted == 1)
    }

    fn seal_progress(&self, job: &JobRecord, entry: EntryId, progress: &str) -> String {
        let attempt = keys::attempt_name(job.priority, entry);
        self.sealer().seal(&["progress", job.queue.as_str(), &attempt], progress).into_owned()
    }

    /// The progress of an attempt as it was reported; none if it is empty.
    pub(super) fn open_progress(
        &self,
        queue: &QueueName,
        priority: Priority,
        entry: EntryId,
        stored: String,
    ) -> StoreResult<Option<String>> {
        if stored.is_empty() {
            return Ok(None);
        }
        let attempt = keys::attempt_name(priority, entry);
        self.sealer().open(&["progress", queue.as_str(), &attempt], stored).map(Some)
    }

    /// Gives a queue-worker's attempt a token with which another program can end it over HTTP, too. With a lease the
    /// attempt moves to that program altogether: leased from now on, as if pulled over HTTP. False if it is not the
    /// current one.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same token.
    pub async fn issue_callback_token(
        &self,
        claimed: &ClaimedJob,
        consumer: &Consumer,
        worker: &WorkerId,
        token: &str,
        lease: Option<Duration>,
    ) -> StoreResult<bool> {
        let job = &claimed.job;
        // With the token the other program can save one
        claimed.mark_checkpoint();
        let (deadline, keys) = (self.attempt_deadline(claimed, lease), QueueKeys::new(&job.queue));
        let issued: i64 = call_about(&script::ISSUE_CALLBACK_TOKEN, job, claimed.entry)
            .arg(consumer.name())
            .arg(token)
            .arg(claimed.started_at)
            .arg(deadline)
            .arg(worker.as_str())
            .arg(lease.map_or(0, |lease| lease.as_millis().max(1)).to_string())
            .arg(PULL_CONSUMER)
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(self.store.redis.lease_start(keys.prefix()))
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        Ok(issued == 1)
    }

    /// Renews jobs of one stream that a queue-worker runs, at most 100; returns those that it no longer has.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn renew_leases(
        &self,
        queue: &QueueName,
        priority: Priority,
        consumer: &Consumer,
        worker: &WorkerId,
        held: &[(EntryId, Millis, Option<u64>)],
    ) -> StoreResult<Vec<EntryId>> {
        let keys = QueueKeys::new(queue);
        let mut call = script::RENEW.prepare_invoke();
        call.key(keys.stream(priority)).key(keys.active()).key(keys.leases());
        call.arg(consumer.name()).arg(priority.get()).arg(worker.as_str());
        call.arg(self.store.redis.topics().notifications()).arg(Notification::DueChanged(queue.clone()).encode());
        call.arg(self.store.redis.lease_start(keys.prefix()));
        for (entry, started_at, lease_ms) in held {
            call.arg(entry.to_string()).arg(*started_at).arg(lease_ms.unwrap_or(0));
        }
        let lost: Vec<String> = call.invoke_async(&mut self.store.redis.clone()).await?;
        count_renewals(held.len().saturating_sub(lost.len()), lost.len());
        lost.iter().map(|entry| parse_entry_id(entry)).collect()
    }
}

fn count_renewals(renewed: usize, lost: usize) {
    for (result, leases) in [("renewed", renewed), ("lost", lost)] {
        if leases > 0 {
            metrics::counter!("galley_lease_renewals_total", "result" => result).increment(leases as u64);
        }
    }
}
