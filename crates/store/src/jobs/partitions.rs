//! Partitions of queues: how many a queue has, and which of them a job is put into.
//!
//! A partition is a queue of its own in Redis, with a slot of its own, so that one hot queue uses several primaries of a
//! cluster; nothing else knows that it is a part of another. Partition 0 is the queue itself. Its controls say how many
//! partitions there are, and every process reads these controls anyway: once a second for a queue that it puts jobs into,
//! and with each claim. A number that is known too late is no harm: a job is put into fewer partitions.
//!
//! A job with a concurrency key, a uniqueness or an id that the request gives must meet others like it, so it has a home:
//! one of the key partitions, whose number never changes. A process that does not know the number yet puts such a job into
//! partition 0, where `create.lua` finds the number and refuses.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::Jobs;
use crate::{StoreResult, keys::QueueKeys};
use common::{
    hash::mixed_fnv1a,
    name::{MAX_PARTITIONS, QueueName},
};
use model::job::NewJob;

/// Queues with partitions that a process remembers.
const MAX_KNOWN_QUEUES: usize = 1000;
/// How long a process waits before it asks again for the partitions of the settings.
const REFUSAL_PAUSE: Duration = Duration::from_mins(1);

/// How many partitions a queue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partitions {
    /// All of them, 1 if the queue has no others.
    pub count: u16,
    /// Those that have jobs with a key, a uniqueness or an id that the request gives; never changes.
    pub key_count: u16,
}

impl Default for Partitions {
    fn default() -> Self {
        Self { count: 1, key_count: 1 }
    }
}

impl Partitions {
    /// As the controls of a queue say it: the fields `n` and `k`.
    pub(super) fn from_fields(count: Option<u16>, key_count: Option<u16>) -> Self {
        let count = count.unwrap_or(1).clamp(1, MAX_PARTITIONS);
        Self { count, key_count: key_count.unwrap_or(1).clamp(1, count) }
    }
}

/// The queues with partitions that this process knows.
#[derive(Default)]
pub(super) struct KnownPartitions {
    has_any: AtomicBool,
    queues: RwLock<HashMap<QueueName, Arc<KnownQueue>>>,
    /// Queues that did not get the partitions of the settings, and when that was.
    refused: Mutex<HashMap<QueueName, Instant>>,
}

struct KnownQueue {
    /// Partition 0 first.
    all: Vec<QueueName>,
    /// None if only a claim told of the partitions.
    key_count: Option<u16>,
    /// Turns of jobs and of claims.
    turn: Arc<AtomicUsize>,
}

impl KnownPartitions {
    fn of(&self, queue: &QueueName) -> Option<Arc<KnownQueue>> {
        if !self.has_any.load(Relaxed) {
            return None;
        }
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(&*queue.base()).cloned()
    }

    /// Whether the partitions of the settings were refused a short while ago.
    pub(super) fn was_refused(&self, queue: &QueueName) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(queue).is_some_and(|at| at.elapsed() < REFUSAL_PAUSE)
    }

    pub(super) fn note_refused(&self, queue: &QueueName) {
        // As many as the settings name at most
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), Instant::now());
    }

    /// Remembers what Redis says of a queue. The number never falls, unless Redis lost it.
    fn note(&self, queue: &QueueName, count: u16, key_count: Option<u16>) {
        let is_known = |known: &KnownQueue| {
            known.all.len() == usize::from(count) && (key_count.is_none() || known.key_count == key_count)
        };
        let known = self.of(queue);
        if known.as_ref().map_or(count == 1, |known| is_known(known)) {
            return;
        }
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        let queue = queue.base().into_owned();
        if count == 1 {
            queues.remove(&queue);
            return;
        }
        if queues.len() >= MAX_KNOWN_QUEUES {
            queues.clear();
        }
        let key_count = key_count.or(known.as_ref().and_then(|known| known.key_count));
        let turn =
            known.map_or_else(|| Arc::new(AtomicUsize::new(rand::random::<u16>().into())), |known| known.turn.clone());
        queues.insert(queue.clone(), Arc::new(KnownQueue { all: queue.partitions(count), key_count, turn }));
        self.has_any.store(true, Relaxed);
    }
}

impl KnownQueue {
    fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Relaxed) % self.all.len()
    }

    /// The partition of a new job.
    fn choose(&self, new: &NewJob) -> &QueueName {
        match home_of(new) {
            Some(Home::First) => &self.all[0],
            Some(Home::Of(text)) => &self.all[home_number(&text, self.key_count.unwrap_or(1))],
            None => &self.all[self.next_turn()],
        }
    }
}

/// Which of the key partitions a job belongs to.
enum Home {
    /// Partition 0: that of all jobs of workflows, which look them up there.
    First,
    /// The one of this text.
    Of(String),
}

/// The home of a job; none if any partition will do.
fn home_of(new: &NewJob) -> Option<Home> {
    if new.workflow.is_some() {
        return Some(Home::First);
    }
    let key = new.summary.limit.as_ref().map(|limit| format!("key {}", limit.key));
    let unique = || new.unique.as_ref().map(|unique| format!("unique {}", unique.fingerprint));
    let id = || new.id.map(|id| format!("id {id}"));
    key.or_else(unique).or_else(id).map(Home::Of)
}

/// Whether a job must meet others like it.
fn has_home(new: &NewJob) -> bool {
    new.workflow.is_none() && (new.summary.limit.is_some() || new.unique.is_some() || new.id.is_some())
}

fn home_number(text: &str, key_count: u16) -> usize {
    usize::try_from(mixed_fnv1a(text) % u64::from(key_count.max(1))).unwrap_or_default()
}

/// The part of a maximum that a partition has. The parts of all partitions add up to it.
#[must_use]
pub(super) fn share(max: u64, queue: &QueueName, count: u16) -> u64 {
    let (count, number) = (u64::from(count.max(1)), u64::from(queue.partition_number()));
    max / count + u64::from(number < max % count)
}

impl Jobs {
    /// The partitions of a queue as far as this process knows them; the queue itself if it has no others.
    #[must_use]
    pub fn known_partitions(&self, queue: &QueueName) -> Vec<QueueName> {
        self.partitions.of(queue).map_or_else(|| vec![queue.base().into_owned()], |known| known.all.clone())
    }

    /// Queues with their partitions as far as this process knows them, each time another one first; none if no queue has
    /// partitions.
    #[must_use]
    pub fn claim_order(&self, queues: &[QueueName]) -> Option<Vec<QueueName>> {
        if !self.partitions.has_any.load(Relaxed) || queues.iter().all(|queue| self.partitions.of(queue).is_none()) {
            return None;
        }
        let mut order = Vec::with_capacity(queues.len());
        for queue in queues {
            match self.partitions.of(queue) {
                None => order.push(queue.clone()),
                Some(known) => {
                    let (before, after) = known.all.split_at(known.next_turn());
                    order.extend(after.iter().chain(before).cloned());
                }
            }
        }
        Some(order)
    }

    /// The partitions of a queue as Redis knows them, the queue itself first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read_partitions(&self, queue: &QueueName) -> StoreResult<Vec<QueueName>> {
        let queue = queue.base();
        let found = self.read_partition_counts(&queue).await?;
        Ok(queue.partitions(found.count))
    }

    /// How many partitions a queue has.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read_partition_counts(&self, queue: &QueueName) -> StoreResult<Partitions> {
        let queue = queue.base();
        let mut command = redis::cmd("HMGET");
        command.arg(QueueKeys::new(&queue).control()).arg("n").arg("k");
        let (count, key_count) = command.query_async(&mut self.store.redis.clone()).await?;
        let found = Partitions::from_fields(count, key_count);
        self.note_partitions(&queue, found);
        Ok(found)
    }

    /// Whether the keys of a queue are spread over several partitions, up to a second late.
    pub(crate) async fn has_key_partitions(&self, queue: &QueueName) -> StoreResult<bool> {
        self.is_closed(queue).await?;
        Ok(self.partitions.of(queue).is_some_and(|known| known.key_count.is_some_and(|count| count > 1)))
    }

    /// Remembers how many partitions a queue has.
    pub(super) fn note_partitions(&self, queue: &QueueName, found: Partitions) {
        self.partitions.note(queue, found.count, Some(found.key_count));
    }

    /// Remembers how many partitions a queue has that a claim told of, and raises their number to that of the settings.
    /// If that fails, the next claim tries again.
    pub(super) async fn note_claimed_partitions(&self, queue: &QueueName, count: Option<u16>) -> Option<u16> {
        let found = Partitions::from_fields(count, None);
        let raised = Box::pin(self.raise_to_settings(&queue.base(), found)).await;
        let count = raised.map_or(found.count, |raised| raised.count);
        if count == 1 {
            return None;
        }
        // Other partitions have the number before jobs may go there
        if queue.partition_number() == 0 {
            self.partitions.note(queue, count, None);
        }
        Some(count)
    }

    /// Chooses the partition of a new job. Returns whether it is another one than before.
    pub(super) fn place(&self, new: &mut NewJob) -> bool {
        let Some(known) = self.partitions.of(&new.queue) else { return false };
        let chosen = known.choose(new);
        if *chosen == new.queue {
            return false;
        }
        new.queue = chosen.clone();
        true
    }

    /// Chooses the partitions of the jobs of one batch. Those without a home get one partition for each queue, so that
    /// they are stored together.
    pub(super) fn place_batch(&self, new: &mut [NewJob]) {
        if !self.partitions.has_any.load(Relaxed) {
            return;
        }
        let mut chosen: HashMap<QueueName, QueueName> = HashMap::new();
        for job in new {
            if has_home(job) || job.workflow.is_some() {
                self.place(job);
            } else if let Some(partition) = chosen.get(&*job.queue.base()) {
                job.queue = partition.clone();
            } else {
                let queue = job.queue.base().into_owned();
                self.place(job);
                chosen.insert(queue, job.queue.clone());
            }
        }
    }

    /// Whether a job must be refused in partition 0 if the queue has several key partitions: this process may not know them,
    /// and a job of a workflow is always there.
    pub(super) fn may_have_another_home(&self, new: &NewJob) -> bool {
        if new.workflow.is_some() {
            return new.summary.limit.is_some() || new.unique.is_some();
        }
        let key_count = || self.partitions.of(&new.queue).and_then(|known| known.key_count).unwrap_or(1);
        has_home(new) && new.queue.partition_number() == 0 && key_count() == 1
    }

    /// How many jobs may wait in a partition.
    pub(crate) fn max_depth(&self, queue: &QueueName) -> Option<u64> {
        let max = self.store.settings.max_depth(queue)?;
        let count = self.partitions.of(queue).and_then(|known| u16::try_from(known.all.len()).ok());
        Some(count.map_or(max, |count| share(max, queue, count).max(1)))
    }
}

/// Writes the number of a partition as the last part of a cursor, whose queue does not tell it.
pub(super) fn write_partition(f: &mut fmt::Formatter<'_>, queue: &QueueName) -> fmt::Result {
    match queue.partition_number() {
        0 => Ok(()),
        number => write!(f, "/{number}"),
    }
}

/// Parses the queue and the partition of a cursor.
pub(super) fn parse_partition(queue: Option<&str>, number: Option<&str>) -> Result<QueueName, ()> {
    let queue: QueueName = queue.and_then(|queue| queue.parse().ok()).ok_or(())?;
    let Some(number) = number else { return Ok(queue) };
    let number: u16 = number.parse().map_err(drop)?;
    if (1..MAX_PARTITIONS).contains(&number) { Ok(queue.partition(number)) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_shares_of_all_partitions_are_the_maximum(max in 0..1_000_000_u64, count in 1..=MAX_PARTITIONS) {
            let queue: QueueName = "mail".parse().expect("a name");
            let shares: Vec<u64> = queue.partitions(count).iter().map(|one| share(max, one, count)).collect();
            prop_assert_eq!(shares.iter().sum::<u64>(), max);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
        }

        #[test]
        fn a_home_is_a_key_partition_and_always_the_same(text in ".{0,40}", key_count in 1..=MAX_PARTITIONS) {
            let home = home_number(&text, key_count);
            prop_assert!(home < usize::from(key_count));
            prop_assert_eq!(home, home_number(&text, key_count));
        }
    }

    #[test]
    fn homes_are_spread() {
        let mut counts = [0_u32; 8];
        for number in 0..8000 {
            counts[home_number(&format!("key user-{number}"), 8)] += 1;
        }
        // Ten standard deviations around 1000
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_is_known_of_a_queue_changes_with_what_redis_says() {
        let (known, queue) = (KnownPartitions::default(), "mail".parse::<QueueName>().expect("a name"));
        let count = || known.of(&queue).map(|known| (known.all.len(), known.key_count));
        assert_eq!(count(), None);
        known.note(&queue, 4, None);
        assert_eq!(count(), Some((4, None)), "a claim told of it");
        known.note(&queue, 4, Some(4));
        known.note(&queue, 8, None);
        assert_eq!(count(), Some((8, Some(4))), "a claim does not tell the key partitions, which never change");
        known.note(&queue, 1, Some(1));
        assert_eq!(count(), None, "Redis was emptied");
    }
}
