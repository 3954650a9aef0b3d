//! The trace of a request reaches whatever runs because of it, unchanged, also where Galley exports no spans.

use serde_json::{Value, json};
use testkit::{WebhookReceiver, WebhookReply, eventually};

use crate::{
    client_packages::ClientLanguage,
    clients::ClientSnippets,
    kit::{GalleyKit, RULES_VARIABLE, TestFolder},
    push_handlers::rule,
    subscriptions_delivery::{PRIVATE, put, worker},
};

pub(crate) const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
/// What a client sends, and what is passed on.
pub(crate) const TRACE: [(&str, &str); 3] = [
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ("baggage", "user=alice;p=1,tenant=%20x"),
];

pub(crate) async fn post_with(kit: &GalleyKit, path: &str, headers: &[(&str, &str)], body: &Value) -> Value {
    let mut request = kit.http.post(kit.gateway.url(path)).header("content-type", "application/json");
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    let response = request.body(body.to_string()).send().await.expect("the gateway answers");
    let status = response.status();
    let text = response.text().await.expect("text");
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Enqueues a job in the trace and gives its id.
pub(crate) async fn enqueue(kit: &GalleyKit, body: &Value) -> String {
    let answer = post_with(kit, "/ojs/v1/jobs", &TRACE, body).await;
    answer["job"]["id"].as_str().expect("an id").to_owned()
}

pub(crate) fn assert_trace(job: &Value) {
    for (name, value) in TRACE {
        assert_eq!(job[name], value, "{name} of {job}");
    }
}

#[tokio::test]
async fn a_jobs_trace_reaches_fetches_endpoints_and_programs_whatever_it_went_through() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(500, "", ""), WebhookReply::ok("{}")]).await;
    let script = "import json, os; print(json.dumps({n: os.environ.get(n.upper()) for n in ('traceparent', 'tracestate', 'baggage')}))";
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let command = format!(
        "[[rule]]\ntype = \"command.run\"\ncommand = {{ program = {python:?}, args = [\"-c\", {script:?}] }}\n"
    );
    let folder = TestFolder::with_rules(&format!("{}{command}", rule("push.send", &receiver, "")));
    let _worker = kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    // The second attempt comes from a record
    let retry = json!({ "initial_interval": "PT0.05S" });
    let pushed = enqueue(&kit, &json!({ "type": "push.send", "args": [], "retry": retry })).await;
    kit.wait_for_state(&pushed, "completed").await;
    for request in receiver.requests() {
        for (name, value) in TRACE {
            assert_eq!(request.header(name), Some(value), "{name} in {}", request.head);
        }
    }
    assert_eq!(receiver.requests().len(), 2);
    let run = enqueue(&kit, &json!({ "type": "command.run", "args": [], "scheduled_at": "+PT0.1S" })).await;
    assert_trace(&kit.wait_for_state(&run, "completed").await["result"]);
    for more in
        [json!({}), json!({ "scheduled_at": "+PT0.05S" }), json!({ "rate_limit": { "key": "k", "concurrency": 5 } })]
    {
        let mut body = json!({ "type": "a.b", "args": [], "queue": "pulled" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let id = enqueue(&kit, &body).await;
        assert_trace(&kit.job(&id).await);
        let fetched = eventually("it can be fetched", || kit.fetch("pulled")).await;
        assert_eq!(fetched["id"], json!(id));
        assert_trace(&fetched);
    }
}

#[tokio::test]
async fn bad_headers_are_dropped_and_never_refused() {
    let kit = GalleyKit::start().await;
    let [traceparent, tracestate, baggage] = TRACE;
    let long = format!("k={}", "v".repeat(9000));
    for (headers, kept) in [
        (vec![("traceparent", "00-nothing"), tracestate, baggage], [None, None, Some(baggage.1)]),
        (vec![traceparent, traceparent, baggage], [None, None, Some(baggage.1)]),
        (vec![traceparent, ("tracestate", "A=1"), ("baggage", long.as_str())], [Some(traceparent.1), None, None]),
        (vec![tracestate], [None, None, None]),
    ] {
        let job = post_with(&kit, "/ojs/v1/jobs", &headers, &json!({ "type": "a", "args": [], "queue": "q" })).await;
        let shown = TRACE.map(|(name, _)| job["job"][name].as_str());
        assert_eq!(shown, kept, "{headers:?}");
    }
}

#[tokio::test]
async fn jobs_that_workflows_cron_and_redrives_create_are_in_the_trace_of_their_request() {
    let kit = GalleyKit::start().await;
    let step = json!({ "type": "a.b", "args": [], "queue": "steps" });
    post_with(&kit, "/ojs/v1/workflows", &TRACE, &json!({ "type": "chain", "steps": [step, step] })).await;
    for _ in 0..2 {
        let job = eventually("a step can be fetched", || kit.fetch("steps")).await;
        assert_eq!(job["traceparent"], TRACE[0].1);
        let ack = json!({ "acks": [{ "job_id": job["id"], "token": job["token"], "result": 1 }] });
        post_with(&kit, "/ojs/v1/workers/ack", &[], &ack).await;
    }
    let once = json!({ "type": "a.b", "args": [], "queue": "dead", "retry": { "max_attempts": 1 } });
    let id = enqueue(&kit, &once).await;
    let fail = async || {
        let job = eventually("it can be fetched", || kit.fetch("dead")).await;
        let error = json!({ "code": "broken", "message": "it broke" });
        let nack = json!({ "nacks": [{ "job_id": job["id"], "token": job["token"], "error": error }] });
        post_with(&kit, "/ojs/v1/workers/nack", &[], &nack).await;
        kit.wait_for_state(&id, "discarded").await;
        job
    };
    assert_trace(&fail().await);
    // A request without a trace leaves the job in its own
    post_with(&kit, &format!("/ojs/v1/jobs/{id}/retry"), &[], &json!({})).await;
    assert_trace(&fail().await);
    let other = [("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")];
    post_with(&kit, &format!("/ojs/v1/jobs/{id}/retry"), &other, &json!({})).await;
    assert_eq!(fail().await["traceparent"], other[0].1);
}

#[tokio::test]
async fn a_messages_trace_reaches_endpoints_programs_queues_and_redeliveries() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[PRIVATE]).await;
    let _pubsub_worker = worker(&kit, &[]).await;
    let receiver = WebhookReceiver::start([WebhookReply::new(500, "", ""), WebhookReply::ok("")]).await;
    let retry = json!({ "initial_interval": "PT0.05S" });
    let hook = json!({ "channels": ["c"], "deliver": { "http": { "url": receiver.url("/") } }, "retry": retry });
    put(&kit, "hook", &hook).await;
    let queue = json!({ "channels": ["c"], "deliver": { "queue": { "queue": "jobs", "type": "a.b" } } });
    put(&kit, "queue", &queue).await;
    // The second goes without the script
    for number in 1..=2 {
        post_with(&kit, "/v1/channels/c/messages", &TRACE, &json!(number)).await;
        let job = eventually("it becomes a job", || kit.fetch("jobs")).await;
        assert_trace(&job);
    }
    receiver.wait_for_requests(3).await;
    for request in receiver.requests() {
        for (name, value) in TRACE {
            assert_eq!(request.header(name), Some(value), "{name} in {}", request.head);
        }
    }
}

#[tokio::test]
async fn what_a_handler_in_python_enqueues_is_in_the_trace_of_its_job() {
    what_a_handler_enqueues_is_in_the_trace_of_its_job(ClientLanguage::Python).await;
}

#[tokio::test]
async fn what_a_handler_in_typescript_enqueues_is_in_the_trace_of_its_job() {
    what_a_handler_enqueues_is_in_the_trace_of_its_job(ClientLanguage::TypeScript).await;
}

/// Both handlers run at once, and each in its own trace.
async fn what_a_handler_enqueues_is_in_the_trace_of_its_job(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let body = json!({ "type": "odd.outer", "args": [], "queue": "mail" });
    let other = [("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")];
    let ids = [enqueue(&snippets.kit, &body).await, {
        let job = post_with(&snippets.kit, "/ojs/v1/jobs", &other, &body).await;
        job["job"]["id"].as_str().expect("an id").to_owned()
    }];
    let _worker = snippets.odd_worker();
    for id in &ids {
        snippets.kit.wait_for_state(id, "completed").await;
    }
    let mut nested = Vec::new();
    for _ in &ids {
        nested.push(snippets.kit.fetch("nested").await.expect("each handler enqueued one"));
    }
    nested.sort_by_key(|job| job["traceparent"].as_str().map(ToOwned::to_owned));
    assert_trace(&nested[0]);
    assert_eq!(nested[1]["traceparent"], other[0].1, "{nested:?}");
}
