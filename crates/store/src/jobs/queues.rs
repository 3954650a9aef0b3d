//! The queues, their streams and their controls.

use std::{collections::HashMap, time::Duration};

use redis::Script;

use super::{EnqueueRefusal, Jobs, Partitions, claim::duration_millis, maintenance_mode::PauseReason};
use crate::connection::notification::Notification;
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::queue_tag,
    name::{Priority, QueueName},
    rate::Rate,
};

/// The controls of a queue: from the settings and set at run time.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueControl {
    /// It hands out no jobs.
    pub is_paused: bool,
    /// It accepts no new jobs.
    pub is_closed: bool,
    /// Maximum number of running jobs.
    pub concurrency: Option<u32>,
    /// Maximum number of starts in a period.
    pub rate: Option<Rate>,
    /// How much earlier a job counts as arrived for each step of its priority.
    pub priority_aging: Option<Duration>,
    /// Maximum number of waiting jobs.
    pub max_depth: Option<u64>,
    /// How many partitions it has.
    pub partitions: Partitions,
}

/// The limits of a queue that can be set at run time. Absent ones are those of the settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunTimeLimits {
    /// Maximum number of running jobs.
    pub concurrency: Option<u32>,
    /// Maximum number of starts in a period.
    pub rate: Option<Rate>,
    /// How much earlier a job counts as arrived for each step of its priority.
    pub priority_aging: Option<Duration>,
}

impl Jobs {
    /// Every queue, in no particular order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_queues(&self) -> StoreResult<Vec<QueueName>> {
        let mut queues = self.list_partitions().await?;
        queues.retain(|queue| queue.partition_number() == 0);
        Ok(queues)
    }

    /// Every queue and every partition of one, in no particular order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_partitions(&self) -> StoreResult<Vec<QueueName>> {
        let names: Vec<String> =
            redis::cmd("ZRANGE").arg(keys::QUEUES).arg(0).arg(-1).query_async(&mut self.store.redis.clone()).await?;
        // A name that does not parse was written by another program: leave it alone
        Ok(names.into_iter().filter_map(|name| QueueName::from_stored(&name).ok()).collect())
    }

    /// Up to `max` queues, in no particular order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list_some_queues(&self, max: usize) -> StoreResult<Vec<QueueName>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::QUEUES).arg(0).arg(max.saturating_sub(1));
        let names: Vec<String> = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Those of these queues that do not exist.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn unknown_queues<'q>(&self, queues: &'q [QueueName]) -> StoreResult<Vec<&'q QueueName>> {
        if queues.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("ZMSCORE");
        command.arg(keys::QUEUES).arg(queues.iter().map(QueueName::as_str).collect::<Vec<_>>());
        let scores: Vec<Option<f64>> = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(queues.iter().zip(scores).filter_map(|(queue, score)| score.is_none().then_some(queue)).collect())
    }

    /// Pauses a queue, which then hands out no jobs, or resumes it. Workers learn of it within milliseconds.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been done nevertheless.
    pub async fn set_queue_paused(&self, queue: &QueueName, paused: bool) -> StoreResult<Result<(), EnqueueRefusal>> {
        if let Err(refused) = self.register_queue(queue).await? {
            return Ok(Err(refused));
        }
        self.set_paused(queue, PauseReason::Operator, paused).await?;
        // Asked now: who adds a partition later finds the queue paused
        for partition in self.read_partitions(queue).await?.iter().skip(1) {
            self.set_paused(partition, PauseReason::Operator, paused).await?;
        }
        Ok(Ok(()))
    }

    /// Closes a queue to new jobs, while the waiting ones are worked off, or opens it again. Gateways notice within a
    /// second.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been done nevertheless.
    pub async fn set_queue_closed(&self, queue: &QueueName, closed: bool) -> StoreResult<Result<(), EnqueueRefusal>> {
        if let Err(refused) = self.register_queue(queue).await? {
            return Ok(Err(refused));
        }
        if closed {
            self.update_control(queue, &[], &[("closed", "1".to_owned())]).await.map(Ok)
        } else {
            self.update_control(queue, &["closed"], &[]).await.map(Ok)
        }
    }

    /// Changes a queue's controls and notifies its workers.
    pub(super) async fn update_control(
        &self,
        queue: &QueueName,
        removed: &[&str],
        set: &[(&str, String)],
    ) -> StoreResult<()> {
        let mut call = script::SET_CONTROL.key(QueueKeys::new(queue).control());
        call.arg(self.store.redis.topics().notifications()).arg(Notification::StreamCreated(queue.clone()).encode());
        call.arg(removed.len()).arg(removed);
        for (field, value) in set {
            call.arg(*field).arg(value);
        }
        let _: i64 = call.invoke_async(&mut self.store.redis.clone()).await?;
        Ok(())
    }

    /// The controls of a queue at run time.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn queue_control(&self, queue: &QueueName) -> StoreResult<QueueControl> {
        let fields: HashMap<String, String> = redis::cmd("HGETALL")
            .arg(QueueKeys::new(queue).control())
            .query_async(&mut self.store.redis.clone())
            .await?;
        Ok(self.control_of(queue, &fields))
    }

    /// The controls of a queue from their stored fields and the settings.
    pub(super) fn control_of(&self, queue: &QueueName, fields: &HashMap<String, String>) -> QueueControl {
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok());
        let small = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
        let rate = small("rl").zip(number("rp")).map(|(limit, period_ms)| Rate {
            limit,
            period_ms,
            burst: small("rb").unwrap_or(limit),
            is_strict: number("rs") == Some(1),
        });
        let settings = self.store.settings.queue(queue).copied().unwrap_or_default();
        let partitions = |name: &str| number(name).and_then(|number| u16::try_from(number).ok());
        let partitions = Partitions::from_fields(partitions("n"), partitions("k"));
        if queue.partition_number() == 0 {
            self.note_partitions(queue, partitions);
        }
        QueueControl {
            partitions,
            is_paused: fields.contains_key("paused"),
            is_closed: fields.contains_key("closed"),
            concurrency: small("c").or(settings.concurrency),
            rate: rate.or(settings.rate),
            max_depth: settings.max_depth,
            priority_aging: number("pa").map(Duration::from_millis).or(settings.priority_aging),
        }
    }

    /// Sets the limits of a queue, which override the settings; an absent limit falls back to the settings.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been done nevertheless.
    pub async fn set_queue_limits(
        &self,
        queue: &QueueName,
        limits: RunTimeLimits,
    ) -> StoreResult<Result<(), EnqueueRefusal>> {
        let RunTimeLimits { concurrency, rate, priority_aging } = limits;
        if let Err(refused) = self.register_queue(queue).await? {
            return Ok(Err(refused));
        }
        let mut set = Vec::new();
        set.extend(concurrency.map(|max| ("c", max.to_string())));
        set.extend(rate.map(rate_fields).into_iter().flatten());
        set.extend(priority_aging.map(|aging| ("pa", duration_millis(aging).to_string())));
        let mut left = vec![queue.clone()];
        while let Some(partition) = left.pop() {
            let mut call = script::SET_LIMITS.key(QueueKeys::new(&partition).control());
            call.arg(self.store.redis.topics().notifications());
            call.arg(Notification::StreamCreated(partition.clone()).encode());
            call.arg(concurrency.map_or_else(String::new, |max| max.to_string()));
            call.arg(rate.map_or_else(String::new, |rate| rate.limit.min(rate.burst).to_string()));
            for (field, value) in &set {
                call.arg(*field).arg(value);
            }
            let partitions: u16 = call.invoke_async(&mut self.store.redis.clone()).await?;
            if partitions > 0 {
                return Ok(Err(EnqueueRefusal::LimitBelowPartitions { partitions }));
            }
            if partition == *queue {
                // Asked now: who adds a partition later finds the limits of the queue
                left = self.read_partitions(queue).await?.split_off(1);
            }
        }
        Ok(Ok(()))
    }

    /// Deletes an empty queue; false if it has jobs, or partitions, whose number must outlive every job. Results remain until their TTL ends, but cannot be looked up.
    ///
    /// # Errors
    /// Redis is unavailable: call again.
    pub async fn delete_queue(&self, queue: &QueueName) -> StoreResult<bool> {
        let keys = QueueKeys::new(queue);
        let mut redis = self.store.redis.clone();
        let mut call = script::DELETE_QUEUE.prepare_invoke();
        call.key(keys.priorities()).key(keys.due()).key(keys.pending()).key(keys.timers()).key(keys.dead_letters());
        call.key(keys.active()).key(keys.leases()).key(keys.stats()).key(keys.control()).key(keys.waiting_keys());
        call.key(keys.discarded()).key(keys.cancelled()).key(keys.completed_index());
        for priority in self.priorities(queue).await? {
            call.key(keys.stream(priority));
        }
        let deleted: i64 = call.invoke_async(&mut redis).await?;
        if deleted == 0 {
            return Ok(false);
        }
        let (_, came_in): (i64, u64) = redis::pipe()
            .cmd("ZREM")
            .arg(keys::QUEUES)
            .arg(&*queue.stored())
            .cmd("EXISTS")
            .arg(&[keys.priorities(), keys.due(), keys.pending(), keys.waiting_keys()])
            .query_async(&mut redis)
            .await?;
        // A job came in between, so the queue exists again. A later one registers it again itself
        if came_in > 0 {
            return self.add_to_registry(queue).await.map(|()| false);
        }
        self.forget_statistics(queue).await?;
        Ok(true)
    }

    /// Creates the stream of a queue's priority, and the queue if it is new.
    pub(crate) async fn open_stream(
        &self,
        queue: &QueueName,
        priority: Priority,
    ) -> StoreResult<Result<(), EnqueueRefusal>> {
        if let Err(refused) = self.register_queue(queue).await? {
            return Ok(Err(refused));
        }
        let keys = QueueKeys::new(queue);
        let script: &Script = &script::OPEN_STREAM;
        let is_new: i64 = script
            .key(keys.priorities())
            .key(keys.stream(priority))
            .arg(priority.get())
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(queue.clone()).encode())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        if is_new == 1 {
            self.add_to_registry(queue).await?;
        }
        Ok(Ok(()))
    }

    /// Registers a queue that has a job: it may have been deleted just before.
    pub(crate) async fn add_to_registry(&self, queue: &QueueName) -> StoreResult<()> {
        let mut call = script::REGISTER_QUEUE.key(keys::QUEUES);
        let _: i64 =
            call.arg(queue_tag(queue)).arg(&*queue.stored()).invoke_async(&mut self.store.redis.clone()).await?;
        Ok(())
    }

    /// Whether a queue exists: it had a job, a control or a worker, or the settings name it.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn has_queue(&self, queue: &QueueName) -> StoreResult<bool> {
        if self.store.settings.queues.contains_key(queue) {
            return Ok(true);
        }
        let mut command = redis::cmd("ZSCORE");
        command.arg(keys::QUEUES).arg(queue.as_str());
        let score: Option<f64> = command.query_async(&mut self.store.redis.clone()).await?;
        if score.is_some() {
            return Ok(true);
        }
        // The list is not trusted
        let mut command = redis::cmd("EXISTS");
        command.arg(QueueKeys::new(queue).lasting());
        let held: u64 = command.query_async(&mut self.store.redis.clone()).await?;
        if held > 0 {
            self.add_to_registry(queue).await?;
        }
        Ok(held > 0)
    }

    /// Registers a queue. Comes before any other write, so that no queue is invisible.
    ///
    /// # Errors
    /// Redis is unavailable: call again.
    pub async fn register_queue(&self, queue: &QueueName) -> StoreResult<Result<(), EnqueueRefusal>> {
        let mut connection = self.store.redis.clone();
        let (known, count): (Option<f64>, u64) = redis::pipe()
            .cmd("ZSCORE")
            .arg(keys::QUEUES)
            .arg(&*queue.stored())
            .cmd("ZCARD")
            .arg(keys::QUEUES)
            .query_async(&mut connection)
            .await?;
        if known.is_some() {
            return Ok(Ok(()));
        }
        let max_queues = self.store.settings.jobs.max_queues;
        if count >= max_queues {
            return Ok(Err(EnqueueRefusal::TooManyQueues { max_queues }));
        }
        self.add_to_registry(queue).await?;
        self.follow_maintenance_mode(queue).await.map(Ok)
    }

    /// The priorities that a queue has streams for, highest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn priorities(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        let members: Vec<String> = redis::cmd("SMEMBERS")
            .arg(QueueKeys::new(queue).priorities())
            .query_async(&mut self.store.redis.clone())
            .await?;
        Ok(sorted_priorities(&members))
    }

    /// Makes a queue ready for claims, so that a worker can wait on its streams, and returns its priorities: creates it if
    /// it does not exist, and finds streams and restores groups that somebody deleted or that the index lacks.
    ///
    /// # Errors
    /// Redis is unavailable or full, there are too many queues, or a key has another type.
    pub async fn open_queue(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        if let Err(refused) = self.register_queue(queue).await? {
            return Err(StoreError::damaged(format!("queue {queue} cannot be made: {refused:?}")));
        }
        let keys = QueueKeys::new(queue);
        let mut call = script::OPEN_QUEUE.prepare_invoke();
        call.key(keys.priorities());
        for priority in Priority::all() {
            call.key(keys.stream(priority));
        }
        call.arg(self.store.redis.topics().notifications()).arg(Notification::StreamCreated(queue.clone()).encode());
        call.arg(Priority::default().get());
        for priority in Priority::all() {
            call.arg(priority.get());
        }
        let (listed, is_new): (Vec<String>, i64) = call.invoke_async(&mut self.store.redis.clone()).await?;
        if is_new == 1 {
            // It may have been deleted just before
            self.add_to_registry(queue).await?;
        }
        Ok(sorted_priorities(&listed))
    }
}

fn rate_fields(rate: Rate) -> [(&'static str, String); 4] {
    [
        ("rl", rate.limit.to_string()),
        ("rp", rate.period_ms.to_string()),
        ("rb", rate.burst.to_string()),
        ("rs", u8::from(rate.is_strict).to_string()),
    ]
}

pub(crate) fn sorted_priorities(members: &[String]) -> Vec<Priority> {
    let mut priorities: Vec<Priority> = members.iter().filter_map(|member| Priority::from_text(member)).collect();
    priorities.sort_unstable_by(|a, b| b.cmp(a));
    priorities
}
