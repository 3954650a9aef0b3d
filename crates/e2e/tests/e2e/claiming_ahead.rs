//! While jobs are short, a worker claims some before it has slots for them.

use serde_json::{Value, json};

use crate::kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body};

const HOLD: &str = "[[rule]]\ntype = \"hold\"\ncommand = { program = \"sleep\", args = [\"600\"] }\n";

#[tokio::test]
async fn jobs_claimed_before_there_are_slots_go_to_another_worker_if_no_slot_becomes_free() {
    let kit = GalleyKit::start().await;
    let noop = "[[rule]]\ntype = \"test.noop\"\nhandler = \"test.noop\"\n";
    let folder = TestFolder::with_rules(&(noop.to_owned() + HOLD));
    let variables = [(RULES_VARIABLE, &*folder.path_text("rules.toml")), ("GALLEY__QUEUE_WORKER__CONCURRENCY", "4")];
    let mut busy = kit.start_worker(&variables).await;
    let enqueue = async |jobs: Vec<Value>| -> Vec<String> {
        let answer: Value = kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.json().await.expect("JSON");
        let jobs = answer["jobs"].as_array().expect("an array");
        jobs.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    let short = |count: usize| vec![job_body("test.noop", &json!([])); count];
    // Now it knows that attempts are short
    for id in enqueue(short(200)).await {
        kit.wait_for_state(&id, "completed").await;
    }
    let mut jobs = vec![job_body("hold", &json!([])); 4];
    jobs.extend(short(20));
    let ids = enqueue(jobs).await;
    for id in &ids[..4] {
        kit.wait_for_state(id, "active").await;
    }
    let _idle = kit.start_worker(&[]).await;
    for id in &ids[4..] {
        let job = kit.wait_for_state(id, "completed").await;
        assert_eq!(job["attempt"], 1, "none is spent while it waits for a slot");
    }
    assert!(busy.is_running());
    for id in &ids[..4] {
        assert_eq!(kit.job(id).await["state"], "active");
    }
}
