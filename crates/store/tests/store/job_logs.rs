//! Lines that handlers log: who may add them, how many are kept, and how long.

use std::time::Duration;

use common::id::JobId;
use model::job::{JobLogLine, LogLevel, RetryAdvice};
use serde_json::Value;
use store::jobs::{Attempt, ClaimedJob, Fence, FinishedJob};
use testkit::redis;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

fn lines(count: usize) -> Vec<JobLogLine> {
    let line = |number| JobLogLine { at: 0, level: LogLevel::Info, message: format!("line {number}") };
    (0..count).map(line).collect()
}

async fn write(kit: &StoreKit, claimed: &ClaimedJob, fence: &Fence, count: usize) -> bool {
    kit.jobs.write_log(Attempt::of(claimed, fence), 1, &lines(count)).await.expect("redis runs")
}

async fn messages(kit: &StoreKit, id: JobId) -> (Vec<String>, u64) {
    let page = kit.jobs.read_log(&queue(), id, None, 1000).await.expect("redis runs");
    let message =
        |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["message"].as_str().map(str::to_owned);
    (page.lines.iter().filter_map(|(_, line)| message(line)).collect(), page.dropped)
}

async fn ttl_ms(kit: &StoreKit, id: JobId) -> i64 {
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:log:{id}")]).await;
    redis::from_redis_value(ttl).expect("a number")
}

#[tokio::test]
async fn only_the_current_attempt_adds_lines_and_the_newest_are_kept() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__LOG_LINES_MAX", "5")]);
    let (consumer, other) = (consumer(), consumer());
    kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    assert!(!write(&kit, &claimed, &fence(&other), 1).await, "another worker");
    assert!(!write(&kit, &claimed, &Fence::Pull { token: None, worker: None }, 1).await, "nobody pulled it");
    assert_eq!(messages(&kit, claimed.job.id).await, (vec![], 0));
    assert!(write(&kit, &claimed, &fence(&consumer), 4).await && write(&kit, &claimed, &fence(&consumer), 3).await);
    let kept = ["line 2", "line 3", "line 0", "line 1", "line 2"].map(str::to_owned).to_vec();
    assert_eq!(messages(&kit, claimed.job.id).await, (kept, 2));
    assert!(write(&kit, &claimed, &fence(&consumer), 100).await);
    let (kept, dropped) = messages(&kit, claimed.job.id).await;
    assert_eq!((kept.len(), kept[4].as_str(), dropped), (5, "line 99", 7), "what has no room is not sent");
    kit.complete(&consumer, &claimed, "1").await;
    assert!(!write(&kit, &claimed, &fence(&consumer), 1).await, "it is over");
}

#[tokio::test]
async fn lines_go_with_their_job_however_it_ends() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__JOBS__RESULT_TTL_MS", "60000"),
        ("GALLEY__JOBS__DEAD_LETTER_TTL_MS", "120000"),
        ("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter"),
    ]);
    let consumer = consumer();
    let fence = fence(&consumer);
    for _ in 0..5 {
        kit.enqueue(JOB_BODY).await;
    }
    let claimed = kit.claim(&consumer, 5).await;
    for claimed in &claimed {
        assert!(write(&kit, claimed, &fence, 2).await);
        claimed.mark_log();
        assert!(ttl_ms(&kit, claimed.job.id).await > 86_400_000, "nobody knows yet how long the job runs");
    }
    let [completed, finished, discarded, cancelled, deleted] = &claimed[..] else { panic!("five jobs") };
    kit.complete(&consumer, completed, "1").await;
    let ended = FinishedJob::completed(&finished.job, None, None, 5);
    kit.jobs.finish(Attempt::of(finished, &fence), &ended, false).await.expect("redis runs");
    for failed in [discarded, deleted] {
        kit.jobs.fail(failed, &fence, failure(1), RetryAdvice::Never).await.expect("redis runs");
    }
    kit.jobs.cancel(cancelled.job.id).await.expect("redis runs").expect("it ran");
    for (ended, ttl) in [(completed, 60_000), (finished, 60_000), (cancelled, 60_000), (discarded, 120_000)] {
        let left = ttl_ms(&kit, ended.job.id).await;
        assert!((1..=ttl).contains(&left), "{left} of {ttl}");
        assert_eq!(messages(&kit, ended.job.id).await.0.len(), 2);
    }
    assert!(kit.jobs.delete_dead_letter(deleted.job.id).await.expect("redis runs"));
    assert_eq!(ttl_ms(&kit, deleted.job.id).await, -2);
    kit.jobs.redrive(discarded.job.id).await.expect("redis runs").expect("it was discarded");
    assert!(ttl_ms(&kit, discarded.job.id).await > 86_400_000, "it runs again");
}

#[tokio::test]
async fn lines_of_an_earlier_attempt_go_with_a_job_that_succeeds_silently() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__RESULT_TTL_MS", "60000")]);
    let consumer = consumer();
    kit.enqueue(JOB_BODY).await;
    let first = kit.claim_one(&consumer).await;
    assert!(write(&kit, &first, &fence(&consumer), 2).await);
    kit.jobs.release(Attempt::of(&first, &fence(&consumer))).await.expect("redis runs");
    let second = kit.claim_one(&consumer).await;
    kit.complete(&consumer, &second, "1").await;
    assert!((1..=60_000).contains(&ttl_ms(&kit, first.job.id).await));
    assert_eq!(messages(&kit, first.job.id).await.0.len(), 2);
}

#[tokio::test]
async fn lines_of_a_pulled_job_renew_its_lease() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_mins(1))).await.expect("a job");
    let name = format!("0:{}", claimed.entry);
    let expiry = || async {
        let score = kit.redis_command(&["ZSCORE", "galley:{default}:leases", &name]).await;
        redis::from_redis_value::<f64>(score).expect("a lease")
    };
    kit.redis_command(&["ZADD", "galley:{default}:leases", "1000", &name]).await;
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    assert!(write(&kit, &claimed, &fence, 1).await);
    assert!(expiry().await > 1000.0);
}
