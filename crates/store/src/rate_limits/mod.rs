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
/// Maximum number of calls for a key, so that one with many jobs does not hold up the others.
const MAX_CALLS: usize = 16;
/// Maximum number of keys, and of jobs of a key, in one call: Redis serves nobody else meanwhile.
const MAX_KEYS_PER_CALL: usize = 16;
const MAX_JOBS_PER_CALL: usize = 8;

impl Jobs {
    /// Admits jobs with a key to their streams as far as its limit allows.
    pub(crate) async fn admit(&self, queue: &QueueName, key: &LimitKey) -> StoreResult<()> {
        self.admit_next(queue, vec![(key.clone(), 1)]).await
    }

    /// Admits the next jobs of keys, as far as the limits of these allow. The number beside a key says about how many.
    pub(crate) async fn admit_next(&self, queue: &QueueName, keys: Vec<(LimitKey, usize)>) -> StoreResult<()> {
        let mut keys = keys;
        for _ in 0..MAX_CALLS {
            let mut left = Vec::new();
            for chunk in keys.chunks(MAX_KEYS_PER_CALL) {
                let outcomes = self.admit_first(queue, chunk).await?;
                let goes_on = |outcome: &String| ["more", "changed"].contains(&outcome.as_str());
                let more = chunk.iter().zip(&outcomes).filter(|(_, outcome)| goes_on(outcome));
                left.extend(more.map(|((key, _), _)| (key.clone(), MAX_JOBS_PER_CALL)));
            }
            if left.is_empty() {
                return Ok(());
            }
            keys = left;
        }
        // There are more: maintenance continues at once, after other keys had their turn
        let timers: Vec<String> = keys.iter().map(|(key, _)| format!("key {key}")).collect();
        let due = (self.estimated_now(), MoveDue::Always);
        self.move_due(queue, &QueueKeys::new(queue).timers(), &timers, due).await
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

    /// Admits the first jobs of each key: one more than it is said that there is room for, which shows that there is no more.
    async fn admit_first(&self, queue: &QueueName, limited: &[(LimitKey, usize)]) -> StoreResult<Vec<String>> {
        let keys = QueueKeys::new(queue);
        let mut redis = self.store.redis.clone();
        let mut look = redis::pipe();
        for (key, count) in limited {
            let last = (*count).min(MAX_JOBS_PER_CALL - 1);
            look.cmd("ZRANGE").arg(keys.key_queue(key)).arg(0).arg(last).arg("WITHSCORES");
        }
        let seen: Vec<Vec<(String, f64)>> = look.query_async(&mut redis).await?;
        let mut call = script::ADMIT.prepare_invoke();
        call.key(keys.waiting_keys()).key(keys.timers()).key(keys.stats()).key(keys.priorities());
        call.arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(queue.clone()).encode())
            .arg(Notification::DueChanged(queue.clone()).encode())
            .arg(limited.len());
        for ((key, _), jobs) in limited.iter().zip(&seen) {
            // What is no id has no record: the jobs in front of it are admitted
            let jobs =
                jobs.iter().map_while(|(id, score)| Some((id.parse::<JobId>().ok()?, priority_of_score(*score))));
            let jobs: Vec<(JobId, Priority)> = jobs.collect();
            call.key(keys.key_queue(key)).key(keys.admitted(key)).key(keys.key_limit(key)).key(keys.key_starts(key));
            call.arg(key.as_str()).arg(jobs.len());
            for (id, priority) in jobs {
                call.key(keys.record(&id)).key(keys.stream(priority)).arg(id.to_string()).arg(priority.get());
            }
        }
        Ok(call.invoke_async(&mut redis).await?)
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
