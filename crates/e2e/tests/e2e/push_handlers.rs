//! Jobs that are sent to an endpoint: what it is sent, what its answers mean, and endpoints that misbehave. Those that
//! finish later are in `push_callbacks`.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use delivery::http::{
    Secret,
    signature::{SignatureHeaders, verify},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{ReceivedRequest, RedisServer, ServiceProcess, WebhookReceiver, WebhookReply, eventually};
use tokio::sync::Semaphore;

use crate::kit::{GalleyKit, RULES_VARIABLE, SHORT_LEASE, TestFolder, job_body};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A rule that sends jobs of a type to an endpoint on this machine.
pub(crate) fn rule(job_type: &str, receiver: &WebhookReceiver, more: &str) -> String {
    let url = receiver.url("/jobs/{type}");
    format!("[[rule]]\ntype = \"{job_type}\"\nhttp = {{ url = \"{url}\", allow_private = true{more} }}\n")
}

/// A worker that sends every job to an endpoint.
pub(crate) async fn pushing(kit: &GalleyKit, receiver: &WebhookReceiver, more: &str) -> (ServiceProcess, TestFolder) {
    let folder = TestFolder::with_rules(&rule("*", receiver, more));
    (kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await, folder)
}

/// A job that fails for good with its first failure after which another attempt could follow.
pub(crate) fn once(job_type: &str) -> Value {
    json!({ "type": job_type, "args": [], "retry": { "max_attempts": 1 } })
}

fn header<'a>(request: &'a ReceivedRequest, name: &str) -> &'a str {
    request.header(name).unwrap_or_else(|| panic!("{name} in {}", request.head))
}

#[tokio::test]
async fn an_endpoint_is_sent_the_job_signed_and_its_answer_is_the_result() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok(r#"{"exact": 9007199254740993, "n": 1.0}"#)]).await;
    let more = r#", secrets = ["env:HOOK_SECRET"], headers = { authorization = "env:HOOK_AUTHORIZATION" }"#;
    let folder = TestFolder::with_rules(&rule("email.*", &receiver, more));
    let variables = [("HOOK_SECRET", SECRET), ("HOOK_AUTHORIZATION", "Bearer of-the-test")];
    let _worker = kit
        .start_worker(&[(RULES_VARIABLE, folder.path_text("rules.toml").as_str()), variables[0], variables[1]])
        .await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({ "type": "email.send", "args": ["x@example.com", { "n": 1 }], "timeout_ms": 600_000 });
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let response = request.header("traceparent", trace).body(body.to_string()).send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    let id = answer["job"]["id"].as_str().expect("an id");
    kit.wait_for_state(id, "completed").await;
    let shown = kit.get(&format!("/ojs/v1/jobs/{id}")).await.text().await.expect("text");
    assert!(shown.contains(r#""result":{"exact": 9007199254740993, "n": 1.0}"#), "byte for byte: {shown}");

    let request = &receiver.requests()[0];
    assert!(request.head.starts_with("POST /jobs/email.send HTTP/1.1"), "{}", request.head);
    for (name, value) in [
        ("webhook-id", id),
        ("ce-specversion", "1.0"),
        ("ce-id", id),
        ("ce-source", "/galley/queues/default"),
        ("ce-type", "email.send"),
        ("ce-time", answer["job"]["created_at"].as_str().expect("a time")),
        ("galley-job-id", id),
        ("galley-queue", "default"),
        ("galley-attempt", "1"),
        ("traceparent", trace),
        ("content-type", "application/json"),
        ("authorization", "Bearer of-the-test"),
    ] {
        assert_eq!(header(request, name), value, "{name}");
    }
    let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!((&sent["id"], &sent["args"]), (&json!(id), &body["args"]));
    assert_eq!((&sent["state"], &sent["attempt"]), (&json!("active"), &json!(1)));
    assert_eq!(sent["token"], json!(header(request, "galley-token")));
    assert!(header(request, "galley-deadline") > sent["started_at"].as_str().expect("a time"));

    let secrets: [Secret; 1] = [SECRET.parse().expect("a secret")];
    let [id, timestamp, signature] =
        ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|h| header(request, h));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let signed = SignatureHeaders { id, timestamp, signature };
    assert_eq!(verify(&secrets, signed, &request.body, now), Ok(()));
    assert!(verify(&secrets, signed, b"{}", now).is_err(), "the body is signed");
}

#[tokio::test]
async fn a_failure_is_sent_again_as_the_policy_has_it_and_a_refusal_is_not() {
    let kit = GalleyKit::start().await;
    let replies = [
        WebhookReply::new(500, "", "out of order"),
        WebhookReply::ok("1"),
        WebhookReply::new(422, "", "no such address"),
    ];
    let receiver = WebhookReceiver::start(replies).await;
    let _worker = pushing(&kit, &receiver, "").await;
    let body = json!({ "type": "a", "args": [], "retry": { "initial_interval": "PT0.05S", "jitter": false } });
    let id = kit.enqueue(&body).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["errors"][0]["code"]), (&json!(2), &json!("push_server_error")));
    let message = done["errors"][0]["message"].as_str().expect("text");
    assert!(message.contains("500") && message.contains("out of order"), "{message}");
    let requests = receiver.requests();
    assert_eq!(header(&requests[0], "webhook-id"), header(&requests[1], "webhook-id"), "for receivers to tell");
    assert_eq!(header(&requests[1], "galley-attempt"), "2");
    assert_ne!(header(&requests[0], "galley-token"), header(&requests[1], "galley-token"));

    let id = kit.enqueue(&body).await;
    let refused = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&refused["attempt"], &refused["error"]["code"]), (&json!(1), &json!("push_rejected")));
}

#[tokio::test]
async fn retry_after_goes_before_the_delay_of_the_policy() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(503, "retry-after: 7200\r\n", "")]).await;
    let _worker = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "retry": { "initial_interval": "PT0.05S" } })).await;
    let waiting = kit.wait_for_state(&id, "retryable").await;
    assert_eq!(waiting["retry_delay_ms"], 7_200_000, "{waiting}");
    assert!(waiting["next_attempt_at"].is_string());
}

#[tokio::test]
async fn endpoints_that_hang_trickle_or_point_elsewhere_cost_an_attempt_and_no_more() {
    let kit = GalleyKit::start().await;
    let canary = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let location = format!("location: {}\r\n", canary.url("/"));
    let head = "HTTP/1.1 200 OK\r\nx: ";
    let all = [
        // Enough for the request to arrive
        ("a.hang", WebhookReply::Hang, ", timeout_ms = 3000", "push_timeout"),
        ("a.trickle", WebhookReply::Trickle(head), ", timeout_ms = 3000", "push_timeout"),
        ("a.redirect", WebhookReply::new(302, &location, ""), "", "push_redirected"),
        ("a.close", WebhookReply::Close, "", "push_answer_broken"),
        ("a.nonsense", WebhookReply::Raw(b"EHLO\r\n\r\n".to_vec()), "", "push_answer_broken"),
    ];
    let (mut rules, mut receivers) = (String::new(), Vec::new());
    for (job_type, reply, more, code) in all {
        let receiver = WebhookReceiver::start([reply]).await;
        rules += &rule(job_type, &receiver, more);
        receivers.push((job_type, code, receiver));
    }
    let folder = TestFolder::with_rules(&rules);
    let mut worker = kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    for (job_type, code, receiver) in &receivers {
        let id = kit.enqueue(&once(job_type)).await;
        let job = kit.wait_for_state(&id, "discarded").await;
        assert_eq!((&job["error"]["code"], &job["attempt"]), (&json!(code), &json!(1)), "{job_type} {job}");
        // The worker may have given up before it was read
        receiver.wait_for_requests(1).await;
        assert_eq!(receiver.requests().len(), 1, "{job_type}");
    }
    for (job_type, _, receiver) in receivers.iter().filter(|(job_type, ..)| *job_type != "a.redirect") {
        eventually(&format!("{job_type} is closed"), || async { (receiver.closed_connections() == 1).then_some(()) })
            .await;
    }
    assert_eq!(canary.connections(), 0, "redirects are not followed");
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn an_endpoint_that_did_the_work_is_not_asked_again_whatever_it_answers() {
    let kit = GalleyKit::start().await;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let (mut rules, mut receivers) = (String::new(), Vec::new());
    for (job_type, reply, more) in [
        // Enough for the head of the answer to arrive
        ("a.trickle", WebhookReply::Trickle("HTTP/1.1 200 OK\r\n\r\n"), ", timeout_ms = 5000"),
        ("a.endless", WebhookReply::Endless("HTTP/1.1 201 Created\r\n\r\n"), ", answer_limit_bytes = 65536"),
        ("a.cut", WebhookReply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec()), ""),
        ("a.chunk", WebhookReply::Cut(format!("{chunked}zz\r\n").into_bytes()), ""),
        ("a.bytes", WebhookReply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n\xff".to_vec()), ""),
        // Larger than results of jobs may be, and not than answers
        ("a.large", WebhookReply::ok(&format!("\"{}\"", "x".repeat(2_000))), ""),
    ] {
        let receiver = WebhookReceiver::start([reply]).await;
        rules += &rule(job_type, &receiver, more);
        receivers.push((job_type, receiver));
    }
    let folder = TestFolder::with_rules(&rules);
    let limit = ("GALLEY__JOBS__RESULT_LIMIT_BYTES", "1024");
    let worker = kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml")), limit]).await;
    for (job_type, receiver) in &receivers {
        let id = kit.enqueue(&job_body(job_type, &json!([]))).await;
        let job = kit.wait_for_state(&id, "completed").await;
        assert_eq!((&job["attempt"], &job["result"]), (&json!(1), &Value::Null), "{job}");
        assert!(job["result_dropped"].as_str().is_some_and(|why| why.contains("answer")), "{job}");
        assert_eq!(receiver.requests().len(), 1, "{job_type}");
    }
    let dropped = || worker.events("result.dropped").len();
    eventually("each is logged", || async { (dropped() >= receivers.len()).then_some(()) }).await;
    assert_eq!(dropped(), receivers.len());
}

#[tokio::test]
async fn addresses_that_only_galley_can_reach_are_not_connected_to() {
    let kit = GalleyKit::start().await;
    let canary = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let named = format!("http://localhost:{}/", canary.address.port());
    let folder = TestFolder::with_rules(&format!("[[rule]]\ntype = \"*\"\nhttp = {{ url = \"{named}\" }}\n"));
    let rules = folder.path_text("rules.toml");
    let _worker = kit.start_worker(&[(RULES_VARIABLE, &rules)]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let refused = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&refused["error"]["code"], &refused["attempt"]), (&json!("push_address_refused"), &json!(1)));
    // What can be seen without asking for a name is said at once
    folder.write_rules(&format!("[[rule]]\ntype = \"*\"\nhttp = {{ url = \"{}\" }}\n", canary.url("/")));
    let refused = kit.run_worker(&["check"], &[(RULES_VARIABLE, &rules)]).await;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("rules.toml:3: ") && said.contains("allow_private"), "{said}");
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_job_that_is_cancelled_or_out_of_time_has_its_connection_closed() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang]).await;
    let (mut worker, _rules) = pushing(&kit, &receiver, ", timeout_ms = 600000").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    kit.cancel(&id).await;
    eventually("the connection is closed", || async { (receiver.closed_connections() == 1).then_some(()) }).await;
    assert_eq!(kit.job(&id).await["state"], "cancelled");

    let mut short = once("a");
    // Enough to connect
    short["timeout_ms"] = json!(5000);
    let id = kit.enqueue(&short).await;
    let late = kit.wait_for_state(&id, "discarded").await;
    assert_eq!(late["error"]["code"], "timeout", "the job's own time, not the rule's: {late}");
    eventually("the connection is closed", || async { (receiver.closed_connections() == 2).then_some(()) }).await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_worker_that_is_killed_while_it_waits_for_an_answer_loses_nothing() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LEASE).await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang, WebhookReply::ok("\"by the heir\"")]).await;
    let folder = TestFolder::with_rules(&rule("*", &receiver, ""));
    let rules = folder.path_text("rules.toml");
    let variables = [(RULES_VARIABLE, rules.as_str()), SHORT_LEASE[0], SHORT_LEASE[1]];
    let doomed = kit.start_worker(&variables).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    doomed.kill();
    let _heir = kit.start_worker(&variables).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(2), &json!("by the heir")));
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_waits_for_answers_within_its_grace() {
    let kit = GalleyKit::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let WebhookReply::Raw(answer) = WebhookReply::ok("\"in time\"") else { panic!("bytes") };
    let receiver = WebhookReceiver::start([WebhookReply::Gated(gate.clone(), answer)]).await;
    let (mut worker, _rules) = pushing(&kit, &receiver, "").await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    worker.signal(Signal::SIGTERM);
    worker.wait_for_event("process.stopping").await;
    let well_into_it = Instant::now() + Duration::from_millis(500);
    eventually("its grace has begun", || async { (Instant::now() >= well_into_it).then_some(()) }).await;
    gate.add_permits(1);
    assert!(worker.wait_for_exit().await.success());
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!("in time")));
}

#[tokio::test]
async fn what_is_not_answered_within_the_grace_is_handed_back_unspent() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::Hang]).await;
    let folder = TestFolder::with_rules(&rule("*", &receiver, ""));
    let rules = folder.path_text("rules.toml");
    let worker =
        kit.start_worker(&[(RULES_VARIABLE, &rules), ("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "300")]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    receiver.wait_for_requests(1).await;
    assert!(worker.terminate().await.success());
    let back = kit.job(&id).await;
    assert_eq!((&back["state"], &back["attempt"]), (&json!("available"), &json!(0)), "{back}");
    let fetched = kit.fetch("default").await.expect("the job");
    assert_eq!((&fetched["id"], &fetched["attempt"]), (&json!(id), &json!(1)));
    let token = header(&receiver.requests()[0], "galley-token").to_owned();
    let late = json!({ "job_id": id, "token": token, "result": "too late" });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &late).await.status(), 409, "the token is not valid any more");
}
