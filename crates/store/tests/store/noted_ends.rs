//! Jobs with a chosen id that end when Redis is too full for their results are known as ended all the same.

use std::collections::HashSet;

use common::{id::JobId, time::local_now, trace_context::TraceContext};
use model::job::{NewJob, RetryAdvice};
use serde_json::Value;
use store::{
    jobs::{Attempt, Claimant, ClaimedJob, EnqueuedJob, Fence, FinishedJob, JobTransitionError, Settled},
    maintenance::{self, read_memory},
};

use crate::kit::{StoreKit, consumer, failure, fence, queue};

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    CompletedInABatch,
    CompletedByToken,
    Discarded,
    CancelledWhileItWaits,
    CancelledWhileItRuns,
    Expired,
}

const FIRST: &str = "01a20358-99fa-7000-8000-3239590134f1";
const SECOND: &str = "01a20358-99fa-7000-8000-3239590134f2";

fn body(id: &str, options: &str) -> String {
    format!(r#"{{"type":"a","args":["{}"],"id":"{id}"{options}}}"#, "x".repeat(300))
}

async fn store_all(kit: &StoreKit, bodies: &[String]) -> Vec<EnqueuedJob> {
    let now = kit.jobs.now().await.expect("redis runs");
    let parse = |body: &String| NewJob::parse(&serde_json::from_str(body).expect("JSON"), now).expect("valid");
    let new: Vec<NewJob> = bodies.iter().map(parse).collect();
    let own_ids: HashSet<JobId> = new.iter().filter_map(|job| job.id).collect();
    let stored = kit.jobs.enqueue_all(new, TraceContext::default(), now, &own_ids).await;
    stored.expect("redis runs").expect("stored")
}

async fn set_max_memory(kit: &StoreKit, bytes: &str) {
    kit.redis_command(&["CONFIG", "SET", "maxmemory", bytes]).await;
    read_memory(&kit.redis).await.expect("it can be read");
}

async fn pull(kit: &StoreKit) -> ClaimedJob {
    let by = Claimant::Pull { worker: None, lease: None };
    kit.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop().expect("a job")
}

/// Ends the only job while Redis has no memory for its result. Returns its state.
async fn end_without_memory(kit: &StoreKit, id: JobId, end: End) -> &'static str {
    let worker = consumer();
    match end {
        End::CompletedInABatch => {
            let claimed = kit.claim_one(&worker).await;
            set_max_memory(kit, "1").await;
            assert_eq!(kit.complete(&worker, &claimed, "1").await, Settled::Done);
            assert_eq!(kit.complete(&worker, &claimed, "1").await, Settled::AlreadyDone);
            "completed"
        }
        End::CompletedByToken => {
            let claimed = pull(kit).await;
            set_max_memory(kit, "1").await;
            let ended = FinishedJob::completed(&claimed.job, Some("1"), Some(claimed.started_at), local_now());
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            for settled in [Settled::Done, Settled::AlreadyDone] {
                let done = kit.jobs.finish(Attempt::of(&claimed, &fence), &ended, false).await;
                assert_eq!(done.expect("redis runs"), settled);
            }
            "completed"
        }
        End::Discarded => {
            let claimed = kit.claim_one(&worker).await;
            set_max_memory(kit, "1").await;
            kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::Never).await.expect("redis runs");
            "discarded"
        }
        End::CancelledWhileItWaits | End::CancelledWhileItRuns => {
            if end == End::CancelledWhileItRuns {
                kit.claim_one(&worker).await;
            }
            set_max_memory(kit, "1").await;
            kit.jobs.cancel(id).await.expect("redis runs").expect("cancelled");
            "cancelled"
        }
        End::Expired => {
            set_max_memory(kit, "1").await;
            maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
            "discarded"
        }
    }
}

#[tokio::test]
async fn a_job_with_a_chosen_id_that_ends_without_memory_is_not_made_again() {
    let all = [
        End::CompletedInABatch,
        End::CompletedByToken,
        End::Discarded,
        End::CancelledWhileItWaits,
        End::CancelledWhileItRuns,
        End::Expired,
    ];
    // A job with a key has a follow-up, for which its result is stored first
    for (end, limit) in
        all.into_iter().flat_map(|end| [(end, ""), (end, r#","rate_limit":{"key":"k","concurrency":1}"#)])
    {
        let kit = StoreKit::start();
        let expiry = if end == End::Expired { r#","expires_at":"2000-01-01T00:00:00Z","pending":true"# } else { "" };
        let retry = r#","retry":{"on_exhaustion":"discard"}"#;
        let bodies = [body(FIRST, &format!("{retry}{expiry}{limit}")), body(SECOND, "")];
        // As if the batch had broken off behind its first job
        let id = store_all(&kit, &bodies[..1]).await[0].job.id;
        let state = end_without_memory(&kit, id, end).await;
        let job = kit.job(id).await;
        assert_eq!((&job["state"], &job["queue"]), (&state.into(), &"default".into()), "{end:?} {limit}");
        assert_eq!((&job["envelope_dropped"], job.get("result")), (&Value::Bool(true), None), "{end:?} {limit}");
        assert!(job["result_dropped"].is_string(), "{end:?} {limit}: {job}");

        set_max_memory(&kit, "0").await;
        assert_eq!(store_all(&kit, &bodies).await.len(), 2, "{end:?} {limit}");
        let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
        assert_eq!((stats.available, kit.state(id).await.as_str()), (1, state), "{end:?} {limit}");
        // There is nothing left to run again
        let redriven = kit.jobs.redrive(id).await.expect("redis runs").expect_err("refused");
        assert!(state == "completed" || redriven == JobTransitionError::NotFound, "{end:?} {limit}: {redriven:?}");
    }
}

#[tokio::test]
async fn what_notes_the_end_of_a_job_takes_no_more_memory_than_the_job() {
    for end in [End::CompletedInABatch, End::CompletedByToken, End::Discarded, End::CancelledWhileItWaits] {
        let kit = StoreKit::start();
        let id = store_all(&kit, &[body(FIRST, r#","retry":{"on_exhaustion":"discard"}"#)]).await[0].job.id;
        let bytes = async || {
            let mut bytes = 0;
            for key in kit.redis_keys().await.iter().filter(|key| key.contains(FIRST)) {
                let used = kit.redis_command(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await;
                bytes += redis::from_redis_value::<usize>(used).expect("a size");
            }
            bytes
        };
        let before = bytes().await;
        end_without_memory(&kit, id, end).await;
        let after = bytes().await;
        // Its record alone, beside which there was its entry with all that the client sent
        assert!(after > 0 && after <= before + 64, "{end:?}: {before} bytes, then {after}");
    }
}

#[tokio::test]
async fn the_result_of_a_job_with_a_chosen_id_is_kept_for_minutes_when_others_are_kept_for_one() {
    let kit = StoreKit::start();
    kit.redis_command(&["SETRANGE", "ballast", "67108864", "x"]).await;
    let info = kit.redis_command(&["INFO", "memory"]).await;
    let info: redis::InfoDict = redis::from_redis_value(info).expect("fields");
    // Four fifths
    let max = info.get::<u64>("used_memory").expect("it says so") * 5 / 4;
    set_max_memory(&kit, &max.to_string()).await;
    let worker = consumer();
    for (body, is_long) in [(r#"{"type":"a","args":[]}"#.to_owned(), false), (body(FIRST, ""), true)] {
        let id = kit.enqueue(&body).await;
        let claimed = kit.claim_one(&worker).await;
        kit.complete(&worker, &claimed, "1").await;
        let key = kit.redis_keys().await.into_iter().find(|key| key.ends_with(&format!("}}:r:{id}")));
        let ttl = kit.redis_command(&["PTTL", &key.expect("its result")]).await;
        assert_eq!(redis::from_redis_value::<u64>(ttl).expect("a TTL") > 60_000, is_long, "{body}");
        assert_eq!(kit.job(id).await["result"], 1);
    }
}
