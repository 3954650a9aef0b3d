//! Permits for jobs: a maximum for this process and, if configured, for each queue.
//!
//! A permit is acquired before a job is claimed, so every claimed job can run. All partitions of a queue share its slots.

use std::{collections::BTreeMap, sync::Arc};

use common::name::QueueName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of this process.
pub(crate) struct Slots {
    total: Arc<Semaphore>,
    per_queue: BTreeMap<QueueName, Arc<Semaphore>>,
    sizes: (usize, BTreeMap<QueueName, usize>),
}

/// A permit for a job of any queue. Dropping it frees its slot.
pub(crate) type AnyQueuePermit = OwnedSemaphorePermit;

/// A permit for a job of one queue.
pub(crate) struct Permit {
    any_queue: AnyQueuePermit,
    per_queue: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(crate) fn new(all: usize, of_queues: &BTreeMap<QueueName, usize>) -> Self {
        let sizes = (all, of_queues.clone());
        let of_queues = of_queues.iter().map(|(queue, max)| (queue.clone(), Arc::new(Semaphore::new(*max))));
        Self { total: Arc::new(Semaphore::new(all)), per_queue: of_queues.collect(), sizes }
    }

    /// How many jobs of the queue can run at a time.
    pub(crate) fn total(&self, queue: &QueueName) -> usize {
        let (all, of_queues) = &self.sizes;
        of_queues.get(&*queue.base()).map_or(*all, |max| *max.min(all))
    }

    /// Waits for a permit for a job of any queue.
    pub(crate) async fn acquire_any(&self) -> Option<AnyQueuePermit> {
        self.total.clone().acquire_owned().await.ok()
    }

    /// One more permit, if a slot is free.
    pub(crate) fn try_acquire(&self) -> Option<AnyQueuePermit> {
        self.total.clone().try_acquire_owned().ok()
    }

    /// Waits for a permit for a job of this queue.
    pub(crate) async fn acquire(&self, queue: &QueueName) -> Option<Permit> {
        let of_queue = match self.per_queue.get(&*queue.base()) {
            Some(permits) => Some(permits.clone().acquire_owned().await.ok()?),
            None => None,
        };
        Some(Permit { any_queue: self.acquire_any().await?, per_queue: of_queue })
    }

    /// Converts permits for any queue into permits for this queue, at most `max` and as many as the queue has free;
    /// the other permits stay in `any`.
    pub(crate) fn bind_to_queue(&self, queue: &QueueName, any: &mut Vec<AnyQueuePermit>, max: usize) -> Vec<Permit> {
        let limit = self.per_queue.get(&*queue.base());
        let mut permits = Vec::new();
        while permits.len() < max && !any.is_empty() {
            let Ok(of_queue) = limit.map(|limit| limit.clone().try_acquire_owned()).transpose() else { break };
            permits.extend(any.pop().map(|any| Permit { any_queue: any, per_queue: of_queue }));
        }
        permits
    }

    /// Whether the queue has a free slot.
    pub(crate) fn has_capacity(&self, queue: &QueueName) -> bool {
        self.per_queue.get(&*queue.base()).is_none_or(|permits| permits.available_permits() > 0)
    }

    /// Frees a slot; true if the queue had none free before.
    pub(crate) fn return_permit(&self, queue: &QueueName, permit: Permit) -> bool {
        let had_room = permit.per_queue.is_none() || self.has_capacity(queue);
        drop(permit);
        !had_room
    }
}

impl Permit {
    /// Returns the permit for any queue that it contains.
    pub(crate) fn into_any_queue(self) -> AnyQueuePermit {
        self.any_queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        name.parse().expect("a name")
    }

    #[test]
    fn a_queue_with_a_limit_takes_no_more_places_than_that_and_leaves_the_rest() {
        let slots = Slots::new(5, &BTreeMap::from([(queue("few"), 2)]));
        let mut any: Vec<AnyQueuePermit> = std::iter::from_fn(|| slots.try_acquire()).collect();
        assert_eq!(any.len(), 5);
        let few = slots.bind_to_queue(&queue("few"), &mut any, 4);
        assert_eq!((few.len(), any.len()), (2, 3), "one that was not to be had is not lost");
        assert!(!slots.has_capacity(&queue("few")) && slots.has_capacity(&queue("other")));
        let others = slots.bind_to_queue(&queue("other"), &mut any, 4);
        assert_eq!((others.len(), any.len()), (3, 0));
        let mut few = few.into_iter();
        assert!(slots.return_permit(&queue("few"), few.next().expect("a permit")), "there was none left");
        assert!(!slots.return_permit(&queue("few"), few.next().expect("a permit")), "there was one left");
        assert!(others.into_iter().all(|permit| !slots.return_permit(&queue("other"), permit)));
        let again: Vec<AnyQueuePermit> = std::iter::from_fn(|| slots.try_acquire()).collect();
        assert_eq!(again.len(), 5, "all are back");
    }
}
