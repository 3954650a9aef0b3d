//! Dead letters: jobs that used up their attempts and asked to be kept for people to look at.

use serde_json::value::RawValue;

use super::{JobRecord, Jobs, LocatedJob};
use crate::connection::notification::Notification;
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::{JobId, WorkflowId},
    name::{LimitKey, Priority, QueueName},
    time::{self, Millis},
};
use model::{
    job::{AttemptError, Envelope, JobHistory, KeyLimit},
    workflow::Membership,
};

#[derive(serde::Deserialize)]
struct DeadLetterFields {
    priority: i64,
    created_at: String,
    timeout_ms: Option<u64>,
    visibility_timeout_ms: Option<u64>,
    #[serde(default)]
    errors: Vec<AttemptError>,
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<u32>,
    parent_results: Option<Box<RawValue>>,
}

impl Jobs {
    /// Makes a dead letter available again, as if it had never been tried; its JSON, or none when there is no such one.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been made available all the same.
    pub async fn redrive(&self, id: JobId) -> StoreResult<Option<String>> {
        let Some((queue, json)) = self.find_dead_letter(id).await? else { return Ok(None) };
        let job = restore_job(id, queue, &json, self.now().await?)?;
        let keys = QueueKeys::new(&job.queue);
        let limit = job.key_limit();
        let key = LimitKey::or_placeholder(job.limit_key());
        let moved: i64 = script::REDRIVE
            .key(keys.dead_letters())
            .key(keys.result(&id))
            .key(keys.record(&id))
            .key(keys.stream(job.priority))
            .key(keys.priorities())
            .key(keys.key_queue(&key))
            .key(keys.waiting_keys())
            .key(keys.key_limit(&key))
            .key(keys.timers())
            .key(keys.stats())
            .arg(id.to_string())
            .arg(job.priority.get())
            .arg(keys::NOTIFICATIONS)
            .arg(Notification::StreamCreated(job.queue.clone()).encode())
            .arg(limit.map_or("", |limit| limit.key.as_str()))
            .arg(limit.map(KeyLimit::encode).unwrap_or_default())
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(job.to_fields())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        if moved == 0 {
            return Ok(None);
        }
        self.extend_client_job_id(id).await?;
        if let Some(key) = job.limit_key() {
            self.admit(&job.queue, key).await?;
        }
        Ok(self.locate(id).await?.map(|located| located.to_json()))
    }

    /// Deletes a dead letter for good; false when there is no such one.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been deleted all the same.
    pub async fn delete_dead_letter(&self, id: JobId) -> StoreResult<bool> {
        let Some((queue, _)) = self.find_dead_letter(id).await? else { return Ok(false) };
        let keys = QueueKeys::new(&queue);
        let mut redis = self.store.redis.clone();
        let removed: i64 =
            redis::cmd("ZREM").arg(keys.dead_letters()).arg(id.to_string()).query_async(&mut redis).await?;
        // Whoever takes it off the list owns the rest; a result that stays because we end here goes with its TTL
        if removed == 1 {
            redis::cmd("DEL").arg(keys.result(&id)).exec_async(&mut redis).await?;
        }
        Ok(removed == 1)
    }

    /// A dead letter's queue and JSON; none when there is no such one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn find_dead_letter(&self, id: JobId) -> StoreResult<Option<(QueueName, String)>> {
        let Some((LocatedJob::Finished(json), queue)) = self.locate_with_queue(id).await? else { return Ok(None) };
        let score: Option<f64> = redis::cmd("ZSCORE")
            .arg(QueueKeys::new(&queue).dead_letters())
            .arg(id.to_string())
            .query_async(&mut self.store.redis.clone())
            .await?;
        Ok(score.map(|_| (queue, json)))
    }
}

/// A dead letter's job with a new history.
fn restore_job(id: JobId, queue: QueueName, json: &str, now: Millis) -> StoreResult<JobRecord> {
    let damaged = |what: String| StoreError::damaged(format!("dead letter {id}: {what}"));
    let kept: DeadLetterFields = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
    let priority = Priority::try_from(kept.priority).map_err(|error| damaged(error.to_string()))?;
    let envelope = Envelope::from_job_json(json).map_err(|error| damaged(error.to_string()))?;
    let summary = envelope.fields().map_err(|error| damaged(error.to_string()))?.summary();
    let created_at = time::parse_time(&kept.created_at, 0).ok().map(|given| given.at);
    let mut job = JobRecord {
        id,
        queue,
        priority,
        envelope,
        summary,
        // What went wrong before stays to be seen; the attempts begin anew
        history: JobHistory { created_at, errors: kept.errors, ..JobHistory::default() },
        lease_ms: kept.visibility_timeout_ms,
        timeout_ms: kept.timeout_ms,
        traceparent: None,
        // Its workflow took note of the first end and stays as it is; what it was given then it gets again
        workflow: kept.workflow_id.zip(kept.workflow_index).map(|(workflow, index)| Membership { workflow, index }),
        parent_results: kept.parent_results.map(|results| results.get().to_owned()),
        has_record: true,
        enqueued_at: None,
    };
    // A time that is over already does not keep anybody from trying again
    let mut over = Vec::new();
    if job.is_expired(now) {
        over.push("expires_at");
        job.summary.expires_at = None;
    }
    if job.deadline().is_some_and(|at| at <= now) {
        over.extend(["total_timeout_ms", "total_timeout"]);
        job.summary.total_timeout = None;
    }
    job.envelope = job.envelope.without(&over).map_err(|error| damaged(error.to_string()))?;
    Ok(job)
}
