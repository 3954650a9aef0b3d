//! Where a subscription's messages go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use common::name::{CommandName, JobType, QueueName};

/// Secrets at a time: the new one, and the old one during a rotation.
pub const MAX_SECRETS: usize = 2;
/// What a URL may have placeholders for.
pub const PLACEHOLDERS: [&str; 2] = ["subscription", "channel"];

/// Where messages go. Holds secrets: it has no debug form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionTarget {
    /// To somebody else's endpoint, signed.
    Http(HttpTarget),
    /// Into a queue, as a job.
    Queue(QueueTarget),
    /// To a program that the worker's own configuration knows by that name.
    Command(CommandName),
    /// Into the worker's log.
    Log {},
}

/// An endpoint.
#[derive(Clone, Serialize, Deserialize)]
pub struct HttpTarget {
    /// Where to.
    pub url: String,
    /// What to sign with: one, or two while they are exchanged.
    pub secrets: Vec<String>,
    /// Sent with every request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// For the whole answer.
    pub timeout_ms: u64,
    /// Requests at a time, of one worker.
    pub concurrency: usize,
}

/// Jobs to make.
#[derive(Clone, Serialize, Deserialize)]
pub struct QueueTarget {
    /// Where they go.
    pub queue: QueueName,
    /// What they are.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// As an enqueue has them, except for what Galley itself sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Box<RawValue>>,
}

impl SubscriptionTarget {
    /// The target as clients see it: secrets are left out, and of headers only the names are shown.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Http(http) => {
                let headers: BTreeMap<&String, Value> = http.headers.keys().map(|name| (name, Value::Null)).collect();
                json!({"http": {
                    "url": http.url,
                    "headers": headers,
                    "timeout_ms": http.timeout_ms,
                    "concurrency": http.concurrency,
                }})
            }
            other => serde_json::to_value(other).unwrap_or_default(),
        }
    }
}
