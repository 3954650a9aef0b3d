//! The list bridge: elements that any program pushes onto a Redis list become jobs.
//!
//! An element moves to a list of elements in transit, then one script removes it there and adds the job. If the
//! process dies in between, [`ListBridge::recover`] finds the element in transit. Equal elements are interchangeable:
//! as many jobs are created as elements were moved. Nothing polls: the move blocks until there is an element.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use redis::{FromRedisValue, Value};

use crate::{
    Redis, StoreError, StoreResult,
    connection::{budgets::DataKind, dedicated::DedicatedConnection},
    events::JobEvent,
    jobs::{Jobs, NewEntry},
    keys::{self, QueueKeys},
    script,
};
use common::{id::JobId, json::ObjectWriter, name::Priority, settings::BridgeSettings, trace_context::TraceContext};
use model::job::{Envelope, EnvelopeSummary, JobState, NewJob};

/// Maximum number of elements moved at once after the first.
const BATCH_SIZE: usize = 64;

/// Pause while jobs have used up their share of Redis's memory.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A list and the queue it feeds.
#[derive(Clone)]
pub struct ListBridge {
    jobs: Jobs,
    settings: BridgeSettings,
}

impl ListBridge {
    /// The bridge of these settings.
    #[must_use]
    pub fn new(jobs: &Jobs, settings: &BridgeSettings) -> Self {
        Self { jobs: jobs.clone(), settings: settings.clone() }
    }

    fn redis(&self) -> Redis {
        self.jobs.redis().clone()
    }

    /// Waits up to `block` for an element and creates jobs of it and the following ones; returns how many.
    ///
    /// # Errors
    /// Redis is unavailable: elements may be in transit, [`ListBridge::recover`] finds them.
    pub async fn forward(&self, connection: &mut DedicatedConnection, block: Duration) -> StoreResult<usize> {
        if self.jobs.redis().memory().check_room(DataKind::WaitingJobs).is_err() {
            // What stays in the list takes less than its jobs
            tokio::time::sleep(block.min(FULL_PAUSE)).await;
            return Ok(0);
        }
        let mut command = redis::cmd("BLMOVE");
        // From the left, like BLPOP in the original demo
        command
            .arg(&self.settings.list)
            .arg(keys::list_bridge(&self.settings.list))
            .arg("LEFT")
            .arg("RIGHT")
            .arg(block.as_secs_f64());
        let first: Option<Vec<u8>> = connection.query(&command).await?;
        let Some(first) = first else { return Ok(0) };
        self.enqueue_element(&first).await?;
        let mut taken = 1;
        for element in self.move_more().await? {
            self.enqueue_element(&element).await?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Moves more elements, up to a batch, without waiting.
    async fn move_more(&self) -> StoreResult<Vec<Vec<u8>>> {
        let mut pipeline = redis::pipe();
        for _ in 0..BATCH_SIZE {
            pipeline
                .cmd("LMOVE")
                .arg(&self.settings.list)
                .arg(keys::list_bridge(&self.settings.list))
                .arg("LEFT")
                .arg("RIGHT");
        }
        let moved: Vec<Option<Vec<u8>>> = pipeline.query_async(&mut self.redis()).await?;
        Ok(moved.into_iter().flatten().collect())
    }

    /// Creates jobs of elements in transit whose process died. Safe at any time in any process.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn recover(&self) -> StoreResult<usize> {
        let mut recovered = 0;
        loop {
            let mut command = redis::cmd("LRANGE");
            command.arg(keys::list_bridge(&self.settings.list)).arg(0).arg(BATCH_SIZE - 1);
            let elements: Vec<Vec<u8>> = command.query_async(&mut self.redis()).await?;
            if elements.is_empty() {
                return Ok(recovered);
            }
            for element in &elements {
                self.enqueue_element(element).await?;
                recovered += 1;
            }
        }
    }

    /// Removes an element in transit and adds its job.
    async fn enqueue_element(&self, element: &[u8]) -> StoreResult<()> {
        let new = self.build_job(element);
        let no_trace = TraceContext::default();
        let fields = NewEntry::new(self.jobs.sealer(), &new, &no_trace);
        let salt = fields.salt;
        let stream = QueueKeys::new(&self.settings.queue).stream(Priority::default());
        for _ in 0..3 {
            let reply: Value = script::MOVE_ELEMENT
                .key(keys::list_bridge(&self.settings.list))
                .key(&stream)
                .arg(element)
                .arg(&fields)
                .invoke_async(&mut self.redis())
                .await?;
            match Option::<String>::from_redis_value(reply)
                .map_err(|error| StoreError::damaged(error.to_string()))?
                .as_deref()
            {
                None => {
                    if let Err(refused) = self.jobs.open_stream(&self.settings.queue, Priority::default()).await? {
                        return Err(StoreError::damaged(format!(
                            "queue {} cannot be made: {refused:?}",
                            self.settings.queue
                        )));
                    }
                }
                Some("gone") => return Ok(()),
                Some(entry) => {
                    self.record_enqueued(entry, salt, new);
                    return Ok(());
                }
            }
        }
        Err(StoreError::damaged(format!("the stream of {} keeps vanishing", self.settings.queue)))
    }

    fn record_enqueued(&self, entry: &str, salt: u32, new: NewJob) {
        let id = entry.parse().ok().and_then(|entry| JobId::from_entry(entry, &new.queue, new.priority, salt));
        metrics::counter!("galley_jobs_enqueued_total", "queue" => new.queue.to_string()).increment(1);
        self.jobs.store.events.statistics().count_enqueued(&new.queue);
        if let Some(id) = id {
            self.jobs
                .store
                .events
                .record(JobEvent::enqueued(&crate::jobs::new_job_record(id, new), JobState::Available));
        }
    }

    fn build_job(&self, element: &[u8]) -> NewJob {
        let mut envelope = ObjectWriter::default();
        envelope
            .text("type", self.settings.job_type.as_str())
            .raw("args", &format!("[{}]", element_to_argument(element)));
        NewJob {
            id: None,
            queue: self.settings.queue.clone(),
            priority: Priority::default(),
            start_at: None,
            is_pending: false,
            unique: None,
            timeout_ms: None,
            visibility_timeout_ms: None,
            workflow: None,
            parent_results_bytes: None,
            failures: Vec::new(),
            envelope: Envelope::from_json(envelope.finish()),
            summary: EnvelopeSummary::new(self.settings.job_type.clone()),
            warnings: Vec::new(),
        }
    }
}

impl Redis {
    /// Pushes an element onto a list, like the page of the original demo.
    ///
    /// # Errors
    /// Redis is unavailable: the element may have been pushed nevertheless.
    pub async fn push_element(&self, list: &str, element: &[u8]) -> StoreResult<()> {
        Ok(redis::cmd("LPUSH").arg(list).arg(element).exec_async(&mut self.clone()).await?)
    }
}

/// An element as a JSON argument: a number as it is, other text as a string, other bytes as `{"base64": "..."}`.
#[must_use]
pub fn element_to_argument(element: &[u8]) -> String {
    match std::str::from_utf8(element) {
        // serde_json's number grammar is JSON's; the text itself is retained, so 1.0 stays 1.0
        Ok(text) if is_number(text) => text.to_owned(),
        Ok(text) => serde_json::to_string(text).unwrap_or_default(),
        Err(_) => format!("{{\"base64\":\"{}\"}}", STANDARD.encode(element)),
    }
}

fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && text.ends_with(|last: char| last.is_ascii_digit())
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// The element that an argument was made from.
#[must_use]
pub fn argument_to_element(argument: &str) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Base64Argument {
        base64: String,
    }
    if let Ok(text) = serde_json::from_str::<String>(argument) {
        return text.into_bytes();
    }
    let bytes =
        serde_json::from_str::<Base64Argument>(argument).ok().and_then(|bytes| STANDARD.decode(bytes.base64).ok());
    bytes.unwrap_or_else(|| argument.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_become_arguments_as_documented() {
        for (bytes, json) in [
            (&b"7"[..], "7"),
            (b"-1.50", "-1.50"),
            (b"9007199254740993", "9007199254740993"),
            (b"007", "\"007\""),
            (b"7 ", "\"7 \""),
            (b"", "\"\""),
            (b"{\"a\":1}", "\"{\\\"a\\\":1}\""),
            (b"true", "\"true\""),
            (b"\xff\x00", "{\"base64\":\"/wA=\"}"),
        ] {
            assert_eq!(element_to_argument(bytes), json);
        }
    }

    proptest! {
        #[test]
        fn every_element_survives_the_way_there_and_back(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let json = element_to_argument(&bytes);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
            prop_assert_eq!(argument_to_element(&json), bytes);
        }

        #[test]
        fn every_text_survives(text in ".{0,40}|-?[0-9]{1,30}(\\.[0-9]{1,5})?") {
            prop_assert_eq!(argument_to_element(&element_to_argument(text.as_bytes())), text.into_bytes());
        }
    }
}
