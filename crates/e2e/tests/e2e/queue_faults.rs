//! Each queue fails and heals alone.

use serde_json::{Value, json};
use testkit::ServiceProcess;

use crate::{http_client, kit::GalleyKit};

const QUEUES: [(&str, &str); 1] = [("GALLEY__QUEUE_WORKER__QUEUES", "bad,good")];

async fn start() -> (GalleyKit, ServiceProcess) {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&QUEUES).await;
    for queue in ["bad", "good"] {
        let id = kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": queue })).await;
        kit.wait_for_state(&id, "completed").await;
    }
    (kit, worker)
}

impl GalleyKit {
    /// A job of each queue completes: on a running worker, and on one that starts now.
    async fn assert_served(&self, queues: &[&str]) {
        for _ in 0..2 {
            for queue in queues {
                let id = self.enqueue(&json!({ "type": "test.echo", "args": [], "queue": queue })).await;
                self.wait_for_state(&id, "completed").await;
            }
            let worker = self.start_worker(&QUEUES).await;
            worker.terminate().await;
        }
    }

    async fn fetch_of(&self, queues: &[&str]) -> (u16, Value) {
        let response = self.post("/ojs/v1/workers/fetch", &json!({ "queues": queues, "worker_id": "p" })).await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_whose_group_was_destroyed_is_served_again_and_stops_no_other() {
    let (kit, _worker) = start().await;
    kit.redis_command(&["XGROUP", "DESTROY", "galley:{bad}:s:0", "workers"]).await;
    kit.assert_served(&["good", "bad"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_whose_stream_was_deleted_is_served_again_and_stops_no_other() {
    let (kit, _worker) = start().await;
    kit.redis_command(&["DEL", "galley:{bad}:s:0"]).await;
    kit.assert_served(&["good", "bad"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_found_though_the_index_of_the_priorities_is_gone() {
    let (kit, _worker) = start().await;
    kit.post("/ojs/v1/queues/bad/pause", &json!({})).await;
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": "bad", "priority": 7 })).await;
    kit.redis_command(&["DEL", "galley:{bad}:priorities"]).await;
    kit.post("/ojs/v1/queues/bad/resume", &json!({})).await;
    kit.wait_for_state(&id, "completed").await;
    kit.assert_served(&["good", "bad"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_a_key_of_a_wrong_type_stops_no_other_and_is_served_once_it_is_gone() {
    for key in ["s:0", "priorities", "control"] {
        let (kit, worker) = start().await;
        let key = format!("galley:{{bad}}:{key}");
        kit.redis_command(&["DEL", &key]).await;
        kit.redis_command(&["SET", &key, "not Galley's"]).await;
        kit.assert_served(&["good"]).await;
        let (status, _) = kit.fetch_of(&["bad", "good"]).await;
        assert_eq!(status, 200, "{key}");
        let ready = http_client::get(worker.url("/health/ready")).await.expect("it answers");
        assert!(ready.status().is_success(), "{key}");
        kit.redis_command(&["DEL", &key]).await;
        kit.assert_served(&["bad", "good"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_become_due_though_another_queue_has_a_key_of_a_wrong_type() {
    for key in ["due", "leases", "timers"] {
        let kit = GalleyKit::start().await;
        let _worker = kit.start_worker(&QUEUES).await;
        kit.redis_command(&["SET", &format!("galley:{{bad}}:{key}"), "not Galley's"]).await;
        let later = json!({ "type": "test.echo", "args": [], "queue": "good", "scheduled_at": "+PT1S" });
        let id = kit.enqueue(&later).await;
        kit.wait_for_state(&id, "completed").await;
    }
}
