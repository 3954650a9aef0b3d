//! Attempts of a queue-worker that another program may end, or takes over.

use std::time::Duration;

use common::name::WorkerId;
use model::job::RetryAdvice;
use store::jobs::Attempt;
use store::jobs::{FailureOutcome, Fence, FinishedJob, Settled};
use store::local_now;
use testkit::eventually;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn worker() -> WorkerId {
    "w".parse().expect("a name")
}

fn token(token: &str) -> Fence {
    Fence::Pull { token: Some(token.to_owned()), worker: None }
}

#[tokio::test]
async fn an_attempt_with_a_callback_token_can_be_ended_by_its_token_or_by_its_worker_but_once() {
    let kit = StoreKit::start();
    let consumer = consumer();
    for by_token in [true, false] {
        let id = kit.enqueue(JOB_BODY).await;
        let claimed = kit.claim_one(&consumer).await;
        for _ in 0..2 {
            assert!(
                kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, None).await.expect("redis runs")
            );
        }
        let renewed = [(claimed.entry, claimed.started_at, None)];
        let lost = kit.jobs.renew_leases(&queue(), claimed.job.priority, &consumer, &worker(), &renewed).await;
        assert!(lost.expect("redis runs").is_empty(), "the worker has it still");
        let ended = FinishedJob::completed(&claimed.job, Some("\"token\""), Some(claimed.started_at), local_now());
        let finish = async |fence: &Fence| {
            kit.jobs.finish(Attempt::of(&claimed, fence), &ended, false).await.expect("redis runs")
        };
        assert_eq!(finish(&token("ffffffffffffffffffffffffffffffff")).await, Settled::Stale);
        if by_token {
            assert_eq!(finish(&token(TOKEN)).await, Settled::Done);
            assert_ne!(kit.complete(&consumer, &claimed, "\"worker\"").await, Settled::Done);
        } else {
            assert_eq!(kit.complete(&consumer, &claimed, "\"worker\"").await, Settled::Done);
            assert_ne!(finish(&token(TOKEN)).await, Settled::Done);
        }
        assert_eq!(kit.job(id).await["result"], if by_token { "token" } else { "worker" });
        assert!(
            !kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, None).await.expect("redis runs"),
            "it is over"
        );
    }
}

#[tokio::test]
async fn an_attempt_that_was_handed_over_is_its_tokens_alone() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let hour = Duration::from_hours(1);
    for _ in 0..2 {
        assert!(
            kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, Some(hour)).await.expect("redis runs")
        );
    }
    let recorded = kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await;
    assert!(matches!(recorded.expect("redis runs"), FailureOutcome::Stale));
    assert_eq!(kit.complete(&consumer, &claimed, "1").await, Settled::Stale);
    let job = kit.job(id).await;
    assert_eq!((job["state"].as_str(), job["worker_id"].as_str()), (Some("active"), Some("w")));
    assert!(kit.jobs.heartbeat(Attempt::of(&claimed, &token(TOKEN)), None).await.expect("redis runs"));
    let ended = FinishedJob::completed(&claimed.job, Some("2"), Some(claimed.started_at), local_now());
    let settled = kit.jobs.finish(Attempt::of(&claimed, &token(TOKEN)), &ended, false).await;
    assert_eq!(settled.expect("redis runs"), Settled::Done);
    assert_eq!(kit.job(id).await["result"], 2);
}

#[tokio::test]
async fn an_attempt_that_was_handed_over_comes_back_when_nobody_is_heard_of() {
    let kit = StoreKit::start();
    let maintenance = kit.start_maintenance();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let moment = Duration::from_millis(50);
    assert!(
        kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, Some(moment)).await.expect("redis runs")
    );
    eventually("the job is available again", || async { (kit.state(id).await == "available").then_some(()) }).await;
    assert!(
        !kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, Some(moment)).await.expect("redis runs")
    );
    let again = kit.claim_one(&consumer).await;
    assert_eq!((again.job.id, again.job.history.crashes), (id, 1));
    maintenance.stop().await;
}

#[tokio::test]
async fn a_snoozed_job_comes_again_in_its_time_and_has_spent_no_attempt() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let snooze =
        async || kit.jobs.snooze(&claimed, &fence(&consumer), Duration::from_millis(200)).await.expect("redis runs");
    let due = snooze().await.expect("it is ours");
    assert_eq!(snooze().await, Some(due), "an answer that was lost");
    // Not earlier: the job must not be available again before the second call
    let maintenance = kit.start_maintenance();
    eventually("the job is available again", || async { (kit.state(id).await == "available").then_some(()) }).await;
    assert!(kit.jobs.now().await.expect("redis runs") >= due);
    let again = kit.claim_one(&consumer).await;
    assert_eq!((again.job.id, again.job.history.current_attempt()), (id, 1));
    assert_eq!(snooze().await, None, "the attempt before this one is over");
    maintenance.stop().await;
}

#[tokio::test]
async fn an_attempt_that_was_handed_over_ends_at_its_time_limit_however_often_it_is_heard_of() {
    let limit = ("GALLEY__QUEUES__DEFAULT__ATTEMPT_TIMEOUT_MS", "700");
    let longest = ("GALLEY__QUEUES__DEFAULT__MAX_ATTEMPT_TIMEOUT_MS", "700");
    // A lease that is hardly shorter than the limit: it does not end first when the calls that renew it are slow
    for (variables, lease) in [([limit, limit], 690), ([longest, longest], 60_000)] {
        let kit = StoreKit::with_variables(&variables);
        let maintenance = kit.start_maintenance();
        let consumer = consumer();
        let id = kit.enqueue(JOB_BODY).await;
        let claimed = kit.claim_one(&consumer).await;
        let lease = Some(Duration::from_millis(lease));
        let issued = kit.jobs.issue_callback_token(&claimed, &consumer, &worker(), TOKEN, lease).await;
        assert!(issued.expect("redis runs"));
        eventually("the time limit is over", || async {
            // Each call renews the lease
            let _ = kit.jobs.heartbeat(Attempt::of(&claimed, &token(TOKEN)), None).await;
            let job = kit.job(id).await;
            (job["error"]["code"] == "timeout").then_some(())
        })
        .await;
        maintenance.stop().await;
    }
}
