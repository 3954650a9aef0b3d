//! What subscriptions deliver, and where: endpoints, queues, programs, the log; filters; failures that become jobs.

use std::time::{SystemTime, UNIX_EPOCH};

use delivery::http::{
    Secret,
    signature::{SignatureHeaders, verify},
};
use serde_json::{Value, json};
use testkit::{ServiceProcess, WebhookReceiver, WebhookReply, eventually};

use crate::kit::{GalleyKit, TestFolder};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Endpoints of tests are on this machine.
pub(crate) const PRIVATE: (&str, &str) = ("GALLEY__SUBSCRIPTIONS__ALLOW_PRIVATE", "true");
/// A policy that does not keep tests waiting.
const SOON: &str = r#"{"max_attempts":3,"initial_interval":"PT0.05S","jitter":false,"on_exhaustion":"dead_letter"}"#;

/// A gateway and a worker for subscriptions.
pub(crate) async fn started() -> (GalleyKit, ServiceProcess) {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[PRIVATE]).await;
    let worker = worker(&kit, &[]).await;
    (kit, worker)
}

pub(crate) async fn worker(kit: &GalleyKit, variables: &[(&str, &str)]) -> ServiceProcess {
    let variables: Vec<(&str, &str)> = variables.iter().copied().chain([PRIVATE]).collect();
    let worker = ServiceProcess::start("pubsub-worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    worker
}

pub(crate) async fn put(kit: &GalleyKit, name: &str, body: &Value) -> Value {
    let url = kit.gateway.url(&format!("/v1/subscriptions/{name}"));
    let request = kit.http.put(url).header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.expect("the gateway answers");
    let status = response.status();
    let text = response.text().await.expect("text");
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) async fn publish(kit: &GalleyKit, channel: &str, content_type: &str, body: &str) -> String {
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let request = kit.http.post(url).header("content-type", content_type).body(body.to_owned());
    let answer: Value = request.send().await.expect("the gateway answers").json().await.expect("JSON");
    answer["id"].as_str().unwrap_or_else(|| panic!("no id: {answer}")).to_owned()
}

pub(crate) async fn progress(kit: &GalleyKit, name: &str) -> Value {
    let answer: Value = kit.get(&format!("/v1/subscriptions/{name}")).await.json().await.expect("JSON");
    answer["subscription"]["progress"].clone()
}

/// Waits until a figure of a subscription is that.
pub(crate) async fn figure(kit: &GalleyKit, name: &str, figure: &str, wanted: u64) -> Value {
    let what = format!("{figure} of {name} is {wanted}");
    eventually(&what, || async {
        let progress = progress(kit, name).await;
        (progress[figure] == json!(wanted)).then_some(progress)
    })
    .await
}

#[tokio::test]
async fn an_endpoint_gets_the_bytes_signed_and_told_what_they_are() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let target = json!({ "url": receiver.url("/hooks/{channel}"), "secrets": [SECRET], "headers": { "x-key": "k" } });
    put(&kit, "hook", &json!({ "channels": ["orders.*"], "deliver": { "http": target } })).await;
    let id = publish(&kit, "orders.new", "text/plain", " not JSON \u{0}").await;
    receiver.wait_for_requests(1).await;
    let request = &receiver.requests()[0];
    assert!(request.head.starts_with("POST /hooks/orders.new HTTP/1.1"), "{}", request.head);
    assert_eq!(request.body, b" not JSON \0", "byte for byte");
    for (name, value) in [
        ("content-type", "text/plain"),
        ("galley-subscription", "hook"),
        ("galley-channel", "orders.new"),
        ("galley-message-id", &id),
        ("galley-attempt", "1"),
        ("ce-specversion", "1.0"),
        ("ce-id", &id),
        ("ce-source", "/galley/channels/orders.new"),
        ("ce-type", "message"),
        ("x-key", "k"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    let header = |name| request.header(name).expect(name);
    let secrets: [Secret; 1] = [SECRET.parse().expect("a secret")];
    let signed = SignatureHeaders {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(verify(&secrets, signed, &request.body, now), Ok(()));
    figure(&kit, "hook", "delivered", 1).await;
}

#[tokio::test]
async fn an_event_is_delivered_as_an_event() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("1"), WebhookReply::ok("1")]).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "events", &json!({ "channels": ["c"], "deliver": target, "max_in_flight": 1 })).await;
    let request = kit.http.post(kit.gateway.url("/v1/channels/c/messages")).body("{}");
    let request = request.header("content-type", "application/json").header("ce-specversion", "1.0");
    let request = request.header("ce-id", "7").header("ce-source", "/shop").header("ce-type", "order.paid");
    assert!(request.send().await.expect("an answer").status().is_success());
    receiver.wait_for_requests(1).await;
    let event = r#"{"specversion":"1.0","id":"8","source":"/shop","type":"order.paid","data":{"n":1}}"#;
    publish(&kit, "c", "application/cloudevents+json", event).await;
    receiver.wait_for_requests(2).await;
    let requests = receiver.requests();
    let (binary, structured) = (&requests[0], &requests[1]);
    assert_eq!((binary.header("ce-id"), binary.header("ce-type")), (Some("7"), Some("order.paid")));
    assert_eq!(structured.header("content-type"), Some("application/cloudevents+json"));
    assert_eq!((structured.header("ce-id"), structured.body.as_slice()), (None, event.as_bytes()));
}

#[tokio::test]
async fn only_what_the_filter_wants_is_delivered() {
    let (kit, worker) = started().await;
    let filter = json!({ "data": { "/kind": { "any_of": ["a", "b"] }, "/path": { "prefix": "/x" } } });
    put(&kit, "some", &json!({ "channels": ["c"], "deliver": { "log": {} }, "filter": filter })).await;
    for body in [r#"{"kind":"a","path":"/x/1"}"#, r#"{"kind":"c","path":"/x"}"#, "1", r#"{"kind":"b","path":"/y"}"#] {
        publish(&kit, "c", "application/json", body).await;
    }
    publish(&kit, "c", "application/json", r#"{"kind":"b","path":"/x"}"#).await;
    let progress = figure(&kit, "some", "delivered", 2).await;
    let filtered = figure(&kit, "some", "filtered", 3).await;
    assert_eq!((&filtered["lag"], &filtered["in_flight"], &progress["failed"]), (&json!(0), &json!(0), &json!(0)));
    eventually("both are logged", || async { (worker.logged_bodies().len() == 2).then_some(()) }).await;
}

#[tokio::test]
async fn a_failed_delivery_becomes_a_job_and_holds_nobody_up() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(500, "", "out of order"), WebhookReply::ok("1"), WebhookReply::ok("1")];
    let receiver = WebhookReceiver::start(replies).await;
    let retry: Value = serde_json::from_str(SOON).expect("JSON");
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry, "max_in_flight": 1 })).await;
    let first = publish(&kit, "c", "text/plain", "first").await;
    receiver.wait_for_requests(1).await;
    publish(&kit, "c", "text/plain", "second").await;
    receiver.wait_for_requests(3).await;
    let requests = receiver.requests();
    let again: Vec<_> = requests.iter().filter(|request| request.header("galley-message-id") == Some(&first)).collect();
    assert_eq!((again.len(), again[1].header("galley-attempt")), (2, Some("2")));
    assert_eq!(again[0].header("webhook-id"), again[1].header("webhook-id"), "for receivers to tell");
    assert_eq!(again[0].body, again[1].body);
    figure(&kit, "hook", "retrying", 0).await;
    // What was delivered counts within a second, and ends the failures
    let shown = eventually("it does not fail any more", || async {
        Some(progress(&kit, "hook").await).filter(|progress| progress["failing_since"].is_null())
    })
    .await;
    assert_eq!((&shown["failed"], &shown["dead"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_message_that_never_passes_is_a_dead_letter_that_can_be_tried_again() {
    let (kit, _worker) = started().await;
    let broken = || WebhookReply::new(500, "", "");
    let receiver = WebhookReceiver::start([broken(), broken(), broken(), WebhookReply::ok("1")]).await;
    let retry: Value = serde_json::from_str(SOON).expect("JSON");
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    publish(&kit, "c", "text/plain", "it").await;
    figure(&kit, "hook", "dead", 1).await;
    assert_eq!(receiver.requests().len(), 3, "max_attempts counts the first");
    let dead: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    let job = &dead["jobs"][0];
    assert_eq!(
        (&job["type"], &job["queue"], &job["attempt"]),
        (&json!("message.deliver"), &json!("sub.hook"), &json!(3))
    );
    assert_eq!((&job["args"][0]["body"], job["errors"].as_array().map(Vec::len)), (&json!("it"), Some(3)));
    let id = job["id"].as_str().expect("an id");
    assert!(kit.post(&format!("/ojs/v1/dead-letter/{id}/retry"), &json!({})).await.status().is_success());
    receiver.wait_for_requests(4).await;
    kit.wait_for_state(id, "completed").await;
}

#[tokio::test]
async fn attempts_are_counted_on_when_a_message_of_a_broadcast_goes_on_as_a_job() {
    let (kit, _worker) = started().await;
    // Fewer than a worker tries by itself, and more
    for most in [2_u32, 5] {
        let receiver = WebhookReceiver::start((0..10).map(|_| WebhookReply::new(500, "", ""))).await;
        let mut retry: Value = serde_json::from_str(SOON).expect("JSON");
        retry["max_attempts"] = json!(most);
        let (name, target) = (format!("hook-{most}"), json!({ "http": { "url": receiver.url("/") } }));
        put(&kit, &name, &json!({ "channels": [name], "mode": "broadcast", "deliver": target, "retry": retry })).await;
        publish(&kit, &name, "text/plain", "it").await;
        figure(&kit, &name, "dead", 1).await;
        let requests = receiver.requests();
        let attempts: Vec<u32> =
            requests.iter().filter_map(|request| request.header("galley-attempt")?.parse().ok()).collect();
        assert_eq!(attempts, (1..=most).collect::<Vec<_>>());
        let dead: Value = kit.get(&format!("/ojs/v1/dead-letter?queue=sub.{name}")).await.json().await.expect("JSON");
        let job = &dead["jobs"][0];
        assert_eq!((&job["queue"], &job["attempt"]), (&json!(format!("sub.{name}")), &json!(most)));
        assert_eq!(job["errors"].as_array().map(Vec::len), usize::try_from(most).ok());
    }
}

#[tokio::test]
async fn messages_of_a_broadcast_that_fail_one_after_the_other_all_become_jobs() {
    let (kit, _worker) = started().await;
    // As many in a row as a target may have before it is left alone: the second message is in the middle of its attempts then
    let receiver = WebhookReceiver::start((0..5).map(|_| WebhookReply::new(500, "", ""))).await;
    let mut retry: Value = serde_json::from_str(SOON).expect("JSON");
    retry["max_attempts"] = json!(20);
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "all", &json!({ "channels": ["c"], "mode": "broadcast", "deliver": target, "retry": retry })).await;
    for body in ["0", "1"] {
        publish(&kit, "c", "text/plain", body).await;
    }
    figure(&kit, "all", "retrying", 2).await;
    figure(&kit, "all", "lag", 0).await;
    assert_eq!(receiver.requests().len(), 5);
}

#[tokio::test]
async fn a_dead_letter_that_was_refused_for_good_has_all_its_attempts_when_it_is_tried_again() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(422, "", "no"), WebhookReply::new(503, "", "not now"), WebhookReply::ok("1")];
    let receiver = WebhookReceiver::start(replies).await;
    let retry: Value = serde_json::from_str(SOON).expect("JSON");
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    publish(&kit, "c", "text/plain", "it").await;
    figure(&kit, "hook", "dead", 1).await;
    let dead: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    let (id, errors) = (dead["jobs"][0]["id"].as_str().expect("an id"), &dead["jobs"][0]["errors"]);
    assert_eq!(errors.as_array().map(Vec::len), Some(1), "the refusal, and nothing made up: {errors}");
    assert!(kit.post(&format!("/ojs/v1/dead-letter/{id}/retry"), &json!({})).await.status().is_success());
    kit.wait_for_state(id, "completed").await;
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn a_target_that_has_failed_for_too_long_is_given_up_with_an_event() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(500, "", "")]).await;
    // One attempt of each: more of the first ones would be enough for the target to be left alone
    let retry = json!({ "initial_interval": "PT10H" });
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    // As if nothing but failures had been seen for five days
    kit.redis_command(&["HSET", "galley:sub:hook", "failing_since", "1000"]).await;
    for number in 0..5 {
        publish(&kit, "c", "text/plain", &number.to_string()).await;
    }
    let reason = eventually("it is disabled", || async {
        let answer: Value = kit.get("/v1/subscriptions/hook").await.json().await.expect("JSON");
        let is_disabled = answer["subscription"]["state"] == "disabled";
        is_disabled.then(|| answer["subscription"]["reason"].as_str().map(ToOwned::to_owned))?
    })
    .await;
    assert_eq!(reason, "nothing but failures for 120 hours");
    has_event(&kit, "subscription.disabled").await;
}

pub(crate) async fn has_event(kit: &GalleyKit, kind: &str) {
    eventually("an event says so", || async {
        let events: Value = kit.get("/ojs/v1/events").await.json().await.expect("JSON");
        let events = events["events"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["type"] == kind).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_endpoint_refuses_is_a_dead_letter_at_once_and_one_that_is_gone_disables() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([
        WebhookReply::new(422, "", "no"),
        WebhookReply::new(410, "", "gone"),
        WebhookReply::ok("1"),
    ])
    .await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target })).await;
    publish(&kit, "c", "text/plain", "refused").await;
    figure(&kit, "hook", "dead", 1).await;
    assert_eq!(receiver.requests().len(), 1, "no other attempt");
    publish(&kit, "c", "text/plain", "gone").await;
    eventually("it is disabled", || async {
        let answer: Value = kit.get("/v1/subscriptions/hook").await.json().await.expect("JSON");
        (answer["subscription"]["state"] == "disabled").then_some(())
    })
    .await;
    has_event(&kit, "subscription.disabled").await;
    // The worker may still have had the first of them
    eventually("nobody delivers it", || async {
        publish(&kit, "c", "text/plain", "later").await;
        (progress(&kit, "hook").await["lag"].as_u64()? > 0).then_some(())
    })
    .await;
    assert!(kit.post("/v1/subscriptions/hook/resume", &json!({})).await.status().is_success());
    figure(&kit, "hook", "lag", 0).await;
    receiver.wait_for_requests(3).await;
}

#[tokio::test]
async fn an_endpoint_that_asks_to_be_left_alone_is_and_gets_everything_later() {
    let (kit, _worker) = started().await;
    let broken = || WebhookReply::new(429, "retry-after: 1\r\n", "");
    let replies =
        std::iter::repeat_with(broken).take(3).chain(std::iter::repeat_with(|| WebhookReply::ok("1")).take(100));
    let receiver = WebhookReceiver::start(replies.collect::<Vec<_>>()).await;
    let retry = json!({ "max_attempts": 20, "initial_interval": "PT0.05S", "jitter": false });
    let target = json!({ "http": { "url": receiver.url("/"), "concurrency": 1 } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry, "max_in_flight": 1 })).await;
    for number in 0..20 {
        publish(&kit, "c", "text/plain", &number.to_string()).await;
    }
    let all = || {
        let requests = receiver.requests();
        let bodies: std::collections::BTreeSet<Vec<u8>> = requests.into_iter().map(|request| request.body).collect();
        bodies.len() == 20
    };
    eventually("all were sent", || async { all().then_some(()) }).await;
    figure(&kit, "hook", "lag", 0).await;
    figure(&kit, "hook", "retrying", 0).await;
    figure(&kit, "hook", "dead", 0).await;
}

#[tokio::test]
async fn a_message_becomes_a_job_of_a_queue_once() {
    let (kit, worker) = started().await;
    let target = json!({ "queue": { "queue": "mails", "type": "test.echo", "options": { "priority": 5 } } });
    put(&kit, "mails", &json!({ "channels": ["c"], "deliver": target })).await;
    let id = publish(&kit, "c", "application/json", r#"{"to":1e2}"#).await;
    figure(&kit, "mails", "delivered", 1).await;
    // Told to begin anew, it makes no second job of the same message
    let sought = kit.post("/v1/subscriptions/mails/seek", &json!({ "to": "earliest" })).await;
    assert!(sought.status().is_success());
    figure(&kit, "mails", "delivered", 2).await;
    let fetch = json!({ "queues": ["mails"], "count": 10 });
    let fetched = kit.post("/ojs/v1/workers/fetch", &fetch).await.text().await.expect("text");
    let answer: Value = serde_json::from_str(&fetched).expect("JSON");
    let jobs = answer["jobs"].as_array().expect("jobs");
    assert_eq!((jobs.len(), &jobs[0]["type"], &jobs[0]["priority"]), (1, &json!("test.echo"), &json!(5)));
    let message = &jobs[0]["args"][0];
    assert_eq!((&message["id"], &message["channel"]), (&json!(id), &json!("c")));
    assert!(fetched.contains(r#""data":{"to":1e2}"#), "byte for byte: {fetched}");
    drop(worker);
}

#[tokio::test]
async fn a_program_gets_the_body_and_its_failure_is_kept_with_what_it_said() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[PRIVATE]).await;
    let folder = TestFolder::new();
    let script = r#"printf '%s %s %s: ' "$GALLEY_SUBSCRIPTION" "$GALLEY_CHANNEL" "$GALLEY_ATTEMPT" >> "$1"
cat >> "$1"
echo >> "$1"
if [ "$GALLEY_ATTEMPT" = 1 ]; then echo no luck >&2; exit 1; fi
"#;
    folder.write("take.sh", script);
    let args = json!([folder.path_text("take.sh"), folder.path_text("seen")]);
    folder.write("commands.toml", &format!("[[command]]\nname = \"take\"\nprogram = \"sh\"\nargs = {args}\n"));
    let _worker = worker(&kit, &[("GALLEY__PUBSUB_WORKER__COMMANDS", &folder.path_text("commands.toml"))]).await;
    let retry: Value = serde_json::from_str(SOON).expect("JSON");
    put(&kit, "run", &json!({ "channels": ["c"], "deliver": { "command": "take" }, "retry": retry })).await;
    publish(&kit, "c", "text/plain", "body").await;
    let expected = "run c 1: body\nrun c 2: body\n";
    eventually("both attempts", || async { (folder.read("seen") == expected).then_some(()) }).await;
    let progress = figure(&kit, "run", "retrying", 0).await;
    assert_eq!((&progress["failed"], &progress["dead"]), (&json!(1), &json!(0)));
    put(&kit, "unknown", &json!({ "channels": ["c"], "deliver": { "command": "other" }, "retry": { "max_attempts": 1, "on_exhaustion": "dead_letter" } })).await;
    publish(&kit, "c", "text/plain", "x").await;
    figure(&kit, "unknown", "dead", 1).await;
}
