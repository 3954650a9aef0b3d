//! The context of a handler: which attempt this is, and what the handler can report or ask while it runs.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use common::{
    id::JobId,
    name::{JobType, QueueName, WorkerId},
    time::Millis,
    trace_context::TraceContext,
};
use model::job::{JobProgress, JobState, LogLevel};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use store::{
    StoreError,
    events::JobEvent,
    jobs::{Attempt, ClaimedJob, Fence, Jobs, MAX_CHUNK_BYTES},
};
use tokio_util::sync::CancellationToken;

use super::{HandlerError, attempt_log::AttemptLog, saved_state::SavedState};
use crate::shared::WorkerShared;

/// One attempt of a job, as its handler sees it. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<ContextInner>);

struct ContextInner {
    claimed: Arc<ClaimedJob>,
    shared: Arc<WorkerShared>,
    stop: CancellationToken,
    /// How long the handler may tidy up after a stop, in milliseconds: 0 unless it asked for the cancellation token.
    stop_grace_ms: AtomicU64,
    /// The last reported progress.
    last_progress: Mutex<Option<String>>,
    /// Absent until the handler logs something.
    log: OnceLock<AttemptLog>,
    /// Absent until the handler saves or reads something.
    saved: OnceLock<Box<SavedState>>,
    trace: TraceContext,
}

/// Why a report or a question of a handler failed.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The job was cancelled or reclaimed by another worker: this attempt's outcome will not be recorded.
    #[error("this attempt is not the current one any more")]
    Stale,
    /// Redis is unavailable. The attempt continues.
    #[error("it could not be noted: {0}")]
    Unavailable(String),
    /// The data is too large or malformed.
    #[error("{0}")]
    Invalid(String),
}

impl From<StoreError> for ContextError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Context {
    pub(crate) fn new(
        claimed: Arc<ClaimedJob>,
        shared: Arc<WorkerShared>,
        stop: CancellationToken,
        trace: TraceContext,
    ) -> Self {
        Self(Arc::new(ContextInner {
            claimed,
            shared,
            stop,
            stop_grace_ms: AtomicU64::new(0),
            last_progress: Mutex::default(),
            log: OnceLock::new(),
            saved: OnceLock::new(),
            trace,
        }))
    }

    /// The job's id. It is the same in every attempt, so use it to make the handler's effects idempotent.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.0.claimed.job.id
    }

    /// The job's type.
    #[must_use]
    pub fn job_type(&self) -> &JobType {
        &self.0.claimed.job.summary.job_type
    }

    /// The queue that the job was claimed from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.0.claimed.job.queue
    }

    /// The number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.claimed.job.history.current_attempt()
    }

    /// The maximum number of attempts.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.0.claimed.job.summary.max_attempts
    }

    /// A token that differs in every attempt: `<milliseconds>-<number>`, and later attempts have greater ones. A store
    /// that remembers the greatest token can refuse writes from an attempt that was replaced.
    #[must_use]
    pub fn fencing_token(&self) -> String {
        self.0.claimed.entry.to_string()
    }

    /// When the attempt's time limit ends, by this process's clock; none if it is too far away to tell.
    #[must_use]
    pub fn deadline(&self) -> Option<SystemTime> {
        let left = self.deadline_ms()?.saturating_sub(self.jobs().estimated_now());
        let far = Duration::from_millis(left.unsigned_abs());
        if left < 0 { SystemTime::now().checked_sub(far) } else { SystemTime::now().checked_add(far) }
    }

    pub(crate) fn deadline_ms(&self) -> Option<Millis> {
        let limit = Millis::try_from(self.jobs().attempt_timeout(&self.0.claimed.job).as_millis()).ok()?;
        Some(self.started_at().saturating_add(limit))
    }

    /// Fires when the handler should stop: the job was cancelled or reclaimed, its time limit is over, or the process
    /// stops. A handler that asked for this token gets `queue_worker.stop_grace_ms` to tidy up and return; any other
    /// handler is dropped at its next await point.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.cancellation_with_grace(self.0.shared.settings.queue_worker.stop_grace)
    }

    /// Like [`Context::cancellation`], with a longer time to tidy up.
    pub(crate) fn cancellation_with_grace(&self, grace: Duration) -> CancellationToken {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        for longest in [&self.0.stop_grace_ms, &self.0.shared.max_stop_grace_ms] {
            longest.fetch_max(grace_ms, Relaxed);
        }
        self.0.stop.clone()
    }

    /// Fires when the worker finishes what it has: nothing more will come.
    pub(crate) fn finishing(&self) -> &CancellationToken {
        &self.0.shared.finishing
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.0.stop_grace_ms.load(Relaxed))
    }

    /// The attempt's trace: what to pass on with requests that the handler sends.
    #[must_use]
    pub fn trace(&self) -> &TraceContext {
        &self.0.trace
    }

    /// The attempt's trace, as a W3C `traceparent`. The rest of it: [`Context::trace`].
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.trace().traceparent()
    }

    /// The job's arguments: a JSON array, exactly as the client sent it.
    ///
    /// # Errors
    /// The stored job is damaged.
    pub fn args(&self) -> Result<Box<RawValue>, HandlerError> {
        let parts = self.0.claimed.job.envelope.fields();
        parts.map(|parts| parts.args.to_owned()).map_err(|error| HandlerError::invalid_arguments(&error.to_string()))
    }

    /// The results of the job's parents in its workflow; empty if it has none.
    ///
    /// # Errors
    /// A result does not parse as `T`.
    pub fn parent_results<T: DeserializeOwned>(&self) -> Result<Vec<T>, HandlerError> {
        serde_json::from_str(self.parent_results_json())
            .map_err(|error| HandlerError::invalid_arguments(&format!("the results before this job: {error}")))
    }

    /// The results of the job's parents as a JSON array.
    #[must_use]
    pub fn parent_results_json(&self) -> &str {
        self.0.claimed.job.parent_results.as_deref().unwrap_or("[]")
    }

    /// Reports the progress, from 0 to 1, for people to see. A number lower than the last one is not shown.
    ///
    /// # Errors
    /// The report was not recorded. Only [`ContextError::Stale`] is a reason to stop.
    pub async fn progress(&self, number: f64) -> Result<(), ContextError> {
        self.report_progress(Some(number), None).await
    }

    /// Like [`Context::progress`], with data that serializes to a JSON object of at most 4,096 bytes.
    ///
    /// # Errors
    /// As [`Context::progress`], and [`ContextError::Invalid`] for other data.
    pub async fn progress_with(&self, number: Option<f64>, data: &impl Serialize) -> Result<(), ContextError> {
        let data =
            serde_json::value::to_raw_value(data).map_err(|error| ContextError::Invalid(format!("data: {error}")))?;
        self.report_progress(number, Some(&data)).await
    }

    async fn report_progress(&self, number: Option<f64>, data: Option<&RawValue>) -> Result<(), ContextError> {
        let progress = JobProgress::new(number, data).map_err(|error| ContextError::Invalid(error.to_string()))?;
        let shown = {
            let mut shown = self.0.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
            let next = progress.merge(shown.as_deref(), self.jobs().estimated_now());
            *shown = Some(next.clone());
            next
        };
        let (jobs, claimed) = (self.jobs(), self.claimed());
        if !jobs.record_progress(&claimed.job, claimed.entry, &self.0.shared.consumer, &shown).await? {
            return Err(ContextError::Stale);
        }
        jobs.record_event(JobEvent::progress(&claimed.job, &shown));
        Ok(())
    }

    /// Logs a line for people to see: `GET /ojs/v1/jobs/{id}/logs` shows it, and the job's event stream. It never waits. The
    /// newest `jobs.log_lines_max` lines of a job are kept, as long as the job, and `jobs.log_line_bytes` of each.
    pub fn log(&self, message: impl AsRef<str>) {
        self.log_at(LogLevel::Info, message);
    }

    /// Like [`Context::log`], with a level.
    pub fn log_at(&self, level: LogLevel, message: impl AsRef<str>) {
        let log = self.0.log.get_or_init(|| AttemptLog::new(&self.0.claimed, &self.0.shared));
        log.push(level, message.as_ref());
    }

    /// Waits until the lines of the attempt are written: after its end nobody may add any.
    pub(crate) async fn finish_log(&self) {
        if let Some(log) = self.0.log.get() {
            log.finish().await;
        }
    }

    /// Adds a chunk to the job's output, such as a word of an answer: `GET /ojs/v1/jobs/{id}/output` shows it while the job
    /// runs, and for an hour. It has at most 65,536 bytes as JSON; the newest 10,000 chunks and four mebibytes are kept.
    ///
    /// # Errors
    /// As [`Context::progress`], and [`ContextError::Invalid`] for a larger chunk.
    pub async fn stream(&self, chunk: &impl Serialize) -> Result<(), ContextError> {
        let chunk = serde_json::to_string(chunk).map_err(|error| ContextError::Invalid(format!("chunk: {error}")))?;
        if chunk.len() > MAX_CHUNK_BYTES {
            let message = format!("a chunk must have at most {MAX_CHUNK_BYTES} bytes, got {}", chunk.len());
            return Err(ContextError::Invalid(message));
        }
        let fence = self.fence();
        match self.jobs().write_output(Attempt::of(self.claimed(), &fence), None, &[chunk]).await? {
            Some(_) => Ok(()),
            None => Err(ContextError::Stale),
        }
    }

    /// Checks that this attempt is still the current one and renews its lease. The worker renews leases by itself;
    /// call this just before an effect that cannot be undone.
    ///
    /// # Errors
    /// [`ContextError::Stale`] if the attempt was replaced, [`ContextError::Unavailable`] if Redis does not answer.
    pub async fn heartbeat(&self) -> Result<(), ContextError> {
        let (job, consumer) = (&self.claimed().job, &self.0.shared.consumer);
        let renewal = [(self.claimed().entry, self.claimed().started_at, job.lease_ms)];
        let lost = self.jobs().renew_leases(&job.queue, job.priority, consumer, self.worker(), &renewal).await?;
        if lost.is_empty() { Ok(()) } else { Err(ContextError::Stale) }
    }

    /// The running job as clients see it. Pass the token only to a receiver that may end the attempt with it.
    pub(crate) fn job_json(&self, token: Option<&str>) -> String {
        let mut view = self.claimed().job.view(JobState::Active);
        view.attempt = self.attempt();
        view.started_at = Some(self.started_at());
        view.worker_id = Some(self.worker().as_str());
        view.token = token;
        let checkpoint = self.claimed().checkpoint.as_ref().map(|checkpoint| checkpoint.to_json());
        view.checkpoint = checkpoint.as_deref();
        let (waiting, signals) = (self.claimed().waiting_json(), self.claimed().signals_json());
        (view.waiting, view.signals) = (waiting.as_deref(), signals.as_deref());
        view.to_json()
    }

    pub(super) fn saved(&self) -> &OnceLock<Box<SavedState>> {
        &self.0.saved
    }

    pub(super) fn fence(&self) -> Fence {
        Fence::for_worker(&self.0.shared.consumer)
    }

    pub(crate) fn claimed(&self) -> &ClaimedJob {
        &self.0.claimed
    }

    /// The largest result that is kept, in bytes.
    pub(crate) fn result_limit_bytes(&self) -> usize {
        self.jobs().settings().result_limit_bytes
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.0.shared.jobs
    }

    /// The number of jobs in this job's queue that can be claimed now.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn waiting_jobs(&self) -> Result<u64, ContextError> {
        Ok(self.jobs().queue_stats(self.queue()).await?.available)
    }

    /// The name of the worker that runs this attempt.
    #[must_use]
    pub fn worker(&self) -> &WorkerId {
        &self.0.shared.settings.queue_worker.name
    }

    /// Issues a token with which another program can end this attempt.
    pub(crate) async fn issue_callback_token(&self, token: &str) -> Result<(), ContextError> {
        let is_current = self
            .jobs()
            .issue_callback_token(self.claimed(), &self.0.shared.consumer, self.worker(), token, None)
            .await?;
        if is_current { Ok(()) } else { Err(ContextError::Stale) }
    }

    /// When the attempt started, by Redis's clock.
    pub(crate) fn started_at(&self) -> Millis {
        self.0.claimed.started_at
    }
}
