use common::id::JobId;
use model::job::{JobState, RetryAdvice};
use store::jobs::{DiscardedFilter, DiscardedList, JobTransitionError};
use testkit::eventually;

use crate::kit::{StoreKit, consumer, failure, fence, queue};

/// Lets a job fail for good by its policy, which is the default but for the number of attempts.
async fn fail(kit: &StoreKit, more: &str) -> JobId {
    let id = kit.enqueue(&format!(r#"{{"type":"a","args":[1],"retry":{{"max_attempts":1}}{more}}}"#)).await;
    fail_waiting(kit).await;
    id
}

async fn fail_waiting(kit: &StoreKit) {
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
}

async fn redrive(kit: &StoreKit, id: JobId) -> Result<String, JobTransitionError> {
    kit.jobs.redrive(id).await.expect("redis runs")
}

async fn run_now(kit: &StoreKit, id: JobId) -> Result<String, JobTransitionError> {
    kit.jobs.retry_now(id).await.expect("redis runs")
}

#[tokio::test]
async fn a_discarded_or_cancelled_job_is_retried_though_it_is_no_dead_letter_and_counts_once() {
    let kit = StoreKit::start();
    let discarded = fail(&kit, "").await;
    let cancelled = kit.enqueue(r#"{"type":"a","args":[2]}"#).await;
    kit.jobs.cancel(cancelled).await.expect("redis runs").expect("it waits");
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.discarded, stats.cancelled, stats.dead), (1, 1, 0));

    for (id, errors) in [(discarded, 1), (cancelled, 0)] {
        let job = redrive(&kit, id).await.expect("it ended without success");
        let job: serde_json::Value = serde_json::from_str(&job).expect("JSON");
        assert_eq!((&job["state"], &job["attempt"]), (&"available".into(), &0.into()), "{job}");
        assert_eq!(job["errors"].as_array().map_or(0, Vec::len), errors, "{job}");
        assert!(redrive(&kit, id).await.is_err(), "it waits");
    }
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.discarded, stats.cancelled, stats.available), (0, 0, 2), "neither has ended any more");
    fail_waiting(&kit).await;
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").discarded, 1, "it ended once");
    let worker = consumer();
    let completed = kit.claim_one(&worker).await;
    kit.complete(&worker, &completed, "1").await;
    let refused = redrive(&kit, completed.job.id).await.expect_err("it succeeded");
    assert!(matches!(refused, JobTransitionError::Conflict(conflict) if conflict.state == JobState::Completed));
}

async fn listed(kit: &StoreKit) -> Vec<JobId> {
    let page = kit.jobs.list_discarded(DiscardedList::All, &DiscardedFilter::default(), None, 10).await;
    page.expect("redis runs").jobs.into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn discarded_jobs_are_listed_whatever_their_policy_until_they_are_retried() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__DISCARDED_MAX", "3")]);
    let mut failed = Vec::new();
    for more in ["", r#","on_exhaustion":"dead_letter""#, "", ""] {
        let policy = format!(r#"{{"type":"a","args":[],"retry":{{"max_attempts":1{more}}}}}"#);
        failed.push(kit.enqueue(&policy).await);
        fail_waiting(&kit).await;
    }
    let cancelled = kit.enqueue(r#"{"type":"a","args":[2]}"#).await;
    kit.jobs.cancel(cancelled).await.expect("redis runs").expect("it waits");
    assert_eq!(listed(&kit).await, [failed[3], failed[2], failed[1]], "the newest three, newest first");

    redrive(&kit, failed[3]).await.expect("it failed");
    assert_eq!(listed(&kit).await, [failed[2], failed[1]]);
    fail_waiting(&kit).await;
    assert_eq!(listed(&kit).await, [failed[3], failed[2], failed[1]], "it failed again, last");
    assert!(kit.jobs.delete_dead_letter(failed[1]).await.expect("redis runs"));
    assert_eq!(listed(&kit).await, [failed[3], failed[2]]);
    assert!(kit.jobs.delete_queue(&queue()).await.expect("redis runs"), "a list of the past is no job");
    assert_eq!(kit.redis_command(&["EXISTS", "galley:{default}:discarded"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_job_that_expired_is_listed_too() {
    let kit = StoreKit::start();
    let maintenance = kit.start_maintenance();
    let id = kit.enqueue(r#"{"type":"a","args":[],"expires_at":"+PT0.1S"}"#).await;
    eventually("it is discarded", || async { (kit.state(id).await == "discarded").then_some(()) }).await;
    maintenance.stop().await;
    assert_eq!(listed(&kit).await, [id]);
}

#[tokio::test]
async fn the_setting_decides_about_jobs_whose_policy_does_not() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter")]);
    let listed = fail(&kit, "").await;
    let not_wanted = r#"{"type":"a","args":[],"retry":{"max_attempts":1,"on_exhaustion":"discard"}}"#;
    kit.enqueue(not_wanted).await;
    fail_waiting(&kit).await;
    let letters = kit
        .jobs
        .list_discarded(DiscardedList::DeadLetters, &DiscardedFilter::default(), None, 10)
        .await
        .expect("redis runs")
        .jobs;
    assert_eq!(letters.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [listed]);
}

#[tokio::test]
async fn a_redriven_job_is_unique_again_and_yields_to_an_equal_job() {
    let kit = StoreKit::start();
    let first = fail(&kit, r#","unique":{}"#).await;
    redrive(&kit, first).await.expect("nothing is in its way");
    let equal = r#"{"type":"a","args":[1],"unique":{}}"#;
    let refused = kit.try_enqueue(equal).await.map(drop);
    assert_eq!(refused, Err(store::jobs::EnqueueRefusal::Duplicate(first)), "it waits again");
    fail_waiting(&kit).await;
    let second = kit.enqueue(equal).await;
    assert_eq!(redrive(&kit, first).await, Err(JobTransitionError::Duplicate(second)));
    assert_eq!(kit.state(first).await, "discarded");
    kit.jobs.cancel(second).await.expect("redis runs").expect("it waits");
    redrive(&kit, first).await.expect("nothing is in its way");
}

#[tokio::test]
async fn the_late_follow_up_of_an_end_does_not_take_the_uniqueness_of_the_job_that_was_redriven() {
    let kit = StoreKit::start();
    let id = fail(&kit, r#","unique":{}"#).await;
    redrive(&kit, id).await.expect("nothing is in its way");
    let holder = kit.redis_keys().await.into_iter().find(|key| key.contains(":unique:")).expect("a holder");
    kit.redis_command(&["ZADD", "galley:{default}:timers", "1", &format!("follow_up {id}")]).await;
    store::maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
    assert!(kit.redis_keys().await.contains(&holder));
}

#[tokio::test]
async fn a_job_that_waits_for_its_time_can_run_now() {
    let kit = StoreKit::start();
    let plain = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    let limited = r#"{"type":"a","args":[],"scheduled_at":"+PT1H","rate_limit":{"key":"k","concurrency":1}}"#;
    let limited = kit.enqueue(limited).await;
    for id in [plain, limited] {
        let job = run_now(&kit, id).await.expect("it is scheduled");
        assert!(job.contains(r#""state":"available""#), "{job}");
        assert!(run_now(&kit, id).await.is_err(), "it is available");
    }
    let worker = consumer();
    let claimed = kit.claim(&worker, 10).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [plain, limited]);
    kit.jobs.fail(&claimed[0], &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert_eq!(kit.state(plain).await, "retryable");
    run_now(&kit, plain).await.expect("it is retryable");
    assert_eq!(kit.claim_one(&worker).await.job.history.current_attempt(), 2, "its history stays");
    let pending = kit.enqueue(r#"{"type":"a","args":[],"pending":true}"#).await;
    assert!(matches!(run_now(&kit, pending).await, Err(JobTransitionError::Conflict(_))), "it waits for activation");
}
