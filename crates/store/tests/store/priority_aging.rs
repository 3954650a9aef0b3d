//! The order of claims in a queue whose priorities age.

use std::{cell::Cell, time::Duration};

use proptest::{prelude::*, test_runner::TestRunner};
use store::jobs::RunTimeLimits;

use crate::kit::{StoreKit, consumer, queue};

const MINUTE_MS: i64 = 60_000;
/// More than a claim reads without asking first whether they are empty.
const PRIORITIES: [i64; 12] = [-100, -7, -1, 0, 1, 2, 3, 10, 20, 50, 99, 100];

fn aging(aging: Duration) -> RunTimeLimits {
    RunTimeLimits { priority_aging: Some(aging), ..RunTimeLimits::default() }
}

/// A queue whose streams have these priorities and no job.
async fn empty_streams(kit: &StoreKit, priorities: &[i64]) {
    for priority in priorities {
        kit.enqueue(&format!(r#"{{"type":"a","args":[],"priority":{priority}}}"#)).await;
    }
    let worker = consumer();
    for claimed in kit.claim(&worker, priorities.len()).await {
        kit.complete(&worker, &claimed, "1").await;
    }
}

/// Adds a job that arrived at that time.
async fn arrive(kit: &StoreKit, priority: i64, at_ms: i64, number: usize) {
    let added: Result<(), _> = addition(priority, at_ms, number).exec_async(&mut kit.server.connection().await).await;
    added.expect("redis runs");
}

fn addition(priority: i64, at_ms: i64, number: usize) -> redis::Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(format!("galley:{{default}}:s:{priority}")).arg(format!("{at_ms}-{number}"));
    command.arg("i").arg(number + 1).arg("e").arg(r#"{"type":"a","args":[]}"#);
    command
}

/// Claims all jobs, that many at a time: priority and arrival of each.
async fn claim_all(kit: &StoreKit, at_a_time: usize) -> Vec<(i64, i64)> {
    let (worker, mut claimed) = (consumer(), Vec::new());
    loop {
        let some = kit.claim(&worker, at_a_time).await;
        if some.is_empty() {
            return claimed;
        }
        let place = |job: &store::jobs::ClaimedJob| {
            (
                i64::from(job.job.priority.get()),
                job.entry.to_string().split('-').next().expect("a time").parse().expect("a number"),
            )
        };
        claimed.extend(some.iter().map(place));
    }
}

#[tokio::test]
async fn a_job_overtakes_those_of_a_higher_priority_that_came_so_much_later() {
    for settings in [true, false] {
        let variables: &[_] = if settings { &[("GALLEY__QUEUES__DEFAULT__PRIORITY_AGING_MS", "60000")] } else { &[] };
        let kit = StoreKit::with_variables(variables);
        empty_streams(&kit, &[0, 2]).await;
        if !settings {
            kit.jobs
                .set_queue_limits(&queue(), aging(Duration::from_mins(1)))
                .await
                .expect("redis runs")
                .expect("room");
        }
        let start = kit.jobs.now().await.expect("redis runs") + MINUTE_MS;
        arrive(&kit, 0, start, 0).await;
        for (number, after_ms) in [MINUTE_MS, 2 * MINUTE_MS, 2 * MINUTE_MS + 1].into_iter().enumerate() {
            arrive(&kit, 2, start + after_ms, number + 1).await;
        }
        let order = claim_all(&kit, 10).await;
        let after = [(2, MINUTE_MS), (2, 2 * MINUTE_MS), (0, 0), (2, 2 * MINUTE_MS + 1)];
        assert_eq!(order, after.map(|(priority, after_ms)| (priority, start + after_ms)), "from settings: {settings}");
    }
}

#[tokio::test]
async fn without_aging_a_job_waits_for_all_of_a_higher_priority() {
    let kit = StoreKit::start();
    empty_streams(&kit, &[0, 1]).await;
    kit.jobs.set_queue_limits(&queue(), aging(Duration::from_millis(1))).await.expect("redis runs").expect("room");
    kit.jobs.set_queue_limits(&queue(), RunTimeLimits::default()).await.expect("redis runs").expect("room");
    let start = kit.jobs.now().await.expect("redis runs") + MINUTE_MS;
    arrive(&kit, 0, start, 0).await;
    arrive(&kit, 1, start + MINUTE_MS, 1).await;
    assert_eq!(claim_all(&kit, 10).await, [(1, start + MINUTE_MS), (0, start)]);
}

#[tokio::test]
async fn aging_keeps_the_limits_of_the_queue_and_finds_what_arrives_in_a_stream_that_was_deleted() {
    let kit = StoreKit::start();
    empty_streams(&kit, &[0, 1]).await;
    let limits = RunTimeLimits { concurrency: Some(2), ..aging(Duration::from_secs(1)) };
    kit.jobs.set_queue_limits(&queue(), limits).await.expect("redis runs").expect("room");
    kit.redis_command(&["DEL", "galley:{default}:s:0"]).await;
    let start = kit.jobs.now().await.expect("redis runs") + MINUTE_MS;
    for number in 0..4 {
        arrive(&kit, i64::try_from(number % 2).expect("small"), start, number).await;
    }
    let worker = consumer();
    let first = kit.claim(&worker, 10).await;
    assert_eq!(first.len(), 2);
    assert!(kit.claim(&worker, 10).await.is_empty(), "two run");
    for claimed in &first {
        kit.complete(&worker, claimed, "1").await;
    }
    assert_eq!(kit.claim(&worker, 10).await.len(), 2);
}

#[test]
fn every_order_of_arrivals_is_claimed_by_arrival_and_priority() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let kit = runtime.block_on(async {
        let kit = StoreKit::start();
        empty_streams(&kit, &PRIORITIES).await;
        kit
    });
    let start = runtime.block_on(kit.jobs.now()).expect("redis runs") + MINUTE_MS;
    let (connection, run) = (runtime.block_on(kit.server.connection()), Cell::new(0));
    let arrivals = prop::collection::vec((prop::sample::select(PRIORITIES.to_vec()), 0..2_000_i64), 1..40);
    let case = (1..200_u64, 1..12_usize, arrivals);
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&case, |(aging_ms, at_a_time, mut arrivals)| {
            // Redis takes only growing ids: each run is later than the one before
            run.set(run.get() + 1);
            let start = start + run.get() * 10_000;
            arrivals.sort_by_key(|(_, after_ms)| *after_ms);
            let (order, aging_ms) = runtime.block_on(async {
                let limits = aging(Duration::from_millis(aging_ms));
                kit.jobs.set_queue_limits(&queue(), limits).await.expect("redis runs").expect("room");
                let mut pipeline = redis::pipe();
                for (number, (priority, after_ms)) in arrivals.iter().enumerate() {
                    pipeline.add_command(addition(*priority, start + after_ms, number)).ignore();
                }
                pipeline.exec_async(&mut connection.clone()).await.expect("redis runs");
                (claim_all(&kit, at_a_time).await, i64::try_from(aging_ms).expect("small"))
            });
            let mut expected: Vec<_> = arrivals.iter().map(|(priority, after)| (*priority, start + after)).collect();
            // Of equal ones the higher priority is first; the sort is stable
            expected.sort_by_key(|(priority, at)| (at - priority * aging_ms, -priority));
            prop_assert_eq!(order, expected);
            Ok(())
        })
        .expect("the order of the model");
}

#[tokio::test]
async fn of_many_priorities_the_highest_is_claimed_first_also_when_its_stream_was_deleted_meanwhile() {
    let kit = StoreKit::start();
    empty_streams(&kit, &PRIORITIES).await;
    kit.redis_command(&["DEL", "galley:{default}:s:99"]).await;
    let start = kit.jobs.now().await.expect("redis runs") + MINUTE_MS;
    for (number, priority) in [-7, 99, 3].into_iter().enumerate() {
        arrive(&kit, priority, start, number).await;
    }
    assert_eq!(claim_all(&kit, 2).await, [(99, start), (3, start), (-7, start)]);
}
