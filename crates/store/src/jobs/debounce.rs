//! Puts off jobs that wait for their first attempt, and makes them what the newest request asks for.

use super::{
    EnqueuedJob, JobRecord, Jobs, LocatedJob,
    client_ids::{has_stored_queue, reservation_ttl},
    enqueue::build_job_record,
    uniqueness::uniqueness_ttl,
};
use crate::{
    StoreError, StoreResult, connection::notification::Notification, events::JobEvent, keys::QueueKeys, script,
};
use common::{
    name::LimitKey,
    time::{self, Millis},
    trace_context::TraceContext,
};
use model::job::{JobHistory, JobState, NewJob, OnConflict, on_conflict::debounced_start};

/// A job that can be put off, and until when.
pub(super) struct Debounce<'a> {
    located: &'a LocatedJob,
    older: &'a JobRecord,
    at: Millis,
}

impl<'a> Debounce<'a> {
    /// What a new job does to the one that has its uniqueness. None if that one is left alone: it has begun, its workflow
    /// waits for it, or it is due and has waited for as long as it may.
    pub(super) fn find(located: &'a LocatedJob, new: &NewJob, now: Millis) -> Option<Self> {
        let OnConflict::Debounce { max_wait } = new.unique.as_ref()?.on_conflict else { return None };
        let (LocatedJob::InRecord { job: older, .. } | LocatedJob::InStream { job: older, holder: None, .. }) = located
        else {
            return None;
        };
        let at = debounced_start(older.created_at(), new.start_at.unwrap_or(now), max_wait);
        let waits = match located.state() {
            JobState::Scheduled => true,
            JobState::Available => at > now,
            _ => false,
        };
        let has_begun =
            older.history.current_attempt() > 1 || older.history.started_at.is_some() || older.wait.is_some();
        (waits && !has_begun && older.workflow.is_none()).then_some(Self { located, older, at })
    }
}

impl Jobs {
    /// Puts a job off and makes it the new one; none if it moved meanwhile.
    pub(super) async fn debounce(
        &self,
        debounce: Debounce<'_>,
        new: NewJob,
        trace: TraceContext,
        now: Millis,
    ) -> StoreResult<Option<EnqueuedJob>> {
        let Debounce { located, older, at } = debounce;
        let (unique, request) = (new.unique.clone(), new.id);
        let history = JobHistory { created_at: older.history.created_at, ..JobHistory::default() };
        let mut job = build_job_record(older.id, new, trace, history, true);
        let start = time::format(at);
        job.envelope =
            job.envelope.with_start(&start).map_err(|error| StoreError::damaged(format!("job {}: {error}", job.id)))?;
        let ttl = reservation_ttl(Some(at), now);
        let keys = QueueKeys::new(&job.queue);
        let old_key = LimitKey::or_placeholder(older.limit_key());
        let mut call = script::DEBOUNCE.prepare_invoke();
        call.key(keys.stream(older.priority)).key(keys.active()).key(keys.leases()).key(keys.record(&job.id));
        call.key(keys.due()).key(keys.pending()).key(keys.key_queue(&old_key)).key(keys.admitted(&old_key));
        call.key(keys.stats()).key(keys.timers()).key(self.uniqueness_key(&keys, unique.as_ref()));
        call.arg(&located.seen_args()).arg(job.id.to_string()).arg(job.priority.get()).arg(at);
        call.arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(unique.map_or(ttl, |unique| uniqueness_ttl(&unique, ttl)))
            .arg(request.map(|id| id.to_string()).unwrap_or_default())
            .arg(older.limit_key().map_or("", LimitKey::as_str))
            .arg(job.to_fields(self.sealer()));
        let answer: String = call.invoke_async(&mut self.store.redis.clone()).await?;
        match answer.as_str() {
            "done" => {}
            "kept" => return Ok(Some(EnqueuedJob { job: older.clone(), state: located.state(), is_new: false })),
            _ => return Ok(None),
        }
        self.store.events.record(JobEvent::debounced(&job, &start));
        if has_stored_queue(&job) {
            self.save_client_job_id(job.id, &job.queue, ttl).await.map_err(StoreError::after_write)?;
        }
        if let (JobState::Available, Some(key)) = (located.state(), older.limit_key()) {
            self.admit(&job.queue, key).await.map_err(StoreError::after_write)?;
        }
        Ok(Some(EnqueuedJob { job, state: JobState::Scheduled, is_new: false }))
    }
}
