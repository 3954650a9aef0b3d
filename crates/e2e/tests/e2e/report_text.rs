//! Reports of how jobs do are made valid, never refused for their text; and text is compared as it is meant.

use serde_json::{Value, json};

use crate::kit::{GalleyKit, job_body};

/// Sends bytes as JSON.
async fn send(kit: &GalleyKit, path: &str, body: Vec<u8>) -> (u16, Value) {
    let request = kit.http.post(kit.gateway.url(path)).header("content-type", "application/json");
    let response = request.body(body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// Puts bytes where a text has `TEXT`.
fn with_text(template: &str, text: &[u8]) -> Vec<u8> {
    let (before, after) = template.split_once("TEXT").expect("a place for the text");
    [before.as_bytes(), text, after.as_bytes()].concat()
}

/// Text that JSON or UTF-8 does not allow, and what is kept of it.
const BROKEN: [(&[u8], &str); 5] = [
    (b"caf\\udce9", "caf\u{fffd}"),
    (b"\\ud83d", "\u{fffd}"),
    (b"caf\xe9", "caf\u{fffd}"),
    (b"two\nlines", "two\nlines"),
    (b"C:\\dir", "C:\\dir"),
];

#[tokio::test]
async fn a_failure_is_recorded_whatever_its_text_is() {
    let kit = GalleyKit::start().await;
    for (text, kept) in BROKEN {
        let id = kit.enqueue(&job_body("a", &json!([]))).await;
        let token = kit.fetch("default").await.expect("a job")["token"].clone();
        let report = format!(r#"{{"progress":0.5,"data":{{"at":"TEXT"}},"token":{token}}}"#);
        let (status, answer) = send(&kit, &format!("/ojs/v1/jobs/{id}/progress"), with_text(&report, text)).await;
        assert_eq!((status, answer["progress_data"]["at"].as_str()), (200, Some(kept)), "{answer}");
        let nack =
            format!(r#"{{"job_id":"{id}","token":{token},"error":{{"code":"c","message":"TEXT","retryable":false}}}}"#);
        let (status, answer) = send(&kit, "/ojs/v1/workers/nack", with_text(&nack, text)).await;
        assert_eq!((status, &answer["state"]), (200, &json!("discarded")), "{answer}");
        assert_eq!(kit.job(&id).await["errors"][0]["message"].as_str(), Some(kept));
    }
}

#[tokio::test]
async fn a_result_is_recorded_whatever_its_text_is_also_with_a_fetch_and_among_others() {
    let kit = GalleyKit::start().await;
    for (text, kept) in BROKEN {
        for (path, list) in
            [("ack", "{ACK}"), ("ack", r#"{"acks":[{ACK}]}"#), ("fetch", r#"{"queues":["none"],"acks":[{ACK}]}"#)]
        {
            let id = kit.enqueue(&job_body("a", &json!([]))).await;
            let token = kit.fetch("default").await.expect("a job")["token"].clone();
            let ack = format!(r#""job_id":"{id}","token":{token},"result":["TEXT",NaN]"#);
            let body = with_text(&list.replace("ACK", &ack), text);
            let (status, answer) = send(&kit, &format!("/ojs/v1/workers/{path}"), body).await;
            assert_eq!(status, 200, "{answer}");
            let job = kit.job(&id).await;
            assert_eq!((&job["state"], &job["result"]), (&json!("completed"), &json!([kept, null])), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_type_that_is_written_with_escapes_is_found_by_its_name() {
    let kit = GalleyKit::start().await;
    let options = r#"{"\u0071ueue":"\u0071","retry":{"max_attempts":1,"on_exhaustion":"\u0064ead_letter"}}"#;
    let written = format!(r#"{{"\u0074ype":"\u0061pp.y","args":["\u0061"],"options":{options}}}"#);
    let (status, answer) = send(&kit, "/ojs/v1/jobs", written.into_bytes()).await;
    assert_eq!((status, &answer["job"]["type"]), (201, &json!("app.y")), "{answer}");
    let id = answer["job"]["id"].as_str().expect("an id").to_owned();
    let token = kit.fetch("q").await.expect("a job")["token"].clone();
    let nack = json!({ "job_id": id, "token": token, "error": { "code": "c", "message": "no" } });
    assert_eq!(send(&kit, "/ojs/v1/workers/nack", nack.to_string().into_bytes()).await.0, 200);
    let found: Value = kit.get("/ojs/v1/dead-letter?type=app.y").await.json().await.expect("JSON");
    assert_eq!(found["jobs"].as_array().map(Vec::len), Some(1), "{found}");
    let found: Value = kit.get("/ojs/v1/dead-letter?type=app.*").await.json().await.expect("JSON");
    assert_eq!(found["jobs"][0]["id"], json!(id), "{found}");
}

#[tokio::test]
async fn one_key_is_one_request_however_the_path_is_written() {
    let kit = GalleyKit::start().await;
    let publish = async |path: &str| {
        let request = kit.http.post(kit.gateway.url(path)).header("idempotency-key", "k").body("x");
        let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        answer["id"].clone()
    };
    assert_eq!(publish("/v1/channels/ab/messages").await, publish("/v1/channels/%61b/messages").await);
}

#[tokio::test]
async fn unique_jobs_whose_keys_cannot_be_decoded_are_refused_and_do_not_collide() {
    let kit = GalleyKit::start().await;
    let body = |meta: &str| {
        let unique = r#"{"keys":["type","meta"],"meta_keys":["user"],"on_conflict":"\u0072eject"}"#;
        format!(r#"{{"type":"a","args":[],"meta":{meta},"options":{{"unique":{unique}}}}}"#).into_bytes()
    };
    for meta in [r#"{"user":"\ud800"}"#, r#"{"user":1,"user":2}"#] {
        let (status, answer) = send(&kit, "/ojs/v1/jobs", body(meta)).await;
        assert_eq!(status, 400, "{meta}: {answer}");
    }
    assert_eq!(send(&kit, "/ojs/v1/jobs", body(r#"{"user":"\u0061"}"#)).await.0, 201);
    assert_eq!(send(&kit, "/ojs/v1/jobs", body(r#"{"user":"a"}"#)).await.0, 409, "the same user");
}

#[tokio::test]
async fn the_page_that_an_error_points_to_has_its_anchor() {
    let kit = GalleyKit::start().await;
    let answer: Value = kit.get("/ojs/v1/jobs/none").await.json().await.expect("JSON");
    let docs_url = answer["error"]["docs_url"].as_str().expect("a URL");
    let (page, anchor) = docs_url.split_once('#').expect("an anchor");
    let page = kit.get(page).await;
    assert_eq!(page.status(), 200);
    assert!(page.text().await.expect("text").contains(&format!(r#" id="{anchor}""#)), "{docs_url}");
}

#[tokio::test]
async fn a_time_out_of_range_is_told_the_range_wherever_it_is() {
    let kit = GalleyKit::start().await;
    let job = |member: &str, value: &str| json!({ "type": "a", "args": [], member: value });
    for (path, body) in [
        ("/ojs/v1/jobs", job("scheduled_at", "10000-01-01T00:00:00Z")),
        ("/ojs/v1/jobs", job("expires_at", "9999-12-31T23:59:59Z")),
        ("/ojs/v1/jobs", job("delay_until", "1969-12-31T23:59:59Z")),
    ] {
        let (status, answer) = send(&kit, path, body.to_string().into_bytes()).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(message.contains("must be from 1970-01-01T00:00:00Z to 9999-12-30T22:00:00Z"), "{message}");
    }
    let (_, answer) = send(&kit, "/ojs/v1/jobs", job("delay_until", "+P9999D").to_string().into_bytes()).await;
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("from PT0S to P3650D")), "{answer}");
    for path in ["/ojs/v1/dead-letter?since=1969-01-01T00:00:00Z", "/ojs/v1/dead-letter?until=-P9999D"] {
        let answer: Value = kit.get(path).await.json().await.expect("JSON");
        assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains(" to ")), "{path}: {answer}");
    }
    for path in ["/ojs/v1/dead-letter?since=-PT1H&until=%2BPT1H", "/v1/channels/a/messages?since=-PT1H&create=true"] {
        assert_eq!(kit.get(path).await.status(), 200, "one syntax: {path}");
    }
}
