//! Raises the number of partitions of a queue.
//!
//! The new partitions come first, with the controls of the queue, then the other ones, then the queue itself: only then do
//! jobs go into new partitions, and by then every partition has its new, smaller share of the limits. A process that dies in between
//! leaves partitions that nobody uses, and shares that are too small; the next call completes it.

use std::collections::HashMap;

use redis::Value;

use super::{EnqueueRefusal, Jobs, Partitions};
use crate::connection::notification::Notification;
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use common::name::{MAX_PARTITIONS, Priority, QueueName};
use model::subscription::subscription_of_queue;

/// How often the streams of a queue may change while their list is on its way.
const MAX_ATTEMPTS: usize = 8;

/// Fields of the controls of a queue that its partitions have too.
const SHARED_FIELDS: [&str; 7] = ["paused", "c", "rl", "rp", "rb", "rs", "pa"];

/// Why the number of partitions is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionRefusal {
    /// It never falls.
    Fewer {
        /// The number now.
        count: u16,
    },
    /// There are at most that many, and at least one.
    OutOfBounds,
    /// A limit of the queue is smaller: a partition would have no share.
    LimitTooSmall,
    /// Failed deliveries of a subscription wait there, and one process takes them.
    OfSubscription,
    /// The partitions cannot be listed.
    Queue(EnqueueRefusal),
}

impl Jobs {
    /// Raises the number of partitions of a queue, which exists or is made.
    ///
    /// # Errors
    /// Redis is unavailable: call again.
    pub async fn raise_partitions(
        &self,
        queue: &QueueName,
        wanted: u16,
    ) -> StoreResult<Result<Partitions, PartitionRefusal>> {
        let queue = &*queue.base();
        let known = self.read_partition_counts(queue).await?;
        if let Err(refused) = self.check_wanted(queue, known, wanted) {
            return Ok(Err(refused));
        }
        if wanted == known.count {
            return Ok(Ok(known));
        }
        for partition in queue.partitions(wanted) {
            // With a stream, so that claims look at its controls
            if let Err(refused) = self.open_stream(&partition, Priority::default()).await? {
                return Ok(Err(PartitionRefusal::Queue(refused)));
            }
        }
        let before = self.read_controls(queue).await?;
        for partition in queue.partitions(wanted).iter().skip(1).rev() {
            if partition.partition_number() >= known.count {
                self.copy_controls(&before, partition).await?;
            }
            if self.set_partitions(partition, wanted).await?.is_none() {
                return Ok(Err(PartitionRefusal::LimitTooSmall));
            }
        }
        let Some(raised) = self.set_partitions(queue, wanted).await? else {
            return Ok(Err(PartitionRefusal::LimitTooSmall));
        };
        self.note_partitions(queue, raised);
        // The queue may have been paused or limited before anybody knew its new partitions
        let now = self.read_controls(queue).await?;
        if SHARED_FIELDS.iter().any(|field| before.get(*field) != now.get(*field)) {
            for partition in queue.partitions(raised.count).iter().skip(1) {
                self.copy_controls(&now, partition).await?;
            }
        }
        tracing::info!(
            event = "queue.partitioned", %queue, partitions = raised.count, key_partitions = raised.key_count,
            "queue has more partitions"
        );
        Ok(Ok(raised))
    }

    /// Raises the number to that of the settings, if these have more than was found. What refuses it is logged: the queue goes
    /// on with fewer partitions, and this process tries again a minute later.
    pub(super) async fn raise_to_settings(&self, queue: &QueueName, found: Partitions) -> StoreResult<Partitions> {
        let wanted = self.store.settings.queue(queue).and_then(|limits| limits.partitions).unwrap_or(1);
        if wanted <= found.count || self.partitions.was_refused(queue) {
            return Ok(found);
        }
        match Box::pin(self.raise_partitions(queue, wanted)).await? {
            Ok(raised) => Ok(raised),
            // Another process has more in its settings
            Err(PartitionRefusal::Fewer { .. }) => self.read_partition_counts(queue).await,
            Err(refused) => {
                self.partitions.note_refused(queue);
                tracing::warn!(
                    event = "queue.partitions_refused", %queue, wanted, ?refused,
                    "queue does not get the partitions of the settings"
                );
                self.read_partition_counts(queue).await
            }
        }
    }

    fn check_wanted(&self, queue: &QueueName, known: Partitions, wanted: u16) -> Result<(), PartitionRefusal> {
        if !(1..=MAX_PARTITIONS).contains(&wanted) {
            return Err(PartitionRefusal::OutOfBounds);
        }
        if wanted < known.count {
            return Err(PartitionRefusal::Fewer { count: known.count });
        }
        if wanted > 1 && subscription_of_queue(queue).is_some() {
            return Err(PartitionRefusal::OfSubscription);
        }
        let is_too_small = self.store.settings.queue(queue).is_some_and(|limits| !limits.have_shares(wanted));
        if is_too_small { Err(PartitionRefusal::LimitTooSmall) } else { Ok(()) }
    }

    async fn read_controls(&self, queue: &QueueName) -> StoreResult<HashMap<String, String>> {
        let mut command = redis::cmd("HGETALL");
        command.arg(QueueKeys::new(queue).control());
        Ok(command.query_async(&mut self.store.redis.clone()).await?)
    }

    /// Gives a partition the limits of its queue, and pauses or resumes it as its queue.
    async fn copy_controls(&self, controls: &HashMap<String, String>, partition: &QueueName) -> StoreResult<()> {
        let (mut removed, mut set) = (vec!["r", "ra"], Vec::new());
        for field in SHARED_FIELDS {
            match controls.get(field) {
                Some(value) => set.push((field, value.clone())),
                None => removed.push(field),
            }
        }
        self.update_control(partition, &removed, &set).await
    }

    /// Sets the number in the controls of one partition; none if a limit of the queue is smaller.
    async fn set_partitions(&self, partition: &QueueName, wanted: u16) -> StoreResult<Option<Partitions>> {
        let keys = QueueKeys::new(partition);
        for _ in 0..MAX_ATTEMPTS {
            let mut call = script::SET_PARTITIONS.prepare_invoke();
            call.key(keys.control()).key(keys.key_partitions()).key(keys.priorities()).key(keys.stats());
            call.key(keys.due()).key(keys.pending()).key(keys.timers()).key(keys.dead_letters());
            call.key(keys.discarded()).key(keys.cancelled());
            for priority in self.priorities(partition).await? {
                call.key(keys.stream(priority));
            }
            call.arg(wanted).arg(u8::from(partition.partition_number() == 0));
            // Workers ask the queue, and learn of its partitions
            call.arg(self.store.redis.topics().notifications());
            call.arg(Notification::StreamCreated(partition.clone()).encode());
            let answer: Vec<Value> = call.invoke_async(&mut self.store.redis.clone()).await?;
            let text =
                |value: Option<&Value>| value.and_then(|value| redis::from_redis_value::<String>(value.clone()).ok());
            match text(answer.first()).as_deref() {
                Some("limit") => return Ok(None),
                Some("streams") => {}
                count => {
                    let (count, key_count) = (count.map(str::to_owned), text(answer.get(1)));
                    let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
                    return Ok(Some(Partitions::from_fields(number(count), number(key_count))));
                }
            }
        }
        Err(StoreError::damaged(format!("the streams of {partition} keep changing")))
    }
}
