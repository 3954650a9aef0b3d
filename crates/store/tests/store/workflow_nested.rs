//! Workflows in workflows, and steps with a job for each element of a result.

use std::collections::BTreeSet;

use common::id::WorkflowId;
use model::workflow::MAX_WORKFLOW_DEPTH;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use store::{jobs::ClaimedJob, workflows::CreateWorkflowError};

use crate::{
    kit::StoreKit,
    workflow_faults::succeed_silently,
    workflows::{fail, group, job, only_what_expires_is_left, pull, shown, start, state, succeed, try_start},
};

pub(crate) fn chain_of(steps: &[Value]) -> Value {
    json!({ "type": "chain", "steps": steps })
}

pub(crate) fn group_of(jobs: &[Value]) -> Value {
    json!({ "type": "group", "jobs": jobs })
}

/// The id of the workflow that a member is.
async fn nested(kit: &StoreKit, id: WorkflowId, index: usize) -> WorkflowId {
    let over = shown(kit, id).await;
    let member = &over["members"][index];
    assert_eq!(member["workflow"], json!(true), "{over}");
    member["id"].as_str().expect("an id").parse().expect("an id")
}

pub(crate) async fn pulled(kit: &StoreKit, job_type: &str) -> ClaimedJob {
    let claimed = pull(kit, "default").await.unwrap_or_else(|| panic!("no job, but {job_type} is next"));
    assert_eq!(claimed.job.summary.job_type.as_str(), job_type);
    claimed
}

pub(crate) fn args(claimed: &ClaimedJob) -> String {
    let envelope: Value = serde_json::from_str(claimed.job.envelope.as_str()).expect("JSON");
    envelope["args"].to_string()
}

/// A step that makes an array, one for each of its elements, and one that gathers.
fn split_map_gather() -> Value {
    json!({ "type": "dag", "steps": [
        { "id": "split", "type": "split", "args": [], "depends_on": [] },
        { "id": "other", "type": "other", "args": [], "depends_on": [] },
        { "id": "map", "type": "map", "args": ["x"], "depends_on": ["split", "other"], "for_each": "split" },
        { "id": "gather", "type": "gather", "args": [], "depends_on": ["map"] },
    ] })
}

#[tokio::test]
async fn a_step_may_be_a_workflow_whose_outcome_is_its_own() {
    let kit = StoreKit::start();
    let inner = json!({ "type": "group", "name": "inner", "jobs": [job("b"), chain_of(&[job("c"), job("d")])] });
    let id = start(&kit, &chain_of(&[job("a"), inner, job("e")])).await;
    let waiting = shown(&kit, id).await;
    assert_eq!((&waiting["members"][1]["type"], &waiting["members"][1]["state"]), (&json!("group"), &json!("waiting")));
    succeed(&kit, &pulled(&kit, "a").await, r#"{"n":1.0}"#).await;
    let second = nested(&kit, id, 1).await;
    let running = shown(&kit, second).await;
    assert_eq!((&running["name"], &running["state"]), (&json!("inner"), &json!("running")));
    assert_eq!((&running["parent_workflow_id"], &running["parent_workflow_index"]), (&json!(id), &json!(1)));
    assert_eq!(shown(&kit, id).await["members"][1]["state"], "running");
    let listed = kit.workflows.running_workflows(None, 10, None).await.expect("redis runs").workflows;
    assert_eq!(listed.iter().map(|workflow| workflow.id).collect::<Vec<_>>(), [id], "the outermost only");
    let (first, third) = (pulled(&kit, "b").await, pulled(&kit, "c").await);
    for claimed in [&first, &third] {
        // What the step would get as a job
        assert_eq!(claimed.job.parent_results.as_deref(), Some(r#"[{"n":1.0}]"#));
        assert_eq!(kit.job(claimed.job.id).await["parent_results"], json!([{ "n": 1.0 }]));
    }
    succeed(&kit, &third, "3").await;
    let fourth = pulled(&kit, "d").await;
    assert_eq!(fourth.job.parent_results.as_deref(), Some("[3]"), "of the step before it in its own chain");
    succeed(&kit, &fourth, "4").await;
    assert!(pull(&kit, "default").await.is_none());
    succeed(&kit, &first, "2").await;
    let last = pulled(&kit, "e").await;
    assert_eq!(last.job.parent_results.as_deref(), Some(r#"[{"n":1.0},[2,4]]"#));
    succeed(&kit, &last, "5").await;
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["state"], &over["jobs_total"], &over["jobs_completed"]),
        (&json!("completed"), &json!(3), &json!(3))
    );
    assert_eq!((&over["members"][1]["state"], &over["members"][1]["result"]), (&json!("completed"), &json!([2, 4])));
    assert_eq!(state(&kit, second).await, "completed");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn the_result_of_a_dag_is_an_object_by_the_ids_of_its_steps() {
    let kit = StoreKit::start();
    let inner = json!({ "type": "dag", "steps": [
        { "id": "p", "type": "p", "args": [], "depends_on": [] },
        { "id": "q", "type": "q", "args": [], "depends_on": ["p"] },
    ] });
    let id = start(&kit, &chain_of(&[inner, job("e")])).await;
    succeed(&kit, &pulled(&kit, "p").await, "1.0").await;
    succeed(&kit, &pulled(&kit, "q").await, "[]").await;
    let last = pulled(&kit, "e").await;
    assert_eq!(last.job.parent_results.as_deref(), Some(r#"[{"p":1.0,"q":[]}]"#));
    succeed(&kit, &last, "1").await;
    assert_eq!(state(&kit, id).await, "completed");
}

#[tokio::test]
async fn a_nested_workflow_that_fails_fails_its_step() {
    let kit = StoreKit::start();
    let id = start(&kit, &chain_of(&[group_of(&[job("a"), job("b")]), job("c")])).await;
    fail(&kit, &pulled(&kit, "a").await).await;
    assert_eq!(state(&kit, id).await, "running", "the group goes on");
    succeed(&kit, &pulled(&kit, "b").await, "1").await;
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["state"], &over["jobs_failed"], &over["members"][0]["state"]),
        (&json!("failed"), &json!(1), &json!("failed"))
    );
    assert!(pull(&kit, "default").await.is_none());

    let callbacks = json!({ "on_failure": job("bad"), "on_success": job("well") });
    let jobs = [chain_of(&[job("a"), job("b")]), job("c")];
    let id = start(&kit, &json!({ "type": "batch", "jobs": jobs, "callbacks": callbacks })).await;
    fail(&kit, &pulled(&kit, "a").await).await;
    succeed(&kit, &pulled(&kit, "c").await, "7").await;
    let last = pulled(&kit, "bad").await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[null,7]"));
    succeed(&kit, &last, "1").await;
    assert_eq!(state(&kit, id).await, "failed");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn a_step_makes_one_job_for_each_element_of_a_result_and_gathers_theirs_in_order() {
    let kit = StoreKit::start();
    let id = start(&kit, &split_map_gather()).await;
    succeed(&kit, &pulled(&kit, "split").await, r#"[{"z":1.0},9007199254740993,null]"#).await;
    assert_eq!(shown(&kit, id).await["members"][2]["state"], "waiting", "it depends on another one too");
    succeed(&kit, &pulled(&kit, "other").await, "\"o\"").await;
    let mut held = Vec::new();
    for element in [r#"{"z":1.0}"#, "9007199254740993", "null"] {
        let claimed = pulled(&kit, "map").await;
        assert!(claimed.job.envelope.as_str().contains(&format!(r#""args":["x",{element}]"#)), "{}", args(&claimed));
        // Not the array: each has its element
        assert_eq!(claimed.job.parent_results.as_deref(), Some("[\"o\"]"));
        held.push(claimed);
    }
    let made = shown(&kit, nested(&kit, id, 2).await).await;
    assert_eq!(
        (&made["type"], &made["jobs_total"], &made["parent_workflow_index"]),
        (&json!("group"), &json!(3), &json!(2))
    );
    assert_eq!(shown(&kit, id).await["members"][2]["for_each"], json!(0));
    for (number, claimed) in held.iter().enumerate().rev() {
        succeed(&kit, claimed, &number.to_string()).await;
    }
    let last = pulled(&kit, "gather").await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[[0,1,2]]"));
    succeed(&kit, &last, "1").await;
    assert_eq!(state(&kit, id).await, "completed");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn each_element_may_have_a_workflow() {
    let kit = StoreKit::start();
    let each = json!({ "type": "chain", "for_each": "previous", "steps": [job("get"), job("put")] });
    let id = start(&kit, &chain_of(&[job("split"), each, job("gather")])).await;
    succeed(&kit, &pulled(&kit, "split").await, "[1,2]").await;
    for (element, result) in [("[1]", "10"), ("[2]", "20")] {
        let claimed = pulled(&kit, "get").await;
        assert_eq!((args(&claimed).as_str(), &claimed.job.parent_results), (element, &None));
        succeed(&kit, &claimed, result).await;
    }
    for (element, result) in [("[1]", "[10]"), ("[2]", "[20]")] {
        let claimed = pulled(&kit, "put").await;
        assert_eq!((args(&claimed).as_str(), claimed.job.parent_results.as_deref()), (element, Some(result)));
        succeed(&kit, &claimed, &format!("{{\"of\":{result}}}")).await;
    }
    let last = pulled(&kit, "gather").await;
    assert_eq!(last.job.parent_results.as_deref(), Some(r#"[[1,2],[{"of":[10]},{"of":[20]}]]"#));
    succeed(&kit, &last, "1").await;
    assert_eq!(state(&kit, id).await, "completed");
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn an_empty_array_is_a_finished_step_and_what_is_no_array_a_failed_one() {
    let kit = StoreKit::with_variables(&[("GALLEY__WORKFLOWS__MAX_JOBS", "3")]);
    let each = |each: Value| {
        let mut each = each;
        each["for_each"] = json!("previous");
        chain_of(&[job("split"), each, job("gather")])
    };
    let id = start(&kit, &each(job("map"))).await;
    succeed(&kit, &pulled(&kit, "split").await, "[]").await;
    let last = pulled(&kit, "gather").await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[[],[]]"));
    succeed(&kit, &last, "1").await;
    let over = shown(&kit, id).await;
    assert_eq!((&over["state"], &over["members"][1]["result"]), (&json!("completed"), &json!([])));

    let large = json!({ "type": "map", "args": ["x".repeat(2 << 20)] });
    let wide = group(11);
    for (step, result, code) in [
        (job("map"), r#"{"a":[1]}"#, "not_an_array"),
        (job("map"), "null", "not_an_array"),
        (job("map"), "[1,2,3,4]", "too_many_elements"),
        (large, "[1,2]", "too_large"),
        (wide, "[1,2,3]", "too_many_jobs"),
    ] {
        let id = start(&kit, &each(step)).await;
        succeed(&kit, &pulled(&kit, "split").await, result).await;
        let over = shown(&kit, id).await;
        assert_eq!((&over["state"], &over["members"][1]["error"]["code"]), (&json!("failed"), &json!(code)), "{over}");
        assert_eq!(over["members"][1]["state"], "failed", "{over}");
        assert!(
            over["members"][1]["error"]["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("for_each ") || text.starts_with("all for_each "))
        );
        assert!(pull(&kit, "default").await.is_none(), "{code}");
    }
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn cancelling_goes_down_and_the_cancel_of_a_nested_one_counts_for_its_step() {
    let kit = StoreKit::start();
    let body = group_of(&[job("a"), chain_of(&[group_of(&[job("b"), job("c")]), job("d")])]);
    let id = start(&kit, &body).await;
    let chain = nested(&kit, id, 1).await;
    let inner = nested(&kit, chain, 0).await;
    pulled(&kit, "a").await;
    let held = pulled(&kit, "b").await;
    kit.workflows.cancel_workflow(id).await.expect("redis runs").expect("it runs");
    for workflow in [id, chain, inner] {
        assert_eq!(state(&kit, workflow).await, "cancelled");
    }
    assert_eq!(kit.job(held.job.id).await["state"], "cancelled");
    assert!(pull(&kit, "default").await.is_none());
    assert_eq!(shown(&kit, id).await["members"][1]["state"], "cancelled");

    let id = start(&kit, &body).await;
    let chain = nested(&kit, id, 1).await;
    let inner = nested(&kit, chain, 0).await;
    kit.workflows.cancel_workflow(inner).await.expect("redis runs").expect("it runs");
    assert_eq!((state(&kit, chain).await, state(&kit, id).await), ("failed".into(), "running".into()));
    assert_eq!(shown(&kit, chain).await["members"][0]["state"], "cancelled");
    succeed(&kit, &pulled(&kit, "a").await, "1").await;
    assert_eq!(state(&kit, id).await, "failed");
    assert!(pull(&kit, "default").await.is_none());
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn queues_of_nested_jobs_are_those_of_their_workflow_and_are_checked_when_it_is_accepted() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__MAX_QUEUES", "2"), ("GALLEY__QUEUES__A__MAX_DEPTH", "2")]);
    let of = |queue: &str| json!({ "type": "a", "args": [], "queue": queue });
    let each = json!({ "type": "group", "for_each": "previous", "jobs": [of("b")] });
    let id = start(&kit, &chain_of(&[of("a"), each])).await;
    let queues = kit.workflows.workflow_queues(id).await.expect("redis runs").expect("it exists");
    assert_eq!(queues.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
    for (body, expected) in [
        (chain_of(&[of("a"), group_of(&[of("c"), of("d")])]), "TooManyQueues"),
        (chain_of(&[group_of(&[of("a"), of("a"), of("a")])]), "QueueFull"),
    ] {
        let refused = try_start(&kit, &body).await.expect_err("refused");
        assert!(
            matches!(&refused, CreateWorkflowError::Refused(_, why) if format!("{why:?}").contains(expected)),
            "{refused:?}"
        );
    }
}

/// A random workflow, with names of jobs that count up.
fn random_workflow(random: &mut StdRng, levels: usize, next: &mut usize) -> Value {
    let count = random.random_range(1..4);
    let mut members = Vec::new();
    for _ in 0..count {
        members.push(if levels > 1 && random.random_ratio(1, 3) {
            random_workflow(random, levels - 1, next)
        } else {
            *next += 1;
            job(&format!("n{next}"))
        });
    }
    match random.random_range(0..3) {
        0 => chain_of(&members),
        1 => group_of(&members),
        _ => {
            let ids: Vec<String> = (0..members.len()).map(|index| format!("s{index}")).collect();
            for (index, member) in members.iter_mut().enumerate() {
                member["id"] = json!(ids[index]);
                let before: Vec<&String> = ids[..index].iter().filter(|_| random.random_ratio(1, 2)).collect();
                member["depends_on"] = json!(before);
            }
            json!({ "type": "dag", "steps": members })
        }
    }
}

/// The result of a workflow or a job, if it succeeds, and the jobs that run: a job returns the number in its name.
fn expected(step: &Value, fails: &BTreeSet<usize>, ran: &mut BTreeSet<usize>) -> Option<Value> {
    let list = if step.get("steps").is_some() { &step["steps"] } else { &step["jobs"] };
    let Some(members) = list.as_array() else {
        let number: usize = step["type"].as_str().expect("a type")[1..].parse().expect("a number");
        ran.insert(number);
        return (!fails.contains(&number)).then(|| json!(number));
    };
    match step["type"].as_str() {
        Some("chain") => {
            let mut last = None;
            for member in members {
                last = Some(expected(member, fails, ran)?);
            }
            last
        }
        Some("group") => {
            members.iter().map(|member| expected(member, fails, ran)).collect::<Vec<_>>().into_iter().collect()
        }
        _ => {
            let mut results = serde_json::Map::new();
            for member in members {
                let before = member["depends_on"].as_array().expect("an array");
                if before.iter().all(|id| results.contains_key(id.as_str().expect("text")))
                    && let Some(result) = expected(member, fails, ran)
                {
                    results.insert(member["id"].as_str().expect("text").to_owned(), result);
                }
            }
            (results.len() == members.len()).then_some(Value::Object(results))
        }
    }
}

#[tokio::test]
async fn every_job_of_any_nested_workflow_runs_once_and_only_if_what_it_waits_for_succeeded() {
    let kit = StoreKit::start();
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut jobs = 0;
        let body = random_workflow(&mut random, MAX_WORKFLOW_DEPTH - 1, &mut jobs);
        let fails: BTreeSet<usize> = (1..=jobs).filter(|_| random.random_ratio(1, 8)).collect();
        let mut wanted = BTreeSet::new();
        let outcome = expected(&body, &fails, &mut wanted);
        let id = start(&kit, &chain_of(std::slice::from_ref(&body))).await;
        let (mut ran, mut held) = (BTreeSet::new(), Vec::new());
        loop {
            while let Some(claimed) = pull(&kit, "default").await {
                let number: usize = claimed.job.summary.job_type.as_str()[1..].parse().expect("a number");
                assert!(ran.insert(number), "seed {seed}: {number} ran twice");
                held.push((number, claimed));
            }
            if held.is_empty() {
                break;
            }
            let (number, claimed) = held.swap_remove(random.random_range(0..held.len()));
            if fails.contains(&number) {
                fail(&kit, &claimed).await;
            } else if random.random_ratio(1, 5) {
                // Whatever process recorded it died before it told the workflow
                succeed_silently(&kit, &claimed, &number.to_string()).await;
                let owner = claimed.job.workflow.expect("a member").workflow;
                kit.workflows.check_workflow(owner).await.expect("redis runs");
            } else {
                succeed(&kit, &claimed, &number.to_string()).await;
            }
        }
        assert_eq!(ran, wanted, "seed {seed}: {body}");
        let over = shown(&kit, id).await;
        let state = if outcome.is_some() { "completed" } else { "failed" };
        assert_eq!(over["state"], state, "seed {seed}: {over}");
        assert_eq!(over["members"][0].get("result"), outcome.as_ref(), "seed {seed}: {over}");
    }
    assert_eq!(kit.redis_command(&["ZCARD", "galley:workflows"]).await, redis::Value::Int(0));
    only_what_expires_is_left(&kit).await;
}
