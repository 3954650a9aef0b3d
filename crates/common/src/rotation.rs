//! Takes queues in turn, a few at a time, so that looking at them costs the same however many there are.

use crate::name::QueueName;

/// The position of a round over all queues.
#[derive(Debug, Default)]
pub struct Rotation {
    /// Queues up to and including this one had their turn.
    last: Option<QueueName>,
}

impl Rotation {
    /// The next `max` of these queues, each at most once.
    #[must_use]
    pub fn next(&mut self, queues: &[QueueName], max: usize) -> Vec<QueueName> {
        let mut sorted: Vec<&QueueName> = queues.iter().collect();
        sorted.sort_unstable();
        let first = self.last.as_ref().map_or(0, |last| sorted.partition_point(|queue| *queue <= last));
        let taken: Vec<QueueName> =
            sorted[first..].iter().chain(&sorted[..first]).take(max).map(|queue| (*queue).clone()).collect();
        self.last = taken.last().cloned();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<QueueName> {
        names.iter().map(|name| name.parse().expect("a name")).collect()
    }

    #[test]
    fn every_queue_has_its_turn_also_while_queues_come_and_go() {
        let mut rotation = Rotation::default();
        assert_eq!(rotation.next(&names(&["c", "a", "b"]), 2), names(&["a", "b"]));
        assert_eq!(rotation.next(&names(&["c", "a", "d"]), 2), names(&["c", "d"]));
        assert_eq!(rotation.next(&names(&["a", "b"]), 5), names(&["a", "b"]), "none twice");
        assert_eq!(rotation.next(&names(&["a", "b"]), 1), names(&["a"]));
        assert!(rotation.next(&[], 3).is_empty());
    }
}
