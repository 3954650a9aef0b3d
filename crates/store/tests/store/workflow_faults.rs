use common::id::WorkflowId;
use futures_util::future::join_all;
use model::{
    job::NewJob,
    workflow::{Membership, NewWorkflow, WorkflowState},
};
use serde_json::{Value, json};
use store::jobs::Attempt;
use store::{
    StoreError,
    events::EventLog,
    jobs::{ClaimedJob, EnqueueRefusal, Fence, FinishedJob, Settled},
};
use testkit::eventually;
use tokio_util::sync::CancellationToken;

use crate::{
    kit::{StoreKit, consumer},
    workflows::{chain, group, job, only_what_expires_is_left, pull, shown, start, state, succeed},
};

/// Ends a job as a process does that dies before it tells the workflow.
pub(crate) async fn succeed_silently(kit: &StoreKit, claimed: &ClaimedJob, result: &str) {
    // What is recorded is the whole job; only a client that records it does not know of the workflow
    let ended = FinishedJob::completed(&claimed.job, Some(result), Some(claimed.started_at), claimed.started_at);
    let mut unaware = claimed.job.clone();
    unaware.workflow = None;
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    let settled = kit
        .jobs
        .finish(Attempt { job: &unaware, ..Attempt::of(claimed, &fence) }, &ended, false)
        .await
        .expect("redis runs");
    assert_eq!(settled, Settled::Done);
}

fn hash(id: WorkflowId) -> String {
    format!("galley:{{wf:{id}}}:w")
}

/// Lets the time of the maintenance's next look come.
pub(crate) async fn make_workflow_due(kit: &StoreKit, id: WorkflowId) {
    kit.redis_command(&["ZADD", "galley:workflows", "1", &id.to_string()]).await;
}

pub(crate) fn fast_sweep_kit() -> StoreKit {
    StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "50")])
}

#[tokio::test]
async fn a_process_that_dies_between_recording_an_end_and_going_on_is_made_up_for() {
    let kit = fast_sweep_kit();
    let id = start(&kit, &chain(2)).await;
    succeed_silently(&kit, &pull(&kit, "default").await.expect("a step"), "7").await;
    kit.redis_command(&["HSET", &hash(id), "e0", "completed", "r0", "7", "k", "1"]).await;
    assert!(pull(&kit, "default").await.is_none());
    make_workflow_due(&kit, id).await;
    let maintenance = kit.start_maintenance();
    let step = eventually("the second step", || pull(&kit, "default")).await;
    assert_eq!(step.job.parent_results.as_deref(), Some("[7]"));
    maintenance.stop().await;
}

#[tokio::test]
async fn an_end_that_the_workflow_never_heard_of_is_found() {
    let kit = fast_sweep_kit();
    let (first, second) = (start(&kit, &chain(2)).await, start(&kit, &group(2)).await);
    for _ in 0..3 {
        succeed_silently(&kit, &pull(&kit, "default").await.expect("a job"), "7").await;
    }
    assert_eq!((state(&kit, first).await, state(&kit, second).await), ("running".into(), "running".into()));
    for id in [first, second] {
        make_workflow_due(&kit, id).await;
    }
    let maintenance = kit.start_maintenance();
    eventually("the group is over", || async { (state(&kit, second).await == "completed").then_some(()) }).await;
    let step = eventually("the second step", || pull(&kit, "default")).await;
    assert_eq!(step.job.parent_results.as_deref(), Some("[7]"));
    maintenance.stop().await;
}

#[tokio::test]
async fn a_creation_that_was_cut_off_half_way_is_completed_in_order() {
    let kit = fast_sweep_kit();
    // The third job cannot be made for now
    kit.redis_command(&["SET", "galley:{stuck}:s:0", "not a stream"]).await;
    let mut body = group(70);
    body["jobs"][60]["queue"] = json!("stuck");
    let now = kit.jobs.now().await.expect("redis runs");
    let text = body.to_string();
    let new = NewWorkflow::parse(&serde_json::from_str(&text).expect("JSON"), 1000, now);
    let mut new = new.expect("valid");
    let id = WorkflowId::new();
    new.id = Some(id);
    // It is stored, so that is the answer: somebody who hears otherwise would make it twice
    assert!(
        kit.workflows
            .create_workflow(new, common::trace_context::TraceContext::default(), now)
            .await
            .expect("redis runs")
            .is_ok()
    );
    assert_eq!(kit.redis_command(&["XLEN", "galley:{default}:s:0"]).await, redis::Value::Int(60));
    kit.redis_command(&["DEL", "galley:{stuck}:s:0"]).await;
    make_workflow_due(&kit, id).await;
    let maintenance = kit.start_maintenance();
    let all = || async {
        (kit.redis_command(&["XLEN", "galley:{default}:s:0"]).await == redis::Value::Int(69)).then_some(())
    };
    eventually("all jobs are there", all).await;
    maintenance.stop().await;
    let claimed = kit.claim(&consumer(), 100).await;
    let types: Vec<String> = claimed.iter().map(|claimed| claimed.job.summary.job_type.to_string()).collect();
    let expected: Vec<String> = (0..70).filter(|index| *index != 60).map(|index| format!("job.n{index}")).collect();
    assert_eq!(types, expected);
    assert!(pull(&kit, "stuck").await.is_some());
}

#[tokio::test]
async fn a_client_that_goes_on_with_a_workflow_at_once_makes_each_job_once() {
    let kit = StoreKit::start();
    let jobs = store::Store::new(&kit.redis, &kit.notifier, &kit.settings, events(&kit)).jobs();
    let other = store::workflows::Workflows::new(&jobs);
    for round in 0..10 {
        let (first, second) = (start(&kit, &chain(3)).await, start(&kit, &group(20)).await);
        kit.redis_command(&["HDEL", &hash(second), "n"]).await;
        let step = pull(&kit, "default").await.expect("a step");
        succeed_silently(&kit, &step, "1").await;
        kit.redis_command(&["HSET", &hash(first), "e0", "completed", "k", "1"]).await;
        let both = [first, second]
            .into_iter()
            .flat_map(|id| vec![kit.workflows.advance(id), other.advance(id), kit.workflows.advance(id)]);
        for advanced in join_all(both).await {
            advanced.expect("redis runs");
        }
        let worker = consumer();
        let claimed = kit.claim(&worker, 100).await;
        assert_eq!(claimed.len(), 21, "round {round}");
        for one in &claimed {
            assert_eq!(kit.complete(&worker, one, "1").await, Settled::Done);
        }
        let last = kit.claim_one(&worker).await;
        kit.complete(&worker, &last, "1").await;
        assert_eq!((state(&kit, first).await, state(&kit, second).await), ("completed".into(), "completed".into()));
    }
    only_what_expires_is_left(&kit).await;
}

fn events(kit: &StoreKit) -> EventLog {
    EventLog::start(&kit.redis, &kit.settings, CancellationToken::new()).0
}

#[tokio::test]
async fn the_last_two_of_a_group_that_end_at_once_end_it() {
    let kit = StoreKit::start();
    for _ in 0..10 {
        let id = start(&kit, &group(2)).await;
        let both = [pull(&kit, "default").await.expect("a job"), pull(&kit, "default").await.expect("a job")];
        join_all(both.iter().map(|claimed| succeed(&kit, claimed, "1"))).await;
        assert_eq!(state(&kit, id).await, "completed");
    }
}

#[tokio::test]
async fn a_step_that_ends_while_its_chain_is_cancelled_starts_nothing() {
    let kit = StoreKit::start();
    for _ in 0..20 {
        let id = start(&kit, &chain(3)).await;
        let step = pull(&kit, "default").await.expect("a step");
        let fence = Fence::Pull { token: step.token.clone(), worker: None };
        let ended = FinishedJob::completed(&step.job, Some("1"), Some(step.started_at), step.started_at);
        let (settled, cancelled) =
            tokio::join!(kit.jobs.finish(Attempt::of(&step, &fence), &ended, false), kit.workflows.cancel_workflow(id));
        settled.expect("redis runs");
        cancelled.expect("redis runs").expect("cancelled");
        assert_eq!(state(&kit, id).await, "cancelled");
        assert!(pull(&kit, "default").await.is_none());
    }
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn who_is_late_to_make_a_job_of_a_cancelled_workflow_finds_it_over() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain(2)).await;
    succeed_silently(&kit, &pull(&kit, "default").await.expect("a step"), "1").await;
    // Somebody saw this and is about to make the second step
    kit.redis_command(&["HSET", &hash(id), "e0", "completed", "k", "1"]).await;
    kit.workflows.cancel_workflow(id).await.expect("redis runs").expect("cancelled");
    let now = kit.jobs.now().await.expect("redis runs");
    let text = job("step.n1").to_string();
    let mut late = NewJob::parse(&serde_json::from_str(&text).expect("JSON"), now).expect("valid");
    let member = id.job_id(1, &late.queue);
    (late.id, late.workflow) = (Some(member), Some(Membership { workflow: id, index: 1 }));
    let made = kit.jobs.enqueue(late, common::trace_context::TraceContext::default(), now).await.expect("redis runs");
    assert!(matches!(made, Err(EnqueueRefusal::Duplicate(_))), "{made:?}");
    assert!(pull(&kit, "default").await.is_none());
    assert_eq!(kit.state(member).await, "cancelled");
}

#[tokio::test]
async fn a_cancel_that_was_cut_off_is_carried_out_by_the_maintenance() {
    let kit = fast_sweep_kit();
    let id = start(&kit, &group(120)).await;
    kit.redis_command(&["HSET", &hash(id), "s", "cancelled", "f", "1"]).await;
    make_workflow_due(&kit, id).await;
    let maintenance = kit.start_maintenance();
    let over = || async {
        let shown = shown(&kit, id).await;
        let cancelled = |member: &Value| member["state"] == "cancelled";
        shown["members"].as_array().expect("an array").iter().all(cancelled).then_some(())
    };
    eventually("all jobs are cancelled", over).await;
    let gone =
        || async { (kit.redis_command(&["ZCARD", "galley:workflows"]).await == redis::Value::Int(0)).then_some(()) };
    eventually("nothing is left to do", gone).await;
    maintenance.stop().await;
    assert!(pull(&kit, "default").await.is_none());
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_job_that_is_gone_without_a_trace_counts_as_failed() {
    let kit = StoreKit::start();
    let id = start(&kit, &group(2)).await;
    let lost = pull(&kit, "default").await.expect("a job");
    succeed_silently(&kit, &lost, "1").await;
    kit.redis_command(&["DEL", &format!("galley:{{default}}:r:{}", lost.job.id)]).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a job"), "1").await;
    assert_eq!(state(&kit, id).await, "running");
    kit.workflows.check_workflow(id).await.expect("redis runs");
    let over = shown(&kit, id).await;
    assert_eq!((&over["state"], &over["jobs_failed"]), (&json!("failed"), &json!(1)));
}

#[tokio::test]
async fn a_redis_that_is_emptied_in_the_middle_ends_workflows_and_harms_nobody() {
    let kit = fast_sweep_kit();
    let (first, second) = (start(&kit, &chain(2)).await, start(&kit, &group(2)).await);
    let step = pull(&kit, "default").await.expect("a step");
    let maintenance = kit.start_maintenance();
    kit.redis_command(&["FLUSHDB"]).await;
    let fence = Fence::Pull { token: step.token.clone(), worker: None };
    let ended = FinishedJob::completed(&step.job, Some("1"), None, step.started_at);
    let settled = kit.jobs.finish(Attempt::of(&step, &fence), &ended, false).await.expect("redis runs");
    assert_eq!(settled, Settled::Stale);
    make_workflow_due(&kit, first).await;
    for id in [first, second] {
        kit.workflows.advance(id).await.expect("redis runs");
        kit.workflows.check_workflow(id).await.expect("redis runs");
        assert!(kit.workflows.workflow(id).await.expect("redis runs").is_none());
    }
    let id = start(&kit, &chain(1)).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a step"), "1").await;
    assert_eq!(state(&kit, id).await, "completed");
    maintenance.stop().await;
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_full_redis_records_ends_and_goes_on_when_there_is_room() {
    let kit =
        StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "50"), ("GALLEY__WORKFLOWS__CHECK_MS", "100")]);
    let id = start(&kit, &chain(2)).await;
    let step = pull(&kit, "default").await.expect("a step");
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let before = kit.redis_keys().await;
    let new = serde_json::from_str(r#"{"type":"chain","steps":[{"type":"a","args":[]}]}"#).expect("JSON");
    let new = NewWorkflow::parse(&new, 1, 0).expect("valid");
    assert!(
        matches!(
            kit.workflows.create_workflow(new, common::trace_context::TraceContext::default(), 0).await,
            Err(StoreError::OutOfMemory)
        ),
        "new ones are refused"
    );
    assert_eq!(kit.redis_keys().await, before);
    assert_eq!(kit.redis_command(&["ZCARD", "galley:workflows"]).await, redis::Value::Int(1));
    succeed(&kit, &step, "7").await;
    assert_eq!(shown(&kit, id).await["steps_completed"], 1);
    // It is to be looked at again soon; the maintenance finds Redis still full, and then not
    let next = || async {
        let next = kit.redis_command(&["ZSCORE", "galley:workflows", &id.to_string()]).await;
        redis::from_redis_value::<f64>(next).expect("it is looked after")
    };
    let first = next().await;
    let maintenance = kit.start_maintenance();
    eventually("the maintenance has been there", || async { (next().await > first).then_some(()) }).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let step = eventually("the second step", || pull(&kit, "default")).await;
    assert_eq!(step.job.parent_results.as_deref(), Some("[7]"));
    maintenance.stop().await;
}

#[tokio::test]
async fn a_workflow_can_be_cancelled_on_a_full_redis() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain(2)).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a step"), "7").await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    kit.workflows.cancel_workflow(id).await.expect("redis runs").expect("cancelled");
    assert_eq!(state(&kit, id).await, "cancelled");
    assert!(pull(&kit, "default").await.is_none());
}

#[tokio::test]
async fn a_callback_that_ran_and_was_forgotten_is_not_run_again() {
    let kit = StoreKit::start();
    let callbacks = json!({ "on_complete": { "type": "a", "args": [], "queue": "done" } });
    let id = start(&kit, &json!({ "type": "batch", "jobs": [job("a")], "callbacks": callbacks })).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a job"), "1").await;
    let callback = pull(&kit, "done").await.expect("the callback");
    succeed_silently(&kit, &callback, "1").await;
    kit.redis_command(&["DEL", &format!("galley:{{done}}:r:{}", callback.job.id)]).await;
    kit.workflows.advance(id).await.expect("redis runs");
    kit.workflows.check_workflow(id).await.expect("redis runs");
    assert!(pull(&kit, "done").await.is_none());
    assert_eq!(state(&kit, id).await, "failed");
}

#[tokio::test]
async fn the_maintenance_goes_on_beside_a_workflow_that_is_broken() {
    let kit = fast_sweep_kit();
    let broken = WorkflowId::new();
    kit.redis_command(&["HSET", &hash(broken), "y", "dag"]).await;
    kit.redis_command(&["ZADD", "galley:workflows", "1", "not an id"]).await;
    let id = start(&kit, &chain(2)).await;
    succeed_silently(&kit, &pull(&kit, "default").await.expect("a step"), "7").await;
    for id in [broken, id] {
        make_workflow_due(&kit, id).await;
    }
    let maintenance = kit.start_maintenance();
    eventually("the second step", || pull(&kit, "default")).await;
    maintenance.stop().await;
    assert_eq!(kit.redis_command(&["ZSCORE", "galley:workflows", "not an id"]).await, redis::Value::Nil);
    assert_eq!(kit.workflows.cancel_workflow(id).await.expect("redis runs"), Ok(()));
    assert_eq!(state(&kit, id).await, WorkflowState::Cancelled.as_str());
}
