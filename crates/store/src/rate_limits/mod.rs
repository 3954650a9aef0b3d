//! Jobs that wait for the limit of their key.
//!
//! A job with a key does not go straight into its stream: it waits in the queue of its key and is admitted when the key's
//! limit allows. So a tenant with ten thousand jobs has no more of them in the stream than its limit, and the jobs of the
//! others come in between: the keys take turns. What is in a stream or runs is *held* by the key.

use crate::{StoreResult, keys::QueueKeys, script};
use crate::{
    connection::{clock::MoveDue, notification::Notification},
    jobs::{Attempt, Jobs},
};
use common::{
    id::JobId,
    name::{LimitKey, Priority, QueueName},
    time::Millis,
};

/// Maximum time that an attempt can pause its key, in milliseconds.
const MAX_PAUSE_MS: Millis = 86_400_000;
/// Maximum number of jobs admitted by one call.
const MAX_ADMITTED_PER_CALL: usize = 100;

impl Jobs {
    /// Admits jobs with a key to their streams as far as its limit allows.
    pub(crate) async fn admit(&self, queue: &QueueName, key: &LimitKey) -> StoreResult<()> {
        for _ in 0..MAX_ADMITTED_PER_CALL {
            let outcome = self.admit_first(queue, key).await?;
            if ["last", "wait", "empty"].contains(&outcome.as_str()) {
                return Ok(());
            }
        }
        // There are more: maintenance continues at once, after other keys had their turn
        let timers = QueueKeys::new(queue).timers();
        self.move_due(queue, &timers, &[format!("key {key}")], (self.estimated_now(), MoveDue::Always)).await
    }

    /// Admits no job with this job's key before that time, because the attempt met a limit elsewhere. Does nothing for
    /// a job without a key or a stale attempt.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn pause_key(&self, attempt: Attempt<'_>, until: Millis) -> StoreResult<()> {
        let Some(key) = attempt.job.limit_key() else { return Ok(()) };
        let keys = attempt.queue_keys();
        let _: i64 = attempt
            .call(&script::PAUSE_KEY)
            .key(keys.key_limit(key))
            .arg(until)
            .arg(MAX_PAUSE_MS)
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        Ok(())
    }

    async fn admit_first(&self, queue: &QueueName, key: &LimitKey) -> StoreResult<String> {
        let keys = QueueKeys::new(queue);
        let mut redis = self.store.redis.clone();
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys.key_queue(key)).arg(0).arg(1).arg("WITHSCORES");
        let seen: Vec<(String, f64)> = command.query_async(&mut redis).await?;
        // Scripts name their keys: one that is not there stands for no record
        let record = |position: usize| {
            let id = seen.get(position).and_then(|(id, _)| id.parse::<JobId>().ok());
            id.map_or_else(|| keys.key_queue(key), |id| keys.record(&id))
        };
        let seen_id = |position: usize| seen.get(position).map_or("", |(id, _)| id.as_str());
        let priority = seen.first().map_or_else(Priority::default, |(_, score)| priority_of_score(*score));
        Ok(script::ADMIT
            .key(keys.key_queue(key))
            .key(keys.waiting_keys())
            .key(keys.admitted(key))
            .key(keys.key_limit(key))
            .key(keys.timers())
            .key(keys.stats())
            .key(keys.priorities())
            .key(record(0))
            .key(keys.stream(priority))
            .key(keys.key_starts(key))
            .key(record(1))
            .arg(key.as_str())
            .arg(seen_id(0))
            .arg(priority.get())
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(queue.clone()).encode())
            .arg(Notification::DueChanged(queue.clone()).encode())
            .arg(if record(1) == keys.key_queue(key) { "" } else { seen_id(1) })
            .invoke_async(&mut redis)
            .await?)
    }

    /// Moves a job whose time has come, or that is activated, into the queue of its key, and admits it if the limit allows it.
    pub(crate) async fn enqueue_for_key(
        &self,
        queue: &QueueName,
        (id, priority): (JobId, Priority),
        (key, policy): (&LimitKey, &str),
        from: WaitSet,
    ) -> StoreResult<bool> {
        let keys = QueueKeys::new(queue);
        let moved: i64 = script::ENQUEUE_FOR_KEY
            .key(from.key(&keys))
            .key(keys.record(&id))
            .key(keys.key_queue(key))
            .key(keys.waiting_keys())
            .key(keys.key_limit(key))
            .key(keys.timers())
            .key(keys.stats())
            .arg(from.as_str())
            .arg(id.to_string())
            .arg(priority.get())
            .arg(key.as_str())
            .arg(policy)
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(queue.clone()).encode())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        self.admit(queue, key).await?;
        Ok(moved == 1)
    }
}

/// The priority of a job in a key queue, from its score: see `enqueue_for_key` in `lua/stream_entry.lua`.
fn priority_of_score(score: f64) -> Priority {
    #[expect(clippy::cast_possible_truncation, reason = "scores that Galley wrote are priorities from -100 to 100")]
    let priority = -(score / 2_f64.powi(44)).floor() as i64;
    Priority::try_from(priority).unwrap_or_default()
}

/// The set in which a job waits to become available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitSet {
    /// Until it is due.
    Due,
    /// The same, and it need not be due.
    DueAtOnce,
    /// Until it is activated.
    Pending,
}

impl WaitSet {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::DueAtOnce => "due_at_once",
            Self::Pending => "pending",
        }
    }

    pub(crate) fn key(self, keys: &QueueKeys) -> String {
        match self {
            Self::Due | Self::DueAtOnce => keys.due(),
            Self::Pending => keys.pending(),
        }
    }
}
