//! Whole traces of workflows, as a receiver gets them.

use serde_json::json;
use testkit::{ReceivedSpan, eventually};

use crate::{
    trace_context::{TRACE, TRACE_ID, post_with},
    traced_kit::TracedKit,
};

#[tokio::test]
async fn the_steps_of_a_workflow_are_in_its_trace() {
    let traced = TracedKit::start().await;
    let _worker = traced.worker(&[]).await;
    let step = json!({ "type": "test.noop", "args": [] });
    post_with(&traced.kit, "/ojs/v1/workflows", &TRACE, &json!({ "type": "chain", "steps": [step, step] })).await;
    let mut traced = traced;
    eventually("both steps were recorded", || async {
        let spans = traced.receiver.spans();
        let has_two = |name: &str| spans.iter().filter(|span| span.name == name).count() == 2;
        // One of the jobs is made by the gateway, whose spans come by themselves
        (has_two("settle default") && has_two("enqueue default")).then_some(())
    })
    .await;
    let mut made: Vec<ReceivedSpan> =
        traced.receiver.spans().into_iter().filter(|span| span.name == "enqueue default").collect();
    made.sort_by_key(|span| span.began);
    for (span, name) in made.iter().zip(["first", "second"]) {
        traced.names.insert(span.attributes["messaging.message.id"].clone(), name);
    }
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/workflows status=201
              gateway producer enqueue default send first type=test.noop
                queue-worker client receive default receive first
                queue-worker consumer process default process first type=test.noop attempt=1
                  queue-worker client settle default settle first outcome=completed
              queue-worker producer enqueue default send second type=test.noop -> process default 1
                queue-worker client receive default receive second
                queue-worker consumer process default process second type=test.noop attempt=1
                  queue-worker client settle default settle second outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn callbacks_of_a_batch_have_links_to_the_attempts_that_lead_to_them() {
    let mut traced = TracedKit::start().await;
    let _worker = traced.worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "a,b,whole,alarm")]).await;
    let step = |queue: &str, job_type: &str| json!({ "type": job_type, "args": [], "retry": { "max_attempts": 1 }, "options": { "queue": queue } });
    let callbacks = json!({ "on_complete": step("whole", "test.noop"), "on_failure": step("alarm", "test.noop"),
        "on_success": step("never", "test.noop") });
    let jobs = [step("a", "test.noop"), step("b", "test.fail_always")];
    let body = json!({ "type": "batch", "jobs": jobs, "callbacks": callbacks });
    post_with(&traced.kit, "/ojs/v1/workflows", &TRACE, &body).await;
    for (queue, name) in [("a", "first"), ("b", "second"), ("whole", "complete"), ("alarm", "failure")] {
        traced.name_enqueued(queue, name).await;
    }
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/workflows status=201
              gateway producer enqueue a send first type=test.noop
                queue-worker client receive a receive first
                queue-worker consumer process a process first type=test.noop attempt=1
                  queue-worker client settle a settle first outcome=completed
              gateway producer enqueue b send second type=test.fail_always
                queue-worker client receive b receive second
                queue-worker consumer process b process second type=test.fail_always attempt=1 error=handler_error !exception handler_error
                  queue-worker client settle b settle second outcome=discarded
              queue-worker producer enqueue alarm send failure type=test.noop -> process b 1
                queue-worker client receive alarm receive failure
                queue-worker consumer process alarm process failure type=test.noop attempt=1
                  queue-worker client settle alarm settle failure outcome=completed
              queue-worker producer enqueue whole send complete type=test.noop -> process a 1 -> process b 1
                queue-worker client receive whole receive complete
                queue-worker consumer process whole process complete type=test.noop attempt=1
                  queue-worker client settle whole settle complete outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn a_workflow_whose_jobs_are_made_once_more_has_one_span_for_each() {
    let mut traced = TracedKit::start().await;
    let step = json!({ "type": "test.noop", "args": [], "options": { "queue": "slow" } });
    let started =
        post_with(&traced.kit, "/ojs/v1/workflows", &TRACE, &json!({ "type": "group", "jobs": [step] })).await;
    traced.name_enqueued("slow", "only").await;
    // As if the process that made the job had died before it could note that, and maintenance looked at the workflow
    let id = started["workflow"]["id"].as_str().expect("an id");
    traced.kit.redis_command(&["HDEL", &format!("galley:{{wf:{id}}}:w"), "n"]).await;
    traced.kit.redis_command(&["ZADD", "galley:workflows", "1", id]).await;
    eventually("it has looked", || async {
        let at = traced.kit.redis_command(&["ZSCORE", "galley:workflows", id]).await;
        (at != testkit::redis::Value::BulkString(b"1".to_vec())).then_some(())
    })
    .await;
    // Spans of the gateway arrive in the order of their ends
    let other_trace = [("traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")];
    let later = json!({ "type": "test.noop", "args": [], "queue": "later" });
    post_with(&traced.kit, "/ojs/v1/jobs", &other_trace, &later).await;
    traced.name_enqueued("later", "later").await;
    let _worker = traced.worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "slow")]).await;
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/workflows status=201
              gateway producer enqueue slow send only type=test.noop
                queue-worker client receive slow receive only
                queue-worker consumer process slow process only type=test.noop attempt=1
                  queue-worker client settle slow settle only outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn a_step_of_a_dag_has_links_to_the_attempts_that_it_waited_for() {
    let mut traced = TracedKit::start().await;
    let _worker = traced.worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "first,left,right,last")]).await;
    let step = |name: &str, depends_on: &[&str]| json!({ "id": name, "type": "test.noop", "args": [], "depends_on": depends_on, "options": { "queue": name } });
    let steps =
        [step("first", &[]), step("left", &["first"]), step("right", &["first"]), step("last", &["left", "right"])];
    post_with(&traced.kit, "/ojs/v1/workflows", &TRACE, &json!({ "type": "dag", "steps": steps })).await;
    for name in ["first", "left", "right", "last"] {
        traced.name_enqueued(name, name).await;
    }
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/workflows status=201
              gateway producer enqueue first send first type=test.noop
                queue-worker client receive first receive first
                queue-worker consumer process first process first type=test.noop attempt=1
                  queue-worker client settle first settle first outcome=completed
              queue-worker producer enqueue last send last type=test.noop -> process left 1 -> process right 1
                queue-worker client receive last receive last
                queue-worker consumer process last process last type=test.noop attempt=1
                  queue-worker client settle last settle last outcome=completed
              queue-worker producer enqueue left send left type=test.noop -> process first 1
                queue-worker client receive left receive left
                queue-worker consumer process left process left type=test.noop attempt=1
                  queue-worker client settle left settle left outcome=completed
              queue-worker producer enqueue right send right type=test.noop -> process first 1
                queue-worker client receive right receive right
                queue-worker consumer process right process right type=test.noop attempt=1
                  queue-worker client settle right settle right outcome=completed
            ",
        )
        .await;
}
