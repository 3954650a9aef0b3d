//! Cancelling what waits in a queue.

use model::job::{JobState, RetryAdvice};
use store::jobs::{PurgeRequest, PurgeResult};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

async fn purge(kit: &StoreKit, states: &[JobState], limit: usize) -> PurgeResult {
    kit.jobs.purge(&queue(), &PurgeRequest { states: states.to_vec(), limit }).await.expect("redis runs")
}

#[tokio::test]
async fn jobs_are_found_behind_others_in_a_state_that_is_not_meant() {
    let kit = StoreKit::start();
    // They all come before it
    for _ in 0..450 {
        kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    }
    let retry = r#"{"initial_interval":"PT2H","max_interval":"PT2H","jitter":false}"#;
    let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"retry":{retry}}}"#)).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert_eq!(kit.state(id).await, "retryable");
    assert_eq!(purge(&kit, &[JobState::Retryable], 1).await, PurgeResult { count: 1, has_more: true });
    assert_eq!(kit.state(id).await, "cancelled");
    assert_eq!(purge(&kit, &[JobState::Retryable], 1).await, PurgeResult { count: 0, has_more: false });
    assert_eq!(purge(&kit, &[JobState::Scheduled], 1000).await, PurgeResult { count: 450, has_more: false });
}

#[tokio::test]
async fn many_that_are_available_are_cancelled_page_by_page() {
    let kit = StoreKit::start();
    for _ in 0..70 {
        kit.enqueue(JOB_BODY).await;
    }
    assert_eq!(purge(&kit, &[JobState::Available], 30).await, PurgeResult { count: 30, has_more: true });
    assert_eq!(purge(&kit, &[JobState::Available], 100).await, PurgeResult { count: 40, has_more: false });
}
