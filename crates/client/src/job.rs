//! Jobs: as they are made, and as they are.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::Error;

/// The member of `meta` by which [`NewJob::debounce`] tells jobs apart.
const DEBOUNCE_KEY: &str = "debounce_key";

/// A job to enqueue.
#[derive(Debug, Clone, Serialize)]
pub struct NewJob {
    #[serde(rename = "type")]
    job_type: String,
    args: Value,
    #[serde(skip_serializing_if = "Map::is_empty")]
    meta: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    options: Map<String, Value>,
}

impl NewJob {
    /// A job of a type with its arguments: a tuple, an array or a `Vec`.
    ///
    /// ```
    /// use galley_client::NewJob;
    ///
    /// NewJob::new("email.send", ("ann@example.com", 3)).expect("two arguments");
    /// NewJob::new("email.send", ["ann@example.com"]).expect("one argument");
    /// NewJob::new("email.send", [(); 0]).expect("no arguments");
    /// assert!(NewJob::new("email.send", "ann@example.com").is_err());
    /// ```
    ///
    /// # Errors
    /// The arguments cannot be written as a JSON array.
    pub fn new(job_type: impl Into<String>, args: impl Serialize) -> Result<Self, Error> {
        let args = serde_json::to_value(args)?;
        if !args.is_array() {
            return Err(Error::Invalid(format!("arguments must be a tuple, an array or a Vec, got {args}")));
        }
        Ok(Self { job_type: job_type.into(), args, meta: Map::new(), options: Map::new() })
    }

    /// Its queue; `default` unless set.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.option("queue", queue.into())
    }

    /// Its priority, -100 to 100; jobs of a higher one start first.
    #[must_use]
    pub fn priority(self, priority: i8) -> Self {
        self.option("priority", priority)
    }

    /// Starts it that long from now.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.option("scheduled_at", format!("+{}", iso_duration(delay)))
    }

    /// Starts it at a time in RFC 3339, such as `2030-01-01T09:00:00Z`.
    #[must_use]
    pub fn at(self, time: impl Into<String>) -> Self {
        self.option("scheduled_at", time.into())
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.option("timeout_ms", u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
    }

    /// The number of attempts.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        let retry = self.options.entry("retry").or_insert_with(|| json!({}));
        retry["max_attempts"] = attempts.into();
        self
    }

    /// Refuses the job (`duplicate`) while a job of its type, queue and arguments has not ended.
    #[must_use]
    pub fn unique(self) -> Self {
        self.option("unique", json!({ "keys": ["type", "args"] }))
    }

    /// Puts off a job of its type and queue that waits, and makes it this one: a series of them runs once, that long after the
    /// last one, with its arguments, and at the latest `max_wait` after the first. By `key`: jobs of different ones do not
    /// put each other off.
    ///
    /// ```
    /// use std::time::Duration;
    /// use galley_client::NewJob;
    ///
    /// NewJob::new("index.build", (7, "third draft"))
    ///     .expect("two arguments")
    ///     .debounce("7", Duration::from_secs(5), Some(Duration::from_mins(1)));
    /// ```
    #[must_use]
    pub fn debounce(self, key: impl Into<String>, delay: Duration, max_wait: Option<Duration>) -> Self {
        let mut unique = json!({ "keys": ["meta"], "meta_keys": [DEBOUNCE_KEY], "on_conflict": "debounce" });
        if let Some(longest) = max_wait {
            unique["max_wait"] = iso_duration(longest).into();
        }
        self.meta(DEBOUNCE_KEY, key.into()).delay(delay).option("unique", unique)
    }

    /// A value that comes back with the job, such as a tenant.
    #[must_use]
    pub fn meta(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.meta.insert(name.into(), value.into());
        self
    }

    /// Any other option of an enqueue request, such as `rate_limit`. The gateway checks it.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }
}

fn iso_duration(length: Duration) -> String {
    format!("PT{:.3}S", length.as_secs_f64())
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobState {
    /// It waits for its time.
    Scheduled,
    /// It waits for a worker.
    Available,
    /// It waits until it is activated.
    Pending,
    /// It runs.
    Active,
    /// It succeeded.
    Completed,
    /// An attempt failed, and another one follows.
    Retryable,
    /// It was cancelled.
    Cancelled,
    /// It failed for good.
    Discarded,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl JobState {
    /// Whether nothing more happens to the job.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Discarded)
    }
}

/// A job as it was when the gateway answered.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub job_type: String,
    /// Its queue.
    pub queue: String,
    /// Its state.
    pub state: JobState,
    /// The number of its attempts so far.
    #[serde(default)]
    pub attempt: u32,
    /// What its handler gave, once it is completed.
    #[serde(default)]
    pub result: Option<Value>,
    /// The last error of its handler.
    #[serde(default)]
    pub error: Option<Value>,
    /// What it waits for in the middle of its work.
    #[serde(default)]
    pub waiting: Option<Wait>,
    /// Every other member.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl Job {
    /// The result as a type. A job without a result has the result `null`.
    ///
    /// # Errors
    /// It is not of that type.
    pub fn result_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_value(self.result.clone().unwrap_or_default())?)
    }
}

/// What a job waits for in the middle of its work.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Wait {
    /// The step of the job that waits.
    pub step: String,
    /// The signal; none if it waits for a time alone.
    #[serde(default)]
    pub signal: Option<String>,
    /// Since when, as RFC 3339.
    pub since: String,
    /// When the wait ends without a signal, if it does.
    #[serde(default)]
    pub until: Option<String>,
}

/// What somebody told a job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct SentSignal {
    /// Its number among the signals of the job, from 1.
    pub sequence: u64,
    /// What it is called.
    pub name: String,
    /// What tells it from others.
    pub id: String,
    /// When it came, as RFC 3339.
    pub sent_at: String,
    /// What it brought.
    pub data: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_job_is_written_as_an_enqueue_request() {
        let job = NewJob::new("a.b", (1, "x")).expect("arguments").queue("q").delay(Duration::from_millis(1500));
        let job = job.max_attempts(2).meta("tenant", "t").timeout(Duration::from_secs(3));
        assert_eq!(
            serde_json::to_value(job).expect("JSON"),
            json!({
                "type": "a.b", "args": [1, "x"], "meta": { "tenant": "t" },
                "options": { "queue": "q", "scheduled_at": "+PT1.500S", "retry": { "max_attempts": 2 }, "timeout_ms": 3000 },
            })
        );
    }

    #[test]
    fn states_of_later_versions_are_read() {
        let state = |name: &str| serde_json::from_value::<JobState>(json!(name)).expect("a state");
        assert_eq!((state("retryable"), state("frozen")), (JobState::Retryable, JobState::Unknown));
        assert!(state("cancelled").is_terminal() && !state("frozen").is_terminal());
    }
}
