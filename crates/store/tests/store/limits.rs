use std::{cell::Cell, time::Duration};

use common::{id::JobId, rate::Rate};
use model::job::RetryAdvice;
use store::{
    jobs::{ClaimAvailability, ClaimBatch, Claimant, ClaimedJob, RunTimeLimits},
    maintenance,
};

use testkit::RedisServer;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

fn keyed(key: &str, limit: &str) -> String {
    format!(r#"{{"type":"a","args":[],"rate_limit":{{"key":"{key}",{limit}}}}}"#)
}

fn ids(claimed: &[ClaimedJob]) -> Vec<JobId> {
    claimed.iter().map(|claimed| claimed.job.id).collect()
}

async fn step(kit: &StoreKit) {
    maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
}

async fn available(kit: &StoreKit) -> u64 {
    kit.jobs.queue_stats(&queue()).await.expect("redis runs").available
}

#[tokio::test]
async fn several_workers_never_have_more_of_a_key_than_it_allows() {
    let kit = StoreKit::start();
    for _ in 0..40 {
        kit.enqueue(&keyed("a", r#""concurrency":2"#)).await;
    }
    let (running, most, done) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let work = async || {
        let worker = consumer();
        while done.get() < 40 {
            let claimed = kit.claim(&worker, 5).await;
            running.set(running.get() + claimed.len());
            most.set(most.get().max(running.get()));
            for claimed in claimed {
                // Counted before Redis can hand out the next
                running.set(running.get() - 1);
                done.set(done.get() + 1);
                kit.complete(&worker, &claimed, "1").await;
            }
        }
    };
    tokio::join!(work(), work(), work(), work());
    assert_eq!((most.get(), done.get(), available(&kit).await), (2, 40, 0));
}

#[tokio::test]
async fn a_key_with_a_hundred_jobs_does_not_delay_another() {
    let kit = StoreKit::start();
    for _ in 0..100 {
        kit.enqueue(&keyed("a", r#""concurrency":1"#)).await;
    }
    let other = kit.enqueue(&keyed("b", r#""concurrency":1"#)).await;
    let worker = consumer();
    let claimed = kit.claim(&worker, 10).await;
    assert_eq!(claimed.len(), 2, "one of each key");
    assert_eq!(claimed[1].job.id, other);
    assert_eq!(available(&kit).await, 99);
}

#[tokio::test]
async fn jobs_of_a_key_come_by_priority_then_in_order_of_arrival() {
    let kit = StoreKit::start();
    let mut expected = Vec::new();
    for priority in [0, -5, 7, 0, 7, -5] {
        let limit = format!(r#""concurrency":1}},"priority":{priority},"meta":{{"n":1"#);
        expected.push((priority, kit.enqueue(&keyed("a", &limit)).await));
    }
    // The first was let in before the others came
    expected[1..].sort_by_key(|(priority, _)| -priority);
    let worker = consumer();
    for (_, id) in expected {
        let claimed = kit.claim_one(&worker).await;
        assert_eq!(claimed.job.id, id);
        kit.complete(&worker, &claimed, "1").await;
    }
}

#[tokio::test]
async fn a_rate_lets_so_many_in_and_the_next_when_time_has_passed() {
    let cases =
        [(r#""rate":{"limit":2,"period":"PT1H"}"#, 2, "ra"), (r#""throttle":{"limit":2,"period":"PT1H"}"#, 1, "ta")];
    for (limit, first, time) in cases {
        let kit = StoreKit::start();
        for _ in 0..4 {
            kit.enqueue(&keyed("a", limit)).await;
        }
        let worker = consumer();
        assert_eq!(kit.claim(&worker, 10).await.len(), first, "{limit}");
        step(&kit).await;
        assert_eq!(kit.claim(&worker, 10).await.len(), 0, "{limit}");
        // Half an hour ago
        let past = (kit.jobs.now().await.expect("redis runs") - 1_800_100).to_string();
        kit.redis_command(&["HSET", "galley:{default}:limit:a", time, &past]).await;
        kit.redis_command(&["ZADD", "galley:{default}:timers", "1", "key a"]).await;
        step(&kit).await;
        assert_eq!(kit.claim(&worker, 10).await.len(), 1, "{limit}");
    }
}

#[tokio::test]
async fn whatever_takes_a_job_of_a_key_away_lets_the_next_in() {
    let kit = StoreKit::start();
    let limit = r#""concurrency":1},"retry":{"max_attempts":2,"initial_interval":"PT5H","max_interval":"PT5H""#;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(kit.enqueue(&keyed("a", limit)).await);
    }
    kit.jobs.cancel(ids[1]).await.expect("redis runs").expect("it waits for its key");
    assert_eq!(available(&kit).await, 3);
    let worker = consumer();
    let first = kit.claim_one(&worker).await;
    kit.jobs.fail(&first, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let third = kit.claim_one(&worker).await;
    assert_eq!((first.job.id, third.job.id), (ids[0], ids[2]), "a retry gives its place up");
    kit.redis_command(&["ZADD", "galley:{default}:due", "1", &ids[0].to_string()]).await;
    step(&kit).await;
    assert!(kit.claim(&worker, 10).await.is_empty(), "a retry whose time has come lines up");
    kit.jobs.cancel(ids[2]).await.expect("redis runs").expect("it runs");
    assert_eq!(kit.claim_one(&worker).await.job.id, ids[3]);
}

#[tokio::test]
async fn who_dies_between_an_end_and_letting_the_next_in_is_made_up_for_by_the_maintenance() {
    let kit = StoreKit::start();
    let first = kit.enqueue(&keyed("a", r#""concurrency":1"#)).await;
    let second = kit.enqueue(&keyed("a", r#""concurrency":1"#)).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    // Paused as it would be stopped by the death
    kit.redis_command(&["HSET", "galley:{default}:limit:a", "until", "99999999999999"]).await;
    kit.complete(&worker, &claimed, "1").await;
    kit.redis_command(&["HDEL", "galley:{default}:limit:a", "until"]).await;
    kit.redis_command(&["ZADD", "galley:{default}:timers", "1", &format!("follow_up {first}")]).await;
    assert!(kit.claim(&worker, 1).await.is_empty());
    step(&kit).await;
    assert_eq!(kit.claim_one(&worker).await.job.id, second);
}

#[tokio::test]
async fn a_jobs_limit_holds_for_it_alone_and_a_rate_without_a_key_for_those_that_carry_it() {
    let kit = StoreKit::start();
    for _ in 0..3 {
        kit.enqueue(&keyed("a", r#""concurrency":3"#)).await;
    }
    kit.enqueue(&keyed("a", r#""concurrency":1"#)).await;
    kit.enqueue(&keyed("a", r#""concurrency":9"#)).await;
    let worker = consumer();
    let claimed = kit.claim(&worker, 10).await;
    assert_eq!(claimed.len(), 3, "the last jobs changed nothing for these, and come after them");
    for claimed in &claimed {
        kit.complete(&worker, claimed, "1").await;
    }
    assert_eq!(
        kit.claim(&worker, 10).await.len(),
        2,
        "the one that wants to be alone among those before it, and the last"
    );
    let slow = r#"{"type":"b","args":[],"rate_limit":{"max_per_second":0.001}}"#;
    for _ in 0..2 {
        kit.enqueue(slow).await;
        kit.enqueue(JOB_BODY).await;
    }
    let types: Vec<_> = kit.claim(&worker, 10).await.iter().map(|job| job.job.summary.job_type.to_string()).collect();
    assert_eq!(types, ["b", "test.echo", "test.echo"]);
    assert_eq!(kit.jobs.queue_control(&queue()).await.expect("redis runs").rate, None);
}

#[tokio::test]
async fn a_burst_limits_starts_at_once_and_a_strict_rate_those_of_any_period() {
    let hour = 3_600_000;
    let burst = Rate { burst: 2, ..Rate::new(4, hour) };
    let strict = Rate { is_strict: true, ..Rate::new(4, hour) };
    // After three quarters of a period a bucket has filled three quarters
    for (rate, at_once, later) in [(Rate::new(4, hour), 4, 3), (burst, 2, 2), (strict, 4, 0)] {
        let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[]);
        for _ in 0..9 {
            kit.enqueue(JOB_BODY).await;
        }
        kit.jobs
            .set_queue_limits(&queue(), RunTimeLimits { rate: Some(rate), ..RunTimeLimits::default() })
            .await
            .expect("redis runs")
            .expect("room");
        assert_eq!(pull(&kit, 9).await.jobs.len(), at_once, "{rate:?}");
        kit.server.clock().set_ahead(Duration::from_mins(45));
        assert_eq!(pull(&kit, 9).await.jobs.len(), later, "{rate:?}");
    }
}

#[tokio::test]
async fn a_strict_rate_of_a_key_counts_from_the_claim() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[]);
    for _ in 0..4 {
        kit.enqueue(&keyed("a", r#""rate":{"limit":2,"period":"PT1H","strict":true}"#)).await;
    }
    // Two are admitted, and nobody claims them for most of the hour
    kit.server.clock().set_ahead(Duration::from_mins(50));
    let worker = consumer();
    assert_eq!(kit.claim(&worker, 10).await.len(), 2);
    for (minutes, more) in [(51, 0), (70, 0), (109, 0), (112, 2)] {
        kit.server.clock().set_ahead(Duration::from_mins(minutes));
        for _ in 0..3 {
            kit.redis_command(&["ZADD", "galley:{default}:timers", "1", "key a"]).await;
            step(&kit).await;
        }
        assert_eq!(kit.claim(&worker, 10).await.len(), more, "after {minutes} minutes");
    }
}

#[tokio::test]
async fn a_job_without_room_holds_up_those_of_its_key_behind_it_but_none_before_it_by_priority() {
    let kit = StoreKit::start();
    let strict = r#""rate":{"limit":1,"period":"PT1H","strict":true}"#;
    let first = kit.enqueue(&keyed("a", strict)).await;
    let second = kit.enqueue(&keyed("a", strict)).await;
    kit.enqueue(&keyed("a", r#""concurrency":9"#)).await;
    let other = kit.enqueue(&keyed("b", r#""concurrency":9"#)).await;
    let worker = consumer();
    assert_eq!(ids(&kit.claim(&worker, 10).await), [first, other], "a key holds up no other");
    // It has room by its own limit, and keeps its place: jobs of a key start in order
    step(&kit).await;
    assert_eq!(kit.claim(&worker, 10).await.len(), 0);
    let urgent = r#"{"type":"a","args":[],"priority":5,"rate_limit":{"key":"a","concurrency":9}}"#;
    let urgent = kit.enqueue(urgent).await;
    assert_eq!(ids(&kit.claim(&worker, 10).await), [urgent]);
    kit.jobs.cancel(second).await.expect("redis runs").expect("it waits");
    step(&kit).await;
    assert_eq!(kit.claim(&worker, 10).await.len(), 1, "nothing is in front of the last one");
}

#[tokio::test]
async fn a_bucket_fills_again_at_once_when_the_clock_was_set_back() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[]);
    for _ in 0..6 {
        kit.enqueue(JOB_BODY).await;
    }
    kit.server.clock().set_ahead(Duration::from_hours(48));
    let rate = Rate::new(2, 3_600_000);
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { rate: Some(rate), ..RunTimeLimits::default() })
        .await
        .expect("redis runs")
        .expect("room");
    assert_eq!(pull(&kit, 9).await.jobs.len(), 2);
    kit.server.clock().set_ahead(Duration::ZERO);
    assert_eq!(pull(&kit, 9).await.jobs.len(), 0);
    kit.server.clock().set_ahead(Duration::from_mins(31));
    assert_eq!(pull(&kit, 9).await.jobs.len(), 1);
}

async fn pull(kit: &StoreKit, most: usize) -> ClaimBatch {
    let by = Claimant::Pull { worker: None, lease: None };
    kit.jobs.claim(&queue(), &mut Vec::new(), most, by).await.expect("redis runs")
}

#[tokio::test]
async fn a_queue_hands_out_as_many_at_once_as_the_settings_or_a_client_that_sets_it_later_say() {
    let kit = StoreKit::with_variables(&[("GALLEY__QUEUES__DEFAULT__CONCURRENCY", "2")]);
    for _ in 0..9 {
        kit.enqueue(JOB_BODY).await;
    }
    let batch = pull(&kit, 5).await;
    assert_eq!((batch.jobs.len(), batch.availability), (2, ClaimAvailability::Limited));
    let batch = pull(&kit, 5).await;
    assert_eq!(batch.jobs.len(), 0);
    assert!(matches!(batch.availability, ClaimAvailability::RetryAfter(_)), "{:?}", batch.availability);
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { concurrency: Some(3), ..RunTimeLimits::default() })
        .await
        .expect("redis runs")
        .expect("room");
    assert_eq!(pull(&kit, 5).await.jobs.len(), 1);
    kit.jobs.set_queue_limits(&queue(), RunTimeLimits::default()).await.expect("redis runs").expect("room");
    assert_eq!(pull(&kit, 5).await.jobs.len(), 0, "as the settings have it again");
    kit.jobs.set_queue_paused(&queue(), true).await.expect("redis runs").expect("room");
    assert_eq!(pull(&kit, 5).await.availability, ClaimAvailability::Paused);
}

#[tokio::test]
async fn a_queue_starts_as_many_in_a_period_as_its_rate_says() {
    let kit = StoreKit::start();
    for _ in 0..9 {
        kit.enqueue(JOB_BODY).await;
    }
    let rate = Rate::new(4, 3_600_000);
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { rate: Some(rate), ..RunTimeLimits::default() })
        .await
        .expect("redis runs")
        .expect("room");
    assert_eq!((pull(&kit, 3).await.jobs.len(), pull(&kit, 3).await.jobs.len()), (3, 1));
    let ClaimAvailability::RetryAfter(pause) = pull(&kit, 3).await.availability else { panic!("it says when") };
    assert!(pause <= Duration::from_mins(15), "{pause:?}");
    let past = (kit.jobs.now().await.expect("redis runs") - 1_800_000).to_string();
    kit.redis_command(&["HSET", "galley:{default}:control", "ra", &past]).await;
    assert_eq!(pull(&kit, 9).await.jobs.len(), 2);
}
