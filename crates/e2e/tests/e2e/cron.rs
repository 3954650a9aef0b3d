//! Cron entries over HTTP.

use std::cell::RefCell;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::{RedisServer, eventually, eventually_or};

use crate::kit::GalleyKit;

fn entry(name: &str, expression: &str) -> Value {
    json!({ "name": name, "expression": expression, "job_template": { "type": "test.noop", "args": [] } })
}

impl GalleyKit {
    async fn register(&self, body: &Value) -> Value {
        let response = self.post("/ojs/v1/cron", body).await;
        assert_eq!(response.status(), 201, "{body}");
        answer(response).await["cron"].clone()
    }

    async fn cron(&self, name: &str) -> Value {
        answer(self.get(&format!("/ojs/v1/cron/{name}")).await).await["cron"].clone()
    }

    async fn send(&self, method: Method, path: &str) -> Response {
        self.http.request(method, self.gateway.url(path)).send().await.expect("the gateway answers")
    }

    async fn skipped(&self) -> Option<Vec<Value>> {
        let page = answer(self.get("/ojs/v1/events?types=cron.skipped").await).await;
        page["events"].as_array().filter(|events| !events.is_empty()).cloned()
    }
}

async fn answer(response: Response) -> Value {
    response.json().await.expect("JSON")
}

#[tokio::test]
async fn an_entry_runs_and_its_jobs_are_worked_on() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let mut keeping = entry("tick", "* * * * * *");
    keeping["job_template"]["options"] = json!({ "keep_envelope": true });
    let given = kit.register(&keeping).await;
    assert_eq!(
        (&given["enabled"], &given["overlap_policy"], &given["timezone"]),
        (&json!(true), &json!("skip"), &json!("UTC"))
    );
    assert!(given["next_run_at"].is_string() && given["created_at"].is_string() && given["last_run_at"].is_null());
    let ran = eventually("two runs", || async {
        let shown = kit.cron("tick").await;
        (shown["run_count"].as_u64()? >= 2).then_some(shown)
    })
    .await;
    let job = kit.wait_for_state(ran["last_job_id"].as_str().expect("an id"), "completed").await;
    assert_eq!((&job["type"], &job["metadata"]["cron_name"]), (&json!("test.noop"), &json!("tick")));
    let events = eventually("an event", || async {
        let events = answer(kit.get("/ojs/v1/events?types=cron.triggered").await).await["events"].clone();
        (events.as_array()?.len() >= 2).then_some(events)
    })
    .await;
    assert_eq!(events[0]["data"]["cron_name"], "tick");
    assert!(kit.http.get(kit.gateway.url("/ojs/manifest")).send().await.is_ok());
}

#[tokio::test]
async fn a_run_is_skipped_while_the_job_of_the_last_one_is_not_over() {
    let kit = GalleyKit::start().await;
    kit.register(&entry("tick", "* * * * * *")).await;
    let events = eventually("a run is skipped", || kit.skipped()).await;
    assert_eq!(events[0]["data"]["reason"], "overlap_skip");
    let job = kit.fetch("default").await.expect("the first");
    assert_eq!(kit.fetch("default").await, None, "there is no second");
    let ack = json!({ "job_id": job["id"], "token": job["token"] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let next = eventually("the next run", || kit.fetch("default")).await;
    assert_ne!(next["id"], job["id"]);
}

#[tokio::test]
async fn each_run_makes_one_job_though_the_process_that_makes_them_is_killed() {
    let kit = GalleyKit::start().await;
    let mut body = entry("tick", "* * * * * *");
    body["overlap_policy"] = json!("allow");
    kit.register(&body).await;
    let runs = |least: u64| {
        let kit = &kit;
        eventually("it runs", move || async move {
            let shown = kit.cron("tick").await;
            (shown["run_count"].as_u64()? >= least).then_some(shown)
        })
    };
    let mut others = Vec::new();
    for round in 1..=2 {
        let other = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "nothing")]).await;
        runs(2 * round).await;
        others.push(other);
    }
    // The leader loses the leadership now and then: one of these processes, then the others
    others.pop().expect("a worker").kill();
    kit.redis_command(&["DEL", "galley:leader"]).await;
    let seen = runs(6).await["run_count"].as_u64().expect("a number");
    others.pop().expect("a worker").kill();
    kit.redis_command(&["DEL", "galley:leader"]).await;
    runs(seen + 2).await;

    kit.send(Method::POST, "/ojs/v1/cron/tick/disable").await;
    let triggered = RefCell::new(Vec::new());
    // A run that had begun may end after the entry was switched off: first its job is there, then it is counted
    let shown = eventually_or(
        || format!("as many jobs as runs: {:?}", triggered.borrow()),
        || async {
            while let Some(job) = kit.fetch("default").await {
                let at = job["metadata"]["cron_triggered_at"].as_str().expect("a time").to_owned();
                triggered.borrow_mut().push(at);
            }
            let shown = kit.cron("tick").await;
            (shown["run_count"].as_u64() == u64::try_from(triggered.borrow().len()).ok()).then_some(shown)
        },
    )
    .await;
    let mut triggered = triggered.into_inner();
    triggered.sort();
    triggered.dedup();
    assert_eq!(shown["run_count"].as_u64(), u64::try_from(triggered.len()).ok(), "{triggered:?}");
}

#[tokio::test]
async fn both_shapes_of_a_request_are_understood_and_what_is_shown_can_be_sent_back() {
    let kit = GalleyKit::start().await;
    let nested = json!({
        "name": "nested", "expression": "0 9 * * MON-FRI", "timezone": "America/New_York", "overlap_policy": "allow",
        "description": "a report", "job_template": { "type": "report.make", "args": [{ "n": 1 }], "options": { "queue": "reports" } },
    });
    let flat = json!({
        "name": "flat", "cron": "@daily", "type": "report.make", "args": [{ "n": 1 }], "options": { "queue": "reports" },
        "enabled": false, "run_count": 99, "next_run_at": "2001-01-01T00:00:00Z",
    });
    let nested = kit.register(&nested).await;
    let flat = kit.register(&flat).await;
    assert_eq!(nested["job_template"], flat["job_template"]);
    assert_eq!(flat["expression"], "@daily");
    for again in ["cron", "type", "args", "options"] {
        assert!(flat.get(again).is_none() && nested.get(again).is_none(), "{again} is in expression or job_template");
    }
    assert_eq!((&flat["next_run_at"], &flat["run_count"], &flat["enabled"]), (&json!(null), &json!(0), &json!(false)));
    let again = kit.post("/ojs/v1/cron", &nested).await;
    assert_eq!(again.status(), 200, "it is changed, not made");
    assert_eq!(answer(again).await["cron"], nested);

    let page = answer(kit.get("/ojs/v1/cron").await).await;
    assert_eq!((&page["count"], &page["crons"]), (&json!(2), &json!([flat, nested])));
    assert!(page.get("cron_jobs").is_none(), "each entry once: {page}");
    let page = answer(kit.get("/ojs/v1/cron?enabled=true").await).await;
    assert_eq!(page["crons"], json!([nested]));
    let page = answer(kit.get("/ojs/v1/cron?limit=1").await).await;
    assert_eq!((&page["crons"], &page["next"]), (&json!([flat]), &json!("flat")));
    let page = answer(kit.get("/ojs/v1/cron?limit=1&after=flat").await).await;
    assert_eq!((&page["crons"], &page["next"]), (&json!([nested]), &json!(null)));
}

#[tokio::test]
async fn an_entry_is_switched_triggered_asked_for_its_next_runs_and_removed() {
    let kit = GalleyKit::start().await;
    let mut body = entry("report", "0 9 * * *");
    body["timezone"] = json!("Asia/Tokyo");
    kit.register(&body).await;
    let next = answer(kit.get("/ojs/v1/cron/report/next?count=3").await).await;
    let runs = next["next_runs"].as_array().expect("an array");
    assert_eq!(runs.len(), 3);
    assert!(runs.iter().all(|run| run.as_str().is_some_and(|run| run.ends_with("T09:00:00+09:00"))), "{runs:?}");

    for (path, enabled) in [("/ojs/v1/cron/report/disable", false), ("/ojs/v1/cron/report/enable", true)] {
        let shown = answer(kit.send(Method::POST, path).await).await;
        assert_eq!((&shown["cron"]["enabled"], shown["cron"]["next_run_at"].is_string()), (&json!(enabled), enabled));
    }
    let url = kit.gateway.url("/ojs/v1/cron/report");
    let patch = kit.http.patch(&url).header("content-type", "application/json").body(r#"{"enabled":false}"#);
    assert_eq!(answer(patch.send().await.expect("an answer")).await["cron"]["next_run_at"], json!(null));

    let made = kit.send(Method::POST, "/ojs/v1/cron/report/trigger").await;
    assert_eq!(made.status(), 201);
    let made = answer(made).await;
    assert_eq!((&made["job"]["state"], &made["job"]["metadata"]["cron_name"]), (&json!("available"), &json!("report")));
    assert_eq!(kit.fetch("default").await.expect("the job")["id"], made["job"]["id"]);

    let gone = kit.send(Method::DELETE, "/ojs/v1/cron/report").await;
    assert_eq!(gone.status(), 200);
    assert_eq!(answer(gone).await, json!({ "deleted": true, "name": "report", "cron": { "name": "report" } }));
    for (method, path) in [
        (Method::GET, "/ojs/v1/cron/report"),
        (Method::DELETE, "/ojs/v1/cron/report"),
        (Method::POST, "/ojs/v1/cron/report/enable"),
        (Method::POST, "/ojs/v1/cron/report/trigger"),
        (Method::GET, "/ojs/v1/cron/report/next"),
        (Method::GET, "/ojs/v1/cron/No%20Name"),
    ] {
        let refused = kit.send(method.clone(), path).await;
        assert_eq!(refused.status(), 404, "{method} {path}");
        assert_eq!(answer(refused).await["error"]["code"], "not_found", "{method} {path}");
    }
}

#[tokio::test]
async fn a_wrong_entry_is_refused_with_what_is_allowed_and_nothing_is_written() {
    let kit = GalleyKit::start().await;
    let before = kit.redis_keys().await;
    let with = |member: &str, value: Value| {
        let mut body = entry("n", "@daily");
        body[member] = value;
        body
    };
    for (body, expected) in [
        (json!({}), "name is required"),
        (with("name", json!("{x}:y")), "name must match"),
        (with("expression", json!("not a valid cron")), "five fields"),
        (with("expression", json!("0 0 0 0 0 0 0")), "five fields"),
        (with("expression", json!("99 25 32 13 8")), "wrong minute: allowed is 0-59"),
        (with("expression", json!("*/0 * * * *")), "wrong minute"),
        (with("expression", json!("")), "five fields"),
        (with("expression", json!("0 0 30 2 *")), "never occurs"),
        (with("timezone", json!("EST")), "IANA name"),
        (with("timezone", json!("+05:00")), "IANA name"),
        (with("overlap_policy", json!("sometimes")), "skip, allow, cancel_previous or enqueue"),
        (with("enabled", json!("no")), "true or false"),
        (with("job_template", json!({ "type": "Bad Type", "args": [] })), "type must match"),
        (with("job_template", json!({ "type": "a", "options": { "queue": "galley:x" } })), "queue must match"),
        (with("job_template", json!({ "type": "a", "id": "019539a4-b68c-7def-8000-1a2b3c4d5e6f" })), "no id"),
        (with("shedule", json!("@daily")), "unknown member \"shedule\""),
    ] {
        let refused = kit.post("/ojs/v1/cron", &body).await;
        assert_eq!(refused.status(), 400, "{body}");
        let error = answer(refused).await["error"].clone();
        let message = error["message"].as_str().expect("a message");
        assert!(error["code"] == "invalid_request" && message.contains(expected), "{body}: {error}");
    }
    let policy =
        with("job_template", json!({ "type": "a", "args": [], "options": { "retry": { "max_attempts": -1 } } }));
    assert_eq!(kit.post("/ojs/v1/cron", &policy).await.status(), 422);
    let large = with("description", json!("x".repeat(70_000)));
    assert_eq!(kit.post("/ojs/v1/cron", &large).await.status(), 413);
    for path in ["/ojs/v1/cron?limit=0", "/ojs/v1/cron?enabled=maybe"] {
        assert_eq!(kit.get(path).await.status(), 400, "{path}");
    }
    kit.register(&entry("kept", "@daily")).await;
    assert_eq!(kit.get("/ojs/v1/cron/kept/next?count=101").await.status(), 400);
    kit.send(Method::DELETE, "/ojs/v1/cron/kept").await;
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn there_are_no_more_entries_than_the_setting_allows() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__CRON__MAX_ENTRIES", "1")]).await;
    kit.register(&entry("one", "@daily")).await;
    let refused = kit.post("/ojs/v1/cron", &entry("two", "@daily")).await;
    assert_eq!(refused.status(), 422);
    assert_eq!(answer(refused).await["error"]["code"], "too_many_cron_entries");
}
