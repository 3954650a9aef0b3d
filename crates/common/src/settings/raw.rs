//! Settings as they were written: no value has been looked at yet.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) redis: Redis,
    pub(super) gateway: Gateway,
    pub(super) queue_worker: QueueWorker,
    pub(super) pubsub_worker: PubsubWorker,
    pub(super) jobs: Jobs,
    #[serde(default)]
    pub(super) queues: BTreeMap<String, Queue>,
    pub(super) bridge: Bridge,
    pub(super) channels: Channels,
    pub(super) maintenance: Maintenance,
    pub(super) telemetry: Telemetry,
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Redis {
    pub(super) url: String,
    pub(super) connect_timeout_ms: u64,
    pub(super) response_timeout_ms: u64,
    pub(super) pool_size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) listen: String,
    pub(super) body_limit_bytes: u64,
    pub(super) json_depth_limit: u64,
    pub(super) head_timeout_ms: u64,
    pub(super) body_timeout_ms: u64,
    pub(super) shutdown_grace_ms: u64,
    pub(super) test_directives: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueWorker {
    pub(super) listen: String,
    pub(super) queues: Vec<String>,
    pub(super) name: String,
    pub(super) concurrency: u64,
    pub(super) shutdown_grace_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PubsubWorker {
    pub(super) listen: String,
    pub(super) channels: Vec<String>,
    pub(super) buffer_messages: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jobs {
    pub(super) lease_ms: u64,
    pub(super) pull_lease_ms: u64,
    pub(super) crash_budget: u64,
    pub(super) result_ttl_ms: u64,
    pub(super) dead_letter_ttl_ms: u64,
    pub(super) dead_letter_max: u64,
    pub(super) result_limit_bytes: u64,
    pub(super) max_queues: u64,
    pub(super) events_max: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Queue {
    pub(super) max_depth: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bridge {
    pub(super) list: String,
    pub(super) queue: String,
    pub(super) job_type: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Channels {
    pub(super) history_max: u64,
    pub(super) history_ttl_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintenance {
    pub(super) office_ms: u64,
    pub(super) sweep_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Telemetry {
    pub(super) otlp_endpoint: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: String,
    pub(super) level: String,
}
