//! What happens while a queue gets more partitions.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
};

use common::{id::JobId, name::QueueName};
use model::job::JobState;
use store::jobs::{ClaimedJob, EnqueueRefusal, PartitionRefusal, RunTimeLimits};

use crate::{
    kit::{JOB_BODY, StoreKit, consumer, queue},
    partitions::{
        FOUR, another_process, claim_all, claim_each, counts, enqueue_all, keyed, new_job, partitions, raise, unique,
    },
};

#[tokio::test]
async fn a_process_that_knows_nothing_of_the_partitions_finds_the_home_of_a_job() {
    let kit = StoreKit::start();
    let stale = another_process(&kit, &[]);
    for number in 0..8 {
        let name = format!("q{number}");
        let body = |job_type: &str, option: &str| {
            format!(r#"{{"type":"{job_type}","args":[],"options":{{"queue":"{name}",{option}}}}}"#)
        };
        let with_key = body("a", r#""rate_limit":{"key":"k","concurrency":1}"#);
        let unique = body("u", r#""unique":{}"#);
        // It asks about the queue, which has no partitions then, and stores nothing
        let twice = vec![new_job(&stale, &unique).await, new_job(&stale, &unique).await];
        assert!(enqueue_all(&stale, twice).await.is_err());
        let queue: QueueName = name.parse().expect("a name");
        let raised = kit.jobs.raise_partitions(&queue, 8).await.expect("redis runs").expect("raised");
        assert_eq!((raised.count, raised.key_count), (8, 8));
        let homes = (kit.try_enqueue(&with_key).await, kit.try_enqueue(&unique).await);
        let (with_key_home, first) = (homes.0.expect("accepted").job.queue, homes.1.expect("accepted").job);
        let again = stale.try_enqueue(&with_key).await.expect("accepted").job.queue;
        assert_eq!(again, with_key_home);
        assert_eq!(stale.try_enqueue(&unique).await.map(drop), Err(EnqueueRefusal::Duplicate(first.id)));
    }
}

#[tokio::test]
async fn a_queue_that_had_a_job_keeps_its_keys_in_one_partition() {
    let kit = StoreKit::start();
    let before = kit.try_enqueue(&keyed("k", 0)).await.expect("accepted").job;
    raise(&kit, 8).await;
    let raised = kit.jobs.read_partition_counts(&queue()).await.expect("redis runs");
    assert_eq!((raised.count, raised.key_count), (8, 1));
    for number in 1..4 {
        assert_eq!(kit.try_enqueue(&keyed("k", number)).await.expect("accepted").job.queue, before.queue);
    }
    let worker = consumer();
    let running = claim_all(&kit, &worker, 10).await;
    assert_eq!(running.iter().map(|one| one.job.id).collect::<Vec<_>>(), [before.id], "the others wait for it");
    let mut places = BTreeSet::new();
    for _ in 0..8 {
        places.insert(kit.try_enqueue(JOB_BODY).await.expect("accepted").job.queue.partition_number());
    }
    assert_eq!(places.len(), 8, "other jobs use all partitions");

    // However often it is raised, and for whatever has a home
    raise(&kit, 16).await;
    let raised = kit.jobs.read_partition_counts(&queue()).await.expect("redis runs");
    assert_eq!((raised.count, raised.key_count), (16, 1));
    for number in 0..16 {
        let id = format!("019539a4-b68c-7def-8000-{number:012x}");
        let chosen = format!(r#"{{"type":"c","args":[],"id":"{id}"}}"#);
        for body in [unique(number), chosen, keyed(&format!("k{number}"), number)] {
            assert_eq!(kit.try_enqueue(&body).await.expect("accepted").job.queue, before.queue, "{body}");
        }
    }
}

#[tokio::test]
async fn the_number_of_partitions_is_never_lowered_and_has_bounds() {
    let kit = StoreKit::with_variables(&FOUR);
    kit.enqueue(JOB_BODY).await;
    let refused = async |count| kit.jobs.raise_partitions(&queue(), count).await.expect("redis runs").map(drop);
    assert_eq!(refused(3).await, Err(PartitionRefusal::Fewer { count: 4 }));
    assert_eq!(
        (refused(0).await, refused(65).await),
        (Err(PartitionRefusal::OutOfBounds), Err(PartitionRefusal::OutOfBounds))
    );
    assert_eq!(refused(4).await, Ok(()), "it is so already");
    let of_subscription = "sub.billing".parse().expect("a name");
    let refused = kit.jobs.raise_partitions(&of_subscription, 2).await.expect("redis runs");
    assert_eq!(refused.map(drop), Err(PartitionRefusal::OfSubscription));
    assert!(!kit.jobs.delete_queue(&queue()).await.expect("redis runs"));
}

#[tokio::test]
async fn a_raise_gives_every_partition_its_smaller_share_before_new_ones_have_jobs() {
    let kit = StoreKit::with_variables(&FOUR);
    for _ in 0..40 {
        kit.enqueue(JOB_BODY).await;
    }
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { concurrency: Some(8), ..RunTimeLimits::default() })
        .await
        .expect("redis runs")
        .expect("accepted");
    kit.jobs.set_queue_paused(&queue(), true).await.expect("redis runs").expect("paused");
    raise(&kit, 8).await;
    for _ in 0..40 {
        kit.enqueue(JOB_BODY).await;
    }
    let worker = consumer();
    assert_eq!(claim_all(&kit, &worker, 10).await.len(), 0, "new partitions are paused too");
    kit.jobs.set_queue_paused(&queue(), false).await.expect("redis runs").expect("resumed");
    assert_eq!(counts(&claim_each(&kit, &worker, 10).await), [1; 8]);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").active, 8);
}

/// Jobs that each producer makes of each kind.
const ROUNDS: usize = 60;

/// What producers and workers saw.
#[derive(Default)]
struct Seen {
    accepted: RefCell<BTreeSet<JobId>>,
    /// Whether all jobs were accepted.
    is_over: Cell<bool>,
    done: RefCell<HashMap<JobId, u32>>,
    order: RefCell<BTreeMap<String, Vec<usize>>>,
    running: RefCell<BTreeSet<String>>,
}

fn key_of(claimed: &ClaimedJob) -> Option<String> {
    claimed.job.limit_key().map(ToString::to_string)
}

impl Seen {
    fn accept(&self, id: JobId) {
        self.accepted.borrow_mut().insert(id);
    }

    async fn produce(&self, kit: &StoreKit, name: &str) {
        for number in 0..ROUNDS {
            // One producer for each key: its order is that of its requests
            for key in ["a", "b", "c"] {
                self.accept(kit.enqueue(&keyed(&format!("{name}-{key}"), number)).await);
            }
            self.accept(kit.enqueue(JOB_BODY).await);
            // All producers have the same ones
            if let Ok(stored) = kit.try_enqueue(&unique(number)).await {
                self.accept(stored.job.id);
            }
        }
    }

    async fn raise_meanwhile(&self, kit: &StoreKit) {
        for count in [3, 4, 8, 16] {
            while self.accepted.borrow().len() < usize::from(count) * 20 {
                kit.jobs.now().await.expect("redis runs");
            }
            raise(kit, count).await;
        }
    }

    async fn work(&self, kit: &StoreKit) {
        let worker = consumer();
        loop {
            let was_over = self.is_over.get();
            let claimed = claim_all(kit, &worker, 5).await;
            let waits = async || kit.jobs.queue_stats(&queue()).await.expect("redis runs").available > 0;
            if claimed.is_empty() && was_over && !waits().await {
                return;
            }
            for one in &claimed {
                self.start(one);
            }
            for one in claimed {
                // Before Redis can hand out the next
                if let Some(key) = key_of(&one) {
                    self.running.borrow_mut().remove(&key);
                }
                kit.complete(&worker, &one, "1").await;
            }
        }
    }

    fn start(&self, claimed: &ClaimedJob) {
        *self.done.borrow_mut().entry(claimed.job.id).or_default() += 1;
        let Some(key) = key_of(claimed) else { return };
        let json: serde_json::Value =
            serde_json::from_str(&claimed.job.view(JobState::Active).to_json()).expect("JSON");
        let number = json["args"][0].as_u64().expect("a number");
        assert!(self.running.borrow_mut().insert(key.clone()), "two of {key} run");
        self.order.borrow_mut().entry(key).or_default().push(usize::try_from(number).expect("a small number"));
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_and_keys_stay_in_order_while_partitions_are_raised() {
    let kit = StoreKit::start();
    let others = [another_process(&kit, &[]), another_process(&kit, &[])];
    // The queue never had a job: its keys are spread as soon as it has partitions
    raise(&kit, 2).await;
    let seen = Seen::default();
    let produced = async {
        tokio::join!(
            seen.produce(&kit, "x"),
            seen.produce(&others[0], "y"),
            seen.produce(&others[1], "z"),
            seen.raise_meanwhile(&kit),
        );
        seen.is_over.set(true);
    };
    tokio::join!(produced, seen.work(&kit), seen.work(&others[0]), seen.work(&others[1]));
    assert_eq!(partitions(&kit).await.len(), 16);
    let done = seen.done.take();
    assert_eq!(done.keys().copied().collect::<BTreeSet<_>>(), seen.accepted.take());
    assert!(done.values().all(|count| *count == 1), "each job ran once");
    for (key, order) in seen.order.take() {
        assert_eq!(order, (0..ROUNDS).collect::<Vec<usize>>(), "{key}");
    }
}
