//! Cancelling what waits in a queue.

use model::job::{JobState, RetryAdvice};
use store::jobs::{Claimant, PurgeCursor, PurgeRequest, PurgeResult};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

async fn purge_from(kit: &StoreKit, states: &[JobState], limit: usize, after: Option<PurgeCursor>) -> PurgeResult {
    kit.jobs.purge(&queue(), &PurgeRequest { states: states.to_vec(), limit, after }).await.expect("redis runs")
}

/// How many were cancelled, and whether there may be more.
async fn purge(kit: &StoreKit, states: &[JobState], limit: usize) -> (usize, bool) {
    let result = purge_from(kit, states, limit, None).await;
    (result.count, result.has_more)
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
    assert_eq!(purge(&kit, &[JobState::Retryable], 1).await, (1, true));
    assert_eq!(kit.state(id).await, "cancelled");
    assert_eq!(purge(&kit, &[JobState::Retryable], 1).await, (0, false));
    assert_eq!(purge(&kit, &[JobState::Scheduled], 1000).await, (450, false));
}

#[tokio::test]
async fn many_that_are_available_are_cancelled_page_by_page() {
    let kit = StoreKit::start();
    for _ in 0..70 {
        kit.enqueue(JOB_BODY).await;
    }
    assert_eq!(purge(&kit, &[JobState::Available], 30).await, (30, true));
    assert_eq!(purge(&kit, &[JobState::Available], 100).await, (40, false));
}

#[tokio::test]
async fn a_purge_beside_a_fast_worker_cancels_from_the_tail_and_ends() {
    let kit = StoreKit::start();
    for _ in 0..200 {
        kit.enqueue(JOB_BODY).await;
    }
    let consumer = consumer();
    let (jobs, by) = (kit.jobs.clone(), consumer.clone());
    let worker = tokio::spawn(async move {
        let (mut priorities, mut claimed) = (Vec::new(), 0);
        loop {
            let worker = "w".parse().expect("a name");
            let claimant = Claimant::Worker { consumer: &by, worker: &worker };
            let batch = jobs.claim(&queue(), &mut priorities, 1, claimant).await.expect("redis runs");
            match batch.jobs.len() {
                0 => return claimed,
                more => claimed += more,
            }
        }
    });
    let (mut purged, mut answers) = (0, 0);
    loop {
        let (count, more) = purge(&kit, &[JobState::Available], 50).await;
        purged += count;
        answers += 1;
        assert!(count > 0 || !more, "an answer that says there is more has cancelled some");
        if !more {
            break;
        }
    }
    // One that was claimed after it was seen is counted twice
    assert!(purged + worker.await.expect("it ends") >= 200);
    assert!(answers <= 5, "{answers}");
}

#[tokio::test]
async fn a_purge_goes_on_where_it_ended() {
    let kit = StoreKit::start();
    for _ in 0..450 {
        kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    }
    let first = purge_from(&kit, &[JobState::Scheduled], 300, None).await;
    assert_eq!((first.count, first.has_more), (300, true));
    let cursor: PurgeCursor = first.next.expect("a place").to_string().parse().expect("it can be sent back");
    let rest = purge_from(&kit, &[JobState::Scheduled], 300, Some(cursor)).await;
    assert_eq!((rest.count, rest.has_more, rest.next), (150, false, None));
}
