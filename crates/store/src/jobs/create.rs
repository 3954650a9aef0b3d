//! Creates jobs that are more than a stream entry: they have a record from the start.

use super::{
    EnqueueRefusal, EnqueuedJob, Jobs, LocatedJob,
    client_ids::reservation_ttl,
    debounce::Debounce,
    enqueue::build_job_record,
    finished_job::FinishedJob,
    record::JobRecord,
    uniqueness::{UniquenessCheck, uniqueness_ttl},
};
use crate::connection::notification::Notification;
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use common::{
    id::{EntryId, JobId, queue_tag},
    name::LimitKey,
    time::Millis,
    trace_context::TraceContext,
};
use model::job::{JobHistory, JobState, NewJob, UniquePolicy};

/// Maximum number of checks of a uniqueness holder. The holder may change between a check and the script; each time
/// another job has made progress, so this bounds how many may replace each other at once.
const MAX_UNIQUENESS_CHECKS: usize = 256;

/// Where a new job is stored.
enum JobDestination {
    Stream,
    KeyQueue,
    Pending,
    Scheduled(Millis),
}

/// What is stored besides the job itself.
struct CreationPlan<'a> {
    place: JobDestination,
    unique: Option<UniquePolicy>,
    /// The id that was read from its uniqueness.
    holder: &'a str,
    /// The job of that id, if it had ended.
    ended_holder: Option<JobId>,
    /// The job that it replaces, and the end of that one.
    replaced: Option<(&'a LocatedJob, &'a JobRecord, FinishedJob)>,
    reservation_ttl: Millis,
    /// Whether the queue of its id must be stored.
    is_chosen_id: bool,
    /// Whether it may belong to a partition that this process does not know.
    checks_home: bool,
    now: Millis,
}

impl Jobs {
    /// Creates a job with a record.
    pub(super) async fn create_with_record(
        &self,
        mut new: NewJob,
        trace: TraceContext,
        now: Millis,
    ) -> StoreResult<Result<EnqueuedJob, EnqueueRefusal>> {
        let mut id = match new.id {
            // A workflow derives its jobs' ids, so creating such a job twice is harmless
            Some(id) if new.workflow.is_none() && self.locate(id).await?.is_some() => {
                return Ok(Err(EnqueueRefusal::Duplicate(id)));
            }
            Some(id) => id,
            None => JobId::without_address(u64::try_from(now).unwrap_or_default(), &new.queue),
        };
        if let Err(refused) = self.register_queue(&new.queue).await? {
            return Ok(Err(refused));
        }
        for number in 0..MAX_UNIQUENESS_CHECKS {
            // The last call found that its home is another partition
            if number > 0 && self.place(&mut new) {
                if let Err(refused) = self.register_queue(&new.queue).await? {
                    return Ok(Err(refused));
                }
                if new.id.is_none() {
                    id = JobId::without_address(u64::try_from(now).unwrap_or_default(), &new.queue);
                }
            }
            let (holder, ended, replaced) = match self.resolve_uniqueness(&mut new).await? {
                UniquenessCheck::Free(holder, ended) => (holder, ended, None),
                UniquenessCheck::Replaces(older, located) => (older.to_string(), None, Some(located)),
                UniquenessCheck::Debounces(older, located) => match Debounce::find(&located, &new, now) {
                    None => (older.to_string(), None, None),
                    Some(found) => match self.debounce(found, new.clone(), trace.clone(), now).await? {
                        Some(enqueued) => return Ok(Ok(enqueued)),
                        None => continue,
                    },
                },
                UniquenessCheck::Conflict(refused) => return Ok(Err(refused)),
            };
            let outcome = self
                .create_if_holder(id, new.clone(), (&holder, ended), replaced.as_deref(), trace.clone(), now)
                .await?;
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
        Err(StoreError::damaged(format!("the uniqueness of a job of {} cannot be settled", new.queue)))
    }

    /// Creates the job if the uniqueness still has the expected holder, and the job that it replaces is where it was;
    /// none otherwise.
    async fn create_if_holder(
        &self,
        id: JobId,
        new: NewJob,
        (holder, ended_holder): (&str, Option<JobId>),
        replaced: Option<&LocatedJob>,
        trace: TraceContext,
        now: Millis,
    ) -> StoreResult<Option<Result<EnqueuedJob, EnqueueRefusal>>> {
        let place = match (&new.summary.limit, new.start_at) {
            _ if new.is_pending => JobDestination::Pending,
            (_, Some(at)) => JobDestination::Scheduled(at),
            (Some(_), None) => JobDestination::KeyQueue,
            _ => JobDestination::Stream,
        };
        let replaced = replaced.and_then(|located| {
            let (LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, holder: None, .. }) = located else {
                return None;
            };
            Some((located, job, FinishedJob::cancelled(job, None, self.estimated_now())))
        });
        let plan = CreationPlan {
            place,
            unique: new.unique.clone(),
            holder,
            ended_holder,
            replaced,
            reservation_ttl: reservation_ttl(new.start_at, now),
            is_chosen_id: new.id.is_some() && new.workflow.is_none() && id.queue_tag() != queue_tag(&new.queue),
            checks_home: self.may_have_another_home(&new),
            now,
        };
        let mut history = JobHistory { created_at: new.id.map(|_| now), ..JobHistory::default() };
        for failure in new.failures.iter().cloned() {
            history.record_failure(failure, None);
        }
        let job = build_job_record(id, new, trace, history, true);
        let answer = self.run_create_script(&job, &plan).await?;
        match answer.first().map(String::as_str) {
            Some("full") => {
                let max_depth = self.store.settings.max_depth(&job.queue).unwrap_or(0);
                Ok(Some(Err(EnqueueRefusal::QueueFull { max_depth })))
            }
            Some("changed") => Ok(None),
            Some("moved") => {
                if job.workflow.is_some() {
                    return Ok(Some(Err(EnqueueRefusal::WorkflowJobWithHome)));
                }
                self.read_partition_counts(&job.queue).await.map(|_| None)
            }
            Some("created") => self.after_creation(job, plan, &answer).await.map(|enqueued| Some(Ok(enqueued))),
            _ => {
                // The job exists, but an earlier request may have died before it stored the id's queue
                if plan.is_chosen_id {
                    self.save_client_job_id(id, &job.queue, plan.reservation_ttl).await?;
                }
                Ok(Some(Err(EnqueueRefusal::Duplicate(id))))
            }
        }
    }

    /// What follows the creation of a job. If this process dies before, maintenance does it.
    async fn after_creation(
        &self,
        mut job: JobRecord,
        plan: CreationPlan<'_>,
        answer: &[String],
    ) -> StoreResult<EnqueuedJob> {
        if plan.is_chosen_id {
            let saved = self.save_client_job_id(job.id, &job.queue, plan.reservation_ttl).await;
            saved.map_err(StoreError::after_write)?;
        }
        // The queue may have been deleted between the registration and this
        if answer.get(2).is_some_and(|new| new == "new") {
            self.add_to_registry(&job.queue).await.map_err(StoreError::after_write)?;
        }
        let state = match plan.place {
            JobDestination::Stream | JobDestination::KeyQueue => JobState::Available,
            JobDestination::Pending => JobState::Pending,
            JobDestination::Scheduled(_) => JobState::Scheduled,
        };
        // The limit that the job brought may admit waiting jobs
        if let Some(key) = job.limit_key() {
            self.admit(&job.queue, key).await?;
        }
        // It is there before the end of the older one lets others in
        if let Some((_, older, ended)) = &plan.replaced {
            self.report_end(older, ended.state, self.estimated_now());
            self.after_end(older, ended, self.store.settings.jobs.result_ttl, false).await;
        }
        let entry = answer.get(1).and_then(|entry| entry.parse::<EntryId>().ok());
        job.enqueued_at = match state {
            JobState::Available => entry.map_or(Some(plan.now), |entry| i64::try_from(entry.milliseconds).ok()),
            _ => None,
        };
        Ok(EnqueuedJob { job, state, is_new: true })
    }

    async fn run_create_script(&self, job: &JobRecord, plan: &CreationPlan<'_>) -> StoreResult<Vec<String>> {
        let keys = QueueKeys::new(&job.queue);
        // A job without a limit never touches the keys of one
        let key = LimitKey::or_placeholder(job.limit_key());
        // The depth was checked when the workflow was accepted: its jobs are always admitted
        let max_depth = self.max_depth(&job.queue).filter(|_| job.workflow.is_none()).unwrap_or(0);
        let unique = plan.unique.as_ref();
        let mut call = script::CREATE.prepare_invoke();
        call.key(keys.record(&job.id)).key(keys.result(&job.id)).key(keys.due()).key(keys.pending());
        call.key(keys.timers()).key(keys.stats());
        call.key(self.uniqueness_key(&keys, unique));
        call.key(keys.key_limit(&key)).key(keys.key_queue(&key)).key(keys.waiting_keys()).key(keys.priorities());
        // Without a job to replace these are not touched, but for the record of a holder that had ended
        let older = plan.replaced.as_ref().map_or(job, |(_, older, _)| older);
        let older_key = LimitKey::or_placeholder(older.limit_key());
        call.key(keys.stream(older.priority)).key(keys.active()).key(keys.leases());
        call.key(keys.record(&plan.ended_holder.unwrap_or(older.id))).key(keys.result(&older.id));
        call.key(keys.key_queue(&older_key)).key(keys.admitted(&older_key)).key(keys.cancelled());
        call.key(if plan.checks_home { keys.key_partitions() } else { keys.uniqueness("-") });
        call.key(keys.stream(job.priority));
        if max_depth > 0 && matches!(plan.place, JobDestination::Stream | JobDestination::KeyQueue) {
            self.add_other_streams(&mut call, &job.queue, job.priority).await?;
        }
        let (how, at) = match plan.place {
            JobDestination::Stream => ("now", String::new()),
            JobDestination::KeyQueue => ("key_queue", String::new()),
            JobDestination::Pending => ("pending", plan.now.to_string()),
            JobDestination::Scheduled(at) => ("scheduled", at.to_string()),
        };
        call.arg(job.id.to_string()).arg(job.priority.get()).arg(how).arg(at);
        call.arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default());
        call.arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(Notification::StreamCreated(job.queue.clone()).encode());
        let unique_ttl = unique.map_or(plan.reservation_ttl, |unique| uniqueness_ttl(unique, plan.reservation_ttl));
        call.arg(max_depth).arg(if unique.is_some() { plan.holder } else { "-" }).arg(unique_ttl);
        match job.key_limit() {
            Some(limit) => call.arg(limit.key.as_str()).arg(limit.encode()),
            None => call.arg("").arg(""),
        };
        match &plan.replaced {
            Some((located, older, ended)) => {
                let [kind, entry, attempt_name, _, state] = located.seen_args();
                call.arg(&[
                    kind,
                    entry,
                    attempt_name,
                    state,
                    older.id.to_string(),
                    ended.to_text_without_attempt(self.sealer(), older),
                ]);
                let ttl = self.result_ttl(older, ended.size());
                call.arg(ttl.as_millis().to_string()).arg(u8::from(older.has_follow_up()));
            }
            None => drop(call.arg(&[""; 6]).arg(0).arg(0)),
        }
        let topics = self.store.redis.topics();
        call.arg(topics.for_script(topics.finished_jobs(&job.queue))).arg(u8::from(plan.is_chosen_id));
        call.arg(self.settings().discarded_max).arg(self.discarded_list_ttl_ms());
        Ok(call.arg(job.to_fields(self.sealer())).invoke_async(&mut self.store.redis.clone()).await?)
    }
}
