//! Dead letters: jobs that used up their attempts and asked to be kept for people to look at.

use serde_json::value::RawValue;

use super::{Jobs, Located, wake::Wake};
use crate::{
    id::{JobId, WorkflowId},
    job::{Envelope, Failure, History, JobLimit, KeyLimit, workflow::Membership},
    name::{LimitKey, Priority, QueueName},
    redis::{StoreError, StoreResult, keys, keys::QueueKeys, script},
    time::{self, Millis},
};

#[derive(serde::Deserialize)]
struct Kept {
    priority: i64,
    created_at: String,
    timeout_ms: Option<u64>,
    visibility_timeout_ms: Option<u64>,
    #[serde(default)]
    errors: Vec<Failure>,
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
        let Some((queue, json)) = self.dead_letter(id).await? else { return Ok(None) };
        let Revived { priority, limit, expires, fields } = revived(id, &json, self.now().await?)?;
        let keys = QueueKeys::new(&queue);
        let key = limit.as_ref().map(|limit| &limit.key);
        let lane = key.cloned().unwrap_or_else(LimitKey::none);
        let moved: i64 = script::REDRIVE
            .key(keys.dead())
            .key(keys.result(&id))
            .key(keys.record(&id))
            .key(keys.stream(priority))
            .key(keys.priorities())
            .key(keys.lane(&lane))
            .key(keys.lanes())
            .key(keys.limit(&lane))
            .key(keys.timers())
            .key(keys.stats())
            .arg(id.to_string())
            .arg(priority.get())
            .arg(keys::WAKE)
            .arg(Wake::Stream(queue.clone()).encode())
            .arg(key.map_or("", LimitKey::as_str))
            .arg(limit.as_ref().map(KeyLimit::encode).unwrap_or_default())
            .arg(expires.map(|at| at.to_string()).unwrap_or_default())
            .arg(Wake::Due(queue.clone()).encode())
            .arg(fields)
            .invoke_async(&mut self.redis.clone())
            .await?;
        if moved == 0 {
            return Ok(None);
        }
        self.prolong_chosen_id(id).await?;
        if let Some(key) = key {
            self.admit(&queue, key).await?;
        }
        Ok(self.locate(id).await?.map(|located| located.to_json()))
    }

    /// Deletes a dead letter for good; false when there is no such one.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been deleted all the same.
    pub async fn delete_dead_letter(&self, id: JobId) -> StoreResult<bool> {
        let Some((queue, _)) = self.dead_letter(id).await? else { return Ok(false) };
        let keys = QueueKeys::new(&queue);
        let mut redis = self.redis.clone();
        let removed: i64 = redis::cmd("ZREM").arg(keys.dead()).arg(id.to_string()).query_async(&mut redis).await?;
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
    pub async fn dead_letter(&self, id: JobId) -> StoreResult<Option<(QueueName, String)>> {
        let Some((Located::Ended(json), queue)) = self.locate_in(id).await? else { return Ok(None) };
        let score: Option<f64> = redis::cmd("ZSCORE")
            .arg(QueueKeys::new(&queue).dead())
            .arg(id.to_string())
            .query_async(&mut self.redis.clone())
            .await?;
        Ok(score.map(|_| (queue, json)))
    }
}

/// A dead letter's job with a new history.
struct Revived {
    priority: Priority,
    limit: Option<KeyLimit>,
    /// When the upkeep has to look whether its time is over.
    expires: Option<Millis>,
    fields: Vec<String>,
}

fn revived(id: JobId, json: &str, now: Millis) -> StoreResult<Revived> {
    let damaged = |what: String| StoreError::damaged(format!("dead letter {id}: {what}"));
    let kept: Kept = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
    let priority = Priority::try_from(kept.priority).map_err(|error| damaged(error.to_string()))?;
    let envelope = Envelope::of_job(json).map_err(|error| damaged(error.to_string()))?;
    let summary = envelope.parts().map_err(|error| damaged(error.to_string()))?.summary();
    let created_at = time::parse_time(&kept.created_at, 0).ok().map(|given| given.at);
    let deadline = created_at
        .zip(summary.total_timeout)
        .map(|(made, limit)| made.saturating_add(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX)));
    // A time that is over already does not keep anybody from trying again
    let expires = summary.expires_at.into_iter().chain(deadline).filter(|at| *at > now).min();
    let mut over = Vec::new();
    if summary.expires_at.is_some_and(|at| at <= now) {
        over.push("expires_at");
    }
    if deadline.is_some_and(|at| at <= now) {
        over.extend(["total_timeout_ms", "total_timeout"]);
    }
    let envelope = envelope.without(&over).map_err(|error| damaged(error.to_string()))?;
    // What went wrong before stays to be seen; the attempts begin anew
    let history = History { created_at, errors: kept.errors, ..History::default() };
    let mut fields = vec!["e".to_owned(), envelope.as_str().to_owned(), "h".to_owned(), history.to_json()];
    for (name, ms) in [("t", kept.timeout_ms), ("v", kept.visibility_timeout_ms)] {
        if let Some(ms) = ms {
            fields.extend([name.to_owned(), ms.to_string()]);
        }
    }
    // Its workflow took note of the first end and stays as it is; what it was given then it gets again
    if let (Some(workflow), Some(index)) = (kept.workflow_id, kept.workflow_index) {
        fields.extend(["w".to_owned(), Membership { workflow, index }.to_string()]);
    }
    if let Some(results) = kept.parent_results {
        fields.extend(["r".to_owned(), results.get().to_owned()]);
    }
    let limit = match summary.limit {
        Some(JobLimit::Key(limit)) => Some(limit),
        _ => None,
    };
    if let Some(limit) = &limit {
        fields.extend(["l".to_owned(), format!("{} {}", limit.key, limit.encode())]);
    }
    Ok(Revived { priority, limit, expires, fields })
}
