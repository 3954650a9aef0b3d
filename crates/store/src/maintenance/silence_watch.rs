//! Whether the silence of a queue-worker lasted.
//!
//! Redis counts by its own clock how long a worker has had a job without a word. Somebody may have set the clock back before
//! the claim and ahead again after it, between two looks of the leader: then a job that has just begun seems to be old. So a
//! silence counts only if the leader saw it last, by its own monotonic clock, for longer than a worker that lives takes to
//! renew its lease. It begins to look at half of a lease, so a dead worker loses its jobs no later.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use common::{
    id::EntryId,
    name::{Priority, QueueName},
};

/// The silent attempts of each worker, and since when they are known as such.
type SilentSince = HashMap<(Priority, String), HashMap<EntryId, Instant>>;

/// What a leader saw of silent workers. One that is off believes Redis's clock.
#[derive(Debug)]
pub struct SilenceWatch {
    is_on: bool,
    queues: HashMap<QueueName, SilentSince>,
}

impl Default for SilenceWatch {
    fn default() -> Self {
        Self { is_on: true, queues: HashMap::new() }
    }
}

impl SilenceWatch {
    /// A watch that believes Redis's clock.
    pub(super) fn off() -> Self {
        Self { is_on: false, queues: HashMap::new() }
    }

    /// From which silence on an attempt is looked at.
    pub(super) fn looks_from(&self, lease: Duration) -> Duration {
        if self.is_on { lease / 2 } else { lease }
    }

    /// Starts a look at a queue. What the last one saw is forgotten, unless [`SilentQueue::counts`] sees it again.
    pub(super) fn look(&mut self, queue: &QueueName) -> SilentQueue<'_> {
        let before = self.queues.remove(queue).unwrap_or_default();
        SilentQueue { watch: self, queue: queue.clone(), before, now: HashMap::new() }
    }
}

/// A look at a queue.
pub(super) struct SilentQueue<'a> {
    watch: &'a mut SilenceWatch,
    queue: QueueName,
    before: SilentSince,
    now: SilentSince,
}

impl SilentQueue<'_> {
    /// From which silence on an attempt is looked at.
    pub(super) fn looks_from(&self, lease: Duration) -> Duration {
        self.watch.looks_from(lease)
    }

    /// Notes that an attempt is silent, since `idle` by Redis's clock, and says whether that counts.
    pub(super) fn counts(
        &mut self,
        (priority, worker): (Priority, &str),
        entry: EntryId,
        (idle, lease): (Duration, Duration),
        at: Instant,
    ) -> bool {
        if !self.watch.is_on {
            return idle >= lease;
        }
        let key = (priority, worker.to_owned());
        let since = self.before.get(&key).and_then(|known| known.get(&entry)).copied().unwrap_or(at);
        self.now.entry(key).or_default().insert(entry, since);
        // A worker renews within a third of its lease
        idle >= lease && at.saturating_duration_since(since) >= lease * 2 / 5
    }
}

impl Drop for SilentQueue<'_> {
    fn drop(&mut self) {
        if !self.now.is_empty() {
            self.watch.queues.insert(self.queue.clone(), std::mem::take(&mut self.now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    /// Looks at one entry of one worker at that second.
    fn look(watch: &mut SilenceWatch, start: Instant, at: u64, idle: Duration) -> bool {
        let (queue, entry) = ("q".parse().expect("a name"), "5-0".parse().expect("an id"));
        let at = start + Duration::from_secs(at);
        watch.look(&queue).counts((Priority::default(), "w"), entry, (idle, LEASE), at)
    }

    #[test]
    fn a_silence_counts_when_the_leader_saw_it_last() {
        let (mut watch, start) = (SilenceWatch::default(), Instant::now());
        assert_eq!(watch.looks_from(LEASE), LEASE / 2);
        assert!(!look(&mut watch, start, 16, Duration::from_secs(16)));
        assert!(!look(&mut watch, start, 29, Duration::from_secs(29)), "its lease is not over");
        assert!(look(&mut watch, start, 30, Duration::from_secs(30)));
    }

    #[test]
    fn a_silence_that_came_with_the_clock_does_not_count_until_the_worker_had_time_to_renew() {
        let (mut watch, start, idle) = (SilenceWatch::default(), Instant::now(), Duration::from_hours(1));
        assert!(!look(&mut watch, start, 1, idle));
        assert!(!look(&mut watch, start, 12, idle));
        assert!(look(&mut watch, start, 13, idle));
        // It was renewed in between: a look did not see it
        drop(watch.look(&"q".parse().expect("a name")));
        assert!(!look(&mut watch, start, 40, idle));
        assert!(look(&mut SilenceWatch::off(), start, 1, idle), "without a watch Redis's clock is believed");
    }
}
