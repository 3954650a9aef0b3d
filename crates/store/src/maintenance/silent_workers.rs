//! Notices queue-workers that stopped reporting: only the queues of those can hold jobs that must be reclaimed. Workers
//! that live renew their own jobs, so their queues cost nothing here.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::maintenance_store::MaintenanceStore;
use crate::{StoreResult, jobs::Consumer};
use common::name::QueueName;

/// What is known of the workers on the list.
#[derive(Default)]
pub(super) struct SilentWorkers {
    known: HashMap<String, KnownWorker>,
}

struct KnownWorker {
    lease: Duration,
    queues: Vec<QueueName>,
    /// Its last report, as the score in the list.
    reported: f64,
    /// When that report was first seen here.
    seen_at: Instant,
    is_listed: bool,
}

impl SilentWorkers {
    /// The queues of workers that have not reported for their lease or are no longer listed, with that lease.
    pub(super) async fn find(&mut self, store: &impl MaintenanceStore) -> StoreResult<Vec<(QueueName, Duration)>> {
        let listed = store.listed_workers().await?;
        self.read_new(store, &listed).await?;
        Ok(self.update(&listed, Instant::now()))
    }

    /// The queues of workers on the list.
    pub(super) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.known.values().flat_map(|worker| &worker.queues)
    }

    /// Whether a worker is on the list and its queues are known, as far as the last look told.
    pub(super) fn is_known(&self, consumer: &Consumer) -> bool {
        self.known.contains_key(consumer.name())
    }

    /// Reads the queues of workers that were not known yet.
    async fn read_new(&mut self, store: &impl MaintenanceStore, listed: &[(String, f64)]) -> StoreResult<()> {
        let is_new = |id: &&str| !self.known.contains_key(*id) && Consumer::parse(id).is_some();
        let new: Vec<&str> = listed.iter().map(|(id, _)| id.as_str()).filter(is_new).collect();
        if new.is_empty() {
            return Ok(());
        }
        for (consumer, queues) in store.worker_queues(&new).await? {
            let (lease, reported) = (consumer.lease(), f64::NAN);
            let known = KnownWorker { lease, queues, reported, seen_at: Instant::now(), is_listed: true };
            self.known.insert(consumer.name().to_owned(), known);
        }
        Ok(())
    }

    fn update(&mut self, listed: &[(String, f64)], now: Instant) -> Vec<(QueueName, Duration)> {
        self.known.values_mut().for_each(|worker| worker.is_listed = false);
        for (id, reported) in listed {
            if let Some(worker) = self.known.get_mut(id) {
                worker.is_listed = true;
                if worker.reported.to_bits() != reported.to_bits() {
                    (worker.reported, worker.seen_at) = (*reported, now);
                }
            }
        }
        let is_silent = |worker: &KnownWorker| !worker.is_listed || now - worker.seen_at >= worker.lease;
        let silent = self.known.values().filter(|worker| is_silent(worker));
        let queues =
            silent.flat_map(|worker| worker.queues.iter().map(|queue| (queue.clone(), worker.lease))).collect();
        self.known.retain(|_, worker| worker.is_listed);
        queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn known(now: Instant) -> SilentWorkers {
        let worker = KnownWorker {
            lease: LEASE,
            queues: vec!["a".parse().expect("a name")],
            reported: 1.0,
            seen_at: now,
            is_listed: true,
        };
        SilentWorkers { known: HashMap::from([("w".to_owned(), worker)]) }
    }

    #[test]
    fn a_worker_is_silent_when_its_report_does_not_change_for_its_lease_or_it_is_gone() {
        let now = Instant::now();
        let mut workers = known(now);
        let listed = |score: f64| vec![("w".to_owned(), score)];
        assert!(workers.update(&listed(1.0), now + LEASE / 2).is_empty());
        assert!(workers.update(&listed(2.0), now + LEASE).is_empty(), "it reported");
        assert_eq!(workers.update(&listed(2.0), now + LEASE * 2).len(), 1);
        assert_eq!(workers.update(&[], now + LEASE * 2).len(), 1);
        assert!(workers.update(&[], now + LEASE * 2).is_empty(), "it was told once");
    }
}
