//! A job that succeeded keeps its result and little else; a full Redis keeps neither, and nothing ends twice.

use model::job::RetryAdvice;
use redis::Value;
use store::{
    jobs::{Attempt, JobResult, Settled},
    local_now,
};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

/// A job with an argument of 200 bytes.
fn body_with(options: &str) -> String {
    format!(r#"{{"type":"test.noop","args":["{}"]{options}}}"#, "x".repeat(200))
}

#[tokio::test]
async fn a_plain_success_takes_at_most_300_bytes_and_shows_that_its_envelope_is_gone() {
    let kit = StoreKit::start();
    let id = kit.enqueue(&body_with("")).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    assert_eq!(kit.complete(&consumer, &claimed, "null").await, Settled::Done);
    let bytes = kit.redis_command(&["MEMORY", "USAGE", &format!("galley:{{default}}:r:{id}")]).await;
    // With the entry among the keys that expire, which MEMORY USAGE leaves out
    assert!(matches!(bytes, Value::Int(bytes) if bytes + 40 <= 300), "{bytes:?}");
    let job = kit.job(id).await;
    assert_eq!((&job["type"], &job["envelope_dropped"]), (&"test.noop".into(), &true.into()));
    assert!(job.get("args").is_none() && job["enqueued_at"].is_string() && job["started_at"].is_string());
    assert_eq!((job["attempt"].as_u64(), job["max_attempts"].as_u64()), (Some(1), Some(3)));
}

#[tokio::test]
async fn who_asks_or_failed_before_keeps_the_envelope() {
    let consumer = consumer();
    let kit = StoreKit::start();
    let asked = kit.enqueue(&body_with(r#","keep_envelope":true"#)).await;
    let claimed = kit.claim_one(&consumer).await;
    kit.complete(&consumer, &claimed, "1").await;
    let job = kit.job(asked).await;
    assert!(job["args"][0].is_string() && job.get("envelope_dropped").is_none(), "{job}");

    let failed = kit.enqueue(&body_with(r#","retry":{"max_attempts":3,"initial_interval":"PT0.1S"}"#)).await;
    let claimed = kit.claim_one(&consumer).await;
    kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    kit.redis_command(&["ZADD", "galley:{default}:due", "1", &failed.to_string()]).await;
    let maintenance = kit.start_maintenance();
    let claimed = testkit::eventually("the retry is due", async || kit.claim(&consumer, 1).await.pop()).await;
    maintenance.stop().await;

    kit.complete(&consumer, &claimed, "1").await;
    let job = kit.job(failed).await;
    assert_eq!((job["state"].as_str(), job["errors"].as_array().map(Vec::len)), (Some("completed"), Some(1)));
    assert!(job["args"][0].is_string(), "{job}");

    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__KEEP_ENVELOPE", "true")]);
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let finished = kit.jobs.succeeded(&claimed, JobResult::None, local_now());
    let fence = fence(&consumer);
    let settled = kit.jobs.finish(Attempt::of(&claimed, &fence), &finished, false).await.expect("redis runs");
    assert_eq!(settled, Settled::Done);
    assert!(kit.job(id).await["args"].is_array());
}

#[tokio::test]
async fn a_repeated_call_finds_what_the_first_did_also_when_no_result_is_stored() {
    let kit = StoreKit::start();
    let (consumer, other) = (consumer(), consumer());
    for options in ["", r#","expires_at":"2999-01-01T00:00:00Z""#] {
        kit.redis_command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        store::maintenance::read_memory(&kit.redis).await.expect("it can be read");
        let id = kit.enqueue(&body_with(options)).await;
        let claimed = kit.claim_one(&consumer).await;
        kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
        store::maintenance::read_memory(&kit.redis).await.expect("it can be read");
        assert_eq!(kit.complete(&consumer, &claimed, "1").await, Settled::Done, "{options}");
        assert!(kit.jobs.locate(id).await.expect("redis runs").is_none(), "its result is not stored");
        assert_eq!(kit.complete(&consumer, &claimed, "1").await, Settled::AlreadyDone, "{options}");
        assert_ne!(kit.complete(&other, &claimed, "1").await, Settled::Done, "{options}");
    }
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").completed, 2);
}
