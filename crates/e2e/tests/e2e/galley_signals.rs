//! `galley jobs signal`, `signals`, `approve`, `reject`, `checkpoint` and `output`.

use serde_json::{Value, json};

use crate::galley::GalleyProgram;

/// A job that waits for a signal.
async fn waiting_for(galley: &GalleyProgram, signal: &str) -> String {
    let id = galley.kit.enqueue(&json!({ "type": "pay.out", "args": [], "queue": "money" })).await;
    let fetched = galley.kit.fetch("money").await.expect("a job");
    let wait = json!({ "step": "s", "signal": signal, "timeout_ms": 3_600_000 });
    let body = json!({ "job_id": id, "token": fetched["token"], "wait": wait });
    assert_eq!(galley.kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_sent_and_shown_and_a_waiting_job_says_what_it_waits_for() {
    let galley = GalleyProgram::start().await;
    let id = waiting_for(&galley, "answered").await;
    let shown = galley.run(&["jobs", "get", &id]).await.done();
    assert!(shown.contains("for signal answered until 20"), "{shown}");
    let listed = galley.run(&["jobs", "list", "state:scheduled"]).await.done();
    assert!(listed.contains("waits for signal answered"), "{listed}");
    let refused = galley.run(&["jobs", "approve", &id]).await;
    assert!(refused.code == 1 && refused.err.contains("which is no approval"), "{}", refused.err);
    let sent = galley.run(&["jobs", "signal", &id, "answered", "{\"ok\": 1.10}", "--signal-id", "first"]).await.done();
    assert!(sent.contains("resumes"), "{sent}");
    let again = galley.run(&["jobs", "signal", &id, "answered", "{\"ok\": 1.10}", "--signal-id", "first"]).await.done();
    assert!(again.contains("does not wait for it now"), "{again}");
    let signals = galley.run(&["jobs", "signals", &id]).await.done();
    assert!(signals.contains("first") && signals.matches("answered").count() == 1, "{signals}");
    let json: Value =
        serde_json::from_str(&galley.run(&["jobs", "signals", &id, "--json"]).await.done()).expect("JSON");
    assert_eq!((&json["items"][0]["data"], json["items"].as_array().map(Vec::len)), (&json!({ "ok": 1.10 }), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_approves_or_rejects_what_a_job_waits_for() {
    let galley = GalleyProgram::start().await;
    let (approved, rejected) = (waiting_for(&galley, "approval.payout").await, waiting_for(&galley, "approval").await);
    galley.run(&["jobs", "approve", &approved, "--by", "ann"]).await.done();
    galley.run(&["jobs", "reject", &rejected, "--comment", "too much"]).await.done();
    for (id, name, data) in [
        (&approved, "approval.payout", json!({ "approved": true, "by": "ann" })),
        (&rejected, "approval", json!({ "approved": false, "comment": "too much" })),
    ] {
        let answer: Value = galley.kit.get(&format!("/ojs/v1/jobs/{id}/signals")).await.json().await.expect("JSON");
        assert_eq!((&answer["items"][0]["name"], &answer["items"][0]["data"]), (&json!(name), &data));
        assert_eq!(galley.kit.job(id).await["state"], "available");
    }
    let late = galley.run(&["jobs", "approve", &approved]).await;
    assert!(late.code == 1 && late.err.contains("waits for no approval now"), "{}", late.err);
    galley.run(&["jobs", "approve", &approved, "--subject", "second"]).await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_saved_and_streamed_is_shown() {
    let galley = GalleyProgram::start().await;
    let id = galley.kit.enqueue(&json!({ "type": "write", "args": [], "queue": "texts" })).await;
    let none = galley.run(&["jobs", "checkpoint", &id]).await;
    assert!(none.code == 1 && none.err.contains("has no checkpoint"), "{}", none.err);
    let fetched = galley.kit.fetch("texts").await.expect("a job");
    let post = async |what: &str, body: Value| {
        let mut body = body;
        body["token"] = fetched["token"].clone();
        let status = galley.kit.post(&format!("/ojs/v1/jobs/{id}/{what}"), &body).await.status();
        assert_eq!(status, 200);
    };
    post("checkpoint", json!({ "state": { "page": 7, "text": "\u{1b}[31m" } })).await;
    post("output", json!({ "chunks": ["Once ", "upon\n", "a \u{1b}[31mtime", { "n": 1 }] })).await;
    let saved = galley.run(&["jobs", "checkpoint", &id]).await.done();
    assert!(saved.contains("\"page\":7") && !saved.contains('\u{1b}'), "{saved}");
    let body = json!({ "job_id": id, "token": fetched["token"], "result": 1 });
    assert_eq!(galley.kit.post("/ojs/v1/workers/ack", &body).await.status(), 200);
    let streamed = galley.run(&["jobs", "output", &id]).await.done();
    assert_eq!(streamed, "Once upon\na \\u{1b}[31mtime\n{\"n\":1}\n");
    let lines = galley.run(&["jobs", "output", &id, "--json"]).await.done();
    assert_eq!(lines.lines().count(), 4, "{lines}");
}
