//! Settings as they were written: no value has been looked at yet.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// A whole number, or text that is one: variables are always text. Nothing is rounded or guessed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole(pub(super) u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Whole, E> {
                u64::try_from(number).map(Whole).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Whole, E> {
                text.parse().map(Whole).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// A list of names: an array in a file, comma-separated in a variable.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum List {
    Array(Vec<String>),
    Text(String),
}

impl List {
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
pub(super) struct Raw {
    pub(super) redis: Redis,
    pub(super) gateway: Gateway,
    pub(super) queue_worker: QueueWorker,
    pub(super) pubsub_worker: PubsubWorker,
    pub(super) jobs: Jobs,
    pub(super) workflows: Workflows,
    #[serde(default)]
    pub(super) queues: BTreeMap<String, Queue>,
    pub(super) cron: Cron,
    pub(super) bridge: Bridge,
    pub(super) channels: Channels,
    pub(super) subscriptions: Subscriptions,
    pub(super) maintenance: Maintenance,
    pub(super) telemetry: Telemetry,
    pub(super) log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Redis {
    pub(super) url: String,
    pub(super) connect_timeout_ms: Whole,
    pub(super) response_timeout_ms: Whole,
    pub(super) pool_size: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) listen: String,
    pub(super) body_limit_bytes: Whole,
    pub(super) json_depth_limit: Whole,
    pub(super) head_timeout_ms: Whole,
    pub(super) body_timeout_ms: Whole,
    pub(super) shutdown_grace_ms: Whole,
    pub(super) max_wait_ms: Whole,
    pub(super) max_waiters: Whole,
    pub(super) idempotency_ttl_ms: Whole,
    pub(super) batch_max_jobs: Whole,
    pub(super) batch_limit_bytes: Whole,
    pub(super) test_directives: bool,
    pub(super) max_event_streams: Whole,
    pub(super) event_keep_alive_ms: Whole,
    pub(super) allowed_origins: List,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueWorker {
    pub(super) listen: String,
    pub(super) queues: List,
    #[serde(default)]
    pub(super) weights: BTreeMap<String, Whole>,
    pub(super) name: String,
    #[serde(default)]
    pub(super) queue_concurrency: BTreeMap<String, Whole>,
    pub(super) rules: String,
    pub(super) demo_handlers: bool,
    pub(super) concurrency: Whole,
    pub(super) shutdown_grace_ms: Whole,
    pub(super) stop_grace_ms: Whole,
    pub(super) beat_ms: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PubsubWorker {
    pub(super) listen: String,
    pub(super) channels: List,
    pub(super) subscriptions: bool,
    pub(super) name: String,
    pub(super) shutdown_grace_ms: Whole,
    pub(super) commands: String,
    pub(super) buffer_messages: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subscriptions {
    pub(super) max: Whole,
    pub(super) disable_after_ms: Whole,
    pub(super) checkpoint_ttl_ms: Whole,
    pub(super) allow_private: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jobs {
    pub(super) lease_ms: Whole,
    pub(super) pull_lease_ms: Whole,
    pub(super) crash_budget: Whole,
    pub(super) result_ttl_ms: Whole,
    pub(super) dead_letter_ttl_ms: Whole,
    pub(super) dead_letter_max: Whole,
    pub(super) result_limit_bytes: Whole,
    pub(super) max_queues: Whole,
    pub(super) events_max: Whole,
    pub(super) started_events: bool,
    pub(super) max_pull_workers: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workflows {
    pub(super) max_jobs: Whole,
    pub(super) results_limit_bytes: Whole,
    pub(super) check_ms: Whole,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Queue {
    pub(super) max_depth: Option<Whole>,
    pub(super) concurrency: Option<Whole>,
    pub(super) rate_limit: Option<Whole>,
    pub(super) rate_period_ms: Option<Whole>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cron {
    pub(super) max_entries: Whole,
    pub(super) catch_up_max: Whole,
    pub(super) catch_up_window_ms: Whole,
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
    pub(super) history_max: Whole,
    pub(super) history_max_age_ms: Whole,
    pub(super) history_max_bytes: Whole,
    pub(super) history_ttl_ms: Whole,
    pub(super) cap_messages: Whole,
    pub(super) cap_bytes: Whole,
    #[expect(clippy::struct_field_names, reason = "the fields are the keys as they are written")]
    pub(super) max_channels: Whole,
    pub(super) plain: List,
    pub(super) max_readers: Whole,
    pub(super) ring_bytes: Whole,
    pub(super) rings_bytes: Whole,
    pub(super) stall_ms: Whole,
    pub(super) sweep_ms: Whole,
    pub(super) probe_ms: Whole,
    #[serde(default)]
    pub(super) retention: BTreeMap<String, Retention>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retention {
    pub(super) messages: Option<Whole>,
    pub(super) age_ms: Option<Whole>,
    pub(super) bytes: Option<Whole>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are the keys as they are written")]
pub(super) struct Maintenance {
    pub(super) office_ms: Whole,
    pub(super) sweep_ms: Whole,
    pub(super) channels_ms: Whole,
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
