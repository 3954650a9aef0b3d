//! The services behind real sentinels.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{SentinelSet, ServiceProcess, eventually};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
};

/// Jobs before, during and after a failover.
const JOBS: usize = 20;

/// Enqueues a job. While there is no primary it is refused, and a client may try again.
async fn try_enqueue(kit: &GalleyKit, number: usize) -> Option<String> {
    let response = kit.post("/ojs/v1/jobs", &job_body("test.echo", &json!([number]))).await;
    if response.status() != 201 {
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        return None;
    }
    let answer: Value = response.json().await.expect("JSON");
    Some(answer["job"]["id"].as_str().expect("an id").to_owned())
}

#[tokio::test]
async fn jobs_from_before_during_and_after_a_failover_are_all_completed() {
    let SentinelSet { mut primary, replica, sentinels } = SentinelSet::start().await;
    // At first not even the end of the primary is a failover
    let url = sentinels.url();
    let start = async |name| ServiceProcess::start_with_redis_url(name, &url, &[]).await;
    let (gateway, worker, listener) =
        (start("gateway").await, start("queue-worker").await, start("pubsub-worker").await);
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: replica };
    let mut ids = Vec::new();
    for number in 0..JOBS {
        ids.push(try_enqueue(&kit, number).await.expect("there is a primary"));
    }
    primary.wait_until_replicated().await;
    primary.kill();
    assert_eq!(try_enqueue(&kit, JOBS).await, None, "nobody can have noticed yet");
    sentinels.set_down_after(Duration::from_secs(1)).await;
    for number in JOBS..2 * JOBS {
        ids.push(eventually("a job is accepted", || try_enqueue(&kit, number)).await);
    }
    sentinels.wait_until_primary_is(&kit.redis).await;
    for number in 2 * JOBS..3 * JOBS {
        ids.push(eventually("a job is accepted", || try_enqueue(&kit, number)).await);
    }
    for id in &ids {
        kit.wait_for_state(id, "completed").await;
    }
    for service in [&kit.gateway, &worker, &listener] {
        service.wait_until_ready().await;
        let address = format!("127.0.0.1:{}", kit.redis.port());
        eventually("it has found the new primary", || async {
            (service.events("redis.primary_found").last()?["address"] == address.as_str()).then_some(())
        })
        .await;
    }
    eventually("messages arrive", || async {
        kit.post("/v1/channels/task:pubsub:channel/messages", &json!("again")).await;
        listener.tasks().contains(&"\"again\"".to_owned()).then_some(())
    })
    .await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200, "the pool too");
}
