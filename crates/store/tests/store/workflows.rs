use common::id::WorkflowId;
use model::{
    job::{AttemptError, JobState, RetryAdvice},
    workflow::NewWorkflow,
};
use serde_json::{Value, json};
use store::jobs::Attempt;
use store::local_now;
use store::{
    jobs::{Claimant, ClaimedJob, EnqueueRefusal, FailureOutcome, Fence, FinishedJob, Settled},
    workflows::{CancelWorkflowError, CreateWorkflowError},
};

use crate::kit::{StoreKit, consumer, failure, fence};

/// Starts a workflow as a client would.
pub(crate) async fn try_start(kit: &StoreKit, body: &Value) -> Result<WorkflowId, CreateWorkflowError> {
    let now = kit.jobs.now().await.expect("redis runs");
    let text = body.to_string();
    let new = NewWorkflow::parse(&serde_json::from_str(&text).expect("JSON"), 1000, now).expect("a valid request");
    kit.workflows.create_workflow(new, common::trace_context::TraceContext::default(), now).await.expect("redis runs")
}

pub(crate) async fn start(kit: &StoreKit, body: &Value) -> WorkflowId {
    try_start(kit, body).await.expect("accepted")
}

/// The workflow as clients see it.
pub(crate) async fn shown(kit: &StoreKit, id: WorkflowId) -> Value {
    let view = kit.workflows.workflow(id).await.expect("redis runs").expect("the workflow exists");
    serde_json::from_str(&view.to_json()).expect("JSON")
}

pub(crate) async fn state(kit: &StoreKit, id: WorkflowId) -> String {
    shown(kit, id).await["state"].as_str().expect("a state").to_owned()
}

pub(crate) async fn pull(kit: &StoreKit, queue: &str) -> Option<ClaimedJob> {
    let by = Claimant::Pull { worker: None, lease: None };
    let queue = queue.parse().expect("a name");
    kit.jobs.claim(&queue, &mut Vec::new(), 1, by).await.expect("redis runs").jobs.pop()
}

pub(crate) async fn succeed(kit: &StoreKit, claimed: &ClaimedJob, result: &str) {
    let ended = FinishedJob::completed(&claimed.job, Some(result), Some(claimed.started_at), local_now());
    let settled = kit.jobs.finish(Attempt::of(claimed, &token(claimed)), &ended, false).await;
    assert_eq!(settled.expect("redis runs"), Settled::Done);
}

pub(crate) async fn fail(kit: &StoreKit, claimed: &ClaimedJob) -> FailureOutcome {
    let failure = AttemptError::new("handler_error", "handler_error", "it failed", 1, local_now());
    kit.jobs.fail(claimed, &token(claimed), failure, RetryAdvice::Never).await.expect("redis runs")
}

fn token(claimed: &ClaimedJob) -> Fence {
    Fence::Pull { token: claimed.token.clone(), worker: None }
}

pub(crate) fn job(name: &str) -> Value {
    json!({ "type": name, "args": [] })
}

pub(crate) fn chain(steps: usize) -> Value {
    json!({ "type": "chain", "steps": (0..steps).map(|index| job(&format!("step.n{index}"))).collect::<Vec<_>>() })
}

pub(crate) fn group(jobs: usize) -> Value {
    json!({ "type": "group", "jobs": (0..jobs).map(|index| job(&format!("job.n{index}"))).collect::<Vec<_>>() })
}

/// A group with a callback of each kind, in queues of their own.
fn batch(jobs: usize) -> Value {
    let callback = |name: &str| json!({ "type": "a", "args": [], "queue": name });
    let callbacks =
        json!({ "on_complete": callback("done"), "on_success": callback("well"), "on_failure": callback("bad") });
    json!({ "type": "batch", "jobs": group(jobs)["jobs"], "callbacks": callbacks })
}

fn job_type(claimed: &ClaimedJob) -> &str {
    claimed.job.summary.job_type.as_str()
}

/// That nothing but results is left, and that all of it goes by itself.
pub(crate) async fn only_what_expires_is_left(kit: &StoreKit) {
    for key in kit.redis_keys().await {
        let stays = ["galley:queues", "galley:leader", "galley:leader_details", "galley:{galley:leader}:clock"]
            .contains(&key.as_str())
            || [":priorities", ":s:0", ":stats"].iter().any(|suffix| key.ends_with(suffix));
        let ttl = kit.redis_command(&["PTTL", &key]).await;
        assert!(stays || matches!(ttl, redis::Value::Int(ms) if ms > 0), "{key} stays for ever");
    }
}

#[tokio::test]
async fn a_chain_runs_one_step_at_a_time_and_passes_results_on_byte_for_byte() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain(3)).await;
    for (step, results) in [(0, None), (1, Some("[9007199254740993]")), (2, Some(r#"[9007199254740993,{"z":1.0}]"#))] {
        let claimed = pull(&kit, "default").await.expect("a step");
        assert_eq!(job_type(&claimed), format!("step.n{step}"));
        assert_eq!(claimed.job.parent_results.as_deref(), results);
        assert!(pull(&kit, "default").await.is_none(), "one at a time");
        let shown = shown(&kit, id).await;
        assert_eq!((&shown["steps_completed"], &shown["members"][step]["state"]), (&json!(step), &json!("active")));
        let job = kit.job(claimed.job.id).await;
        assert_eq!((&job["workflow_id"], &job["workflow_index"]), (&json!(id), &json!(step)));
        succeed(&kit, &claimed, ["9007199254740993", r#"{"z":1.0}"#, "[]"][step]).await;
        assert_eq!(kit.job(claimed.job.id).await["workflow_id"], json!(id), "also when it is over");
    }
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["state"], &over["steps_completed"], &over["steps_total"]),
        (&json!("completed"), &json!(3), &json!(3))
    );
    assert!(over["completed_at"].is_string());
    assert_eq!(over["members"][1]["result"], json!({ "z": 1.0 }));
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_chain_stops_at_a_step_that_fails_for_good_however_it_fails() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__CRASH_BUDGET", "0")]);
    for how in ["fails", "crashes", "expires", "is cancelled"] {
        let id = start(&kit, &chain(3)).await;
        let claimed = pull(&kit, "default").await.expect("the first step");
        succeed(&kit, &claimed, "1").await;
        let claimed = pull(&kit, "default").await.expect("the second step");
        match how {
            "fails" => drop(fail(&kit, &claimed).await),
            "crashes" => drop(kit.jobs.worker_lost(&claimed, &token(&claimed)).await.expect("redis runs")),
            "expires" => drop(kit.jobs.discard_expired(&claimed, &token(&claimed)).await.expect("redis runs")),
            _ => drop(kit.jobs.cancel(claimed.job.id).await.expect("redis runs").expect("cancelled")),
        }
        let over = shown(&kit, id).await;
        let failed = usize::from(how != "is cancelled");
        assert_eq!((&over["state"], &over["steps_completed"]), (&json!("failed"), &json!(1)), "{how}");
        assert_eq!((&over["jobs_failed"], &over["jobs_cancelled"]), (&json!(failed), &json!(2 - failed)), "{how}");
        assert_eq!(over["members"][2]["state"], "cancelled", "{how}: it will never start");
        assert!(pull(&kit, "default").await.is_none(), "{how}");
    }
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_step_that_will_be_tried_again_has_not_ended() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain(2)).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    let recorded =
        kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert!(matches!(recorded, FailureOutcome::Retry { .. }));
    let shown = shown(&kit, id).await;
    assert_eq!((&shown["state"], &shown["members"][0]["state"]), (&json!("running"), &json!("retryable")));
}

#[tokio::test]
async fn what_a_step_was_given_survives_handing_back_and_retries() {
    let kit = StoreKit::start();
    let mut body = chain(2);
    body["steps"][1]["retry"] = json!({ "initial_interval": "PT0.01S" });
    let id = start(&kit, &body).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a step"), "7").await;
    let claimed = pull(&kit, "default").await.expect("a step");
    kit.jobs.release(Attempt::of(&claimed, &token(&claimed))).await.expect("redis runs");
    let claimed = pull(&kit, "default").await.expect("a step");
    assert_eq!(claimed.job.parent_results.as_deref(), Some("[7]"));
    kit.jobs.fail(&claimed, &token(&claimed), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let maintenance = kit.start_maintenance();
    let claimed = testkit::eventually("the retry", || pull(&kit, "default")).await;
    maintenance.stop().await;
    assert_eq!(claimed.job.parent_results.as_deref(), Some("[7]"));
    succeed(&kit, &claimed, "8").await;
    assert_eq!(state(&kit, id).await, "completed");
}

#[tokio::test]
async fn a_large_group_starts_at_once_in_the_order_of_its_array() {
    let kit = StoreKit::start();
    let id = start(&kit, &group(130)).await;
    let worker = consumer();
    let claimed = kit.claim(&worker, 200).await;
    let types: Vec<&str> = claimed.iter().map(job_type).collect();
    assert_eq!(types, (0..130).map(|index| format!("job.n{index}")).collect::<Vec<_>>());
    // The last first: only all of them together end it
    for one in claimed.iter().rev() {
        assert_eq!(state(&kit, id).await, "running");
        assert_eq!(kit.complete(&worker, one, "1").await, Settled::Done);
    }
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["state"], &over["jobs_completed"], &over["jobs_total"]),
        (&json!("completed"), &json!(130), &json!(130))
    );
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn one_failure_does_not_touch_the_others_of_a_group_and_fails_it_when_all_are_over() {
    let kit = StoreKit::start();
    let id = start(&kit, &group(3)).await;
    let claimed = [pull(&kit, "default").await, pull(&kit, "default").await, pull(&kit, "default").await];
    let [first, second, third] = claimed.map(|claimed| claimed.expect("a job"));
    fail(&kit, &second).await;
    succeed(&kit, &first, "1").await;
    assert_eq!(state(&kit, id).await, "running");
    assert_eq!(kit.state(third.job.id).await, "active");
    succeed(&kit, &third, "3").await;
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["state"], &over["jobs_completed"], &over["jobs_failed"]),
        (&json!("failed"), &json!(2), &json!(1))
    );
}

#[tokio::test]
async fn a_batch_calls_back_once_with_all_results_as_its_members_ended() {
    for (fails, called, not_called) in [(false, "well", "bad"), (true, "bad", "well")] {
        let kit = StoreKit::start();
        let id = start(&kit, &batch(2)).await;
        succeed(&kit, &pull(&kit, "default").await.expect("a job"), "1.0").await;
        let second = pull(&kit, "default").await.expect("a job");
        assert!(pull(&kit, "done").await.is_none(), "not all are over");
        if fails {
            fail(&kit, &second).await;
        } else {
            succeed(&kit, &second, "2").await;
        }
        for _ in 0..3 {
            kit.workflows.advance(id).await.expect("redis runs");
        }
        let (complete, other) =
            (pull(&kit, "done").await.expect("on_complete"), pull(&kit, called).await.expect(called));
        let results = if fails { "[1.0,null]" } else { "[1.0,2]" };
        assert_eq!(complete.job.parent_results.as_deref(), Some(results));
        assert_eq!(other.job.parent_results.as_deref(), Some(results));
        for queue in ["done", called, not_called] {
            assert!(pull(&kit, queue).await.is_none(), "{queue}");
        }
        let running = shown(&kit, id).await;
        assert_eq!((&running["state"], &running["callbacks"][0]["state"]), (&json!("running"), &json!("active")));
        succeed(&kit, &complete, "1").await;
        succeed(&kit, &other, "1").await;
        let over = shown(&kit, id).await;
        assert_eq!(over["state"], if fails { "failed" } else { "completed" });
        let states: Vec<&Value> = over["callbacks"].as_array().expect("an array").iter().map(|c| &c["state"]).collect();
        assert_eq!(states.iter().filter(|state| **state == "completed").count(), 2, "{over}");
        only_what_expires_is_left(&kit).await;
    }
}

#[tokio::test]
async fn members_have_queues_priorities_policies_and_delays_of_their_own() {
    let kit = StoreKit::start();
    let jobs = json!([
        { "type": "low", "args": [], "priority": -1 },
        { "type": "high", "args": [], "priority": 9, "retry": { "max_attempts": 1 } },
        { "type": "elsewhere", "args": [], "options": { "queue": "other" } },
        { "type": "later", "args": [], "scheduled_at": "+PT1H" },
    ]);
    let id = start(&kit, &json!({ "type": "group", "jobs": jobs })).await;
    let members = shown(&kit, id).await["members"].clone();
    assert_eq!((&members[3]["state"], &members[2]["queue"]), (&json!("scheduled"), &json!("other")));
    let high = pull(&kit, "default").await.expect("a job");
    assert_eq!((job_type(&high), high.job.summary.max_attempts), ("high", 1));
    assert_eq!(job_type(&pull(&kit, "default").await.expect("a job")), "low");
    assert_eq!(job_type(&pull(&kit, "other").await.expect("a job")), "elsewhere");
}

#[tokio::test]
async fn the_delay_of_a_step_counts_from_the_end_of_the_one_before() {
    let kit = StoreKit::start();
    let mut body = chain(2);
    body["steps"][1]["scheduled_at"] = json!("+PT1H");
    let id = start(&kit, &body).await;
    let step = pull(&kit, "default").await.expect("a step");
    let ends_at = kit.jobs.now().await.expect("redis runs");
    succeed(&kit, &step, "1").await;
    let step = shown(&kit, id).await["members"][1].clone();
    assert_eq!(step["state"], "scheduled");
    let due = kit.redis_command(&["ZSCORE", "galley:{default}:due", step["id"].as_str().expect("an id")]).await;
    let due: i64 = redis::from_redis_value(due).expect("a time");
    assert!(due >= ends_at + 3_600_000, "{due} {ends_at}");
}

#[tokio::test]
async fn a_cancelled_workflow_starts_nothing_more_and_its_jobs_are_cancelled_wherever_they_are() {
    let kit = StoreKit::start();
    let mut body = batch(4);
    body["jobs"][3]["scheduled_at"] = json!("+PT1H");
    let id = start(&kit, &body).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a job"), "1").await;
    let active = pull(&kit, "default").await.expect("a job");
    kit.workflows.cancel_workflow(id).await.expect("redis runs").expect("cancelled");
    let over = shown(&kit, id).await;
    let states: Vec<&str> =
        over["members"].as_array().expect("an array").iter().filter_map(|m| m["state"].as_str()).collect();
    assert_eq!(
        (&over["state"], &states[..]),
        (&json!("cancelled"), &["completed", "cancelled", "cancelled", "cancelled"][..])
    );
    assert!(over["cancelled_at"].is_string());
    for queue in ["default", "done", "well", "bad"] {
        assert!(pull(&kit, queue).await.is_none(), "{queue}");
    }
    assert_eq!(kit.state(active.job.id).await, "cancelled");
    let again = kit.workflows.cancel_workflow(id).await.expect("redis runs");
    assert_eq!(again, Err(CancelWorkflowError::AlreadyEnded(model::workflow::WorkflowState::Cancelled)));
    let unknown = kit.workflows.cancel_workflow(WorkflowId::new()).await.expect("redis runs");
    assert_eq!(unknown, Err(CancelWorkflowError::NotFound));
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_dead_letter_that_is_tried_again_has_its_results_and_leaves_its_workflow_as_it_is() {
    let kit = StoreKit::start();
    let mut body = chain(3);
    body["steps"][1]["retry"] = json!({ "on_exhaustion": "dead_letter" });
    let id = start(&kit, &body).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a step"), "7").await;
    let step = pull(&kit, "default").await.expect("a step");
    fail(&kit, &step).await;
    assert_eq!(state(&kit, id).await, "failed");
    kit.jobs.redrive(step.job.id).await.expect("redis runs").expect("a dead letter");
    let again = pull(&kit, "default").await.expect("the same step");
    assert_eq!((again.job.id, again.job.parent_results.as_deref()), (step.job.id, Some("[7]")));
    succeed(&kit, &again, "8").await;
    let over = shown(&kit, id).await;
    assert_eq!((&over["state"], &over["members"][1]["state"]), (&json!("failed"), &json!("discarded")));
    assert!(pull(&kit, "default").await.is_none());
}

#[tokio::test]
async fn results_that_find_no_room_are_replaced_by_where_to_find_them() {
    let kit = StoreKit::with_variables(&[("GALLEY__WORKFLOWS__RESULTS_LIMIT_BYTES", "65536")]);
    let id = start(&kit, &chain(3)).await;
    let large = format!("\"{}\"", "x".repeat(40_000));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let claimed = pull(&kit, "default").await.expect("a step");
        succeed(&kit, &claimed, &large).await;
        ids.push(claimed.job.id);
    }
    let last = pull(&kit, "default").await.expect("a step");
    let results: Value = serde_json::from_str(last.job.parent_results.as_deref().expect("results")).expect("JSON");
    assert_eq!(results[0].as_str().map(str::len), Some(40_000));
    assert_eq!(results[1], json!({ "omitted": true, "job_id": ids[1] }));
    assert_eq!(kit.job(ids[1]).await["result"].as_str().map(str::len), Some(40_000));
    assert_eq!(state(&kit, id).await, "running");
}

#[tokio::test]
async fn a_workflow_that_is_not_taken_leaves_nothing_behind() {
    let limits = [("GALLEY__QUEUES__SMALL__MAX_DEPTH", "2"), ("GALLEY__JOBS__MAX_QUEUES", "3")];
    let kit = StoreKit::with_variables(&limits);
    let small = json!({ "type": "a", "args": [], "queue": "small" });
    let before = kit.redis_keys().await;
    let full = try_start(&kit, &json!({ "type": "group", "jobs": [small, small, small] })).await;
    assert!(
        matches!(full, Err(CreateWorkflowError::Refused(_, EnqueueRefusal::QueueFull { max_depth: 2 }))),
        "{full:?}"
    );
    let four = ["a", "b", "c", "d"].map(|queue| json!({ "type": "a", "args": [], "queue": queue }));
    let many = try_start(&kit, &json!({ "type": "chain", "steps": four })).await;
    assert!(
        matches!(many, Err(CreateWorkflowError::Refused(_, EnqueueRefusal::TooManyQueues { max_queues: 3 }))),
        "{many:?}"
    );
    assert_eq!(kit.redis_keys().await, before);
    let chain = json!({ "type": "chain", "id": WorkflowId::new(), "steps": [small, small, small] });
    let id = start(&kit, &chain).await;
    assert_eq!(try_start(&kit, &chain).await, Err(CreateWorkflowError::Duplicate(id)));
    assert_eq!(kit.state(id.job_id(0, &"small".parse().expect("a name"))).await, JobState::Available.as_str());
}

#[tokio::test]
async fn a_job_was_made_when_it_was_made_whatever_the_id_of_its_workflow_says() {
    let kit = StoreKit::start();
    let mut body = chain(1);
    body["id"] = json!("019539a4-b68c-7def-8000-1a2b3c4d5e6f");
    let id = start(&kit, &body).await;
    let (workflow, step) = (shown(&kit, id).await, pull(&kit, "default").await.expect("a step"));
    let job = kit.job(step.job.id).await;
    assert!(job["created_at"].as_str() >= workflow["created_at"].as_str(), "{job} {workflow}");
}
