//! Whole traces of jobs, as a receiver gets them. Those of workflows are in `trace_trees_of_workflows`,
//! those of messages in `trace_trees_of_messages`.

use std::process::{Command, Stdio};

use serde_json::json;
use testkit::{WebhookReceiver, WebhookReply, eventually};

use crate::{
    client_packages::clients,
    kit::{RULES_VARIABLE, SHORT_LEASE, TestFolder},
    push_handlers::rule,
    trace_context::{TRACE_ID, post_with},
    traced_kit::TracedKit,
};

#[tokio::test]
async fn a_request_its_job_and_its_handler_are_one_trace() {
    let mut traced = TracedKit::start().await;
    let _worker = traced.worker(&[]).await;
    traced.enqueue("job", &json!({ "type": "test.noop", "args": [] })).await;
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/jobs status=201
              gateway producer enqueue default send job type=test.noop
                queue-worker client receive default receive job
                queue-worker consumer process default process job type=test.noop attempt=1
                  queue-worker client settle default settle job outcome=completed
            ",
        )
        .await;
    let spans = traced.receiver.spans();
    let root = spans.iter().find(|span| span.kind == "server" && span.trace_id == TRACE_ID).expect("it is in the tree");
    assert_eq!(root.parent_span_id, "b7ad6b7169203331", "the client's span");
    assert_eq!(root.attributes["http.route"], "/ojs/v1/jobs");
    assert_eq!(root.attributes["http.request.method"], "POST");
    assert!(spans.iter().all(|span| span.trace_id != TRACE_ID
        || span.attributes.get("messaging.destination.name").is_none_or(|name| name == "default")));
}

#[tokio::test]
async fn a_python_worker_that_pulls_and_the_job_that_its_handler_enqueues_are_in_the_trace() {
    let mut traced = TracedKit::start().await;
    let folder = TestFolder::new();
    folder.write(
        "worker.py",
        "import galley\nworker = galley.Worker(queues=['python'])\n\
         @worker.job('outer')\ndef outer(ctx):\n    return galley.Client().enqueue('inner', queue='nested')['id']\nworker.run()\n",
    );
    let id = traced.enqueue("outer", &json!({ "type": "outer", "args": [], "queue": "python" })).await;
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut process = Command::new(python)
        .arg(folder.path("worker.py"))
        .env("PYTHONPATH", clients().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("GALLEY_URL", traced.kit.gateway.url(""))
        .stdin(Stdio::null())
        .spawn()
        .expect("python is installed");
    let done = traced.kit.wait_for_state(&id, "completed").await;
    traced.names.insert(done["result"].as_str().expect("an id").to_owned(), "inner");
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/jobs status=201
              gateway producer enqueue python send outer type=outer
                gateway client receive python receive outer
                gateway server POST /ojs/v1/jobs status=201
                  gateway producer enqueue nested send inner type=inner
                gateway server POST /ojs/v1/workers/fetch status=200
                  gateway client settle python settle outer type=outer attempt=1 outcome=completed
            ",
        )
        .await;
    process.kill().expect("a process of ours");
    process.wait().expect("it was killed");
}

#[tokio::test]
async fn an_endpoint_continues_the_trace_that_it_is_sent() {
    let mut traced = TracedKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("{}")]).await;
    let folder = TestFolder::with_rules(&rule("push.send", &receiver, ""));
    let _worker = traced.worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let id = traced.enqueue("outer", &json!({ "type": "push.send", "args": [] })).await;
    traced.kit.wait_for_state(&id, "completed").await;
    // What the endpoint does with it
    let requests = receiver.requests();
    let trace = [("traceparent", requests[0].header("traceparent").expect("the trace"))];
    let body = json!({ "type": "a.b", "args": [], "queue": "nested" });
    let nested = post_with(&traced.kit, "/ojs/v1/jobs", &trace, &body).await;
    traced.names.insert(nested["job"]["id"].as_str().expect("an id").to_owned(), "inner");
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/jobs status=201
              gateway producer enqueue default send outer type=push.send
                queue-worker client receive default receive outer
                queue-worker consumer process default process outer type=push.send attempt=1
                  queue-worker client POST outer status=200
                    gateway server POST /ojs/v1/jobs status=201
                      gateway producer enqueue nested send inner type=a.b
                  queue-worker client settle default settle outer outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn attempts_have_links_to_those_before_and_a_redrive_to_the_first_run() {
    let mut traced = TracedKit::start().await;
    let _worker = traced.worker(&[]).await;
    let retry = json!({ "initial_interval": "PT0.05S" });
    traced.enqueue("job", &json!({ "type": "test.fail_once", "args": [], "retry": retry })).await;
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/jobs status=201
              gateway producer enqueue default send job type=test.fail_once
                queue-worker client receive default receive job
                queue-worker client receive default receive job
                queue-worker consumer process default process job type=test.fail_once attempt=1 error=handler_error !exception handler_error
                  queue-worker client settle default settle job outcome=retryable
                queue-worker consumer process default process job type=test.fail_once attempt=2 -> process default 1
                  queue-worker client settle default settle job outcome=completed
            ",
        )
        .await;
    let traceparent = |trace: &str| format!("00-{trace}-2222222222222222-01");
    let dead = json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } });
    let (first, second) = ("1".repeat(32), "2".repeat(32));
    let job = post_with(&traced.kit, "/ojs/v1/jobs", &[("traceparent", &traceparent(&first))], &dead).await;
    let id = job["job"]["id"].as_str().expect("an id").to_owned();
    traced.names.insert(id.clone(), "dead");
    traced.kit.wait_for_state(&id, "discarded").await;
    let path = format!("/ojs/v1/jobs/{id}/retry");
    post_with(&traced.kit, &path, &[("traceparent", &traceparent(&second))], &json!({})).await;
    let run = |route: &str, status: &str, link: &str| {
        format!(
            "
            gateway server POST {route} status={status}
              gateway producer enqueue default send dead type=test.fail_always{link}
                queue-worker client receive default receive dead
                queue-worker consumer process default process dead type=test.fail_always attempt=1 error=handler_error !exception handler_error
                  queue-worker client settle default settle dead outcome=discarded
            "
        )
    };
    traced.assert_tree(&first, &run("/ojs/v1/jobs", "201", "")).await;
    traced.assert_tree(&second, &run("/ojs/v1/jobs/{id}/retry", "200", " -> enqueue default")).await;
}

#[tokio::test]
async fn a_failed_attempt_is_recorded_even_if_its_trace_is_not() {
    let mut traced = TracedKit::start().await;
    let worker = traced.worker(&[]).await;
    let trace = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")];
    let body = json!({ "type": "test.fail_once", "args": [], "retry": { "initial_interval": "PT0.05S" } });
    let job = post_with(&traced.kit, "/ojs/v1/jobs", &trace, &body).await;
    let id = job["job"]["id"].as_str().expect("an id").to_owned();
    traced.names.insert(id.clone(), "job");
    traced.kit.wait_for_state(&id, "completed").await;
    traced
        .assert_tree(
            TRACE_ID,
            "
            queue-worker consumer process default process job type=test.fail_once attempt=1 error=handler_error !exception handler_error
              queue-worker client settle default settle job outcome=retryable
            ",
        )
        .await;
    // And its line in the log says where to look
    let line = worker.wait_for_event("attempt.failed").await;
    assert_eq!((&line["trace_id"], &line["job_id"]), (&json!(TRACE_ID), &json!(id)), "{line}");
    let spans = traced.receiver.spans();
    assert!(
        spans.iter().any(|span| json!(span.span_id) == line["span_id"] && span.name == "process default"),
        "{line}"
    );
}

#[tokio::test]
async fn a_trace_that_began_here_and_is_not_recorded_has_the_id_of_its_job_and_all_failed_attempts() {
    let mut traced = TracedKit::start_with(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")]).await;
    let _worker = traced.worker(&[("OTEL_TRACES_SAMPLER", "parentbased_always_on")]).await;
    let retry = json!({ "initial_interval": "PT0.05S", "max_attempts": 2 });
    let body = json!({ "type": "test.fail_always", "args": [], "retry": retry });
    let made = post_with(&traced.kit, "/ojs/v1/jobs", &[], &body).await;
    let id = made["job"]["id"].as_str().expect("an id").to_owned();
    let fine = traced.kit.enqueue(&json!({ "type": "test.noop", "args": [] })).await;
    traced.kit.wait_for_state(&fine, "completed").await;
    let ended = traced.kit.wait_for_state(&id, "discarded").await;
    let trace_id = id.replace('-', "");
    for job in [&made["job"], &ended, &traced.kit.job(&fine).await] {
        let own = job["id"].as_str().expect("an id").replace('-', "");
        assert_eq!(job["traceparent"], format!("00-{own}-{}-00", &own[16..]), "{job}");
    }
    traced.names.insert(id, "job");
    traced
        .assert_tree(
            &trace_id,
            "
            queue-worker consumer process default process job type=test.fail_always attempt=1 error=handler_error !exception handler_error
              queue-worker client settle default settle job outcome=retryable
            queue-worker consumer process default process job type=test.fail_always attempt=2 error=handler_error -> process default 1 !exception handler_error
              queue-worker client settle default settle job outcome=discarded
            ",
        )
        .await;
    let others: Vec<_> = traced.receiver.spans().into_iter().filter(|span| span.trace_id != trace_id).collect();
    assert!(others.is_empty(), "the worker follows the decision of the gateway: {others:#?}");
}

#[tokio::test]
async fn an_attempt_whose_worker_died_is_recorded_as_failed() {
    let mut traced = TracedKit::start_with(&SHORT_LEASE).await;
    let worker = traced.worker(&SHORT_LEASE).await;
    let id = traced.enqueue("job", &json!({ "type": "test.slow", "args": [600_000] })).await;
    traced.kit.wait_for_state(&id, "active").await;
    worker.kill();
    let lost = eventually("the attempt is recorded", || async {
        let spans = traced.receiver.spans();
        spans.into_iter().find(|span| span.attributes.get("error.type").is_some_and(|code| code == "worker_lost"))
    })
    .await;
    assert_eq!((lost.name.as_str(), lost.trace_id.as_str()), ("process default", TRACE_ID));
    assert_eq!((&lost.attributes["messaging.message.id"], lost.events[0].0.as_str()), (&id, "exception"));
}

#[tokio::test]
async fn a_run_of_a_schedule_begins_a_trace() {
    let mut traced = TracedKit::start_with(&[("OTEL_TRACES_SAMPLER", "always_on")]).await;
    // With one place it claims the first run alone, however many there are by then
    let _worker = traced.worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "1")]).await;
    let template = json!({ "type": "test.noop", "args": [] });
    let entry = json!({ "name": "tick", "expression": "* * * * * *", "job_template": template });
    assert_eq!(traced.kit.post("/ojs/v1/cron", &entry).await.status(), 201);
    let made = traced.name_enqueued("default", "run").await;
    assert_eq!(made.parent_span_id, "", "nobody asked for it just now");
    traced
        .assert_tree(
            &made.trace_id,
            "
            gateway producer enqueue default send run type=test.noop
              queue-worker client receive default receive run
              queue-worker consumer process default process run type=test.noop attempt=1
                queue-worker client settle default settle run outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn an_element_of_a_list_begins_a_trace_as_its_job_is_enqueued() {
    let mut traced = TracedKit::start().await;
    let _worker = traced.worker(&[("OTEL_TRACES_SAMPLER", "always_on")]).await;
    traced.kit.redis_command(&["RPUSH", "task:prodcons:queue", "7"]).await;
    let made = traced.name_enqueued("prodcons", "task").await;
    assert_eq!(made.parent_span_id, "", "an element names no trace");
    traced
        .assert_tree(
            &made.trace_id,
            "
            queue-worker producer enqueue prodcons send task type=demo.task
              queue-worker client receive prodcons receive task
              queue-worker consumer process prodcons process task type=demo.task attempt=1
                queue-worker client settle prodcons settle task outcome=completed
            ",
        )
        .await;
}
