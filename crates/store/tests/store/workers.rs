//! The list of workers, whose parts have a slot of Redis Cluster each.

use std::time::Duration;

use serde_json::json;
use store::workers::{Directive, WorkerAction, WorkerKey, WorkerRecord, Workers};

use crate::kit::StoreKit;

const TTL: Duration = Duration::from_secs(30);

fn record() -> WorkerRecord {
    let record = json!({"name": "w", "state": "running", "last_seen_at": "2026-01-01T00:00:00Z"});
    serde_json::from_value(record).expect("a report")
}

fn key(name: &str) -> WorkerKey {
    format!("pull:{name}").parse().expect("a worker")
}

#[tokio::test]
async fn a_report_that_was_cut_off_between_its_steps_is_completed_by_the_next() {
    let kit = StoreKit::start();
    let workers = Workers::new(&kit.redis);
    let report = async || workers.report_worker(&key("w"), &record(), TTL, None, WorkerAction::Heartbeat).await;
    report().await.expect("redis runs");
    let keys = workers.worker_keys().await.expect("redis runs");
    assert_eq!(keys, [key("w")]);
    // As if its process had died after the list, and before the report
    kit.redis_command(&["DEL", "galley:worker:pull:w"]).await;
    assert!(workers.workers(&keys).await.expect("redis runs").is_empty());
    let issued = workers.set_directive(&key("w"), Directive::Quiet).await.expect("issued");
    assert_eq!(report().await.expect("redis runs"), Some(issued));
    let shown = workers.workers(&keys).await.expect("redis runs");
    assert_eq!(shown.iter().map(|shown| shown.record.name.as_str()).collect::<Vec<_>>(), ["w"]);
}

#[tokio::test]
async fn a_worker_beyond_the_maximum_is_neither_listed_nor_stored() {
    let kit = StoreKit::start();
    let workers = Workers::new(&kit.redis);
    for name in ["a", "b", "a"] {
        let reported = workers.report_worker(&key(name), &record(), TTL, Some(1), WorkerAction::Fetch).await;
        assert_eq!(reported.expect("redis runs"), None);
    }
    assert_eq!(workers.worker_keys().await.expect("redis runs"), [key("a")]);
    assert!(!kit.redis_keys().await.contains(&"galley:worker:pull:b".to_owned()));
}

#[tokio::test]
async fn a_worker_that_stopped_reporting_is_shown_as_silent_until_it_is_back() {
    let kit = StoreKit::start();
    let workers = Workers::new(&kit.redis);
    for name in ["gone", "here"] {
        let reported = workers.report_worker(&key(name), &record(), TTL, None, WorkerAction::Heartbeat).await;
        reported.expect("redis runs");
    }
    kit.redis_command(&["ZADD", "galley:workers", "1", "pull:gone"]).await;
    let report = async |name| {
        workers.report_worker(&key(name), &record(), TTL, None, WorkerAction::Heartbeat).await.expect("redis runs");
        let silent = workers.silent_workers().await.expect("redis runs");
        silent.into_iter().map(|silent| silent.key).collect::<Vec<_>>()
    };
    assert_eq!(report("here").await, [key("gone")]);
    assert_eq!(report("gone").await, []);
}
