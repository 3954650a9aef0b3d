//! The order in which a worker asks its queues: the order of the settings or, with weights, a lottery in which weight
//! 3 comes before weight 1 three times out of four. With weights no queue starves, however busy the others are.

use std::collections::BTreeMap;

use common::name::QueueName;

/// The worker's queues and weights.
pub(crate) struct QueueSelector {
    queues: Vec<QueueName>,
    weights: BTreeMap<QueueName, u32>,
}

impl QueueSelector {
    pub(crate) fn new(queues: &[QueueName], weights: &BTreeMap<QueueName, u32>) -> Self {
        Self { queues: queues.to_vec(), weights: weights.clone() }
    }

    /// The order for the next claim.
    pub(crate) fn next_order(&self) -> Vec<QueueName> {
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
        queues
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
        let turns = QueueSelector::new(&queues(), &BTreeMap::new());
        assert_eq!(turns.next_order(), queues());
    }

    #[test]
    fn with_weights_every_queue_comes_first_as_often_as_its_weight_says() {
        let weights = BTreeMap::from([("a".parse().expect("a name"), 6), ("b".parse().expect("a name"), 3)]);
        let turns = QueueSelector::new(&queues(), &weights);
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
