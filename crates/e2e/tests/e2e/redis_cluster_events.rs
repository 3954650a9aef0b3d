//! Event streams of gateways on a real Redis Cluster, where several nodes have the events.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::{ClusterProcesses, PATIENCE, RedisServer, ServiceProcess};

use crate::{
    events::{JobEventsClient, ReceivedJobEvent, STREAM},
    http_client::CheckedClient,
    kit::GalleyKit,
};

/// Queues at all nodes.
const QUEUES: [&str; 6] = ["mail", "orders", "images", "reports", "q1", "q2"];
const ROUNDS: usize = 3;

/// The Redis of the kit is another one.
async fn start(cluster: &ClusterProcesses) -> (GalleyKit, ServiceProcess) {
    let (gateway, other) = (
        ServiceProcess::start_with_redis_url("gateway", &cluster.url(), &PATIENCE).await,
        ServiceProcess::start_with_redis_url("gateway", &cluster.url(), &PATIENCE).await,
    );
    for gateway in [&gateway, &other] {
        gateway.wait_until_ready().await;
    }
    (GalleyKit { gateway, http: CheckedClient::new(), redis: RedisServer::start() }, other)
}

fn job(queue: &str) -> Value {
    json!({ "type": "test.noop", "args": [], "options": { "queue": queue } })
}

fn job_id(event: &ReceivedJobEvent) -> String {
    event.data["data"]["job_id"].as_str().expect("an id").to_owned()
}

async fn next_events(stream: &mut JobEventsClient, count: usize) -> Vec<ReceivedJobEvent> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(stream.expect("job.enqueued").await);
    }
    events
}

#[tokio::test]
async fn a_client_of_a_cluster_comes_back_to_any_gateway_with_any_id_of_its_stream() {
    let cluster = ClusterProcesses::start().await;
    let (kit, other) = start(&cluster).await;
    let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    let mut ids = Vec::new();
    for queue in QUEUES.repeat(ROUNDS) {
        ids.push(kit.enqueue(&job(queue)).await);
    }
    let seen = next_events(&mut stream, ids.len()).await;
    assert_eq!(seen.iter().map(job_id).collect::<BTreeSet<_>>(), ids.iter().cloned().collect());
    for number in [0, 3, 7, 12, ids.len() - 2] {
        let last = &seen[number].id;
        let expected: BTreeSet<String> = seen[number + 1..].iter().map(job_id).collect();
        for mut back in [
            JobEventsClient::open(other.url(STREAM), Some(last)).await,
            JobEventsClient::open(kit.gateway.url(&format!("{STREAM}?after={last}")), None).await,
        ] {
            let rest = next_events(&mut back, expected.len()).await;
            assert_eq!(rest.iter().map(job_id).collect::<BTreeSet<_>>(), expected, "{last}");
        }
    }
    // A stream of one queue has its order, and the list all of them
    let of_queue = format!("/ojs/v1/queues/{}/events?after=0-0-0", QUEUES[1]);
    let events = next_events(&mut JobEventsClient::open(other.url(&of_queue), None).await, ROUNDS).await;
    let expected: Vec<String> = ids.iter().skip(1).step_by(QUEUES.len()).cloned().collect();
    assert_eq!(events.iter().map(job_id).collect::<Vec<_>>(), expected);
    let list: Value = kit.get("/ojs/v1/events?limit=1000").await.json().await.expect("JSON");
    let listed = list["events"].as_array().expect("events");
    assert_eq!(listed.len(), ids.len(), "{list}");
    let last = listed.last().expect("some")["id"].as_str().expect("an id");
    let mut after_list = JobEventsClient::open(other.url(STREAM), Some(last)).await;
    let new = kit.enqueue(&job("mail")).await;
    while job_id(&after_list.expect("job.enqueued").await) != new {}
}

#[tokio::test]
async fn the_stream_of_a_job_on_a_cluster_ends_with_the_job() {
    let cluster = ClusterProcesses::start().await;
    let (kit, other) = start(&cluster).await;
    for queue in QUEUES {
        let id = kit.enqueue(&job(queue)).await;
        let path = format!("/ojs/v1/jobs/{id}/events");
        let mut stream = JobEventsClient::open(kit.gateway.url(&path), None).await;
        stream.expect("job.enqueued").await;
        let cancelled = kit.http.delete(kit.gateway.url(&format!("/ojs/v1/jobs/{id}"))).send().await;
        assert_eq!(cancelled.expect("an answer").status(), 200);
        let last = stream.rest().await.pop().expect("its end");
        assert_eq!(last.event, "job.cancelled");
        // The same from what is kept, and a browser that heard the end need not come back
        let known = JobEventsClient::open(other.url(&path), None).await.rest().await;
        assert_eq!(
            known.iter().map(|event| event.event.as_str()).collect::<Vec<_>>(),
            ["job.enqueued", "job.cancelled"]
        );
        for seen in [&last.id, &known[1].id] {
            let again = kit.http.get(kit.gateway.url(&path)).header("last-event-id", seen).send().await;
            assert_eq!(again.expect("an answer").status(), 204, "{seen}");
        }
    }
}
