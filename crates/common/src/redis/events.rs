//! What happened to jobs: a capped stream that tools read. It is for observing, not the truth: under pressure or after
//! a crash events are missing, and nothing in Galley acts on them.
//!
//! Events are collected for a few milliseconds and written many in one entry, so that they cost next to nothing.

use std::{sync::Arc, time::Duration};

use redis::FromRedisValue;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Redis, StoreError, StoreResult, jobs::Stored, keys};
use crate::{job::State, time, time::Millis};

/// Events that wait to be written; more are dropped and counted.
const BUFFER: usize = 16_384;
/// Events in one entry.
const BATCH: usize = 128;
/// Longest wait for others to share an entry with.
const LINGER: Duration = Duration::from_millis(20);
/// Entries looked through for one request.
const MOST_ENTRIES: usize = 2_000;

/// Something that happened to a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Happened {
    /// `job.enqueued`, `job.completed`, `job.failed`, `job.discarded` or `job.cancelled`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, as RFC 3339.
    pub time: String,
    /// The job, and numbers of the event.
    pub data: serde_json::Value,
}

impl Happened {
    fn new(kind: &str, job: &Stored, at: Millis, more: &[(&str, serde_json::Value)]) -> Self {
        let mut data = json!({ "job_id": job.id, "job_type": job.summary.job_type, "queue": job.queue });
        for (name, value) in more {
            data[*name] = value.clone();
        }
        Self { kind: kind.to_owned(), time: time::format(at), data }
    }

    /// A job was stored.
    #[must_use]
    pub fn enqueued(job: &Stored, state: State) -> Self {
        Self::new("job.enqueued", job, super::jobs::local_now(), &[("state", json!(state))])
    }

    /// A job succeeded.
    #[must_use]
    pub fn completed(job: &Stored, started_at: Millis, ended_at: Millis) -> Self {
        let duration = (ended_at - started_at).max(0);
        let more = [("attempt", json!(job.history.current_attempt())), ("duration_ms", json!(duration))];
        Self::new("job.completed", job, ended_at, &more)
    }

    /// An attempt failed and another follows. The failure is in the job's history already.
    #[must_use]
    pub fn failed(job: &Stored) -> Self {
        let more = [("attempt", json!(job.history.attempts)), ("error", json!(job.history.errors.last()))];
        Self::new("job.failed", job, super::jobs::local_now(), &more)
    }

    /// The last attempt failed. The failure is in the job's history already.
    #[must_use]
    pub fn discarded(job: &Stored, at: Millis) -> Self {
        let more = [("attempt", json!(job.history.attempts)), ("error", json!(job.history.errors.last()))];
        Self::new("job.discarded", job, at, &more)
    }

    /// An attempt said how far it has come: a JSON object of members to show.
    #[must_use]
    pub fn progress(job: &Stored, shown: &str) -> Self {
        let more = [("progress", serde_json::from_str(shown).unwrap_or_default())];
        Self::new("job.progress", job, super::jobs::local_now(), &more)
    }

    /// A job ended without an attempt ending it.
    #[must_use]
    pub fn ended(job: &Stored, state: State, at: Millis) -> Self {
        Self::new(&format!("job.{state}"), job, at, &[("attempt", json!(job.history.attempts))])
    }
}

/// Where events go. Clone it freely; recording never waits.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<mpsc::Sender<Happened>>);

impl EventLog {
    /// Starts writing events until `stop` is cancelled and the last ones are written.
    #[must_use]
    pub fn start(redis: &Redis, events_max: u64, stop: CancellationToken) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let task = tokio::spawn(write(redis.clone(), events_max, receiver, stop));
        (Self(Arc::new(sender)), task)
    }

    /// Notes an event.
    pub fn record(&self, event: Happened) {
        if self.0.try_send(event).is_err() {
            metrics::counter!("galley_events_dropped_total").increment(1);
        }
    }
}

async fn write(mut redis: Redis, events_max: u64, mut receiver: mpsc::Receiver<Happened>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut per_entry = 1;
    loop {
        tokio::select! {
            biased;
            read = receiver.recv_many(&mut batch, BATCH) => if read == 0 { return },
            () = stop.cancelled() => return,
        }
        if batch.len() < BATCH && !stop.is_cancelled() {
            // Few so far: others may follow at once
            tokio::time::sleep(LINGER).await;
            while batch.len() < BATCH
                && let Ok(event) = receiver.try_recv()
            {
                batch.push(event);
            }
        }
        // Redis counts entries, the setting events: what a full entry holds differs a hundredfold with the load
        per_entry = (per_entry * 7 + batch.len() as u64).div_ceil(8);
        let entries_max = events_max.div_ceil(per_entry);
        let text = serde_json::to_string(&batch).unwrap_or_default();
        let mut command = redis::cmd("XADD");
        command.arg(keys::EVENTS).arg("MAXLEN").arg("~").arg(entries_max).arg("*").arg("d").arg(text);
        if command.exec_async(&mut redis).await.is_err() {
            metrics::counter!("galley_events_dropped_total").increment(batch.len() as u64);
        }
        batch.clear();
    }
}

/// Which events to read.
#[derive(Debug, Default)]
pub struct EventFilter {
    /// Only these types; empty for all.
    pub types: Vec<String>,
    /// Only these queues; empty for all.
    pub queues: Vec<String>,
    /// The newest so many.
    pub limit: usize,
}

impl Redis {
    /// The newest events that pass the filter, oldest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn events(&self, filter: &EventFilter) -> StoreResult<Vec<Happened>> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(keys::EVENTS).arg("+").arg("-").arg("COUNT").arg(MOST_ENTRIES);
        let reply: redis::Value = command.query_async(&mut self.pooled().await?).await?;
        let entries = Vec::<(String, std::collections::HashMap<String, String>)>::from_redis_value(reply)
            .map_err(|error| StoreError::damaged(error.to_string()))?;
        let mut found = Vec::new();
        for (_, fields) in entries {
            let batch: Vec<Happened> =
                fields.get("d").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            for event in batch.into_iter().rev().filter(|event| filter.passes(event)) {
                found.push(event);
                if found.len() == filter.limit {
                    found.reverse();
                    return Ok(found);
                }
            }
        }
        found.reverse();
        Ok(found)
    }
}

impl EventFilter {
    fn passes(&self, event: &Happened) -> bool {
        let queue = event.data.get("queue").and_then(serde_json::Value::as_str).unwrap_or_default();
        (self.types.is_empty() || self.types.contains(&event.kind))
            && (self.queues.is_empty() || self.queues.iter().any(|name| name == queue))
    }
}
