//! Claims without a script give what a script would give.

use common::name::Priority;
use store::jobs::{ClaimAvailability, ClaimBatch, Consumer, DirectClaim, JobSizes, RunTimeLimits, Settled};

use crate::kit::{JOB_BODY, StoreKit, consumer, normal_priority, queue};

async fn claim_directly(kit: &StoreKit, priorities: &mut Vec<Priority>, max: usize, consumer: &Consumer) -> ClaimBatch {
    let claim = kit.jobs.claim_directly(&queue(), priorities, max, consumer).await.expect("redis runs");
    let DirectClaim { jobs, availability, is_cut, partitions } = claim;
    let jobs = kit.jobs.decode_claimed(jobs).await.expect("redis runs");
    ClaimBatch { jobs, availability, is_cut, partitions }
}

#[tokio::test]
async fn they_come_in_order_of_arrival_and_say_when_there_may_be_more() {
    let (kit, consumer) = (StoreKit::start(), consumer());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(JOB_BODY).await);
    }
    let mut priorities = vec![normal_priority()];
    let batch = claim_directly(&kit, &mut priorities, 2, &consumer).await;
    assert_eq!(batch.jobs.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), ids[..2]);
    assert_eq!((batch.is_cut, batch.availability), (true, ClaimAvailability::Unlimited));
    let batch = claim_directly(&kit, &mut priorities, 2, &consumer).await;
    assert_eq!((batch.jobs.len(), batch.is_cut, priorities.len()), (1, false, 1));
    assert_eq!(kit.complete(&consumer, &batch.jobs[0], "1").await, Settled::Done);
}

#[tokio::test]
async fn nothing_is_taken_from_a_queue_that_was_paused_or_limited_meanwhile() {
    let (kit, consumer) = (StoreKit::start(), consumer());
    let ids = [kit.enqueue(JOB_BODY).await, kit.enqueue(JOB_BODY).await];
    kit.jobs.set_queue_paused(&queue(), true).await.expect("redis runs").expect("it exists");
    let batch = claim_directly(&kit, &mut vec![normal_priority()], 10, &consumer).await;
    assert_eq!((batch.jobs.len(), batch.availability), (0, ClaimAvailability::Paused));
    kit.jobs.set_queue_paused(&queue(), false).await.expect("redis runs").expect("it exists");
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { concurrency: Some(1), ..RunTimeLimits::default() })
        .await
        .expect("redis runs")
        .expect("it exists");
    let batch = claim_directly(&kit, &mut vec![normal_priority()], 10, &consumer).await;
    assert_eq!((batch.jobs.len(), batch.availability, batch.is_cut), (0, ClaimAvailability::Limited, true));
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.active), (2, 0), "both went back");
    for id in ids {
        let job = kit.job(id).await;
        assert_eq!(
            (job["state"].as_str(), job["attempt"].as_u64()),
            (Some("available"), Some(0)),
            "no attempt is spent"
        );
    }
}

#[tokio::test]
async fn a_new_priority_is_noticed() {
    let (kit, consumer) = (StoreKit::start(), consumer());
    kit.enqueue(JOB_BODY).await;
    kit.enqueue(r#"{"type":"a","args":[],"priority":7}"#).await;
    let mut priorities = vec![normal_priority()];
    let batch = claim_directly(&kit, &mut priorities, 10, &consumer).await;
    assert_eq!((batch.jobs.len(), priorities.len()), (1, 0), "the list of streams is read again");
}

#[tokio::test]
async fn how_many_are_asked_for_depends_on_how_large_they_are() {
    let (kit, consumer) = (StoreKit::start(), consumer());
    let mut sizes = JobSizes::default();
    assert_eq!(kit.jobs.direct_claim_size(100, sizes), None, "nobody knows how large they are");
    kit.enqueue(JOB_BODY).await;
    sizes.observe(&kit.claim(&consumer, 1).await);
    assert_eq!(kit.jobs.direct_claim_size(100, sizes), Some(100));
    kit.enqueue(&format!(r#"{{"type":"a","args":["{}"]}}"#, "x".repeat(1 << 20))).await;
    sizes.observe(&kit.claim(&consumer, 1).await);
    assert_eq!(kit.jobs.direct_claim_size(100, sizes), Some(3), "four mebibytes at a time");
}
