//! Processes that die, and data that is lost, around workflows in workflows.

use common::id::WorkflowId;
use serde_json::json;
use testkit::eventually;

use crate::{
    kit::StoreKit,
    workflow_faults::{fast_sweep_kit, make_workflow_due, succeed_silently},
    workflow_nested::{args, chain_of, group_of, pulled},
    workflows::{fail, group, job, only_what_expires_is_left, pull, shown, start, state, succeed},
};

fn hash(id: WorkflowId) -> String {
    format!("galley:{{wf:{id}}}:w")
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_of_nested_workflows_is_made_up_for() {
    let kit = fast_sweep_kit();
    // The group cannot make its second job for now
    kit.redis_command(&["SET", "galley:{stuck}:s:0", "not a stream"]).await;
    let stuck = json!({ "type": "c", "args": [], "queue": "stuck" });
    let each = json!({ "type": "m", "args": [], "for_each": "previous" });
    let id = start(&kit, &chain_of(&[job("a"), group_of(&[job("b"), stuck]), each, job("e")])).await;
    // It dies before the workflow hears of the end
    succeed_silently(&kit, &pulled(&kit, "a").await, "1").await;
    make_workflow_due(&kit, id).await;
    let maintenance = kit.start_maintenance();
    let first = eventually("b", || pull(&kit, "default")).await;
    // The inner one is stored, and its creator died before all its jobs were there
    kit.redis_command(&["DEL", "galley:{stuck}:s:0"]).await;
    let inner = id.nested(1);
    make_workflow_due(&kit, inner).await;
    make_workflow_due(&kit, id).await;
    let second = eventually("c", || pull(&kit, "stuck")).await;
    succeed(&kit, &first, "2").await;
    // It dies before the inner one hears of its last end
    succeed_silently(&kit, &second, "3").await;
    make_workflow_due(&kit, inner).await;
    let one = eventually("m", || pull(&kit, "default")).await;
    let other = eventually("m", || pull(&kit, "default")).await;
    assert_eq!((args(&one), args(&other)), ("[2]".into(), "[3]".into()));
    maintenance.stop().await;
    succeed(&kit, &one, "20").await;
    succeed_silently(&kit, &other, "30").await;
    // It dies after the inner one ended, and before the outer one hears of it
    let made = id.nested(2);
    let ended = ["HSET", &hash(made), "e1", "completed", "r1", "30", "k", "2", "s", "completed", "f", "1"];
    kit.redis_command(&ended).await;
    assert_eq!(state(&kit, id).await, "running");
    assert!(pull(&kit, "default").await.is_none());
    make_workflow_due(&kit, made).await;
    let maintenance = kit.start_maintenance();
    let last = eventually("e", || pull(&kit, "default")).await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[1,[2,3],[20,30]]"));
    succeed(&kit, &last, "4").await;
    eventually("completed", || async { (state(&kit, id).await == "completed").then_some(()) }).await;
    maintenance.stop().await;
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn the_outer_workflow_finds_the_end_of_one_that_maintenance_has_forgotten() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain_of(&[group_of(&[job("a")]), job("b")])).await;
    let inner = id.nested(0);
    succeed_silently(&kit, &pulled(&kit, "a").await, "1").await;
    let ended = ["HSET", &hash(inner), "e0", "completed", "r0", "1", "k", "1", "s", "completed", "f", "1"];
    kit.redis_command(&ended).await;
    kit.redis_command(&["ZREM", "galley:workflows", &inner.to_string()]).await;
    kit.workflows.check_workflow(id).await.expect("redis runs");
    let last = pulled(&kit, "b").await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[[1]]"));
    succeed(&kit, &last, "1").await;
    assert_eq!(state(&kit, id).await, "completed");
    kit.workflows.check_workflow(inner).await.expect("redis runs");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_nested_workflow_that_is_gone_counts_as_failed() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain_of(&[group_of(&[job("a")]), job("b")])).await;
    let held = pulled(&kit, "a").await;
    kit.redis_command(&["DEL", &hash(id.nested(0))]).await;
    kit.workflows.check_workflow(id).await.expect("redis runs");
    assert_eq!((state(&kit, id).await, shown(&kit, id).await["jobs_failed"].clone()), ("failed".into(), json!(1)));
    succeed(&kit, &held, "1").await;
    assert!(pull(&kit, "default").await.is_none());
}

#[tokio::test]
async fn a_nested_workflow_whose_creator_died_finds_that_the_outer_one_was_cancelled() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain_of(&[group_of(&[job("a")]), job("b")])).await;
    // The cancel saw no inner one: it was created just then
    kit.redis_command(&["HSET", &hash(id), "s", "cancelled", "f", "1"]).await;
    kit.workflows.check_workflow(id.nested(0)).await.expect("redis runs");
    assert_eq!(state(&kit, id.nested(0)).await, "cancelled");
    assert!(pull(&kit, "default").await.is_none());
    kit.workflows.check_workflow(id).await.expect("redis runs");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn an_id_that_belongs_to_another_workflow_fails_the_step_and_harms_nobody() {
    let kit = StoreKit::start();
    let outer = WorkflowId::new();
    let mut foreign = group(1);
    foreign["id"] = json!(outer.nested(0));
    let other = start(&kit, &foreign).await;
    let mut body = chain_of(&[group_of(&[job("a")]), job("b")]);
    body["id"] = json!(outer);
    let id = start(&kit, &body).await;
    let over = shown(&kit, id).await;
    assert_eq!((&over["state"], &over["members"][0]["error"]["code"]), (&json!("failed"), &json!("duplicate")));
    kit.workflows.check_workflow(id).await.expect("redis runs");
    assert_eq!(state(&kit, other).await, "running");
    succeed(&kit, &pulled(&kit, "job.n0").await, "1").await;
    assert_eq!(state(&kit, other).await, "completed");
}

#[tokio::test]
async fn a_job_of_a_nested_workflow_that_is_redriven_has_its_results_again() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain_of(&[job("a"), group_of(&[job("b")])])).await;
    succeed(&kit, &pulled(&kit, "a").await, "1").await;
    let failed = pulled(&kit, "b").await;
    fail(&kit, &failed).await;
    assert_eq!(state(&kit, id).await, "failed");
    kit.jobs.redrive(failed.job.id).await.expect("redis runs").expect("it was discarded");
    let again = pulled(&kit, "b").await;
    assert_eq!(again.job.parent_results.as_deref(), Some("[1]"));
    succeed(&kit, &again, "2").await;
    assert_eq!(state(&kit, id).await, "failed", "it keeps the first end");
}
