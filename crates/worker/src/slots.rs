//! Places for jobs: so many at a time in this process, and of a queue no more than its own limit.
//!
//! A place is taken before a job is claimed, so that nothing is claimed that cannot run.

use std::{collections::BTreeMap, sync::Arc};

use common::name::QueueName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of this process.
pub(crate) struct Slots {
    total: Arc<Semaphore>,
    per_queue: BTreeMap<QueueName, Arc<Semaphore>>,
}

/// A place for a job of any queue. Dropping it gives it back.
pub(crate) type AnyQueuePermit = OwnedSemaphorePermit;

/// A place for a job of a queue.
pub(crate) struct Permit {
    any_queue: AnyQueuePermit,
    per_queue: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(crate) fn new(all: usize, of_queues: &BTreeMap<QueueName, usize>) -> Self {
        let of_queues = of_queues.iter().map(|(queue, most)| (queue.clone(), Arc::new(Semaphore::new(*most))));
        Self { total: Arc::new(Semaphore::new(all)), per_queue: of_queues.collect() }
    }

    /// Waits for a place for a job of any queue.
    pub(crate) async fn acquire_any(&self) -> Option<AnyQueuePermit> {
        self.total.clone().acquire_owned().await.ok()
    }

    /// One more, if there is one.
    pub(crate) fn try_acquire(&self) -> Option<AnyQueuePermit> {
        self.total.clone().try_acquire_owned().ok()
    }

    /// Waits for a place for a job of a queue.
    pub(crate) async fn acquire(&self, queue: &QueueName) -> Option<Permit> {
        let of_queue = match self.per_queue.get(queue) {
            Some(places) => Some(places.clone().acquire_owned().await.ok()?),
            None => None,
        };
        Some(Permit { any_queue: self.acquire_any().await?, per_queue: of_queue })
    }

    /// Makes places for jobs of a queue out of places for any, as many as the queue has left; the others stay.
    pub(crate) fn bind_to_queue(&self, queue: &QueueName, any: &mut Vec<AnyQueuePermit>, most: usize) -> Vec<Permit> {
        let limit = self.per_queue.get(queue);
        let mut places = Vec::new();
        while places.len() < most && !any.is_empty() {
            let Ok(of_queue) = limit.map(|limit| limit.clone().try_acquire_owned()).transpose() else { break };
            places.extend(any.pop().map(|any| Permit { any_queue: any, per_queue: of_queue }));
        }
        places
    }

    /// Whether a queue has a place left.
    pub(crate) fn has_capacity(&self, queue: &QueueName) -> bool {
        self.per_queue.get(queue).is_none_or(|places| places.available_permits() > 0)
    }

    /// Gives a place back; true when its queue had none left.
    pub(crate) fn return_permit(&self, queue: &QueueName, place: Permit) -> bool {
        let had_room = place.per_queue.is_none() || self.has_capacity(queue);
        drop(place);
        !had_room
    }
}

impl Permit {
    /// The place for a job of any queue that is in it.
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
        let places = Slots::new(5, &BTreeMap::from([(queue("few"), 2)]));
        let mut any: Vec<AnyQueuePermit> = std::iter::from_fn(|| places.try_acquire()).collect();
        assert_eq!(any.len(), 5);
        let few = places.bind_to_queue(&queue("few"), &mut any, 4);
        assert_eq!((few.len(), any.len()), (2, 3), "one that was not to be had is not lost");
        assert!(!places.has_capacity(&queue("few")) && places.has_capacity(&queue("other")));
        let others = places.bind_to_queue(&queue("other"), &mut any, 4);
        assert_eq!((others.len(), any.len()), (3, 0));
        let mut few = few.into_iter();
        assert!(places.return_permit(&queue("few"), few.next().expect("a place")), "there was none left");
        assert!(!places.return_permit(&queue("few"), few.next().expect("a place")), "there was one left");
        assert!(others.into_iter().all(|place| !places.return_permit(&queue("other"), place)));
        let again: Vec<AnyQueuePermit> = std::iter::from_fn(|| places.try_acquire()).collect();
        assert_eq!(again.len(), 5, "all are back");
    }
}
