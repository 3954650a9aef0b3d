//! Whole traces of messages and of batches, as a receiver gets them.

use serde_json::{Value, json};
use testkit::{WebhookReceiver, WebhookReply, eventually};

use crate::{
    subscriptions_delivery::put,
    trace_context::{TRACE, TRACE_ID, post_with},
    traced_kit::TracedKit,
};

#[tokio::test]
async fn a_message_its_webhook_and_its_redelivery_are_one_trace() {
    let mut traced = TracedKit::start().await;
    let _pubsub_worker = traced.pubsub_worker().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(500, "", ""), WebhookReply::ok("")]).await;
    let retry = json!({ "initial_interval": "PT0.05S" });
    let hook = json!({ "channels": ["c"], "deliver": { "http": { "url": receiver.url("/") } }, "retry": retry });
    put(&traced.kit, "hook", &hook).await;
    let published = post_with(&traced.kit, "/v1/channels/c/messages", &TRACE[..1], &json!(1)).await;
    traced.names.insert(published["id"].as_str().expect("an id").to_owned(), "message");
    receiver.wait_for_requests(2).await;
    traced.name_enqueued("sub.hook", "again").await;
    for request in receiver.requests() {
        traced.names.insert(request.header("webhook-id").expect("an id").to_owned(), "webhook");
    }
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /v1/channels/{channel}/messages status=201
              gateway producer publish send message
                pubsub-worker consumer deliver hook process message error=push_server_error outcome=failed !exception push_server_error
                  pubsub-worker client POST webhook status=500 error=500
                pubsub-worker producer enqueue sub.hook send again type=message.deliver
                  pubsub-worker client receive sub.hook receive again
                  pubsub-worker consumer deliver hook process message outcome=delivered
                    pubsub-worker client POST webhook status=200
                    pubsub-worker client settle sub.hook settle again outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn a_message_that_becomes_a_job_is_one_trace_across_all_three_services() {
    let mut traced = TracedKit::start().await;
    let (_worker, _pubsub_worker) = (traced.worker(&[]).await, traced.pubsub_worker().await);
    let queue = json!({ "channels": ["c"], "deliver": { "queue": { "queue": "default", "type": "test.noop" } } });
    put(&traced.kit, "jobs", &queue).await;
    let published = post_with(&traced.kit, "/v1/channels/c/messages", &TRACE[..1], &json!(1)).await;
    traced.names.insert(published["id"].as_str().expect("an id").to_owned(), "message");
    traced.name_enqueued("default", "job").await;
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /v1/channels/{channel}/messages status=201
              gateway producer publish send message
                pubsub-worker consumer deliver jobs process message outcome=delivered
                  pubsub-worker producer enqueue default send job type=test.noop
                    queue-worker client receive default receive job
                    queue-worker consumer process default process job type=test.noop attempt=1
                      queue-worker client settle default settle job outcome=completed
            ",
        )
        .await;
}

#[tokio::test]
async fn batches_have_a_span_for_all_and_jobs_of_several_traces_are_linked() {
    let traced = TracedKit::start().await;
    let job = json!({ "type": "a.b", "args": [], "queue": "pulled" });
    let batch = json!({ "jobs": [job, job] });
    post_with(&traced.kit, "/ojs/v1/jobs/batch", &TRACE[..1], &batch).await;
    let other = [("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")];
    post_with(&traced.kit, "/ojs/v1/jobs", &other, &job).await;
    let fetch = json!({ "queues": ["pulled"], "count": 3 });
    let fetched: Value = traced.kit.post("/ojs/v1/workers/fetch", &fetch).await.json().await.expect("JSON");
    assert_eq!(fetched["jobs"].as_array().map(Vec::len), Some(3));
    traced
        .assert_tree(
            TRACE_ID,
            "
            gateway server POST /ojs/v1/jobs/batch status=201
              gateway producer enqueue pulled send batch=2
            ",
        )
        .await;
    let claim = eventually("the span of the claim", || async {
        traced.receiver.spans().into_iter().find(|span| span.name == "receive pulled")
    })
    .await;
    assert_eq!((claim.parent_span_id.as_str(), claim.attributes["messaging.batch.message_count"].as_str()), ("", "3"));
    let spans = traced.receiver.spans();
    let made = |link: &(String, String)| {
        spans.iter().any(|span| span.name == "enqueue pulled" && (&span.trace_id, &span.span_id) == (&link.0, &link.1))
    };
    assert!(claim.links.len() == 3 && claim.links.iter().all(made), "{claim:?}");
}
