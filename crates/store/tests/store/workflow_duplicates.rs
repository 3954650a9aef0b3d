//! Steps of workflows that are duplicates of other jobs.

use serde_json::json;

use crate::{
    kit::StoreKit,
    workflows::{job, pull, shown, start, succeed},
};

#[tokio::test]
async fn a_step_that_is_refused_as_a_duplicate_ends_at_once_and_names_the_job_in_its_way() {
    let kit = StoreKit::start();
    let unique = json!({ "type": "report", "args": [], "options": { "unique": { "keys": ["type"] } } });
    let first = start(&kit, &json!({ "type": "chain", "steps": [unique] })).await;
    let in_its_way = shown(&kit, first).await["members"][0]["id"].as_str().expect("an id").to_owned();
    for body in [
        json!({ "type": "chain", "steps": [job("a"), unique, job("b")] }),
        json!({ "type": "group", "jobs": [job("a"), unique] }),
    ] {
        let id = start(&kit, &body).await;
        // The oldest job is the one in the way, so the new one comes second
        let claimed = loop {
            let claimed = pull(&kit, "default").await.expect("a job");
            if claimed.job.workflow.is_some_and(|member| member.workflow == id) {
                break claimed;
            }
        };
        succeed(&kit, &claimed, "1").await;
        let over = shown(&kit, id).await;
        assert_ne!(over["state"], "running", "without a turn of maintenance: {over}");
        let refused = &over["members"][1];
        assert_eq!(
            (&refused["state"], &refused["error"]["code"]),
            (&json!("cancelled"), &json!("duplicate")),
            "{over}"
        );
        assert_eq!(refused["error"]["job_id"], json!(in_its_way), "{over}");
        let located = kit.jobs.locate(refused["id"].as_str().expect("an id").parse().expect("an id")).await;
        let record = located.expect("redis runs").expect("the job has an end").to_json();
        assert!(record.contains(&format!("there is a job like it already: {in_its_way}")), "{record}");
    }
}
