//! Jobs of workflows that end in one batch.

use serde_json::{Value, json};
use store::jobs::{ClaimedJob, Settled};

use crate::{
    kit::{StoreKit, consumer},
    workflows::{chain, group, job, pull, shown, start, state},
};

fn types(claimed: &[ClaimedJob]) -> Vec<&str> {
    claimed.iter().map(|claimed| claimed.job.summary.job_type.as_str()).collect()
}

/// A chain whose second step has more members than others.
fn chain_with(second: &Value) -> Value {
    let mut second = second.clone();
    second["type"] = json!("step.n1");
    second["args"] = json!([]);
    json!({ "type": "chain", "steps": [job("step.n0"), second, job("step.n2")] })
}

#[tokio::test]
async fn chains_and_groups_whose_jobs_end_together_all_go_on() {
    let kit = StoreKit::start();
    let (first, second) = (start(&kit, &chain(3)).await, start(&kit, &chain(2)).await);
    let (grouped, single) = (start(&kit, &group(3)).await, start(&kit, &chain(1)).await);
    let claimed = kit.claim(&consumer(), 100).await;
    assert_eq!(types(&claimed), ["step.n0", "step.n0", "job.n0", "job.n1", "job.n2", "step.n0"]);
    kit.redis_command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(kit.complete_all(&consumer(), &claimed, "7").await, [Settled::Done; 6]);
    for (id, expected) in [(first, "running"), (second, "running"), (grouped, "completed"), (single, "completed")] {
        assert_eq!(state(&kit, id).await, expected);
    }
    // A second run finds what the first did, and changes nothing
    assert_eq!(kit.complete_all(&consumer(), &claimed, "8").await, [Settled::AlreadyDone; 6]);
    let claimed = kit.claim(&consumer(), 100).await;
    assert_eq!(types(&claimed), ["step.n1", "step.n1"]);
    for claimed in &claimed {
        assert_eq!(claimed.job.parent_results.as_deref(), Some("[7]"));
    }
    kit.complete_all(&consumer(), &claimed, "9").await;
    assert_eq!(state(&kit, second).await, "completed");
    let claimed = kit.claim(&consumer(), 100).await;
    assert_eq!(claimed[0].job.parent_results.as_deref(), Some("[7,9]"));
    kit.complete_all(&consumer(), &claimed, "10").await;
    let shown = shown(&kit, first).await;
    assert_eq!((&shown["state"], &shown["jobs_completed"]), (&json!("completed"), &json!(3)), "{shown}");
    assert!(kit.claim(&consumer(), 100).await.is_empty());
    let timers = kit.redis_command(&["ZCARD", "galley:{default}:timers"]).await;
    assert_eq!(timers, redis::Value::Int(0), "follow-ups are done");
}

#[tokio::test]
async fn steps_that_hold_more_than_a_record_start_too_and_one_that_is_refused_ends_its_chain() {
    let kit = StoreKit::start();
    let unique = json!({ "unique": { "keys": ["type"] } });
    let steps = [
        json!({ "queue": "other" }),
        json!({ "priority": 7 }),
        json!({ "options": { "delay_until": "+PT1H" } }),
        json!({ "rate_limit": { "key": "tenant", "concurrency": 1 } }),
        json!({ "options": { "expires_at": "2100-01-01T00:00:00Z" } }),
        unique.clone(),
        unique,
    ];
    let mut ids = Vec::new();
    for step in &steps {
        ids.push(start(&kit, &chain_with(step)).await);
    }
    let claimed = kit.claim(&consumer(), 100).await;
    assert_eq!(claimed.len(), steps.len());
    kit.complete_all(&consumer(), &claimed, "1").await;
    let mut states = Vec::new();
    for id in &ids {
        let members = shown(&kit, *id).await["members"].clone();
        states.push(members[1]["state"].as_str().expect("it exists").to_owned());
    }
    assert_eq!(
        states,
        ["available", "available", "scheduled", "available", "available", "available", "cancelled"],
        "one of two equal ones is refused"
    );
    assert!(pull(&kit, "other").await.is_some());
    assert_eq!(kit.claim(&consumer(), 100).await.len(), 4);
}

#[tokio::test]
async fn a_chain_that_was_cancelled_or_deleted_while_its_step_ran_starts_nothing_beside_one_that_goes_on() {
    let kit = StoreKit::start();
    let (gone, cancelled, lives) =
        (start(&kit, &chain(2)).await, start(&kit, &chain(2)).await, start(&kit, &chain(2)).await);
    let claimed = kit.claim(&consumer(), 100).await;
    kit.redis_command(&["DEL", &format!("galley:{{wf:{gone}}}:w")]).await;
    kit.redis_command(&["HSET", &format!("galley:{{wf:{cancelled}}}:w"), "s", "cancelled"]).await;
    kit.complete_all(&consumer(), &claimed, "7").await;
    let claimed = kit.claim(&consumer(), 100).await;
    assert_eq!(types(&claimed), ["step.n1"]);
    assert_eq!(claimed[0].job.workflow.map(|membership| membership.workflow), Some(lives));
}
