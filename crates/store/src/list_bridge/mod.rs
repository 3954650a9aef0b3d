//! The list bridge: elements that any program pushes onto a Redis list become jobs.
//!
//! The list and the queue may be on two servers of a Redis Cluster, so an element becomes a job in steps, each of which
//! may run twice:
//!
//! 1. A blocking move takes an element off the list, to a list of elements in transit. Nothing polls.
//! 2. `take_elements.lua` turns it and what follows on the list into a batch, which has an id.
//! 3. `enqueue_batch.lua` adds the jobs of the batch, unless the queue knows that id already.
//! 4. The batch is removed.
//!
//! Whatever a process that died left behind in between, [`ListBridge::recover`] of any other completes.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use redis::{FromRedisValue, Value};

use crate::{
    Redis, StoreError, StoreResult,
    connection::{budgets::DataKind, dedicated::DedicatedConnection},
    events::JobEvent,
    jobs::{EnqueueSpan, Jobs, NewEntry},
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::JobId, json::ObjectWriter, name::Priority, settings::BridgeSettings, time::Millis, trace_context::TraceContext,
};
use model::job::{Envelope, EnvelopeSummary, JobState, NewJob};

/// Maximum number of elements in a batch, and bytes after which it takes no more.
const BATCH_SIZE: usize = 64;
const BATCH_BYTES: usize = 4 << 20;
/// Maximum number of batches that are recovered at once.
const RECOVERED_AT_ONCE: usize = 16;
/// How long after a batch was read its jobs may be added: then the queue still knows whether they were.
const BATCH_DEADLINE_MS: Millis = 30_000;
/// The queue forgets the last batches this long after the last of them. So long may a dead worker's batch wait for another
/// worker.
const BRIDGED_TTL: Duration = Duration::from_hours(90 * 24);

/// Pause while jobs have used up their share of Redis's memory.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A list and the queue it feeds.
#[derive(Clone)]
pub struct ListBridge {
    jobs: Jobs,
    settings: BridgeSettings,
}

/// Elements that left the list together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementBatch {
    id: String,
    /// Two batches never have both in common, even if a server lost the newest one and gives its id again.
    random_text: String,
    /// The oldest batch that there was when this one was read, perhaps this one.
    oldest: String,
    /// When it was read, by Redis's clock.
    read_at: Millis,
    elements: Vec<Vec<u8>>,
}

/// A batch as the stream of batches has it.
type StoredBatch = (String, Vec<Vec<u8>>);

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
        if first.is_none() {
            return Ok(0);
        }
        // None if a worker that recovers took it
        match self.take_batch().await? {
            Some(batch) => self.enqueue_batch(&batch).await,
            None => Ok(0),
        }
    }

    /// Creates jobs of elements in transit whose process died. Safe at any time in any process.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn recover(&self) -> StoreResult<usize> {
        let mut recovered = 0;
        loop {
            let batches = self.read_batches().await?;
            let is_last = batches.len() < RECOVERED_AT_ONCE;
            for batch in &batches {
                recovered += self.enqueue_batch(batch).await?;
            }
            if is_last {
                break;
            }
        }
        loop {
            let mut command = redis::cmd("EXISTS");
            command.arg(keys::list_bridge(&self.settings.list));
            let is_one_in_transit: bool = command.query_async(&mut self.redis()).await?;
            let Some(batch) = (if is_one_in_transit { self.take_batch().await? } else { None }) else {
                return Ok(recovered);
            };
            recovered += self.enqueue_batch(&batch).await?;
        }
    }

    /// Turns elements in transit, and the next ones of the list, into a batch; none if there are none.
    ///
    /// # Errors
    /// Redis is unavailable or full: the batch may be there nevertheless.
    pub async fn take_batch(&self) -> StoreResult<Option<ElementBatch>> {
        let random_text = format!("{:x}", rand::random::<u64>());
        let mut call = script::TAKE_ELEMENTS.key(&self.settings.list);
        call.key(keys::list_bridge(&self.settings.list)).key(keys::bridge_batches(&self.settings.list));
        call.arg(BATCH_SIZE).arg(BATCH_BYTES).arg(&random_text);
        let answer: Vec<Value> = call.invoke_async(&mut self.redis()).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        let (id, oldest, read_at, elements) = FromRedisValue::from_redis_value(Value::Array(answer))
            .map_err(|error| StoreError::damaged(error.to_string()))?;
        Ok(Some(ElementBatch { id, random_text, oldest, read_at, elements }))
    }

    /// The oldest batches: their processes died, or add their jobs right now.
    async fn read_batches(&self) -> StoreResult<Vec<ElementBatch>> {
        let read_at = self.jobs.now().await?;
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::bridge_batches(&self.settings.list)).arg("-").arg("+").arg("COUNT").arg(RECOVERED_AT_ONCE);
        let stored: Vec<StoredBatch> = command.query_async(&mut self.redis()).await?;
        let oldest = stored.first().map(|(id, _)| id.clone()).unwrap_or_default();
        Ok(stored.into_iter().map(|batch| parse_batch(batch, &oldest, read_at)).collect())
    }

    /// Adds the jobs of a batch, unless another process did, and removes it. Returns how many it added.
    ///
    /// # Errors
    /// Redis is unavailable: [`ListBridge::recover`] completes it.
    pub async fn enqueue_batch(&self, batch: &ElementBatch) -> StoreResult<usize> {
        let added = self.add_jobs(batch).await?;
        let mut command = redis::cmd("XDEL");
        command.arg(keys::bridge_batches(&self.settings.list)).arg(&batch.id);
        command.exec_async(&mut self.redis()).await?;
        Ok(added)
    }

    /// Adds the jobs of a batch, unless another process did. Returns how many it added.
    ///
    /// # Errors
    /// Redis is unavailable: they may have been added nevertheless.
    pub async fn add_jobs(&self, batch: &ElementBatch) -> StoreResult<usize> {
        let new: Vec<NewJob> = batch.elements.iter().map(|element| self.build_job(element)).collect();
        // A program that pushes an element cannot say to which trace it belongs: each job begins one
        let span = |job: &NewJob| EnqueueSpan::start(job, &TraceContext::default(), None);
        let mut spans: Vec<EnqueueSpan> = new.iter().map(span).collect();
        let added = self.add_traced_jobs(batch, new, &mut spans).await;
        if added.is_err() {
            spans.into_iter().for_each(EnqueueSpan::record_failed);
        }
        added
    }

    async fn add_traced_jobs(
        &self,
        batch: &ElementBatch,
        mut new: Vec<NewJob>,
        spans: &mut Vec<EnqueueSpan>,
    ) -> StoreResult<usize> {
        let queue = QueueKeys::new(&self.settings.queue);
        let mut call = script::ENQUEUE_BATCH.key(queue.stream(Priority::default()));
        call.key(queue.bridged(&self.settings.list));
        call.arg(format!("{} {}", batch.id, batch.random_text)).arg(&batch.oldest);
        call.arg(batch.read_at.saturating_add(BATCH_DEADLINE_MS)).arg(BRIDGED_TTL.as_millis().to_string());
        let mut salts = Vec::with_capacity(new.len());
        for (job, span) in new.iter().zip(&*spans) {
            let fields = NewEntry::new(self.jobs.sealer(), job, span.context());
            salts.push(fields.salt);
            call.arg(redis::ToRedisArgs::num_of_args(&fields)).arg(&fields);
        }
        for _ in 0..3 {
            let answer: Option<Vec<String>> = call.invoke_async(&mut self.redis()).await?;
            match answer.as_deref().and_then(<[String]>::split_first) {
                None => self.open_stream().await?,
                Some((outcome, entries)) if outcome == "added" => {
                    let jobs = new.drain(..).zip(spans.drain(..));
                    for ((entry, salt), (job, span)) in entries.iter().zip(salts).zip(jobs) {
                        if let Some(id) = self.record_enqueued(entry, salt, job) {
                            span.record_enqueued(id);
                        }
                    }
                    return Ok(entries.len());
                }
                Some((outcome, _)) if outcome == "added_before" => {
                    // With spans of the process that did
                    spans.clear();
                    return Ok(0);
                }
                Some(_) => return Err(StoreError::damaged("a batch of list elements took too long: it is recovered")),
            }
        }
        Err(StoreError::damaged(format!("the stream of {} keeps vanishing", self.settings.queue)))
    }

    async fn open_stream(&self) -> StoreResult<()> {
        let queue = &self.settings.queue;
        let opened = self.jobs.open_stream(queue, Priority::default()).await?;
        opened.map_err(|refused| StoreError::damaged(format!("queue {queue} cannot be made: {refused:?}")))
    }

    fn record_enqueued(&self, entry: &str, salt: u32, new: NewJob) -> Option<JobId> {
        let id = entry.parse().ok().and_then(|entry| JobId::from_entry(entry, &new.queue, new.priority, salt));
        metrics::counter!("galley_jobs_enqueued_total", "queue" => new.queue.to_string()).increment(1);
        self.jobs.store.events.statistics().count_enqueued(&new.queue);
        if let Some(id) = id {
            self.jobs
                .store
                .events
                .record(JobEvent::enqueued(&crate::jobs::new_job_record(id, new), JobState::Available));
        }
        id
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

fn parse_batch((id, fields): StoredBatch, oldest: &str, read_at: Millis) -> ElementBatch {
    let mut values = fields.into_iter().skip(1).step_by(2);
    let random_text = String::from_utf8(values.next().unwrap_or_default()).unwrap_or_default();
    ElementBatch { id, random_text, oldest: oldest.to_owned(), read_at, elements: values.collect() }
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
