//! Lines that handlers log, over HTTP and from programs, shown and streamed.

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body};

async fn logs(kit: &GalleyKit, id: &str, query: &str) -> Value {
    let response = kit.get(&format!("/ojs/v1/jobs/{id}/logs{query}")).await;
    assert_eq!(response.status(), 200);
    response.json().await.expect("JSON")
}

fn messages(answer: &Value) -> Vec<&str> {
    answer["items"].as_array().expect("items").iter().filter_map(|line| line["message"].as_str()).collect()
}

#[tokio::test]
async fn a_program_that_pulls_logs_lines_that_are_shown_in_pages_and_streamed() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let hostile = "<script>\u{202e}半分 \u{1f600}\u{0}\n";
    let lines = json!(["first", { "message": hostile, "level": "error", "at": "2026-01-01T00:00:00Z" }, "third"]);
    let body = json!({ "job_id": id, "token": token, "lines": lines });
    assert_eq!(kit.post("/ojs/v1/workers/log", &body).await.status(), 200);
    let shown = logs(&kit, &id, "?limit=2").await;
    assert_eq!(messages(&shown), ["first", hostile.trim_end()]);
    let second = &shown["items"][1];
    let expected = (&json!("error"), &json!("2026-01-01T00:00:00.000Z"), &json!(1));
    assert_eq!((&second["level"], &second["at"], &second["attempt"]), expected);
    let next = shown["next"].as_str().expect("there is more");
    let rest = logs(&kit, &id, &format!("?limit=2&after={next}")).await;
    assert_eq!((messages(&rest), &rest["next"], &rest["dropped"]), (vec!["third"], &Value::Null, &json!(0)));
    let ack = json!({ "job_id": id, "token": token });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    eventually("the event is written", || async {
        let answer: Value = kit.get("/ojs/v1/events?types=job.log").await.json().await.ok()?;
        answer["events"].as_array().filter(|events| events.len() == 1).map(|_| ())
    })
    .await;
    let stream = kit.get(&format!("/ojs/v1/jobs/{id}/events")).await.text().await.expect("text");
    assert_eq!(stream.matches("event: job.log").count(), 1, "{stream}");
    assert_eq!(messages(&logs(&kit, &id, "").await).len(), 3, "they are kept as long as the job");
}

#[tokio::test]
async fn lines_that_are_none_and_lines_of_strangers_are_refused() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let waiting = json!({ "job_id": id, "lines": ["a"] });
    assert_eq!(kit.post("/ojs/v1/workers/log", &waiting).await.status(), 409, "nobody runs it");
    let token = kit.fetch("default").await.expect("a job")["token"].clone();
    let many: Vec<&str> = vec!["a"; 1001];
    for lines in [
        json!([]),
        json!(many),
        json!("a"),
        json!([1]),
        json!([null]),
        json!([{ "level": "info" }]),
        json!([{ "message": "a", "level": "loud" }]),
        json!([{ "message": "a", "at": "soon" }]),
    ] {
        let body = json!({ "job_id": id, "token": token, "lines": lines });
        assert_eq!(kit.post("/ojs/v1/workers/log", &body).await.status(), 400, "{body:.200}");
    }
    let stranger = json!({ "job_id": id, "worker_id": "somebody-else", "lines": ["a"] });
    assert_eq!(kit.post("/ojs/v1/workers/log", &stranger).await.status(), 409);
    let nobody = json!({ "job_id": "019539a4-b68c-7def-8000-1a2b3c4d5e6f", "token": token, "lines": ["a"] });
    assert_eq!(kit.post("/ojs/v1/workers/log", &nobody).await.status(), 404);
    assert!(messages(&logs(&kit, &id, "").await).is_empty());
    for query in ["?after=x", "?after=1-", "?limit=0", "?limit=1001"] {
        assert_eq!(kit.get(&format!("/ojs/v1/jobs/{id}/logs{query}")).await.status(), 400, "{query}");
    }
}

#[tokio::test]
async fn a_flood_of_lines_is_bounded_and_says_what_is_missing() {
    let folder = TestFolder::with_rules(
        "[[rule]]\ntype = \"flood\"\n[rule.command]\nprogram = \"sh\"\nargs = [\"-c\", \"i=0; while [ $i -lt 20000 ]; do echo \
         line $i >&2; i=$((i+1)); done; echo the end >&2\"]\n",
    );
    let limits = [("GALLEY__JOBS__LOG_LINES_MAX", "50"), ("GALLEY__JOBS__LOG_LINE_BYTES", "20")];
    let kit = GalleyKit::start().await;
    let rules = folder.path_text("rules.toml");
    let _worker = kit.start_worker(&[(RULES_VARIABLE, rules.as_str()), limits[0], limits[1]]).await;
    let id = kit.enqueue(&job_body("flood", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    let shown = logs(&kit, &id, "?limit=1000").await;
    let lines = messages(&shown);
    assert_eq!((lines.len(), lines.last()), (50, Some(&"the end")), "{lines:?}");
    assert!(shown["dropped"].as_u64() > Some(0), "{shown}");
    assert!(lines.iter().all(|line| line.len() <= 20), "{lines:?}");
}
