//! Jobs that handlers in Rust run: the worker of `examples/src/bin/email_worker.rs`, as its readers would start it.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually, eventually_for};

use crate::kit::{GalleyKit, SHORT_LEASE, TestFolder, job_body};

/// Milliseconds between two mails, longer than any test takes.
const NEVER: u64 = 600_000;

async fn email_worker(kit: &GalleyKit, outbox: &TestFolder, more: &[(&str, &str)]) -> ServiceProcess {
    let folder = outbox.path_text("");
    // A handler that tidies up has its time on a busy machine too
    let mut variables = vec![("OUTBOX", folder.as_str()), ("GALLEY__QUEUE_WORKER__STOP_GRACE_MS", "10000")];
    variables.extend(more);
    let worker = ServiceProcess::start_worker("email_worker", &kit.redis, &variables).await;
    worker.wait_until_ready().await;
    worker
}

/// A mail to somebody.
fn mail(to: &str) -> Value {
    job_body("email.send", &json!([to, { "subject": "Hello", "body": "How are you?" }]))
}

/// Waits until an attempt of a newsletter has a draft, and gives its number: a lease that expired before its time makes
/// one more.
async fn drafting(outbox: &TestFolder, id: &str) -> u64 {
    eventually("an attempt has begun", || async {
        (1..10).find(|attempt| outbox.read(&format!("{id}.{attempt}.draft")).contains("a@b.example"))
    })
    .await
}

/// A newsletter that stops after the first mail.
fn endless() -> Value {
    job_body("email.newsletter", &json!([["a@b.example", "c@d.example"], NEVER]))
}

#[tokio::test]
async fn the_commands_of_the_readme_do_what_it_says() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let between = |start: &str, end: &str| {
        let text = readme.split_once(start).and_then(|(_, rest)| rest.split_once(end));
        text.unwrap_or_else(|| panic!("{start}...{end}")).0.to_owned()
    };
    let queues = between("GALLEY__QUEUE_WORKER__QUEUES=", " cargo run --bin email_worker\n");
    let _worker = email_worker(&kit, &outbox, &[("GALLEY__QUEUE_WORKER__QUEUES", &queues)]).await;
    let (path, body) = (between("http://127.0.0.1:8080", " "), between("-d '", "'\n"));
    let request = kit.http.post(kit.gateway.url(&path)).header("content-type", "application/json");
    let wait = between("'Prefer: ", "'");
    let response = request.header("prefer", &wait).body(body).send().await.expect("an answer");
    assert_eq!(response.headers()["preference-applied"], wait.as_str());
    let answer: Value = response.json().await.expect("JSON");
    let id = answer["job"]["id"].as_str().expect("an id");
    // A busy machine may need more time than the answer has
    assert_eq!(kit.wait_for_state(id, "completed").await["result"]["attempt"], 1);
    assert!(outbox.read(&format!("{id}.mail")).contains("How are you?"));
}

#[tokio::test]
async fn arguments_and_results_are_types_and_a_job_knows_its_trace_and_its_fence() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let _worker = email_worker(&kit, &outbox, &[]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let body = mail("x@example.com").to_string();
    let response = request.header("traceparent", trace).body(body).send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    let id = answer["job"]["id"].as_str().expect("an id");
    let done = kit.wait_for_state(id, "completed").await;
    assert_eq!(done["result"], json!({ "file": outbox.path_text(&format!("{id}.mail")), "attempt": 1 }));
    let sent = outbox.read(&format!("{id}.mail"));
    assert!(sent.starts_with("To: x@example.com\nSubject: Hello\nFencing-Token: "), "{sent}");
    assert!(sent.contains(&format!("\nTraceparent: {trace}\n")) && sent.ends_with("\n\nHow are you?\n"), "{sent}");

    for wrong in [json!(["x@example.com"]), json!(["x@example.com", { "subject": 5, "body": "" }]), json!([])] {
        let id = kit.enqueue(&job_body("email.send", &wrong)).await;
        let refused = kit.wait_for_state(&id, "discarded").await;
        assert_eq!((&refused["error"]["code"], &refused["attempt"]), (&json!("invalid_payload"), &json!(1)));
        let message = refused["error"]["message"].as_str().expect("text");
        assert!(message.starts_with("the arguments are not what the handler takes: "), "{message}");
    }
}

#[tokio::test]
async fn each_kind_of_error_says_what_follows() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let _worker = email_worker(&kit, &outbox, &[]).await;
    let with = |mut body: Value, retry: Value| {
        body["retry"] = retry;
        body
    };
    let dead_letter = json!({ "on_exhaustion": "dead_letter" });

    let id = kit.enqueue(&with(mail("nobody"), dead_letter.clone())).await;
    let refused = kit.wait_for_state(&id, "discarded").await;
    assert_eq!((&refused["error"]["code"], &refused["attempt"]), (&json!("bad_address"), &json!(1)));
    assert_eq!(refused["error"]["details"], json!("nobody"));
    let discarded = kit.enqueue(&with(mail("x@unsubscribed.example"), dead_letter)).await;
    let job = kit.wait_for_state(&discarded, "discarded").await;
    assert_eq!(job["attempt"], 1);
    let letters: Value = kit.get("/ojs/v1/dead-letter").await.json().await.expect("JSON");
    let letters: Vec<_> = letters["jobs"].as_array().expect("jobs").iter().map(|job| &job["id"]).collect();
    assert_eq!(letters, [&json!(id)], "what was discarded is nothing to look at");

    let id = kit.enqueue(&with(mail("x@busy.example"), json!({ "initial_interval": "PT0.05S" }))).await;
    assert_eq!(kit.wait_for_state(&id, "retryable").await["retry_delay_ms"], 600_000);
    let id = kit.enqueue(&with(mail("x@flaky.example"), json!({ "initial_interval": "PT0.05S" }))).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["errors"][0]["message"]), (&json!(2), &json!("the server hung up")));
}

#[tokio::test]
async fn any_error_is_a_failure_with_its_type_and_the_next_attempt_may_succeed() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let _worker = email_worker(&kit, &outbox, &[]).await;
    let mut body = job_body("email.from_template", &json!([outbox.path("template"), "Ann"]));
    body["retry"] = json!({ "initial_interval": "PT0.05S", "max_attempts": 1000, "max_interval": "PT0.1S" });
    let id = kit.enqueue(&body).await;
    eventually("it has failed", || async { (kit.job(&id).await["errors"][0]).is_object().then_some(()) }).await;
    // As a whole, so that no attempt reads half of it
    outbox.write("template.new", "Dear {name}");
    std::fs::rename(outbox.path("template.new"), outbox.path("template")).expect("renamed");
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["result"], "Dear Ann");
    let error = &done["errors"][0];
    assert_eq!((&error["code"], &error["type"]), (&json!("handler_error"), &json!("std.io.error.Error")));
    // What is named there is not tried again
    outbox.remove("template");
    body["retry"] = json!({ "non_retryable_errors": ["std.io.*"] });
    let id = kit.enqueue(&body).await;
    assert_eq!(kit.wait_for_state(&id, "discarded").await["attempt"], 1);
}

#[tokio::test]
async fn a_panic_and_a_result_that_is_too_large_fail_their_job_and_no_other() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let mut worker = email_worker(&kit, &outbox, &[]).await;
    let other = kit.enqueue(&endless()).await;
    kit.wait_for_state(&other, "active").await;
    let panics = json!({ "type": "email.render", "args": ["", 1], "retry": { "max_attempts": 1 } });
    for (body, code, says) in [
        (panics, "handler_panic", "nobody writes empty templates"),
        (job_body("email.render", &json!(["x", 2_000_000])), "result_too_large", "1048576"),
    ] {
        let id = kit.enqueue(&body).await;
        let failed = kit.wait_for_state(&id, "discarded").await;
        assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!(code), &json!(1)), "{failed}");
        assert!(failed["error"]["message"].as_str().is_some_and(|text| text.contains(says)), "{failed}");
    }
    let id = kit.enqueue(&job_body("email.render", &json!(["ab", 2]))).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], "abab");
    assert_eq!(kit.job(&other).await["state"], "active");
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_handler_tells_how_far_it_is_and_tidies_up_when_its_job_is_cancelled_or_out_of_time() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let worker = email_worker(&kit, &outbox, &[]).await;
    let id = kit.enqueue(&endless()).await;
    let shown =
        eventually("progress is shown", || async { Some(kit.job(&id).await).filter(|job| !job["progress"].is_null()) })
            .await;
    assert_eq!((&shown["progress"], &shown["progress_data"]), (&json!(0.5), &json!({ "last": "a@b.example" })));
    let draft = format!("{id}.1.draft");
    assert_eq!(outbox.read(&draft), "a@b.example\n");
    kit.cancel(&id).await;
    eventually("it has tidied up", || async { (!outbox.path(&draft).exists()).then_some(()) }).await;
    assert_eq!(kit.job(&id).await["state"], "cancelled");

    let mut late = endless();
    (late["timeout_ms"], late["retry"]) = (json!(300), json!({ "max_attempts": 1 }));
    worker.wait_for_event("attempt.lost").await;
    let id = kit.enqueue(&late).await;
    assert_eq!(kit.wait_for_state(&id, "discarded").await["error"]["code"], "timeout");
    assert!(!outbox.path(&format!("{id}.1.draft")).exists(), "it has tidied up before that was recorded");
    assert_eq!(worker.events("attempt.lost").len(), 1);

    let id = kit.enqueue(&job_body("email.newsletter", &json!([["a@b.example", "c@d.example"], 1]))).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], 2);
    assert_eq!(outbox.read(&format!("{id}.newsletter")), "a@b.example\nc@d.example\n");
}

#[tokio::test]
async fn a_handler_is_given_time_to_tidy_up_when_its_worker_stops_and_its_job_is_handed_back_unspent() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let worker = email_worker(&kit, &outbox, &[("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "300")]).await;
    let id = kit.enqueue(&endless()).await;
    outbox.wait_for_text(&format!("{id}.1.draft"), "a@b.example").await;
    assert!(worker.terminate().await.success());
    assert!(!outbox.path(&format!("{id}.1.draft")).exists());
    let back = kit.job(&id).await;
    assert_eq!((&back["state"], &back["attempt"]), (&json!("available"), &json!(0)), "{back}");
}

#[tokio::test]
async fn a_handler_that_ends_within_the_grace_ends_its_job() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let worker = email_worker(&kit, &outbox, &[]).await;
    let id = kit.enqueue(&job_body("email.newsletter", &json!([["a@b.example", "c@d.example"], 4000]))).await;
    outbox.wait_for_text(&format!("{id}.1.draft"), "a@b.example").await;
    assert!(worker.terminate().await.success());
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!(2)), "{done}");
}

#[tokio::test]
async fn a_worker_that_was_killed_or_frozen_has_its_jobs_done_by_another_and_does_not_do_them_too() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LEASE).await;
    let outbox = TestFolder::new();
    let doomed = email_worker(&kit, &outbox, &SHORT_LEASE).await;
    let zombie_outbox = TestFolder::new();
    let letter = job_body("email.newsletter", &json!([["a@b.example", "c@d.example"], 5000]));
    let id = kit.enqueue(&letter).await;
    drafting(&outbox, &id).await;
    doomed.kill();
    let zombie = email_worker(&kit, &zombie_outbox, &SHORT_LEASE).await;
    let attempt = drafting(&zombie_outbox, &id).await;
    zombie.signal(Signal::SIGSTOP);
    let _heir = email_worker(&kit, &outbox, &SHORT_LEASE).await;
    // Longer than a lease and two pauses
    let done = eventually_for(Duration::from_mins(1), "the heir has done it", || async {
        Some(kit.job(&id).await).filter(|job| job["state"] == "completed")
    })
    .await;
    assert!(attempt > 1 && done["attempt"].as_u64() > Some(attempt), "after attempt {attempt}: {done}");
    // Its pause is over: the heir began later and has made the same pause. It wakes up with the next mail to send
    zombie.signal(Signal::SIGCONT);
    let has_draft = || (1..10).any(|attempt| zombie_outbox.path(&format!("{id}.{attempt}.draft")).exists());
    eventually("the zombie tidies up", || async { (!has_draft()).then_some(()) }).await;
    assert!(!zombie_outbox.path(&format!("{id}.newsletter")).exists(), "it has not sent the rest");
    assert_eq!(kit.job(&id).await, done, "nothing changed");
}

#[tokio::test]
async fn a_handler_gets_the_results_of_the_jobs_before_it() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    let _worker = email_worker(&kit, &outbox, &[]).await;
    let steps = json!([
        { "type": "email.addresses", "args": ["a@b.example", "c@d.example", "a@b.example"] },
        { "type": "email.count", "args": [] },
    ]);
    let response = kit.post("/ojs/v1/workflows", &json!({ "type": "chain", "steps": steps })).await;
    assert_eq!(response.status(), 201);
    let answer: Value = response.json().await.expect("JSON");
    let path = format!("/ojs/v1/workflows/{}", answer["workflow"]["id"].as_str().expect("an id"));
    let ended = eventually("the workflow ends", || async {
        let answer: Value = kit.get(&path).await.json().await.ok()?;
        Some(answer["workflow"].clone()).filter(|workflow| workflow["state"] == "completed")
    })
    .await;
    assert_eq!(ended["members"][1]["result"], 2, "two of the three addresses are different: {ended}");
}

#[tokio::test]
async fn several_jobs_are_handled_in_one_call_and_each_ends_by_itself() {
    let kit = GalleyKit::start().await;
    let outbox = TestFolder::new();
    // Longer than any test: it is the third job that begins the call
    let worker = email_worker(&kit, &outbox, &[("DIGEST_SECONDS", "86400")]).await;
    let notice = |text: &str| job_body("email.digest", &json!([text]));
    let [one, two, empty] = [
        kit.enqueue(&notice("the mill turns")).await,
        kit.enqueue(&notice("the ship sails")).await,
        kit.enqueue(&notice("")).await,
    ];
    let (first, second) = (kit.wait_for_state(&one, "completed").await, kit.wait_for_state(&two, "completed").await);
    let refused = kit.wait_for_state(&empty, "discarded").await;
    assert_eq!(refused["error"]["message"], "a notice has text");
    assert_eq!(first["result"], second["result"], "one mail for both");
    let sent = std::fs::read_to_string(first["result"].as_str().expect("a file")).expect("a mail");
    let lines: std::collections::BTreeSet<_> = sent.lines().collect();
    assert_eq!(lines, ["the mill turns", "the ship sails"].into());

    // A job that is cancelled while it waits for others is in no call
    let cancelled = kit.enqueue(&notice("nobody reads this")).await;
    kit.wait_for_state(&cancelled, "active").await;
    let response =
        kit.http.delete(kit.gateway.url(&format!("/ojs/v1/jobs/{cancelled}"))).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    worker.wait_for_event("attempt.lost").await;
    // A worker that stops calls with what it has
    let last = kit.enqueue(&notice("the last one")).await;
    kit.wait_for_state(&last, "active").await;
    assert!(worker.terminate().await.success());
    let last = kit.wait_for_state(&last, "completed").await;
    let sent = std::fs::read_to_string(last["result"].as_str().expect("a file")).expect("a mail");
    assert_eq!(sent, "the last one\n");
}
