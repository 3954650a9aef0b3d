//! Requests as the Open Job Spec's own SDKs send them, where they differ from Galley's documents (docs/sdks.md).

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::GalleyKit;

impl GalleyKit {
    async fn answer(&self, path: &str) -> Value {
        self.get(path).await.json().await.expect("JSON")
    }

    async fn refusal(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).await;
        let status = response.status().as_u16();
        let answer: Value = response.json().await.expect("JSON");
        (status, answer["error"].clone())
    }

    async fn settle(&self, how: &str, job: &Value, what: &Value) {
        let mut body = what.clone();
        (body["job_id"], body["token"]) = (job["id"].clone(), job["token"].clone());
        assert_eq!(self.post(&format!("/ojs/v1/workers/{how}"), &body).await.status(), 200);
    }
}

#[tokio::test]
async fn jobs_are_unique_by_the_key_that_the_sdks_send() {
    let kit = GalleyKit::start().await;
    let job =
        |args: Value, key: Value| json!({ "type": "mail.send", "args": args, "options": { "unique": { "key": key } } });
    let by_all = json!(["type", "queue", "args"]);
    let first = kit.enqueue(&job(json!([1]), by_all.clone())).await;
    let (status, error) = kit.refusal("/ojs/v1/jobs", &job(json!([1]), by_all.clone())).await;
    assert_eq!((status, &error["code"]), (409, &json!("duplicate")));
    assert!(error.to_string().contains(&first), "{error}");
    kit.enqueue(&job(json!([2]), by_all)).await;
    kit.enqueue(&job(json!([{ "to": "ann", "n": 1 }]), json!(["to"]))).await;
    assert_eq!(kit.refusal("/ojs/v1/jobs", &job(json!([{ "to": "ann", "n": 2 }]), json!(["to"]))).await.0, 409);
    kit.enqueue(&job(json!([{ "to": "ben", "n": 1 }]), json!(["to"]))).await;
    let (status, error) = kit.refusal("/ojs/v1/jobs", &job(json!([{ "type": "a" }]), json!(["type"]))).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn lists_of_dead_letters_and_cron_entries_go_on_by_offset() {
    let kit = GalleyKit::start().await;
    for _ in 0..3 {
        let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
        kit.enqueue(&json!({ "type": "a", "args": [], "retry": retry })).await;
        let job = kit.fetch("default").await.expect("a job");
        kit.settle("nack", &job, &json!({ "error": { "code": "handler_error", "message": "no" } })).await;
    }
    let ids = |answer: &Value| -> Vec<Value> {
        answer["jobs"].as_array().expect("an array").iter().map(|job| job["id"].clone()).collect()
    };
    let all = ids(&kit.answer("/ojs/v1/dead-letter").await);
    assert_eq!(all.len(), 3);
    for offset in 0..4 {
        let page = kit.answer(&format!("/ojs/v1/dead-letter?queue=default&limit=2&offset={offset}")).await;
        assert_eq!(ids(&page), all.iter().skip(offset).take(2).cloned().collect::<Vec<_>>(), "offset {offset}");
    }
    for name in ["a", "b", "c"] {
        let entry = json!({ "name": name, "cron": "0 3 * * *", "type": "a", "args": [], "enabled": name != "b" });
        assert_eq!(kit.post("/ojs/v1/cron", &entry).await.status(), 201);
    }
    for (query, expected) in [
        ("limit=50&offset=0", &["a", "b", "c"][..]),
        ("limit=1&offset=1", &["b"]),
        ("offset=2", &["c"]),
        ("offset=3", &[]),
        ("enabled=true&offset=1", &["c"]),
        ("after=a&offset=1", &["c"]),
    ] {
        let page = kit.answer(&format!("/ojs/v1/cron?{query}")).await;
        let names: Vec<&Value> =
            page["crons"].as_array().expect("an array").iter().map(|entry| &entry["name"]).collect();
        assert_eq!(names, expected, "{query}");
    }
    for wrong in ["cron?offset=-1", "cron?offset=10001", "dead-letter?offset=x"] {
        assert_eq!(kit.get(&format!("/ojs/v1/{wrong}")).await.status(), 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_jobs_of_a_cron_entry_have_its_meta() {
    let kit = GalleyKit::start().await;
    let entry =
        json!({ "name": "report", "cron": "0 3 * * *", "type": "report.make", "args": [], "meta": { "owner": "ann" } });
    let response = kit.post("/ojs/v1/cron", &entry).await;
    assert_eq!(response.status(), 201);
    let shown: Value = response.json().await.expect("JSON");
    assert_eq!(shown["cron"]["job_template"]["meta"], json!({ "owner": "ann" }));
    assert_eq!(kit.post("/ojs/v1/cron/report/trigger", &json!({})).await.status(), 201);
    let job = kit.fetch("default").await.expect("a job");
    assert_eq!((&job["type"], &job["meta"]["owner"]), (&json!("report.make"), &json!("ann")));
}

#[tokio::test]
async fn steps_that_depend_on_others_run_after_them() {
    let kit = GalleyKit::start().await;
    let step = |id: &str, depends_on: Value| json!({ "id": id, "type": id, "args": [], "depends_on": depends_on });
    let steps =
        [step("welcome", json!([])), step("profile", json!([])), step("confirm", json!(["welcome", "profile"]))];
    let body = json!({ "name": "onboarding", "steps": steps, "options": { "queue": "mail" } });
    let response = kit.post("/ojs/v1/workflows", &body).await;
    assert_eq!(response.status(), 201);
    let made: Value = response.json().await.expect("JSON");
    let workflow = &made["workflow"];
    assert_eq!((&workflow["type"], &workflow["name"]), (&json!("batch"), &json!("onboarding")));
    assert_eq!(workflow["steps"][2]["state"], "pending");
    assert_eq!(
        (&workflow["steps"][2]["job_id"], &workflow["steps"][2]["depends_on"]),
        (&json!(null), &steps[2]["depends_on"])
    );
    let mut first = [kit.fetch("mail").await.expect("a step"), kit.fetch("mail").await.expect("a step")];
    first.sort_by_key(|job| job["type"].to_string());
    assert_eq!([&first[0]["type"], &first[1]["type"]], ["profile", "welcome"]);
    assert_eq!((&first[1]["id"], &first[0]["id"]), (&workflow["steps"][0]["job_id"], &workflow["steps"][1]["job_id"]));
    assert!(kit.fetch("mail").await.is_none(), "the last step waits for both");
    kit.settle("ack", &first[0], &json!({ "result": 1 })).await;
    kit.settle("ack", &first[1], &json!({ "result": 2 })).await;
    let last = eventually("the last step", || kit.fetch("mail")).await;
    assert_eq!((&last["type"], &last["parent_results"]), (&json!("confirm"), &json!([2, 1])));
    kit.settle("ack", &last, &json!({ "result": 3 })).await;
    let path = format!("/ojs/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    let over = eventually("the end", || async {
        let answer = kit.answer(&path).await;
        (answer["workflow"]["state"] == "completed").then(|| answer["workflow"].clone())
    })
    .await;
    let steps: Vec<[&Value; 3]> = over["steps"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|step| [&step["id"], &step["state"], &step["result"]])
        .collect();
    let completed = json!("completed");
    let expected = [["welcome", "2"], ["profile", "1"], ["confirm", "3"]];
    for (step, [id, result]) in steps.iter().zip(expected) {
        assert_eq!((step[0], step[1], step[2].to_string().as_str()), (&json!(id), &completed, result));
    }
    assert_eq!(steps.len(), 3);
    let (status, error) =
        kit.refusal("/ojs/v1/workflows", &json!({ "steps": [step("a", json!(["b"])), step("b", json!(["a"]))] })).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_request")));
}
