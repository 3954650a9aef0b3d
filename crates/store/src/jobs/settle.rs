//! Ends attempts. Only the current attempt can be ended: every call is fenced, and a stale one changes nothing.

use std::time::Duration;

use super::{
    Attempt, ClaimedJob, Consumer, Fence, JobResult, Jobs, claimed_job::record_lost, duration_millis,
    enqueue::RECORD_BYTES, finished_job::FinishedJob, record::JobRecord,
};
use crate::connection::{budgets::DataKind, notification::Notification};
use crate::{StoreResult, events::JobEvent, script, statistics::AttemptEnd};
use common::{id::EntryId, name::LimitKey, time::Millis};
use model::job::{
    AttemptError, JobState, RetryAdvice, RetryDecision,
    retry::{MAX_ADVISED_DELAY, MIN_RETRY_DELAY, OnExhaustion},
};

/// How long the end of an attempt is noted when Redis is too full to store its result: a call whose answer was lost finds
/// that it ended the attempt.
pub(super) const NOTE_TTL_MS: u64 = 10_000;

/// The outcome of a call that ends an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The attempt ended.
    Done,
    /// An earlier call for the same attempt ended it, and its answer was lost.
    AlreadyDone,
    /// The attempt is not the current one; nothing changed.
    Stale,
}

impl Settled {
    fn parse(text: &str) -> Self {
        match text {
            "done" => Self::Done,
            "done_before" => Self::AlreadyDone,
            _ => Self::Stale,
        }
    }
}

/// The outcome of a recorded failure.
#[derive(Debug, Clone)]
pub enum FailureOutcome {
    /// Another attempt follows.
    Retry {
        /// When it is due.
        due: Millis,
        /// The policy's delay.
        delay: Duration,
    },
    /// The job is finished.
    Discarded(FinishedJob),
    /// The attempt was not the current one; nothing changed.
    Stale,
}

impl FailureOutcome {
    /// The job's state, for logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Retry { .. } => "retryable",
            Self::Discarded(_) => "discarded",
            Self::Stale => "stale",
        }
    }
}

impl Jobs {
    /// What remains of a job that succeeded.
    #[must_use]
    pub fn succeeded(&self, claimed: &ClaimedJob, result: JobResult<'_>, now: Millis) -> FinishedJob {
        let keeps_envelope = self.settings().keep_envelope;
        FinishedJob::succeeded(&claimed.job, result, Some(claimed.started_at), now, keeps_envelope)
    }

    /// Ends a job: completed or discarded.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn finish(&self, attempt: Attempt<'_>, ended: &FinishedJob, dead_letter: bool) -> StoreResult<Settled> {
        let (Attempt { job, entry, fence }, keys) = (attempt, attempt.queue_keys());
        let text = if fence.is_attempts_own() {
            ended.to_text(self.sealer(), job, entry)
        } else {
            ended.to_text_without_attempt(self.sealer(), job)
        };
        // A dead letter is its record, and a follow-up reads it
        let ttl = if dead_letter {
            self.store.redis.memory().note_stored(DataKind::DeadLetters, text.len());
            self.store.settings.jobs.dead_letter_ttl
        } else {
            self.result_ttl(job, text.len())
        };
        let stored = self.stored_end(job, ended, text, ttl);
        let topics = self.store.redis.topics();
        let answer: String = attempt
            .call(&script::FINISH)
            .key(keys.record(&job.id))
            .key(keys.result(&job.id))
            .key(keys.dead_letters())
            .key(keys.stats())
            .key(keys.timers())
            .key(keys.admitted(&LimitKey::or_placeholder(job.limit_key())))
            .key(keys.discarded())
            .key(keys.log(&job.id))
            .key(keys.completed_index())
            .key(keys.checkpoint(&job.id))
            .key(keys.signals(&job.id))
            .arg(ended.state.as_str())
            .arg(stored.text.as_str())
            .arg(stored.ttl.as_millis().to_string())
            .arg(job.id.to_string())
            .arg(u8::from(dead_letter))
            .arg(topics.for_script(topics.finished_jobs(&job.queue)))
            .arg(u8::from(job.has_follow_up()))
            .arg(NOTE_TTL_MS.max(duration_millis(stored.note_ttl)))
            .arg(topics.notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(self.store.settings.jobs.discarded_max)
            .arg(self.discarded_list_ttl_ms())
            .arg(self.store.settings.jobs.completed_max)
            .arg(job.id.to_base64())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        let settled = Settled::parse(&answer);
        match settled {
            Settled::Done => {
                self.after_end(job, ended, stored.known_for(), dead_letter).await;
                // Nobody waits for this, and maintenance repeats it
                if dead_letter {
                    self.drop_excess_dead_letters(&job.queue).await;
                }
            }
            // The earlier call may have recorded another end than this one
            Settled::AlreadyDone if job.has_follow_up() => self.repeat_follow_up(&job.queue, job.id).await,
            Settled::AlreadyDone | Settled::Stale => {}
        }
        Ok(settled)
    }

    /// Records a failed attempt: the retry policy decides what follows.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn fail(
        &self,
        claimed: &ClaimedJob,
        fence: &Fence,
        failure: AttemptError,
        advice: RetryAdvice,
    ) -> StoreResult<FailureOutcome> {
        let policy = claimed.job.retry_policy(self.settings().on_exhaustion);
        let verdict = policy.after_failure(claimed.job.history.failures, &failure.error_type, advice, rand::random());
        let verdict = self.within_deadline(&claimed.job, verdict).await?;
        let mut job = claimed.job.clone();
        job.history.record_failure(failure, Some(claimed.started_at));
        if self.store.redis.memory().shortens_failures() {
            job.history.shorten();
        }
        match verdict {
            RetryDecision::Retry(delay) => {
                job.history.retry_delay_ms = u64::try_from(delay.as_millis()).ok();
                let Some(due) =
                    self.schedule_retry(Attempt { job: &job, ..Attempt::of(claimed, fence) }, delay).await?
                else {
                    return Ok(FailureOutcome::Stale);
                };
                self.count_attempt(claimed, AttemptEnd::Failed, self.estimated_now());
                self.store.events.record(JobEvent::failed(&job));
                Ok(FailureOutcome::Retry { due, delay })
            }
            RetryDecision::Discard { dead_letter } => {
                let outcome = self.finish_discarded(job, claimed.entry, fence, dead_letter).await?;
                if !matches!(outcome, FailureOutcome::Stale) {
                    self.count_attempt(claimed, AttemptEnd::Failed, self.estimated_now());
                }
                Ok(outcome)
            }
        }
    }

    /// Ends a job without another attempt, after a permanent failure.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn discard(&self, claimed: &ClaimedJob, fence: &Fence) -> StoreResult<FailureOutcome> {
        let dead_letter = self.wants_dead_letter(&claimed.job);
        self.finish_discarded(claimed.job.clone(), claimed.entry, fence, dead_letter).await
    }

    async fn finish_discarded(
        &self,
        mut job: JobRecord,
        entry: EntryId,
        fence: &Fence,
        dead_letter: bool,
    ) -> StoreResult<FailureOutcome> {
        job.history.retry_delay_ms = None;
        self.keep_parents(&mut job, dead_letter).await?;
        let now = self.estimated_now();
        let ended = FinishedJob::discarded(&job, now);
        match self.finish(Attempt { job: &job, entry, fence }, &ended, dead_letter).await? {
            Settled::Stale => Ok(FailureOutcome::Stale),
            Settled::Done | Settled::AlreadyDone => {
                self.store.events.statistics().count_end(&job.queue, JobState::Discarded);
                self.store.events.record(JobEvent::discarded(&job, now));
                Ok(FailureOutcome::Discarded(ended))
            }
        }
    }

    /// Delays a job that cannot run now; the attempt does not count. Returns when it is due, or none if the attempt
    /// was not the current one.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn snooze(&self, claimed: &ClaimedJob, fence: &Fence, delay: Duration) -> StoreResult<Option<Millis>> {
        let delay = delay.clamp(MIN_RETRY_DELAY, MAX_ADVISED_DELAY);
        self.schedule_retry(Attempt::of(claimed, fence), delay).await
    }

    /// Whether a job becomes a dead letter when its attempts are used up.
    fn wants_dead_letter(&self, job: &JobRecord) -> bool {
        job.retry_policy(self.settings().on_exhaustion).on_exhaustion == OnExhaustion::DeadLetter
    }

    /// No attempt may start after the job's deadline.
    async fn within_deadline(&self, job: &JobRecord, verdict: RetryDecision) -> StoreResult<RetryDecision> {
        let (RetryDecision::Retry(delay), Some(deadline)) = (verdict, job.deadline()) else { return Ok(verdict) };
        let starts_at = self.now().await?.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        if deadline <= starts_at {
            return Ok(RetryDecision::Discard { dead_letter: self.wants_dead_letter(job) });
        }
        Ok(verdict)
    }

    /// Schedules the next attempt; none if the attempt was not the current one.
    async fn schedule_retry(&self, attempt: Attempt<'_>, delay: Duration) -> StoreResult<Option<Millis>> {
        let (job, keys, memory) = (attempt.job, attempt.queue_keys(), self.store.redis.memory());
        let fields = job.to_fields(self.sealer());
        // A record takes ten times as much as a small job in its stream. A job that has one gets no larger
        let postponed = Some(Consumer::postponed()).filter(|_| !job.has_record && !memory.has_room_for_records());
        if !job.has_record && postponed.is_none() {
            memory.note_stored(DataKind::JobRecords, RECORD_BYTES + fields.iter().map(String::len).sum::<usize>());
        }
        let answer: Vec<String> = attempt
            .call(&script::RETRY)
            .key(keys.record(&job.id))
            .key(keys.due())
            .key(keys.stats())
            .key(keys.timers())
            .key(keys.admitted(&LimitKey::or_placeholder(job.limit_key())))
            .key(keys.checkpoint(&job.id))
            .arg(job.id.to_string())
            .arg(job.priority.get())
            .arg(delay.as_millis().to_string())
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(job.limit_key().map_or("", LimitKey::as_str))
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(postponed.as_ref().map_or("", Consumer::name))
            .arg(postponed.as_ref().map_or(0, |consumer| duration_millis(consumer.lease())))
            .arg(fields)
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        if answer.first().is_some_and(|answer| answer == "postponed") {
            metrics::counter!("galley_jobs_postponed_total", "queue" => job.queue.to_string()).increment(1);
        }
        let due = answer.get(1).and_then(|due| due.parse().ok());
        if due.is_some()
            && let Some(key) = job.limit_key()
            && let Err(error) = self.admit(&job.queue, key).await
        {
            tracing::debug!(%error, queue = %job.queue, "next job of a key not admitted, left to maintenance");
        }
        Ok(due)
    }

    /// Records that an attempt's worker died: the job is available again at once, or discarded if that happened too
    /// often.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn worker_lost(&self, claimed: &ClaimedJob, fence: &Fence) -> StoreResult<Settled> {
        record_lost(claimed, "worker_lost");
        let mut job = claimed.job.clone();
        job.history.record_crash(Some(claimed.started_at));
        if job.history.crashes <= self.store.settings.jobs.crash_budget {
            return self.release(Attempt { job: &job, ..Attempt::of(claimed, fence) }).await;
        }
        let now = self.estimated_now();
        let message = format!("{} workers vanished while they had this job", job.history.crashes);
        let failure = AttemptError::new("crash_budget_exhausted", "crash", &message, job.history.attempts, now);
        job.history.errors.push(failure);
        let dead_letter = self.wants_dead_letter(&job);
        self.keep_parents(&mut job, dead_letter).await?;
        let attempt = Attempt { job: &job, ..Attempt::of(claimed, fence) };
        let settled = self.finish(attempt, &FinishedJob::discarded(&job, now), dead_letter).await?;
        if settled == Settled::Done {
            self.store.events.statistics().count_end(&job.queue, JobState::Discarded);
            self.store.events.record(JobEvent::discarded(&job, now));
        }
        Ok(settled)
    }

    /// Releases a job: available again now, and the attempt does not count.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn release(&self, attempt: Attempt<'_>) -> StoreResult<Settled> {
        let (job, keys) = (attempt.job, attempt.queue_keys());
        let answer: String = attempt
            .call(&script::RELEASE)
            .key(keys.record(&job.id))
            .key(keys.priorities())
            .key(keys.timers())
            .arg(job.id.to_string())
            .arg(job.priority.get())
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(job.queue.clone()).encode())
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(job.to_fields(self.sealer()))
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        Ok(Settled::parse(&answer))
    }

    /// Discards a job that was claimed after its `expires_at`.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn discard_expired(&self, claimed: &ClaimedJob, fence: &Fence) -> StoreResult<Settled> {
        let now = self.estimated_now();
        let ended = FinishedJob::expired(&claimed.job, now);
        let settled = self.finish(Attempt::of(claimed, fence), &ended, false).await?;
        if settled == Settled::Done {
            self.report_end(&claimed.job, JobState::Discarded, now);
        }
        Ok(settled)
    }
}
