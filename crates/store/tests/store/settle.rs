use std::time::Duration;

use model::job::RetryAdvice;
use store::jobs::Attempt;
use store::jobs::{Consumer, DiscardedFilter, DiscardedList, FailureOutcome, Fence, JobTransitionError, Settled};
use testkit::eventually;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, normal_priority, queue};

const NO_JITTER: &str = r#"{"type":"a","args":[],"retry":{"max_attempts":3,"initial_interval":"PT1H","max_interval":"PT2H","jitter":false}}"#;

#[tokio::test]
async fn a_completed_job_keeps_its_result_and_leaves_nothing_else_behind() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    assert_eq!(kit.complete(&consumer, &claimed, r#"{"n":9007199254740993}"#).await, Settled::Done);
    let job = kit.job(id).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("completed"), Some(1)));
    assert_eq!(job["result"]["n"], 9_007_199_254_740_993_u64);
    assert_eq!(kit.redis_command(&["XLEN", "galley:{default}:s:0"]).await, redis::Value::Int(0));
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:r:{id}")]).await;
    assert!(matches!(ttl, redis::Value::Int(ms) if ms > 0), "{ttl:?}");
}

#[tokio::test]
async fn a_result_whose_answer_was_lost_is_recorded_once() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    assert_eq!(kit.complete(&consumer, &claimed, "1").await, Settled::Done);
    assert_eq!(kit.complete(&consumer, &claimed, "1").await, Settled::AlreadyDone);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").completed, 1);
}

#[tokio::test]
async fn a_zombie_worker_cannot_complete_or_fail_a_reclaimed_job() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let (zombie, heir) = (consumer(), consumer());
    let old = kit.claim_one(&zombie).await;
    assert_eq!(kit.jobs.worker_lost(&old, &fence(&zombie)).await.expect("redis runs"), Settled::Done);
    let new = kit.claim_one(&heir).await;
    assert_eq!(new.job.id, id);
    assert_eq!(kit.complete(&zombie, &old, "\"zombie\"").await, Settled::Stale);
    assert!(matches!(
        kit.jobs.fail(&old, &fence(&zombie), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs"),
        FailureOutcome::Stale
    ));
    assert_eq!(kit.jobs.release(Attempt::of(&old, &fence(&zombie))).await.expect("redis runs"), Settled::AlreadyDone);
    assert_eq!(kit.complete(&heir, &new, "\"heir\"").await, Settled::Done);
    let job = kit.job(id).await;
    assert_eq!((job["result"].as_str(), job["attempt"].as_u64()), (Some("heir"), Some(2)));
    assert_eq!(kit.complete(&zombie, &old, "\"zombie\"").await, Settled::Stale);
    assert_eq!(kit.job(id).await["result"], "heir");
}

#[tokio::test]
async fn a_zombie_does_not_shorten_the_life_of_a_chosen_id() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a","args":[],"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f"}"#).await;
    let (zombie, heir) = (consumer(), consumer());
    let old = kit.claim_one(&zombie).await;
    kit.jobs.worker_lost(&old, &fence(&zombie)).await.expect("redis runs");
    assert_eq!(kit.complete(&zombie, &old, "1").await, Settled::Stale);
    let key = format!("galley:id:{id}");
    let lives = |value: redis::Value| matches!(value, redis::Value::Int(ms) if ms > 80 * 86_400_000);
    assert!(lives(kit.redis_command(&["PTTL", &key]).await));
    let new = kit.claim_one(&heir).await;
    assert_eq!(kit.complete(&heir, &new, "1").await, Settled::Done);
    assert!(!lives(kit.redis_command(&["PTTL", &key]).await), "it expires with the result");
}

#[tokio::test]
async fn a_worker_that_is_not_silent_is_not_robbed() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let owner = consumer();
    let claimed = kit.claim_one(&owner).await;
    let silent = Fence::Worker { consumer: owner.clone(), min_idle: Duration::from_secs(30) };
    assert_eq!(kit.jobs.worker_lost(&claimed, &silent).await.expect("redis runs"), Settled::Stale);
    assert_eq!(kit.complete(&owner, &claimed, "1").await, Settled::Done);
}

#[tokio::test]
async fn a_stale_token_changes_nothing_and_the_right_one_does() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let old = kit.pull(None).await.expect("a job");
    let by_token = |token: &Option<String>| Fence::Pull { token: token.clone(), worker: None };
    let handed_back = kit.jobs.release(Attempt::of(&old, &by_token(&old.token))).await.expect("redis runs");
    assert_eq!(handed_back, Settled::Done);
    let new = kit.pull(None).await.expect("a job");
    assert_ne!(old.token, new.token);
    // The stale token against the new entry, and the whole stale attempt
    assert!(!kit.jobs.heartbeat(Attempt::of(&new, &by_token(&old.token)), None).await.expect("redis runs"));
    assert!(!kit.jobs.heartbeat(Attempt::of(&old, &by_token(&old.token)), None).await.expect("redis runs"));
    let failed =
        kit.jobs.fail(&new, &by_token(&old.token), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert!(matches!(failed, FailureOutcome::Stale));
    assert_eq!(kit.state(id).await, "active");
    assert!(kit.jobs.heartbeat(Attempt::of(&new, &by_token(&new.token)), None).await.expect("redis runs"));
    assert_eq!(new.job.history.current_attempt(), 1, "handing back does not spend an attempt");
}

#[tokio::test]
async fn a_failure_sets_the_next_attempt_and_the_last_one_discards() {
    let kit = StoreKit::start();
    let id = kit.enqueue(NO_JITTER).await;
    let consumer = consumer();
    for attempt in 1..=3 {
        let claimed = kit.claim_one(&consumer).await;
        assert_eq!(claimed.job.history.current_attempt(), attempt);
        let recorded = kit
            .jobs
            .fail(&claimed, &fence(&consumer), failure(attempt), RetryAdvice::ByPolicy)
            .await
            .expect("redis runs");
        if attempt < 3 {
            let FailureOutcome::Retry { delay, .. } = recorded else { panic!("{recorded:?}") };
            assert_eq!(delay, Duration::from_hours(u64::from(attempt)));
            assert_eq!(kit.state(id).await, "retryable");
            make_due(&kit, id).await;
        }
    }
    let job = kit.job(id).await;
    assert_eq!((job["state"].as_str(), job["attempt"].as_u64()), (Some("discarded"), Some(3)));
    assert_eq!(job["errors"].as_array().map(Vec::len), Some(3));
    assert!(job["completed_at"].is_string() && job["discarded_at"].is_string());
    assert!(
        kit.jobs
            .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), None, 10)
            .await
            .expect("redis runs")
            .jobs
            .is_empty(),
        "on_exhaustion is discard"
    );
}

/// Moves a parked job's time to now and runs the maintenance until it is available.
async fn make_due(kit: &StoreKit, id: common::id::JobId) {
    kit.redis_command(&["ZADD", "galley:{default}:due", "1", &id.to_string()]).await;
    let maintenance = kit.start_maintenance();
    eventually("the job is available", || async { (kit.state(id).await == "available").then_some(()) }).await;
    maintenance.stop().await;
}

#[tokio::test]
async fn a_failure_whose_answer_was_lost_is_recorded_once() {
    let kit = StoreKit::start();
    kit.enqueue(NO_JITTER).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    let first =
        kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let second =
        kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    match (first, second) {
        (FailureOutcome::Retry { due: first, .. }, FailureOutcome::Retry { due: second, .. }) => {
            assert_eq!(first, second);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:due"]).await, redis::Value::Int(1));
}

#[tokio::test]
async fn crashes_spend_the_crash_budget_and_not_the_retries() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__CRASH_BUDGET", "2")]);
    let id = kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#).await;
    for crash in 1..=3 {
        let worker = consumer();
        let claimed = kit.claim_one(&worker).await;
        assert_eq!(kit.jobs.worker_lost(&claimed, &fence(&worker)).await.expect("redis runs"), Settled::Done);
        assert_eq!(kit.state(id).await, if crash <= 2 { "available" } else { "discarded" });
    }
    let job = kit.job(id).await;
    assert_eq!(job["error"]["code"], "crash_budget_exhausted");
    let listed = kit
        .jobs
        .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), None, 10)
        .await
        .expect("redis runs")
        .jobs;
    assert_eq!(listed.len(), 1, "its policy asks for dead letters");
}

#[tokio::test]
async fn a_job_can_be_cancelled_wherever_it_is_and_its_worker_cannot_end_it_any_more() {
    let kit = StoreKit::start();
    let worker = consumer();
    let scheduled = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    let retryable = kit.enqueue(NO_JITTER).await;
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let active = kit.enqueue(JOB_BODY).await;
    let held = kit.claim_one(&worker).await;
    let pulled = kit.enqueue(JOB_BODY).await;
    kit.pull(None).await.expect("a job");
    let available = kit.enqueue(JOB_BODY).await;
    for (id, state) in [
        (scheduled, "scheduled"),
        (retryable, "retryable"),
        (active, "active"),
        (pulled, "active"),
        (available, "available"),
    ] {
        assert_eq!(kit.state(id).await, state);
        kit.jobs.cancel(id).await.expect("redis runs").expect("can be cancelled");
        let job = kit.job(id).await;
        assert_eq!(job["state"], "cancelled", "was {state}");
        assert!(job["cancelled_at"].is_string() && job["completed_at"].is_null());
        let again = kit.jobs.cancel(id).await.expect("redis runs").map(drop);
        assert!(matches!(again, Err(JobTransitionError::Conflict(_))), "{again:?}");
    }
    assert_eq!(kit.complete(&worker, &held, "1").await, Settled::Stale);
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.active, stats.delayed, stats.cancelled), (0, 0, 0, 5));
    let leftovers: Vec<String> =
        kit.redis_keys().await.into_iter().filter(|key| key.contains(":j:") || key.ends_with(":leases")).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[tokio::test]
async fn a_dead_letter_is_listed_and_can_be_tried_again_as_new_or_deleted() {
    let kit = StoreKit::start();
    let body =
        r#"{"type":"a","args":["keep me"],"timeout_ms":5000,"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#;
    let id = kit.enqueue(body).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let listed = kit
        .jobs
        .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), None, 10)
        .await
        .expect("redis runs")
        .jobs;
    assert!(listed.len() == 1 && listed[0].1.contains(&id.to_string()), "{listed:?}");

    let job = kit.jobs.redrive(id).await.expect("redis runs").expect("a dead letter");
    assert!(
        job.contains(r#""state":"available""#) && job.contains(r#""attempt":0"#) && job.contains("keep me"),
        "{job}"
    );
    assert!(kit.jobs.redrive(id).await.expect("redis runs").is_err(), "it has not ended any more");
    let again = kit.claim_one(&worker).await;
    assert_eq!((again.job.id, again.job.history.current_attempt(), again.job.timeout_ms), (id, 1, Some(5000)));

    kit.jobs.fail(&again, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert!(kit.jobs.delete_dead_letter(id).await.expect("redis runs"));
    assert!(!kit.jobs.delete_dead_letter(id).await.expect("redis runs"));
    assert!(kit.jobs.locate(id).await.expect("redis runs").is_none());
}

#[tokio::test]
async fn dead_letters_are_capped() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__DEAD_LETTER_MAX", "2")]);
    let worker = consumer();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(
            kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#).await,
        );
        let claimed = kit.claim_one(&worker).await;
        kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    }
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:dead"]).await, redis::Value::Int(2));
    for (nth, id) in ids.into_iter().enumerate() {
        let is_there = kit.jobs.locate(id).await.expect("redis runs").is_some();
        assert_eq!(is_there, nth >= 2, "what is in no list is not kept");
    }
}

#[tokio::test]
async fn renewing_keeps_a_job_and_tells_what_was_lost() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    kit.enqueue(JOB_BODY).await;
    let owner = Consumer::new(Duration::from_millis(100));
    let held = kit.claim(&owner, 2).await;
    kit.jobs.worker_lost(&held[0], &fence(&owner)).await.expect("redis runs");
    let renewals: Vec<_> = held.iter().map(|claimed| (claimed.entry, claimed.started_at, None)).collect();
    let worker = "w".parse().expect("a name");
    let lost =
        kit.jobs.renew_leases(&queue(), normal_priority(), &owner, &worker, &renewals).await.expect("redis runs");
    assert_eq!(lost, [held[0].entry]);
    assert_eq!(kit.job(held[1].job.id).await["worker_id"], "w");
    assert_eq!(kit.complete(&owner, &held[1], "1").await, Settled::Done);
    assert!(!kit.redis_keys().await.contains(&"galley:{default}:active".to_owned()), "nothing is left of the attempt");
}
