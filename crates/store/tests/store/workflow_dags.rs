//! Workflows whose jobs name those that they depend on.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use testkit::eventually;

use crate::{
    kit::StoreKit,
    workflow_faults::{fast_sweep_kit, make_workflow_due, succeed_silently},
    workflows::{fail, only_what_expires_is_left, pull, shown, start, state, succeed},
};

/// A DAG of jobs of these types, each with the ids of those that it depends on.
fn dag(steps: &[(&str, &[&str])]) -> Value {
    let step =
        |(id, depends_on): &(&str, &[&str])| json!({ "id": id, "type": id, "args": [], "depends_on": depends_on });
    json!({ "type": "dag", "steps": steps.iter().map(step).collect::<Vec<_>>() })
}

const DIAMOND: &[(&str, &[&str])] = &[("d", &["c", "b"]), ("b", &["a"]), ("a", &[]), ("c", &["a"])];

#[tokio::test]
async fn a_job_of_a_dag_starts_when_all_that_it_depends_on_have_completed_and_gets_their_results() {
    let kit = StoreKit::start();
    let id = start(&kit, &dag(DIAMOND)).await;
    let first = pull(&kit, "default").await.expect("a");
    assert_eq!((first.job.summary.job_type.as_str(), &first.job.parent_results), ("a", &None));
    assert!(pull(&kit, "default").await.is_none());
    succeed(&kit, &first, r#"{"n":1.0}"#).await;
    let (second, third) = (pull(&kit, "default").await.expect("b"), pull(&kit, "default").await.expect("c"));
    for claimed in [&second, &third] {
        assert_eq!(claimed.job.parent_results.as_deref(), Some(r#"[{"n":1.0}]"#));
    }
    succeed(&kit, &third, "3").await;
    assert!(pull(&kit, "default").await.is_none(), "d depends on b too");
    succeed(&kit, &second, "2").await;
    let last = pull(&kit, "default").await.expect("d");
    assert_eq!((last.job.summary.job_type.as_str(), last.job.parent_results.as_deref()), ("d", Some("[3,2]")));
    succeed(&kit, &last, "4").await;
    let over = shown(&kit, id).await;
    assert_eq!(
        (&over["type"], &over["state"], &over["jobs_completed"]),
        (&json!("dag"), &json!("completed"), &json!(4))
    );
    let steps: Vec<_> = over["steps"].as_array().expect("steps").iter().map(|step| &step["id"]).collect();
    assert_eq!(steps, ["a", "b", "c", "d"]);
    assert!(pull(&kit, "default").await.is_none());
    only_what_expires_is_left(&kit).await;
}

#[tokio::test]
async fn what_depends_on_a_job_that_failed_never_starts_and_the_rest_goes_on() {
    let kit = StoreKit::start();
    let id = start(&kit, &dag(&[("a", &[]), ("b", &[]), ("c", &["a"]), ("d", &["c"]), ("e", &["b"])])).await;
    let (first, second) = (pull(&kit, "default").await.expect("a"), pull(&kit, "default").await.expect("b"));
    fail(&kit, &first).await;
    assert_eq!(state(&kit, id).await, "running");
    succeed(&kit, &second, "1").await;
    let last = pull(&kit, "default").await.expect("e");
    assert_eq!(last.job.summary.job_type.as_str(), "e");
    succeed(&kit, &last, "1").await;
    let over = shown(&kit, id).await;
    let counts = ["jobs_completed", "jobs_failed", "jobs_cancelled"].map(|name| over[name].as_u64());
    assert_eq!((&over["state"], counts), (&json!("failed"), [Some(2), Some(1), Some(2)]));
    assert!(pull(&kit, "default").await.is_none());
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_of_a_dag_is_made_up_for() {
    let kit = fast_sweep_kit();
    let id = start(&kit, &dag(DIAMOND)).await;
    // It dies before the workflow hears of the end
    succeed_silently(&kit, &pull(&kit, "default").await.expect("a"), "1").await;
    make_workflow_due(&kit, id).await;
    let maintenance = kit.start_maintenance();
    let second = eventually("b", || pull(&kit, "default")).await;
    let third = eventually("c", || pull(&kit, "default")).await;
    succeed(&kit, &second, "2").await;
    // It dies after the workflow heard of it, and before the next job was made
    succeed_silently(&kit, &third, "3").await;
    kit.redis_command(&["HSET", &format!("galley:{{wf:{id}}}:w"), "e2", "completed", "r2", "3", "k", "3"]).await;
    make_workflow_due(&kit, id).await;
    let last = eventually("d", || pull(&kit, "default")).await;
    assert_eq!(last.job.parent_results.as_deref(), Some("[3,2]"));
    succeed(&kit, &last, "4").await;
    eventually("completed", || async { (state(&kit, id).await == "completed").then_some(()) }).await;
    maintenance.stop().await;
}

#[tokio::test]
async fn a_job_of_a_dag_that_is_gone_without_a_trace_counts_as_failed() {
    let kit = StoreKit::start();
    let id = start(&kit, &dag(&[("a", &[]), ("b", &[]), ("c", &["b"])])).await;
    let (lost, other) = (pull(&kit, "default").await.expect("a"), pull(&kit, "default").await.expect("b"));
    succeed(&kit, &other, "1").await;
    succeed(&kit, &pull(&kit, "default").await.expect("c"), "1").await;
    succeed_silently(&kit, &lost, "1").await;
    kit.redis_command(&["DEL", &format!("galley:{{default}}:r:{}", lost.job.id)]).await;
    kit.workflows.check_workflow(id).await.expect("redis runs");
    let over = shown(&kit, id).await;
    assert_eq!((&over["state"], &over["jobs_failed"]), (&json!("failed"), &json!(1)));
    assert!(pull(&kit, "default").await.is_none(), "it does not run again");
}

#[tokio::test]
async fn cancelling_a_dag_ends_what_runs_and_starts_nothing_more() {
    let kit = StoreKit::start();
    let id = start(&kit, &dag(DIAMOND)).await;
    succeed(&kit, &pull(&kit, "default").await.expect("a"), "1").await;
    kit.workflows.cancel_workflow(id).await.expect("redis runs").expect("it runs");
    assert!(pull(&kit, "default").await.is_none());
    let over = shown(&kit, id).await;
    let counts = ["jobs_completed", "jobs_cancelled"].map(|name| over[name].as_u64());
    assert_eq!((&over["state"], counts), (&json!("cancelled"), [Some(1), Some(3)]));
}

/// The steps of a random DAG: of each, those before it that it depends on.
fn random_steps(random: &mut StdRng) -> Vec<Vec<usize>> {
    let count = random.random_range(1..14);
    (0..count).map(|index| (0..index).filter(|_| random.random_ratio(1, 4)).collect()).collect()
}

#[tokio::test]
async fn every_job_of_any_dag_runs_once_after_what_it_depends_on_unless_that_failed() {
    let kit = StoreKit::start();
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let steps = random_steps(&mut random);
        let fails: BTreeSet<usize> = (0..steps.len()).filter(|_| random.random_ratio(1, 6)).collect();
        let name = |index: &usize| format!("n{index}");
        let mut sent: Vec<Value> = (0..)
            .zip(&steps)
            .map(|(index, before)| {
                let before: Vec<String> = before.iter().map(name).collect();
                json!({ "id": name(&index), "type": name(&index), "args": [], "depends_on": before })
            })
            .collect();
        // In whatever order they are sent
        sent.rotate_left(random.random_range(0..steps.len()));
        let id = start(&kit, &json!({ "type": "dag", "steps": sent })).await;
        let (mut held, mut ended) = (Vec::new(), BTreeMap::new());
        loop {
            while let Some(claimed) = pull(&kit, "default").await {
                let index: usize = claimed.job.summary.job_type.as_str()[1..].parse().expect("a number");
                assert!(
                    steps[index].iter().all(|before| ended.get(before) == Some(&true)),
                    "seed {seed}: {index} is early"
                );
                assert!(!ended.contains_key(&index), "seed {seed}: {index} ran twice");
                let wanted: Vec<usize> = steps[index].clone();
                let given = claimed.job.parent_results.as_deref().unwrap_or("[]");
                assert_eq!(given, serde_json::to_string(&wanted).expect("JSON"), "seed {seed}: results of {index}");
                held.push((index, claimed));
            }
            if held.is_empty() {
                break;
            }
            let (index, claimed) = held.swap_remove(random.random_range(0..held.len()));
            if fails.contains(&index) {
                fail(&kit, &claimed).await;
            } else {
                succeed(&kit, &claimed, &index.to_string()).await;
            }
            ended.insert(index, !fails.contains(&index));
        }
        let all = ended.len() == steps.len() && ended.values().all(|succeeded| *succeeded);
        assert_eq!(state(&kit, id).await, if all { "completed" } else { "failed" }, "seed {seed}");
        for (index, before) in steps.iter().enumerate().filter(|(index, _)| !ended.contains_key(index)) {
            assert!(before.iter().any(|before| ended.get(before) != Some(&true)), "seed {seed}: {index} was forgotten");
        }
    }
}
