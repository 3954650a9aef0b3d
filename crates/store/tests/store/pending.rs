use model::job::JobState;
use store::jobs::JobTransitionError;

use crate::kit::{JOB_BODY, StoreKit, consumer, queue};

const PENDING: &str = r#"{"type":"a","args":[],"pending":true}"#;

#[tokio::test]
async fn a_pending_job_waits_until_it_is_activated_once() {
    let kit = StoreKit::start();
    let id = kit.enqueue(PENDING).await;
    let worker = consumer();
    assert!(kit.claim(&worker, 1).await.is_empty());
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").pending, 1);
    let json = kit.jobs.activate(id).await.expect("redis runs").expect("it is pending");
    assert!(json.contains(r#""state":"available""#), "{json}");
    assert!(matches!(kit.jobs.activate(id).await.expect("redis runs"), Err(JobTransitionError::Conflict(_))));
    assert_eq!(kit.claim(&worker, 9).await.len(), 1);
    let unknown = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    assert_eq!(kit.jobs.activate(unknown).await.expect("redis runs").map(drop), Err(JobTransitionError::NotFound));
}

#[tokio::test]
async fn an_activated_job_with_a_key_waits_for_the_limit_of_the_key() {
    let kit = StoreKit::start();
    let keyed = r#"{"type":"a","args":[],"pending":true,"rate_limit":{"key":"k","concurrency":1}}"#;
    let ids = [kit.enqueue(keyed).await, kit.enqueue(keyed).await];
    for id in ids {
        kit.jobs.activate(id).await.expect("redis runs").expect("it is pending");
        assert_eq!(kit.state(id).await, "available");
    }
    let worker = consumer();
    let first = kit.claim(&worker, 9).await;
    assert_eq!(first.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), ids[..1]);
    kit.complete(&worker, &first[0], "1").await;
    assert_eq!(kit.claim_one(&worker).await.job.id, ids[1]);
}

#[tokio::test]
async fn a_pending_job_can_be_cancelled_and_is_never_started() {
    let kit = StoreKit::start();
    let id = kit.enqueue(PENDING).await;
    kit.jobs.cancel(id).await.expect("redis runs").expect("it is pending");
    let refused = kit.jobs.activate(id).await.expect("redis runs").map(drop);
    assert!(matches!(refused, Err(JobTransitionError::Conflict(conflict)) if conflict.state == JobState::Cancelled));
    kit.enqueue(JOB_BODY).await;
    assert_eq!(kit.claim(&consumer(), 9).await.len(), 1);
}
