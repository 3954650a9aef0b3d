//! Queues with partitions: where their jobs are, and what holds across the partitions.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use common::{
    id::JobId,
    name::{QueueName, WorkerId},
    rate::Rate,
    trace_context::TraceContext,
};
use model::job::{JobFilter, JobState, NewJob, RetryAdvice};
use store::{
    jobs::{
        BatchRefusal, Claimant, ClaimedJob, Consumer, DiscardedFilter, DiscardedList, EnqueueRefusal, PartitionRefusal,
        PurgeRequest, RunTimeLimits,
    },
    maintenance,
};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

/// The setting that gives the queue of the tests four partitions.
pub(crate) const FOUR: [(&str, &str); 1] = [("GALLEY__QUEUES__DEFAULT__PARTITIONS", "4")];

pub(crate) fn keyed(key: &str, number: usize) -> String {
    format!(r#"{{"type":"a","args":[{number}],"rate_limit":{{"key":"{key}","concurrency":1}}}}"#)
}

pub(crate) fn unique(number: usize) -> String {
    format!(r#"{{"type":"u","args":[{number}],"unique":{{"keys":["type","args"]}}}}"#)
}

/// Another process on the Redis of the first.
pub(crate) fn another_process(kit: &StoreKit, variables: &[(&str, &str)]) -> StoreKit {
    let url = kit.server.url();
    StoreKit::with_variables(&[variables, &[("GALLEY__REDIS__URL", &url)]].concat())
}

pub(crate) async fn raise(kit: &StoreKit, count: u16) {
    kit.jobs.raise_partitions(&queue(), count).await.expect("redis runs").expect("raised");
}

pub(crate) async fn partitions(kit: &StoreKit) -> Vec<QueueName> {
    kit.jobs.read_partitions(&queue()).await.expect("redis runs")
}

/// Claims up to `most` jobs of each partition.
pub(crate) async fn claim_each(kit: &StoreKit, consumer: &Consumer, most: usize) -> Vec<Vec<ClaimedJob>> {
    let worker: WorkerId = "test-worker".parse().expect("a name");
    let mut claimed = Vec::new();
    for partition in partitions(kit).await {
        let by = Claimant::Worker { consumer, worker: &worker };
        claimed.push(kit.jobs.claim(&partition, &mut Vec::new(), most, by).await.expect("redis runs").jobs);
    }
    claimed
}

pub(crate) async fn claim_all(kit: &StoreKit, consumer: &Consumer, most: usize) -> Vec<ClaimedJob> {
    claim_each(kit, consumer, most).await.into_iter().flatten().collect()
}

pub(crate) async fn new_job(kit: &StoreKit, body: &str) -> NewJob {
    let members = serde_json::from_str(body).expect("JSON");
    NewJob::parse(&members, kit.jobs.now().await.expect("redis runs")).expect("a valid request")
}

pub(crate) async fn enqueue_all(kit: &StoreKit, batch: Vec<NewJob>) -> Result<(), BatchRefusal> {
    let now = kit.jobs.now().await.expect("redis runs");
    let stored = kit.jobs.enqueue_all(batch, TraceContext::default(), now, &HashSet::new()).await;
    stored.expect("redis runs").map(drop)
}

pub(crate) fn counts(claimed: &[Vec<ClaimedJob>]) -> Vec<usize> {
    claimed.iter().map(Vec::len).collect()
}

#[tokio::test]
async fn jobs_go_round_and_each_partition_gives_its_own_back_in_order() {
    let kit = StoreKit::with_variables(&FOUR);
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(kit.enqueue(JOB_BODY).await);
    }
    let claimed = claim_each(&kit, &consumer(), 10).await;
    assert_eq!(counts(&claimed), [3, 3, 3, 3]);
    for partition in &claimed {
        let places: Vec<usize> =
            partition.iter().map(|one| ids.iter().position(|id| *id == one.job.id).expect("one of them")).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
    for id in ids {
        let job = kit.job(id).await;
        assert_eq!((&job["queue"], &job["state"]), (&"default".into(), &"active".into()), "found by its id alone");
    }
}

#[tokio::test]
async fn a_batch_goes_into_one_partition_and_the_next_into_another() {
    let kit = StoreKit::with_variables(&FOUR);
    for _ in 0..2 {
        let batch = vec![new_job(&kit, JOB_BODY).await, new_job(&kit, JOB_BODY).await, new_job(&kit, JOB_BODY).await];
        enqueue_all(&kit, batch).await.expect("accepted");
    }
    let mut each = counts(&claim_each(&kit, &consumer(), 10).await);
    each.sort_unstable();
    assert_eq!(each, [0, 0, 3, 3]);
}

#[tokio::test]
async fn jobs_of_a_key_run_one_after_the_other_in_their_order() {
    let kit = StoreKit::with_variables(&FOUR);
    let mut expected: BTreeMap<String, Vec<JobId>> = BTreeMap::new();
    for number in 0..24 {
        let key = format!("k{}", number % 6);
        expected.entry(key.clone()).or_default().push(kit.enqueue(&keyed(&key, number)).await);
    }
    let (worker, mut seen) = (consumer(), BTreeMap::<String, Vec<JobId>>::new());
    for _ in 0..4 {
        let claimed = claim_all(&kit, &worker, 10).await;
        let keys: BTreeSet<String> =
            claimed.iter().filter_map(|one| one.job.limit_key()).map(ToString::to_string).collect();
        assert_eq!((claimed.len(), keys.len()), (6, 6), "one of each key");
        for one in claimed {
            let key = one.job.limit_key().expect("a key").to_string();
            seen.entry(key).or_default().push(one.job.id);
            kit.complete(&worker, &one, "1").await;
        }
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn unique_jobs_and_chosen_ids_meet_whatever_process_they_come_from() {
    let kit = StoreKit::with_variables(&FOUR);
    let other = another_process(&kit, &[]);
    let mut places = BTreeSet::new();
    for number in 0..16 {
        let first = kit.try_enqueue(&unique(number)).await.expect("accepted").job;
        places.insert(first.queue.partition_number());
        assert_eq!(other.try_enqueue(&unique(number)).await.map(drop), Err(EnqueueRefusal::Duplicate(first.id)));
        let id = format!("019539a4-b68c-7def-8000-{number:012x}");
        let body = format!(r#"{{"type":"c","args":[],"id":"{id}"}}"#);
        let chosen = other.try_enqueue(&body).await.expect("accepted").job;
        places.insert(chosen.queue.partition_number());
        assert_eq!(kit.try_enqueue(&body).await.map(drop), Err(EnqueueRefusal::Duplicate(chosen.id)));
        assert_eq!(kit.state(chosen.id).await, "available", "found by its id alone");
    }
    assert_eq!(places, [0, 1, 2, 3].into());
    assert_eq!(claim_all(&kit, &consumer(), 100).await.len(), 32);
}

#[tokio::test]
async fn limits_of_a_queue_are_shared_and_never_exceeded() {
    let kit = StoreKit::with_variables(&FOUR);
    for _ in 0..40 {
        kit.enqueue(JOB_BODY).await;
    }
    let limit = async |concurrency, rate| {
        let limits = RunTimeLimits { concurrency, rate, ..RunTimeLimits::default() };
        kit.jobs.set_queue_limits(&queue(), limits).await.expect("redis runs")
    };
    assert_eq!(limit(Some(3), None).await, Err(EnqueueRefusal::LimitBelowPartitions { partitions: 4 }));
    assert_eq!(limit(Some(6), None).await, Ok(()));
    assert_eq!(
        kit.jobs.raise_partitions(&queue(), 7).await.expect("redis runs").map(drop),
        Err(PartitionRefusal::LimitTooSmall)
    );
    let worker = consumer();
    let first = claim_each(&kit, &worker, 10).await;
    assert_eq!(counts(&first), [2, 2, 1, 1], "six at a time");
    assert_eq!(claim_all(&kit, &worker, 10).await.len(), 0);
    assert_eq!(
        kit.jobs.queue_control(&queue()).await.expect("redis runs").concurrency,
        Some(6),
        "it is shown as a whole"
    );
    for one in first.iter().flatten().take(3) {
        kit.complete(&worker, one, "1").await;
    }
    assert_eq!(claim_all(&kit, &worker, 10).await.len(), 3);
    assert_eq!(limit(Some(0), None).await, Ok(()), "it stops the queue");
    // A day, so that no token comes back during the test
    assert_eq!(limit(None, Some(Rate::new(10, 86_400_000))).await, Ok(()));
    assert_eq!(counts(&claim_each(&kit, &worker, 10).await), [3, 3, 2, 2], "ten starts");
    assert_eq!(claim_all(&kit, &worker, 10).await.len(), 0);
    assert_eq!(limit(None, None).await, Ok(()));
    assert_eq!(claim_all(&kit, &worker, 40).await.len(), 40 - 9 - 10);
}

#[tokio::test]
async fn depth_is_shared_and_the_sum_is_never_exceeded() {
    let variables = [FOUR[0], ("GALLEY__QUEUES__DEFAULT__MAX_DEPTH", "10")];
    let kit = StoreKit::with_variables(&variables);
    let mut accepted = 0;
    for _ in 0..40 {
        match kit.try_enqueue(JOB_BODY).await {
            Ok(_) => accepted += 1,
            refused => assert_eq!(refused.map(drop), Err(EnqueueRefusal::QueueFull { max_depth: 10 })),
        }
    }
    assert_eq!(accepted, 10);
}

#[tokio::test]
async fn stats_purge_search_and_dead_letters_are_about_the_whole_queue() {
    let kit = StoreKit::with_variables(&FOUR);
    for _ in 0..20 {
        kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#).await;
    }
    let worker = consumer();
    let claimed = claim_all(&kit, &worker, 2).await;
    assert_eq!(claimed.len(), 8);
    for one in &claimed {
        kit.jobs.fail(one, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    }
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.dead, stats.discarded), (12, 8, 8));
    let (mut after, mut dead) = (None, BTreeSet::new());
    loop {
        let filter = DiscardedFilter { queue: Some(queue()), ..DiscardedFilter::default() };
        let page =
            kit.jobs.list_discarded(DiscardedList::DeadLetters, &filter, after.as_ref(), 3).await.expect("redis runs");
        dead.extend(page.jobs.iter().map(|(id, _)| *id));
        // As a client sends it back
        after = page.next.map(|next| next.to_string().parse().expect("a cursor"));
        if after.is_none() {
            break;
        }
    }
    assert_eq!(dead, claimed.iter().map(|one| one.job.id).collect());
    let found = kit.jobs.dead_letter_stats(|_| true).await.expect("redis runs");
    assert_eq!(found.by_queue, BTreeMap::from([(queue(), 8)]));
    let filter = JobFilter { queue: Some(queue()), ..JobFilter::default() };
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = kit.jobs.search(&filter, cursor.as_ref(), 3).await.expect("redis runs");
        seen.extend(page.jobs.iter().map(|job| job.id));
        cursor = page.cursor.map(|cursor| cursor.to_string().parse().expect("a cursor"));
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (20, 20));
    for one in claimed.iter().take(4) {
        kit.jobs.redrive(one.job.id).await.expect("redis runs").expect("available again");
    }
    let request = PurgeRequest { states: vec![JobState::Available], limit: 10, after: None };
    let first = kit.jobs.purge(&queue(), &request).await.expect("redis runs");
    let rest = kit.jobs.purge(&queue(), &request).await.expect("redis runs");
    assert_eq!((first.count, first.has_more, rest.count, rest.has_more), (10, true, 6, false));
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 0);
    assert_eq!(kit.jobs.list_queues().await.expect("redis runs"), [queue()], "nobody is shown a partition");
}

#[tokio::test]
async fn maintenance_serves_every_partition() {
    let kit = StoreKit::with_variables(&FOUR);
    for _ in 0..4 {
        kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":2,"initial_interval":"PT0.001S"}}"#).await;
    }
    let worker = consumer();
    for one in claim_all(&kit, &worker, 10).await {
        kit.jobs.fail(&one, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    }
    let maintenance = kit.start_maintenance();
    testkit::eventually("every job is there again", || async {
        (kit.jobs.queue_stats(&queue()).await.ok()?.available == 4).then_some(())
    })
    .await;
    maintenance.stop().await;
    for partition in partitions(&kit).await {
        let start = maintenance::CheckCursor::start();
        let report = kit.jobs.check_queue(&partition, false, start, 1000).await.expect("redis runs");
        assert!(report.violations.is_empty(), "{:?}", report.violations);
    }
}
