//! Where a subscription's messages go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use common::name::{CommandName, JobType, QueueName};

/// Most secrets of a target: a shared one and a private key, each new and old during a rotation.
pub const MAX_SECRETS: usize = 4;
/// The placeholders that a URL may have.
pub const PLACEHOLDERS: [&str; 2] = ["subscription", "channel"];

/// Where messages go. It holds secrets, so it has no debug form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionTarget {
    /// To an HTTP endpoint, signed.
    Http(HttpTarget),
    /// Into a queue, as a job.
    Queue(QueueTarget),
    /// To a program that the file of the worker's commands names.
    Command(CommandName),
    /// Into the worker's log.
    Log {},
}

/// An HTTP endpoint.
#[derive(Clone, Serialize, Deserialize)]
pub struct HttpTarget {
    /// The URL.
    pub url: String,
    /// What signs requests: shared secrets and private keys, the old ones too during a rotation.
    pub secrets: Vec<String>,
    /// Headers of every request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Timeout of a request, until the end of the response.
    pub timeout_ms: u64,
    /// Requests of one worker at a time.
    pub concurrency: usize,
}

/// A queue, to which each message becomes a job.
#[derive(Clone, Serialize, Deserialize)]
pub struct QueueTarget {
    /// The queue of the jobs.
    pub queue: QueueName,
    /// The type of the jobs.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// Options as in an enqueue request, without those that Galley sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Box<RawValue>>,
}

impl SubscriptionTarget {
    /// The target as clients see it: without secrets, and with only the names of headers.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Http(http) => {
                let headers: BTreeMap<&String, Value> = http.headers.keys().map(|name| (name, Value::Null)).collect();
                json!({"http": {
                    "url": http.url,
                    "headers": headers,
                    "timeout_ms": http.timeout_ms,
                    "concurrency": http.concurrency,
                }})
                .to_string()
            }
            other => serde_json::to_string(other).unwrap_or_default(),
        }
    }
}
