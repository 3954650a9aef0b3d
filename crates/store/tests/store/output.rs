//! Output of jobs: who adds chunks, in which order, and how many are kept.

use std::time::Duration;

use common::id::JobId;
use store::jobs::{Attempt, ClaimedJob, Fence, OutputChunk, OutputPosition};
use testkit::redis;

use crate::kit::{JOB_BODY, StoreKit, consumer, fence, queue};

async fn write(
    kit: &StoreKit,
    claimed: &ClaimedJob,
    fence: &Fence,
    first: Option<u64>,
    chunks: &[&str],
) -> Option<u64> {
    kit.jobs.write_output(Attempt::of(claimed, fence), first, chunks).await.expect("redis runs")
}

async fn read(kit: &StoreKit, id: JobId, after: OutputPosition) -> Vec<OutputChunk> {
    kit.jobs.read_output(&queue(), id, after, 100_000).await.expect("redis runs")
}

fn texts(chunks: &[OutputChunk]) -> Vec<(u32, &str)> {
    chunks.iter().map(|chunk| (chunk.attempt_number(), chunk.json.as_str())).collect()
}

/// Whether each chunk follows the one before, from the first one of the output on.
fn is_without_gap(chunks: &[OutputChunk]) -> bool {
    let places = std::iter::once(OutputPosition::START).chain(chunks.iter().map(|chunk| chunk.position));
    places.zip(chunks).all(|(before, chunk)| before.is_followed_by(chunk.position))
}

#[tokio::test]
async fn only_the_current_attempt_adds_chunks_and_another_attempt_can_be_told_from_it() {
    let kit = StoreKit::start();
    let (consumer, other) = (consumer(), consumer());
    let id = kit.enqueue(JOB_BODY).await;
    let first = kit.claim_one(&consumer).await;
    assert_eq!(write(&kit, &first, &fence(&other), None, &["0"]).await, None, "another worker");
    assert_eq!(write(&kit, &first, &fence(&consumer), None, &["1", "\"two\""]).await, Some(2));
    assert_eq!(write(&kit, &first, &fence(&consumer), None, &["{}"]).await, Some(3));
    kit.jobs.release(Attempt::of(&first, &fence(&consumer))).await.expect("redis runs");
    assert_eq!(write(&kit, &first, &fence(&consumer), None, &["0"]).await, None, "it is over");
    let second = kit.pull(Some(Duration::from_mins(1))).await.expect("the job");
    let token = Fence::Pull { token: second.token.clone(), worker: None };
    assert_eq!(write(&kit, &second, &token, None, &["null"]).await, Some(1));
    let all = read(&kit, id, OutputPosition::START).await;
    assert_eq!(texts(&all), [(1, "1"), (1, "\"two\""), (1, "{}"), (1, "null")], "a release spends no attempt");
    assert!(is_without_gap(&all) && all[2].attempt != all[3].attempt && all[0].attempt == all[2].attempt);
    assert_eq!(texts(&read(&kit, id, all[1].position).await), [(1, "{}"), (1, "null")]);
    let position: OutputPosition = all[3].position.to_string().parse().expect("a position");
    assert_eq!(read(&kit, id, position).await, []);
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:output:{id}")]).await;
    assert!((1..=3_600_000).contains(&redis::from_redis_value::<i64>(ttl).expect("a number")));
}

#[tokio::test]
async fn chunks_that_are_sent_again_are_added_once() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_mins(1))).await.expect("a job");
    let token = Fence::Pull { token: claimed.token.clone(), worker: None };
    assert_eq!(write(&kit, &claimed, &token, Some(1), &["1", "2"]).await, Some(2));
    assert_eq!(write(&kit, &claimed, &token, Some(1), &["1", "2"]).await, Some(2), "the answer was lost");
    assert_eq!(write(&kit, &claimed, &token, Some(2), &["2", "3"]).await, Some(3));
    let all = read(&kit, id, OutputPosition::START).await;
    assert_eq!(texts(&all), [(1, "1"), (1, "2"), (1, "3")]);
}

#[tokio::test]
async fn the_newest_chunks_are_kept_by_number_and_by_bytes() {
    let kit = StoreKit::start();
    let consumer = consumer();
    for _ in 0..2 {
        kit.enqueue(JOB_BODY).await;
    }
    let claimed = kit.claim(&consumer, 2).await;
    let many = vec!["7"; 4000];
    for _ in 0..3 {
        write(&kit, &claimed[0], &fence(&consumer), None, &many).await.expect("the current attempt");
    }
    let kept = read(&kit, claimed[0].job.id, OutputPosition::START).await;
    assert!((10_000..10_200).contains(&kept.len()), "{}", kept.len());
    assert!(!OutputPosition::START.is_followed_by(kept[0].position), "the first ones are gone");
    let large = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..100 {
        write(&kit, &claimed[1], &fence(&consumer), None, &[&large]).await.expect("the current attempt");
    }
    let kept = read(&kit, claimed[1].job.id, OutputPosition::START).await;
    let bytes: usize = kept.iter().map(|chunk| chunk.json.len()).sum();
    assert!(bytes <= 4 << 20 && bytes > (4 << 20) - 2 * large.len(), "{bytes}");
    assert!(kept.windows(2).all(|two| two[0].position.is_followed_by(two[1].position)));
}

#[tokio::test]
async fn chunks_of_a_pulled_job_renew_its_lease() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_mins(1))).await.expect("a job");
    let name = format!("0:{}", claimed.entry);
    let expiry = || async {
        let score = kit.redis_command(&["ZSCORE", "galley:{default}:leases", &name]).await;
        redis::from_redis_value::<f64>(score).expect("a lease")
    };
    kit.redis_command(&["ZADD", "galley:{default}:leases", "1000", &name]).await;
    let token = Fence::Pull { token: claimed.token.clone(), worker: None };
    write(&kit, &claimed, &token, None, &["1"]).await.expect("the current attempt");
    assert!(expiry().await > 1000.0);
}
