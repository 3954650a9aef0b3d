//! What the leader must do when a process dies between two steps. It has hundreds of idle queues, so a look at a queue
//! in turn would come minutes later.

use std::time::Duration;

use common::name::QueueName;
use model::job::RetryAdvice;
use serde_json::json;
use store::jobs::{Claimant, ClaimedJob, Consumer, Settled};
use testkit::{eventually, eventually_for};

use crate::{
    kit::{RunningMaintenance, StoreKit, consumer, failure, fence, queue},
    workflows::{chain, start},
};

const QUEUES: usize = 300;
/// If a test stands still, the leader tries what it may not do yet, and then again a minute later; and a leader that comes
/// long after the last one gives workers a lease first.
const TWO_TRIES: Duration = Duration::from_mins(2);
const KEYED: &str = r#"{"type":"a","args":[],"rate_limit":{"key":"k","concurrency":1}}"#;

/// A leader that has read all queues and found nothing to do in them.
async fn start_leader(kit: &StoreKit) -> RunningMaintenance {
    for number in 0..QUEUES {
        let name: QueueName = format!("q{number}").parse().expect("a name");
        kit.jobs.register_queue(&name).await.expect("redis runs").expect("room");
    }
    kit.jobs.register_queue(&queue()).await.expect("redis runs").expect("room");
    let maintenance = kit.start_maintenance();
    let probe = kit.enqueue(r#"{"type":"a","args":[],"queue":"q0","scheduled_at":"+PT0.2S"}"#).await;
    eventually("it leads", || async { (kit.state(probe).await == "available").then_some(()) }).await;
    maintenance
}

/// Lets nobody use keys except those that match. What a process wants to do then is as if it had died before.
async fn allow_only(kit: &StoreKit, patterns: &[&str]) {
    kit.redis_command(&[&["ACL", "SETUSER", "default", "resetkeys"], patterns].concat()).await;
}

async fn allow_all(kit: &StoreKit) {
    kit.redis_command(&["ACL", "SETUSER", "default", "~*"]).await;
}

async fn next_job(kit: &StoreKit, worker: &Consumer) -> ClaimedJob {
    eventually_for(TWO_TRIES, "the next job", || async { kit.claim(worker, 1).await.pop() }).await
}

#[tokio::test]
async fn the_next_step_of_a_workflow_follows_although_nobody_started_it() {
    let (kit, worker) = (StoreKit::start(), consumer());
    let leader = start_leader(&kit).await;
    start(&kit, &chain(2)).await;
    let first = kit.claim_one(&worker).await;
    allow_only(&kit, &["~galley:[^{]*", "~galley:{[^w]*"]).await;
    assert_eq!(kit.complete(&worker, &first, "1").await, Settled::Done);
    assert!(kit.claim(&worker, 1).await.is_empty(), "nobody started it yet");
    allow_all(&kit).await;
    assert_eq!(next_job(&kit, &worker).await.job.parent_results.as_deref(), Some("[1]"));
    leader.stop().await;
}

#[tokio::test]
async fn the_next_job_of_a_key_follows_although_nobody_admitted_it() {
    let (kit, worker) = (StoreKit::start(), consumer());
    let leader = start_leader(&kit).await;
    kit.enqueue(KEYED).await;
    let second = kit.enqueue(KEYED).await;
    let without_key_queues = ["~galley:[^{]*", "~galley:{q*", "~galley:{default}:[^k]*"];
    let first = kit.claim_one(&worker).await;
    allow_only(&kit, &without_key_queues).await;
    assert_eq!(kit.complete(&worker, &first, "1").await, Settled::Done);
    assert!(kit.claim(&worker, 1).await.is_empty(), "nobody admitted it yet");
    allow_all(&kit).await;
    let claimed = next_job(&kit, &worker).await;
    assert_eq!(claimed.job.id, second);
    // A failed attempt makes room for another job, too
    let third = kit.enqueue(KEYED).await;
    allow_only(&kit, &without_key_queues).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::After(Duration::from_hours(1))).await.ok();
    allow_all(&kit).await;
    assert_eq!(next_job(&kit, &worker).await.job.id, third);
    leader.stop().await;
}

#[tokio::test]
async fn a_job_of_a_key_that_nobody_admitted_is_admitted() {
    let (kit, worker) = (StoreKit::start(), consumer());
    let leader = start_leader(&kit).await;
    // Only what admits a job uses `starts`
    let without_starts =
        ["~galley:[^{]*", "~galley:{q*", "~galley:{default}:[^s]*", "~galley:{default}:s:*", "~galley:{default}:stats"];
    allow_only(&kit, &without_starts).await;
    let now = kit.jobs.now().await.expect("redis runs");
    let members = serde_json::from_str(KEYED).expect("JSON");
    let new = model::job::NewJob::parse(&members, now).expect("a valid request");
    kit.jobs
        .enqueue(new, common::trace_context::TraceContext::default(), now)
        .await
        .expect_err("it may not admit the job");
    // As long as nobody may: the leader admits it seconds later
    let entries = kit.redis_command(&["XLEN", "galley:{default}:s:0"]).await;
    assert_eq!(entries, redis::Value::Int(0), "nobody admitted it yet");
    allow_all(&kit).await;
    next_job(&kit, &worker).await;
    leader.stop().await;
}

#[tokio::test]
async fn a_job_with_a_chosen_id_is_found_although_nobody_noted_its_queue() {
    let kit = StoreKit::start();
    let leader = start_leader(&kit).await;
    let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    let body = json!({ "id": id, "type": "a", "args": [] }).to_string();
    let now = kit.jobs.now().await.expect("redis runs");
    let new = model::job::NewJob::parse(&serde_json::from_str(&body).expect("JSON"), now).expect("a valid request");
    allow_only(&kit, &["%R~galley:id:*", "~galley:{*", "~galley:[^i]*"]).await;
    kit.jobs
        .enqueue(new, common::trace_context::TraceContext::default(), now)
        .await
        .expect_err("it may not note the queue");
    allow_all(&kit).await;
    eventually_for(TWO_TRIES, "it is found", || async { kit.jobs.locate(id).await.expect("redis runs") }).await;
    leader.stop().await;
}

#[tokio::test]
async fn a_first_due_time_that_the_leader_missed_does_not_hide_later_ones() {
    let (kit, worker) = (StoreKit::start(), consumer());
    let leader = start_leader(&kit).await;
    // As if its notification had been lost
    kit.redis_command(&["ZADD", "galley:{default}:timers", "1", "follow_up 019539a4-b68c-7def-8000-1a2b3c4d5e6f"])
        .await;
    start(&kit, &chain(2)).await;
    let first = kit.claim_one(&worker).await;
    allow_only(&kit, &["~galley:[^{]*", "~galley:{[^w]*"]).await;
    assert_eq!(kit.complete(&worker, &first, "1").await, Settled::Done);
    allow_all(&kit).await;
    next_job(&kit, &worker).await;
    leader.stop().await;
}

#[tokio::test]
async fn a_repair_of_the_consistency_check_is_carried_out_at_once() {
    let (kit, worker) = (StoreKit::start(), consumer());
    let leader = start_leader(&kit).await;
    let (_, second) = (kit.enqueue(KEYED).await, kit.enqueue(KEYED).await);
    // The first job is gone, and its key is never free again
    kit.redis_command(&["XTRIM", "galley:{default}:s:0", "MAXLEN", "0"]).await;
    let start = store::maintenance::CheckCursor::start();
    let report = kit.jobs.check_queue(&queue(), true, start, 1000).await.expect("redis runs");
    assert!(report.violations.iter().any(|found| found.kind == "admitted_without_entry"), "{report:?}");
    assert_eq!(next_job(&kit, &worker).await.job.id, second);
    leader.stop().await;
}

#[tokio::test]
async fn a_new_leader_notices_workers_that_are_on_no_list() {
    let kit = StoreKit::start();
    let leader = start_leader(&kit).await;
    leader.stop().await;
    // The leader died together with a worker whose record is gone. The queue has its turn late
    let (dead, queue): (_, QueueName) = (Consumer::new(Duration::from_secs(3)), "q50".parse().expect("a name"));
    let id = kit.enqueue(r#"{"type":"a","args":[],"queue":"q50"}"#).await;
    let worker = "w".parse().expect("a name");
    let by = Claimant::Worker { consumer: &dead, worker: &worker };
    assert_eq!(kit.jobs.claim(&queue, &mut Vec::new(), 1, by).await.expect("redis runs").jobs.len(), 1);
    let leader = kit.start_maintenance();
    eventually_for(TWO_TRIES, "its job is available again", || async {
        (kit.state(id).await == "available").then_some(())
    })
    .await;
    leader.stop().await;
}
