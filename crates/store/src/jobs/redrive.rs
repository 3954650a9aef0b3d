//! Runs jobs again that ended without success, and jobs now that wait for their time.

use std::sync::OnceLock;

use serde_json::value::RawValue;

use super::{
    JobRecord, JobTransitionError, Jobs, LocatedJob, client_ids::RESERVATION_TTL_MS, finished_job::FinishedJob,
    uniqueness::uniqueness_ttl,
};
use crate::{
    StoreError, StoreResult, connection::notification::Notification, keys::QueueKeys, rate_limits::WaitSet, script,
};
use common::{
    id::{JobId, WorkflowId},
    name::{LimitKey, Priority, QueueName},
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, Operation, SpanDescription},
    },
    time::{self, Millis},
    trace_context::TraceContext,
};
use model::{
    job::{AttemptError, Envelope, JobHistory, JobState, JobTransition, KeyLimit, UniquePolicy},
    workflow::Membership,
};

/// How often a job is looked up that moves meanwhile.
const MAX_LOOKUPS: usize = 8;

#[derive(serde::Deserialize)]
struct EndedJobFields {
    priority: i64,
    created_at: String,
    timeout_ms: Option<u64>,
    visibility_timeout_ms: Option<u64>,
    #[serde(default)]
    errors: Vec<AttemptError>,
    workflow_id: Option<WorkflowId>,
    workflow_index: Option<u32>,
    parent_results: Option<Box<RawValue>>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    baggage: Option<String>,
}

/// Whether what the client sent is kept.
#[derive(serde::Deserialize)]
struct EnvelopeMark {
    #[serde(default)]
    envelope_dropped: bool,
}

impl Jobs {
    /// Makes a job available now: one that was discarded or cancelled with all its attempts again, a scheduled or
    /// retryable one before its time. Returns its JSON.
    ///
    /// # Errors
    /// Redis is unavailable: it may be available nevertheless.
    pub async fn retry_now(&self, id: JobId) -> StoreResult<Result<String, JobTransitionError>> {
        for _ in 0..MAX_LOOKUPS {
            let Some((located, queue)) = self.locate_with_queue(id).await? else {
                return Ok(Err(JobTransitionError::NotFound));
            };
            if !matches!(located.state(), JobState::Scheduled | JobState::Retryable) {
                return self.redrive(id).await;
            }
            if self.make_available(&queue, &[id], WaitSet::DueAtOnce).await? > 0 {
                let located = self.locate(id).await?;
                return Ok(located.map(|located| located.to_json()).ok_or(JobTransitionError::NotFound));
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// Makes a job that was discarded or cancelled available again, with all its attempts; returns its JSON. If it is
    /// unique, no equal job may be in its way.
    ///
    /// # Errors
    /// Redis is unavailable: it may be available nevertheless.
    pub async fn redrive(&self, id: JobId) -> StoreResult<Result<String, JobTransitionError>> {
        for _ in 0..MAX_LOOKUPS {
            let Some((located, queue)) = self.locate_with_queue(id).await? else {
                return Ok(Err(JobTransitionError::NotFound));
            };
            if let Err(conflict) = located.state().after(JobTransition::Redrive) {
                return Ok(Err(JobTransitionError::Conflict(conflict)));
            }
            // Read again, with the attempt that ended it
            let mut command = redis::cmd("GET");
            command.arg(QueueKeys::new(&queue).result(&id));
            let text: Option<String> = command.query_async(&mut self.store.redis.clone()).await?;
            let Some(text) = text else { continue };
            match self.redrive_ended(id, queue, &text).await? {
                Some(Ok(())) => {
                    let located = self.locate(id).await?;
                    return Ok(located.map(|located| located.to_json()).ok_or(JobTransitionError::NotFound));
                }
                Some(Err(refused)) => return Ok(Err(refused)),
                None => {}
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// Makes a job available again whose result is this text; none if something changed meanwhile.
    async fn redrive_ended(
        &self,
        id: JobId,
        queue: QueueName,
        text: &str,
    ) -> StoreResult<Option<Result<(), JobTransitionError>>> {
        let Some(json) = FinishedJob::json_of(self.sealer(), text, id, &queue)? else { return Ok(None) };
        let ended = LocatedJob::Finished(json);
        let (state, json) = (ended.state(), ended.to_json());
        if state.after(JobTransition::Redrive).is_err() {
            return Ok(None);
        }
        // Only its end was noted: there is nothing to run again
        if serde_json::from_str::<EnvelopeMark>(&json).is_ok_and(|mark| mark.envelope_dropped) {
            return Ok(Some(Err(JobTransitionError::NotFound)));
        }
        let mut job = restore_job(id, queue, &json, self.now().await?)?;
        // It runs again because of this request. Without a trace of it, it stays in its own
        let first_run = std::mem::take(&mut job.trace);
        let parent = WorkScope::current().trace().clone().or(|| first_run.clone());
        let span = ActiveSpan::start(&parent, || {
            let other =
                first_run.span().filter(|first| parent.span().is_some_and(|own| own.trace_id != first.trace_id));
            SpanDescription::messaging(Operation::Enqueue, job.queue.as_str())
                .with_message_id(&id)
                .with("galley.job.type", job.summary.job_type.to_string())
                .with_links(other)
        });
        job.trace = span.context().clone();
        if job.parent_results.is_none() {
            job.parent_results_bytes = self.parent_results_bytes(job.workflow).await?;
        }
        let unique = job.envelope.fields().ok().and_then(|parts| parts.unique(&job.queue));
        let (holder, ended) = match &unique {
            Some(unique) => {
                let holder = self.uniqueness_holder(&job.queue, unique).await?;
                if let Some((other, _)) = holder.blocking.filter(|(other, _)| *other != id) {
                    return Ok(Some(Err(JobTransitionError::Duplicate(other))));
                }
                (holder.stored, holder.ended)
            }
            None => ("-".to_owned(), None),
        };
        let first_line = text.split('\n').next().unwrap_or_default();
        if self.run_redrive_script(&job, state, first_line, (unique.as_ref(), &holder, ended)).await? != "done" {
            return Ok(None);
        }
        self.extend_client_job_id(id).await?;
        if let Some(key) = job.limit_key() {
            self.admit(&job.queue, key).await?;
        }
        Ok(Some(Ok(())))
    }

    async fn run_redrive_script(
        &self,
        job: &JobRecord,
        state: JobState,
        first_line: &str,
        (unique, holder, ended_holder): (Option<&UniquePolicy>, &str, Option<JobId>),
    ) -> StoreResult<String> {
        let keys = QueueKeys::new(&job.queue);
        let limit = job.key_limit();
        let key = LimitKey::or_placeholder(job.limit_key());
        let unique_ttl = unique.map_or(RESERVATION_TTL_MS, |unique| uniqueness_ttl(unique, RESERVATION_TTL_MS));
        Ok(script::REDRIVE
            .key(keys.dead_letters())
            .key(keys.result(&job.id))
            .key(keys.record(&job.id))
            .key(keys.stream(job.priority))
            .key(keys.priorities())
            .key(keys.key_queue(&key))
            .key(keys.waiting_keys())
            .key(keys.key_limit(&key))
            .key(keys.timers())
            .key(keys.stats())
            .key(self.uniqueness_key(&keys, unique))
            .key(keys.ended_list(state))
            .key(keys.log(&job.id))
            .key(keys.record(&ended_holder.unwrap_or(job.id)))
            .key(keys.checkpoint(&job.id))
            .key(keys.signals(&job.id))
            .arg(job.id.to_string())
            .arg(job.priority.get())
            .arg(state.as_str())
            .arg(first_line)
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(job.queue.clone()).encode())
            .arg(limit.map_or("", |limit| limit.key.as_str()))
            .arg(limit.map(KeyLimit::encode).unwrap_or_default())
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(holder)
            .arg(unique_ttl)
            .arg(job.to_fields(self.sealer()))
            .invoke_async(&mut self.store.redis.clone())
            .await?)
    }
}

/// The job that ended, with a new history.
fn restore_job(id: JobId, queue: QueueName, json: &str, now: Millis) -> StoreResult<JobRecord> {
    let damaged = |what: String| StoreError::damaged(format!("ended job {id}: {what}"));
    let kept: EndedJobFields = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
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
        // Earlier errors stay visible; the attempts start again
        history: JobHistory { created_at, errors: kept.errors, ..JobHistory::default() },
        lease_ms: kept.visibility_timeout_ms,
        timeout_ms: kept.timeout_ms,
        trace: TraceContext::new(kept.traceparent.as_deref(), kept.tracestate.as_deref(), kept.baggage.as_deref()),
        previous_span: None,
        span: OnceLock::new(),
        // The workflow keeps the first outcome; the job gets the same parent results again
        workflow: kept.workflow_id.zip(kept.workflow_index).map(|(workflow, index)| Membership { workflow, index }),
        parent_results: kept.parent_results.map(|results| results.get().to_owned()),
        parent_results_bytes: None,
        wait: None,
        has_record: true,
        enqueued_at: None,
    };
    // An expired deadline must not prevent another try
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
