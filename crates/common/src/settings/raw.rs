//! Settings as they were written: no value has been looked at yet.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// A whole number, or text that is one: variables are always text. Nothing is rounded or guessed.
#[derive(Debug, Clone, Copy)]
pub(super) struct WholeNumber(pub(super) u64);

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeNumberVisitor;
        impl Visitor<'_> for WholeNumberVisitor {
            type Value = WholeNumber;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<WholeNumber, E> {
                Ok(WholeNumber(number))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<WholeNumber, E> {
                u64::try_from(number).map(WholeNumber).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<WholeNumber, E> {
                text.parse().map(WholeNumber).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(WholeNumberVisitor)
    }
}

/// A list of names: an array in a file, comma-separated in a variable.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum NameList {
    Array(Vec<String>),
    Text(String),
}

impl NameList {
    pub(super) fn names(&self) -> Vec<&str> {
        let written: Vec<&str> = match self {
            Self::Array(names) => names.iter().map(String::as_str).collect(),
            Self::Text(text) => text.split(',').collect(),
        };
        written.into_iter().map(str::trim).filter(|name| !name.is_empty()).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSettings {
    pub(super) redis: RawRedis,
    pub(super) gateway: RawGateway,
    pub(super) queue_worker: RawQueueWorker,
    pub(super) pubsub_worker: RawPubsubWorker,
    pub(super) jobs: RawJobs,
    pub(super) workflows: RawWorkflows,
    #[serde(default)]
    pub(super) queues: BTreeMap<String, RawQueue>,
    pub(super) cron: RawCron,
    pub(super) bridge: RawBridge,
    pub(super) channels: RawChannels,
    pub(super) subscriptions: RawSubscriptions,
    pub(super) maintenance: RawMaintenance,
    pub(super) telemetry: RawTelemetry,
    pub(super) log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRedis {
    pub(super) url: String,
    pub(super) connect_timeout_ms: WholeNumber,
    pub(super) response_timeout_ms: WholeNumber,
    pub(super) pool_size: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGateway {
    pub(super) listen: String,
    pub(super) body_limit_bytes: WholeNumber,
    pub(super) json_depth_limit: WholeNumber,
    pub(super) head_timeout_ms: WholeNumber,
    pub(super) body_timeout_ms: WholeNumber,
    pub(super) shutdown_grace_ms: WholeNumber,
    pub(super) max_wait_ms: WholeNumber,
    pub(super) max_waiters: WholeNumber,
    pub(super) idempotency_ttl_ms: WholeNumber,
    pub(super) batch_max_jobs: WholeNumber,
    pub(super) batch_limit_bytes: WholeNumber,
    pub(super) test_directives: bool,
    pub(super) max_event_streams: WholeNumber,
    pub(super) event_keep_alive_ms: WholeNumber,
    pub(super) allowed_origins: NameList,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQueueWorker {
    pub(super) listen: String,
    pub(super) queues: NameList,
    #[serde(default)]
    pub(super) weights: BTreeMap<String, WholeNumber>,
    pub(super) name: String,
    #[serde(default)]
    pub(super) queue_concurrency: BTreeMap<String, WholeNumber>,
    pub(super) rules: String,
    pub(super) demo_handlers: bool,
    pub(super) concurrency: WholeNumber,
    pub(super) shutdown_grace_ms: WholeNumber,
    pub(super) stop_grace_ms: WholeNumber,
    pub(super) beat_ms: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPubsubWorker {
    pub(super) listen: String,
    pub(super) channels: NameList,
    pub(super) subscriptions: bool,
    pub(super) name: String,
    pub(super) shutdown_grace_ms: WholeNumber,
    pub(super) commands: String,
    pub(super) buffer_messages: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSubscriptions {
    pub(super) max: WholeNumber,
    pub(super) disable_after_ms: WholeNumber,
    pub(super) checkpoint_ttl_ms: WholeNumber,
    pub(super) allow_private: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawJobs {
    pub(super) lease_ms: WholeNumber,
    pub(super) pull_lease_ms: WholeNumber,
    pub(super) crash_budget: WholeNumber,
    pub(super) result_ttl_ms: WholeNumber,
    pub(super) dead_letter_ttl_ms: WholeNumber,
    pub(super) dead_letter_max: WholeNumber,
    pub(super) result_limit_bytes: WholeNumber,
    pub(super) max_queues: WholeNumber,
    pub(super) events_max: WholeNumber,
    pub(super) started_events: bool,
    pub(super) max_pull_workers: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorkflows {
    pub(super) max_jobs: WholeNumber,
    pub(super) results_limit_bytes: WholeNumber,
    pub(super) check_ms: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawQueue {
    pub(super) max_depth: Option<WholeNumber>,
    pub(super) concurrency: Option<WholeNumber>,
    pub(super) rate_limit: Option<WholeNumber>,
    pub(super) rate_period_ms: Option<WholeNumber>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCron {
    pub(super) max_entries: WholeNumber,
    pub(super) catch_up_max: WholeNumber,
    pub(super) catch_up_window_ms: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBridge {
    pub(super) list: String,
    pub(super) queue: String,
    pub(super) job_type: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawChannels {
    pub(super) history_max: WholeNumber,
    pub(super) history_max_age_ms: WholeNumber,
    pub(super) history_max_bytes: WholeNumber,
    pub(super) history_ttl_ms: WholeNumber,
    pub(super) cap_messages: WholeNumber,
    pub(super) cap_bytes: WholeNumber,
    #[expect(clippy::struct_field_names, reason = "the fields are the keys as they are written")]
    pub(super) max_channels: WholeNumber,
    pub(super) plain: NameList,
    pub(super) max_readers: WholeNumber,
    pub(super) ring_bytes: WholeNumber,
    pub(super) rings_bytes: WholeNumber,
    pub(super) stall_ms: WholeNumber,
    pub(super) sweep_ms: WholeNumber,
    pub(super) probe_ms: WholeNumber,
    #[serde(default)]
    pub(super) retention: BTreeMap<String, RawRetention>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetention {
    pub(super) messages: Option<WholeNumber>,
    pub(super) age_ms: Option<WholeNumber>,
    pub(super) bytes: Option<WholeNumber>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are the keys as they are written")]
pub(super) struct RawMaintenance {
    pub(super) leader_lease_ms: WholeNumber,
    pub(super) sweep_ms: WholeNumber,
    pub(super) channels_ms: WholeNumber,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTelemetry {
    pub(super) otlp_endpoint: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: String,
    pub(super) level: String,
}
