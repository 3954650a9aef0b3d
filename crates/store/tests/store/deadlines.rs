use model::job::RetryAdvice;
use store::jobs::Attempt;
use store::{
    jobs::{FailureOutcome, Settled},
    maintenance,
};
use testkit::eventually;

use crate::kit::{StoreKit, consumer, failure, fence, queue};

/// The upkeep goes on until the job is discarded.
async fn is_discarded(kit: &StoreKit, id: common::id::JobId, code: &str) {
    eventually("the job is discarded", || async {
        maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
        (kit.state(id).await == "discarded").then_some(())
    })
    .await;
    assert_eq!(kit.job(id).await["error"]["code"], code);
    let left = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((left.available, left.active, left.delayed, left.pending), (0, 0, 0, 0));
    assert!(!kit.redis_keys().await.iter().any(|key| key.contains(":j:")), "{:?}", kit.redis_keys().await);
}

#[tokio::test]
async fn a_job_that_was_not_started_in_time_is_discarded_wherever_it_waits() {
    for member in [
        r#""priority":1"#,
        r#""scheduled_at":"+PT1H""#,
        r#""pending":true"#,
        r#""rate_limit":{"key":"a","concurrency":0}"#,
    ] {
        let kit = StoreKit::start();
        let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"expires_at":"+PT0.1S",{member}}}"#)).await;
        is_discarded(&kit, id, "expired").await;
    }
}

const RETRIED: &str = r#"{"type":"a","args":[],"expires_at":"+PT0.3S","retry":{"max_attempts":3,"initial_interval":"PT5H","max_interval":"PT5H"}}"#;

#[tokio::test]
async fn a_job_that_waits_for_its_next_attempt_is_discarded_when_its_time_is_over() {
    let kit = StoreKit::start();
    let id = kit.enqueue(RETRIED).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    is_discarded(&kit, id, "expired").await;
}

#[tokio::test]
async fn a_job_whose_time_was_over_while_it_ran_is_not_tried_again() {
    for is_handed_back in [false, true] {
        let kit = StoreKit::start();
        let id = kit.enqueue(RETRIED).await;
        let worker = consumer();
        let claimed = kit.claim_one(&worker).await;
        eventually("its timer went off", || async {
            maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
            (kit.redis_command(&["ZCARD", "galley:{default}:timers"]).await == redis::Value::Int(0)).then_some(())
        })
        .await;
        assert_eq!(kit.state(id).await, "active", "one that runs goes on");
        if is_handed_back {
            kit.jobs.release(Attempt::of(&claimed, &fence(&worker))).await.expect("redis runs");
        } else {
            kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
        }
        is_discarded(&kit, id, "expired").await;
    }
}

#[tokio::test]
async fn a_job_that_is_not_over_in_time_is_discarded_while_it_runs_and_its_result_comes_too_late() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a","args":[],"total_timeout_ms":200}"#).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    is_discarded(&kit, id, "total_timeout").await;
    assert_eq!(kit.complete(&worker, &claimed, "1").await, Settled::Stale);
    assert_eq!(kit.state(id).await, "discarded");
}

#[tokio::test]
async fn an_attempt_that_would_start_after_the_deadline_does_not_follow() {
    let kit = StoreKit::start();
    let retry = r#""retry":{"max_attempts":3,"initial_interval":"PT5H","max_interval":"PT5H"}"#;
    let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"total_timeout_ms":60000,{retry}}}"#)).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    let recorded =
        kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert!(matches!(recorded, FailureOutcome::Discarded(_)), "{recorded:?}");
    assert_eq!(kit.state(id).await, "discarded");
}

#[tokio::test]
async fn a_job_that_cannot_be_read_does_not_keep_the_others_from_being_seen_to() {
    let kit = StoreKit::start();
    let broken = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H","expires_at":"+PT0.05S"}"#).await;
    let key_waiting =
        kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H","rate_limit":{"key":"k","concurrency":1}}"#).await;
    let expires = kit.enqueue(r#"{"type":"a","args":[],"pending":true,"expires_at":"+PT0.1S"}"#).await;
    let due = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    kit.redis_command(&["HSET", &format!("galley:{{default}}:j:{broken}"), "h", "nonsense"]).await;
    kit.redis_command(&["HSET", &format!("galley:{{default}}:j:{key_waiting}"), "l", "{no key}"]).await;
    for (score, id) in [("1", key_waiting), ("2", due)] {
        kit.redis_command(&["ZADD", "galley:{default}:due", score, &id.to_string()]).await;
    }
    let upkeep = kit.start_maintenance();
    eventually("the others are seen to", || async {
        (kit.state(expires).await == "discarded" && kit.state(due).await == "available").then_some(())
    })
    .await;
    upkeep.stop().await;
}
