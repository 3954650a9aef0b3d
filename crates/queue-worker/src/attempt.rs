//! One attempt: run the handler, within its limits, and see to it that the outcome is recorded.
//!
//! A job whose attempt is not the current one any more (cancelled, or reclaimed because Redis did not hear from us) is
//! dropped where it is: its outcome could not be recorded anyway.

use std::{panic::AssertUnwindSafe, sync::Arc};

use common::{
    job::Failure,
    redis::{
        StoreError, StoreResult,
        jobs::{Claimed, Completion, Ended, Fence, Settled, local_now},
        next_delay, reconnect_delays,
    },
    telemetry::continue_trace,
};
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    handlers::{Context, HandlerError, Handlers},
    worker::Shared,
};

/// Starts attempts. When the last clone is gone, no more results can come.
#[derive(Clone)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
    handlers: Arc<Handlers>,
    completions: mpsc::Sender<Completion>,
}

/// How an attempt went.
enum Outcome {
    Succeeded(Option<String>),
    Failed(HandlerError),
    /// Not the current attempt any more: nothing can be recorded.
    Gone,
    /// The process stops: hand the job back.
    Abandoned,
    /// It should have been started earlier.
    Expired,
}

impl Runner {
    pub(crate) fn new(shared: Arc<Shared>, handlers: Handlers, completions: mpsc::Sender<Completion>) -> Self {
        Self { shared, handlers: Arc::new(handlers), completions }
    }

    /// Starts an attempt, which waits for a permit if it was not given one; false when it is here already.
    pub(crate) fn start(&self, claimed: Claimed, permit: Option<OwnedSemaphorePermit>) -> bool {
        let Some(gone) = self.shared.in_flight.insert(&claimed) else { return false };
        let job_type = claimed.job.summary.job_type.as_str();
        let span = tracing::info_span!(
            "job.attempt",
            otel.name = %format_args!("process {job_type}"),
            otel.kind = "consumer",
            job.id = %claimed.job.id,
            job.r#type = job_type,
            messaging.destination.name = %claimed.job.queue,
            job.attempt = claimed.job.history.current_attempt(),
        );
        continue_trace(&span, claimed.job.traceparent.as_deref());
        let runner = self.clone();
        self.shared.attempts.spawn(async move { runner.run(claimed, permit, gone).await }.instrument(span));
        true
    }

    async fn run(self, claimed: Claimed, permit: Option<OwnedSemaphorePermit>, gone: CancellationToken) {
        let permit = if let Some(permit) = permit {
            Some(permit)
        } else {
            tokio::select! {
                permit = self.shared.permits.clone().acquire_owned() => permit.ok(),
                () = gone.cancelled() => None,
                () = self.shared.abandon.cancelled() => None,
            }
        };
        let outcome = self.outcome(&claimed, &gone).await;
        match outcome {
            Outcome::Succeeded(result) => self.complete(claimed, result).await,
            Outcome::Failed(error) => self.settle(&claimed, &gone, &Step::Fail(error)).await,
            Outcome::Abandoned => self.settle(&claimed, &gone, &Step::Release).await,
            Outcome::Expired => self.settle(&claimed, &gone, &Step::Expire).await,
            Outcome::Gone => {
                tracing::info!(id = %claimed.job.id, "job is not ours any more, dropped");
                self.forget(&claimed);
            }
        }
        drop(permit);
    }

    async fn outcome(&self, claimed: &Claimed, gone: &CancellationToken) -> Outcome {
        if self.shared.abandon.is_cancelled() {
            return Outcome::Abandoned;
        }
        if claimed.job.is_expired(claimed.started_at) {
            return Outcome::Expired;
        }
        self.shared.jobs.record_start(claimed, Some(&self.shared.settings.queue_worker.name));
        let timeout = claimed.job.timeout_ms.map(std::time::Duration::from_millis);
        let limit = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let context = Context::new(claimed, &self.shared, gone.child_token());
        // A handler that panics must not take the others along
        let handler = AssertUnwindSafe(self.handlers.run(context)).catch_unwind();
        tokio::select! {
            biased;
            () = gone.cancelled() => Outcome::Gone,
            result = handler => self.judge(result.unwrap_or_else(|panic| Err(HandlerError::panicked(panic.as_ref())))),
            () = limit => Outcome::Failed(HandlerError::timed_out(timeout.unwrap_or_default())),
            () = self.shared.abandon.cancelled() => Outcome::Abandoned,
        }
    }

    fn judge(&self, result: Result<Option<String>, HandlerError>) -> Outcome {
        let limit = self.shared.jobs.settings().result_limit_bytes;
        match result {
            Ok(Some(result)) if result.len() > limit => Outcome::Failed(HandlerError::result_too_large(limit)),
            Ok(result) => Outcome::Succeeded(result),
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Gives a result to those that record many at once. Waits while too many are waiting.
    async fn complete(&self, claimed: Claimed, result: Option<String>) {
        let now = local_now();
        let ended = Ended::completed(&claimed.job, result.as_deref(), Some(claimed.started_at), now);
        if self.completions.send(Completion { claimed, ended, ended_at: now }).await.is_err() {
            tracing::error!("a result came after the last were recorded: the job will run again");
        }
    }

    /// Records what is not a success, again and again while Redis is away and the job is still ours.
    async fn settle(&self, claimed: &Claimed, gone: &CancellationToken, step: &Step) {
        let mut delays = reconnect_delays();
        loop {
            match self.record(claimed, step).await {
                Ok(()) => break,
                Err(StoreError::Unavailable(error)) => {
                    tracing::debug!(id = %claimed.job.id, %error, "outcome not recorded yet");
                    tokio::select! {
                        () = gone.cancelled() => break,
                        () = tokio::time::sleep(next_delay(&mut delays)) => {}
                    }
                }
                Err(error) => {
                    tracing::error!(id = %claimed.job.id, %error, "outcome cannot be recorded: the job will run again");
                    break;
                }
            }
        }
        self.forget(claimed);
    }

    async fn record(&self, claimed: &Claimed, step: &Step) -> StoreResult<()> {
        let jobs = &self.shared.jobs;
        let fence = Fence::of(&self.shared.consumer);
        let (id, queue) = (claimed.job.id, &claimed.job.queue);
        match step {
            Step::Fail(error) => {
                let attempt = claimed.job.history.current_attempt();
                let failure = Failure::new(&error.code, &error.error_type, &error.message, attempt, local_now());
                let recorded = jobs.fail(claimed, &fence, failure, error.advice).await?;
                let next = recorded.as_str();
                tracing::warn!(%id, %queue, attempt, code = error.code, message = error.message, next, "attempt failed");
                metrics::counter!("galley_attempts_total", "queue" => queue.to_string(), "outcome" => next)
                    .increment(1);
            }
            Step::Release => {
                let settled = jobs.requeue(&claimed.job, claimed.entry, &fence).await?;
                tracing::info!(%id, %queue, ?settled, "job handed back");
            }
            Step::Expire => {
                if jobs.expire(claimed, &fence).await? != Settled::Stale {
                    tracing::info!(%id, %queue, "job expired before it was started");
                }
            }
        }
        Ok(())
    }

    fn forget(&self, claimed: &Claimed) {
        self.shared.in_flight.remove(&claimed.job.queue, claimed.job.priority, claimed.entry);
    }
}

/// What to record of an attempt that did not succeed.
enum Step {
    Fail(HandlerError),
    Release,
    Expire,
}
