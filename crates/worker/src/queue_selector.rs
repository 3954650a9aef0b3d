//! The order in which a worker asks its queues: the order of the settings or, with weights, a lottery in which weight
//! 3 comes before weight 1 three times out of four. With weights no queue starves, however busy the others are. The partitions
//! of a queue take its place, each time another one first.

use std::collections::BTreeMap;

use common::name::QueueName;

/// The worker's queues and weights.
pub(crate) struct QueueSelector {
    queues: Vec<QueueName>,
    weights: BTreeMap<QueueName, u32>,
    /// The partitions of queues that have several.
    partitions: BTreeMap<QueueName, Vec<QueueName>>,
    turn: usize,
}

impl QueueSelector {
    pub(crate) fn new(queues: &[QueueName], weights: &BTreeMap<QueueName, u32>) -> Self {
        Self { queues: queues.to_vec(), weights: weights.clone(), partitions: BTreeMap::new(), turn: 0 }
    }

    /// Notes how many partitions a queue has; returns those that were not known.
    pub(crate) fn add_partitions(&mut self, queue: &QueueName, count: u16) -> Vec<QueueName> {
        let queue = queue.base();
        let known = self.partitions.get(&*queue).map_or(1, Vec::len);
        if usize::from(count) <= known {
            return Vec::new();
        }
        let all = queue.partitions(count);
        let new = all[known..].to_vec();
        self.partitions.insert(queue.into_owned(), all);
        new
    }

    /// Every queue and partition.
    pub(crate) fn all(&self) -> Vec<QueueName> {
        self.queues.iter().flat_map(|queue| self.partitions_of(queue)).cloned().collect()
    }

    fn partitions_of<'a>(&'a self, queue: &'a QueueName) -> &'a [QueueName] {
        self.partitions.get(queue).map_or(std::slice::from_ref(queue), Vec::as_slice)
    }

    /// The order for the next claim.
    pub(crate) fn next_order(&mut self) -> Vec<QueueName> {
        let mut queues = self.queues.clone();
        if !self.weights.is_empty() {
            // Efraimidis and Spirakis: a random number to the power of 1/weight, the largest first
            let mut drawn: Vec<(f64, QueueName)> = queues
                .drain(..)
                .map(|queue| {
                    let weight = self.weights.get(&queue).copied().unwrap_or(1);
                    (rand::random::<f64>().powf(1.0 / f64::from(weight)), queue)
                })
                .collect();
            drawn.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));
            queues = drawn.into_iter().map(|(_, queue)| queue).collect();
        }
        if self.partitions.is_empty() { queues } else { self.with_partitions(&queues) }
    }

    fn with_partitions(&mut self, queues: &[QueueName]) -> Vec<QueueName> {
        self.turn = self.turn.wrapping_add(1);
        let mut order = Vec::with_capacity(queues.len());
        for queue in queues {
            let partitions = self.partitions_of(queue);
            let (before, after) = partitions.split_at(self.turn % partitions.len());
            order.extend(after.iter().chain(before).cloned());
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues() -> Vec<QueueName> {
        ["a", "b", "c"].iter().map(|name| name.parse().expect("a name")).collect()
    }

    #[test]
    fn without_weights_the_order_is_that_of_the_settings() {
        let mut turns = QueueSelector::new(&queues(), &BTreeMap::new());
        assert_eq!(turns.next_order(), queues());
    }

    #[test]
    fn the_partitions_of_a_queue_take_its_place_and_each_comes_first_in_turn() {
        let (mut turns, [a, b, c]) =
            (QueueSelector::new(&queues(), &BTreeMap::new()), queues().try_into().expect("three"));
        assert_eq!(turns.add_partitions(&b, 3), [b.partition(1), b.partition(2)]);
        assert_eq!(turns.add_partitions(&b.partition(1), 3), [], "they are known");
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let order = turns.next_order();
            assert_eq!((order.len(), &order[0], &order[4]), (5, &a, &c));
            first.insert(order[1].partition_number());
        }
        assert_eq!(first, [0, 1, 2].into());
        assert_eq!(turns.add_partitions(&b, 4), [b.partition(3)]);
        assert_eq!(turns.all().len(), 6);
    }

    #[test]
    fn with_weights_every_queue_comes_first_as_often_as_its_weight_says() {
        let weights = BTreeMap::from([("a".parse().expect("a name"), 6), ("b".parse().expect("a name"), 3)]);
        let mut turns = QueueSelector::new(&queues(), &weights);
        let mut first: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..10_000 {
            let order = turns.next_order();
            assert_eq!(order.len(), 3);
            *first.entry(order[0].to_string()).or_default() += 1;
        }
        // 6, 3 and 1 of 10; the bounds are ten standard deviations wide
        assert!(
            (5500..6500).contains(&first["a"]) && (2500..3500).contains(&first["b"]) && first["c"] > 600,
            "{first:?}"
        );
    }
}
