//! Cancelling what waits in a queue.

use model::job::{Advice, State};
use store::jobs::{Purge, Purged};

use crate::kit::{JOB, Kit, consumer, failure, fence, queue};

async fn purge(kit: &Kit, states: &[State], limit: usize) -> Purged {
    kit.jobs.purge(&queue(), &Purge { states: states.to_vec(), limit }).await.expect("redis runs")
}

#[tokio::test]
async fn jobs_are_found_behind_others_in_a_state_that_is_not_meant() {
    let kit = Kit::start();
    // They all come before it
    for _ in 0..450 {
        kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    }
    let retry = r#"{"initial_interval":"PT2H","max_interval":"PT2H","jitter":false}"#;
    let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"retry":{retry}}}"#)).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    kit.jobs.fail(&claimed, &fence(&consumer), failure(1), Advice::ByPolicy).await.expect("redis runs");
    assert_eq!(kit.state(id).await, "retryable");
    assert_eq!(purge(&kit, &[State::Retryable], 1).await, Purged { count: 1, more: true });
    assert_eq!(kit.state(id).await, "cancelled");
    assert_eq!(purge(&kit, &[State::Retryable], 1).await, Purged { count: 0, more: false });
    assert_eq!(purge(&kit, &[State::Scheduled], 1000).await, Purged { count: 450, more: false });
}

#[tokio::test]
async fn many_that_are_available_are_cancelled_page_by_page() {
    let kit = Kit::start();
    for _ in 0..70 {
        kit.enqueue(JOB).await;
    }
    assert_eq!(purge(&kit, &[State::Available], 30).await, Purged { count: 30, more: true });
    assert_eq!(purge(&kit, &[State::Available], 100).await, Purged { count: 40, more: false });
}
