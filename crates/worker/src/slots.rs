//! Places for jobs: so many at a time in this process, and of a queue no more than its own limit.
//!
//! A place is taken before a job is claimed, so that nothing is claimed that cannot run.

use std::{collections::BTreeMap, sync::Arc};

use common::name::QueueName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of this process.
pub(crate) struct Places {
    all: Arc<Semaphore>,
    of_queues: BTreeMap<QueueName, Arc<Semaphore>>,
}

/// A place for a job of any queue. Dropping it gives it back.
pub(crate) type AnyPlace = OwnedSemaphorePermit;

/// A place for a job of a queue.
pub(crate) struct Place {
    any: AnyPlace,
    of_queue: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new(all: usize, of_queues: &BTreeMap<QueueName, usize>) -> Self {
        let of_queues = of_queues.iter().map(|(queue, most)| (queue.clone(), Arc::new(Semaphore::new(*most))));
        Self { all: Arc::new(Semaphore::new(all)), of_queues: of_queues.collect() }
    }

    /// Waits for a place for a job of any queue.
    pub(crate) async fn any(&self) -> Option<AnyPlace> {
        self.all.clone().acquire_owned().await.ok()
    }

    /// One more, if there is one.
    pub(crate) fn another(&self) -> Option<AnyPlace> {
        self.all.clone().try_acquire_owned().ok()
    }

    /// Waits for a place for a job of a queue.
    pub(crate) async fn wait(&self, queue: &QueueName) -> Option<Place> {
        let of_queue = match self.of_queues.get(queue) {
            Some(places) => Some(places.clone().acquire_owned().await.ok()?),
            None => None,
        };
        Some(Place { any: self.any().await?, of_queue })
    }

    /// Makes places for jobs of a queue out of places for any, as many as the queue has left; the others stay.
    pub(crate) fn of_queue(&self, queue: &QueueName, any: &mut Vec<AnyPlace>, most: usize) -> Vec<Place> {
        let limit = self.of_queues.get(queue);
        let mut places = Vec::new();
        while places.len() < most && !any.is_empty() {
            let Ok(of_queue) = limit.map(|limit| limit.clone().try_acquire_owned()).transpose() else { break };
            places.extend(any.pop().map(|any| Place { any, of_queue }));
        }
        places
    }

    /// Whether a queue has a place left.
    pub(crate) fn has_room(&self, queue: &QueueName) -> bool {
        self.of_queues.get(queue).is_none_or(|places| places.available_permits() > 0)
    }

    /// Gives a place back; true when its queue had none left.
    pub(crate) fn give_back(&self, queue: &QueueName, place: Place) -> bool {
        let had_room = place.of_queue.is_none() || self.has_room(queue);
        drop(place);
        !had_room
    }
}

impl Place {
    /// The place for a job of any queue that is in it.
    pub(crate) fn into_any(self) -> AnyPlace {
        self.any
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
        let places = Places::new(5, &BTreeMap::from([(queue("few"), 2)]));
        let mut any: Vec<AnyPlace> = std::iter::from_fn(|| places.another()).collect();
        assert_eq!(any.len(), 5);
        let few = places.of_queue(&queue("few"), &mut any, 4);
        assert_eq!((few.len(), any.len()), (2, 3), "one that was not to be had is not lost");
        assert!(!places.has_room(&queue("few")) && places.has_room(&queue("other")));
        let others = places.of_queue(&queue("other"), &mut any, 4);
        assert_eq!((others.len(), any.len()), (3, 0));
        let mut few = few.into_iter();
        assert!(places.give_back(&queue("few"), few.next().expect("a place")), "there was none left");
        assert!(!places.give_back(&queue("few"), few.next().expect("a place")), "there was one left");
        assert!(others.into_iter().all(|place| !places.give_back(&queue("other"), place)));
        let again: Vec<AnyPlace> = std::iter::from_fn(|| places.another()).collect();
        assert_eq!(again.len(), 5, "all are back");
    }
}
