//! What a handler is given: which attempt this is, and what it may say while it runs.

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
    telemetry::traceparent_of,
    time::Millis,
};
use model::job::{JobProgress, JobState};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use store::local_now;
use store::{
    StoreError,
    events::JobEvent,
    jobs::{ClaimedJob, Jobs},
};
use tokio_util::sync::CancellationToken;

use super::HandlerError;
use crate::shared::WorkerShared;

/// One attempt of a job, for the handler that runs it. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<ContextInner>);

struct ContextInner {
    claimed: Arc<ClaimedJob>,
    shared: Arc<WorkerShared>,
    stop: CancellationToken,
    /// How long the handler may take to tidy up once it is told to stop: nothing unless it listens.
    stop_grace_ms: AtomicU64,
    /// The progress that was said last.
    last_progress: Mutex<Option<String>>,
    span: tracing::Span,
    traceparent: OnceLock<Option<String>>,
}

/// Why something that a handler says was not noted.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The job was cancelled, or another worker has it: whatever this attempt comes to, it is not recorded.
    #[error("this attempt is not the current one any more")]
    Stale,
    /// Redis is away. The attempt goes on.
    #[error("it could not be noted: {0}")]
    Unavailable(String),
    /// It is not what can be kept.
    #[error("{0}")]
    Invalid(String),
}

impl From<StoreError> for ContextError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Context {
    pub(crate) fn new(claimed: Arc<ClaimedJob>, shared: Arc<WorkerShared>, stop: CancellationToken) -> Self {
        Self(Arc::new(ContextInner {
            claimed,
            shared,
            stop,
            stop_grace_ms: AtomicU64::new(0),
            last_progress: Mutex::default(),
            span: tracing::Span::current(),
            traceparent: OnceLock::new(),
        }))
    }

    /// The job's id: the same in every attempt, so what a handler does can be made idempotent with it.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.0.claimed.job.id
    }

    /// The job's type.
    #[must_use]
    pub fn job_type(&self) -> &JobType {
        &self.0.claimed.job.summary.job_type
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.0.claimed.job.queue
    }

    /// The number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.claimed.job.history.current_attempt()
    }

    /// How many attempts there can be.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.0.claimed.job.summary.max_attempts
    }

    /// A text that is another in every attempt of the job: `<milliseconds>-<number>`, later ones greater. A store that
    /// keeps the greatest it has seen can refuse writes of an attempt that was given up.
    #[must_use]
    pub fn fencing_token(&self) -> String {
        self.0.claimed.entry.to_string()
    }

    /// When the attempt must be over, if the job says so.
    #[must_use]
    pub fn deadline(&self) -> Option<SystemTime> {
        let deadline = u64::try_from(self.deadline_ms()?).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(deadline))
    }

    pub(crate) fn deadline_ms(&self) -> Option<Millis> {
        let limit = Millis::try_from(self.0.claimed.job.timeout_ms?).ok()?;
        Some(self.started_at().saturating_add(limit))
    }

    /// Fires when the handler should stop: the job was cancelled or given to another worker, its time is over, or the
    /// process stops. A handler that has asked for it gets `queue_worker.stop_grace_ms` to tidy up and return; one that
    /// has not is dropped where it waits.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.cancellation_with_grace(self.0.shared.settings.queue_worker.stop_grace)
    }

    /// The same for a handler that needs so long to tidy up.
    pub(crate) fn cancellation_with_grace(&self, grace: Duration) -> CancellationToken {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        for longest in [&self.0.stop_grace_ms, &self.0.shared.max_stop_grace_ms] {
            longest.fetch_max(grace_ms, Relaxed);
        }
        self.0.stop.clone()
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.0.stop_grace_ms.load(Relaxed))
    }

    /// The trace that the attempt belongs to, as a W3C `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        // Without an exporter there is no span to tell, and the trace of the client goes on as it came
        let known = || traceparent_of(&self.0.span).or_else(|| self.0.claimed.job.traceparent.clone());
        self.0.traceparent.get_or_init(known).as_deref()
    }

    /// The arguments: a JSON array, as it came.
    ///
    /// # Errors
    /// The stored job is damaged.
    pub fn args(&self) -> Result<Box<RawValue>, HandlerError> {
        let parts = self.0.claimed.job.envelope.fields();
        parts.map(|parts| parts.args.to_owned()).map_err(|error| HandlerError::invalid_arguments(&error.to_string()))
    }

    /// The results of the jobs before this one in its workflow; empty for a job that has none before it.
    ///
    /// # Errors
    /// They are not what is asked for.
    pub fn parent_results<T: DeserializeOwned>(&self) -> Result<Vec<T>, HandlerError> {
        serde_json::from_str(self.parent_results_json())
            .map_err(|error| HandlerError::invalid_arguments(&format!("the results before this job: {error}")))
    }

    /// The same as the JSON array that it is.
    #[must_use]
    pub fn parent_results_json(&self) -> &str {
        self.0.claimed.job.parent_results.as_deref().unwrap_or("[]")
    }

    /// Says how far it has come, from 0 to 1, for people to see. A number that goes back is not shown.
    ///
    /// # Errors
    /// It was not noted; that is no reason not to go on, unless it is [`ContextError::Stale`].
    pub async fn progress(&self, number: f64) -> Result<(), ContextError> {
        self.report_progress(Some(number), None).await
    }

    /// The same with something to look at: what serializes to a JSON object of at most 4,096 bytes.
    ///
    /// # Errors
    /// As [`Context::progress`]; also when the data is something else.
    pub async fn progress_with(&self, number: Option<f64>, data: &impl Serialize) -> Result<(), ContextError> {
        let data =
            serde_json::value::to_raw_value(data).map_err(|error| ContextError::Invalid(format!("data: {error}")))?;
        self.report_progress(number, Some(&data)).await
    }

    async fn report_progress(&self, number: Option<f64>, data: Option<&RawValue>) -> Result<(), ContextError> {
        let progress = JobProgress::new(number, data).map_err(|error| ContextError::Invalid(error.to_string()))?;
        let shown = {
            let mut shown = self.0.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
            let next = progress.merge(shown.as_deref(), local_now());
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

    /// Asks whether this attempt is still the current one, and renews its lease. The worker renews leases by itself; this
    /// is for just before something that cannot be undone.
    ///
    /// # Errors
    /// It is not, or Redis is away.
    pub async fn heartbeat(&self) -> Result<(), ContextError> {
        let (job, consumer) = (&self.claimed().job, &self.0.shared.consumer);
        let renewal = [(self.claimed().entry, self.claimed().started_at, job.lease_ms)];
        let lost = self.jobs().renew_leases(&job.queue, job.priority, consumer, self.worker(), &renewal).await?;
        if lost.is_empty() { Ok(()) } else { Err(ContextError::Stale) }
    }

    /// The job as clients see it while it runs; with a token only for whoever may end the attempt with it.
    pub(crate) fn job_json(&self, token: Option<&str>) -> String {
        let mut view = self.claimed().job.view(JobState::Active);
        view.attempt = self.attempt();
        view.started_at = Some(self.started_at());
        view.worker_id = Some(self.worker().as_str());
        view.token = token;
        view.to_json()
    }

    pub(crate) fn claimed(&self) -> &ClaimedJob {
        &self.0.claimed
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.0.shared.jobs
    }

    /// How many jobs of its queue wait to be claimed now.
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

    /// Gives the attempt a token, with which another program may end it.
    pub(crate) async fn issue_callback_token(&self, token: &str) -> Result<(), ContextError> {
        let lent = self
            .jobs()
            .issue_callback_token(self.claimed(), &self.0.shared.consumer, self.worker(), token, None)
            .await?;
        if lent { Ok(()) } else { Err(ContextError::Stale) }
    }

    /// When the attempt began, on Redis's clock.
    pub(crate) fn started_at(&self) -> Millis {
        self.0.claimed.started_at
    }
}
