//! One attempt: run the handler, within its limits, and see to it that the outcome is recorded.
//!
//! A job whose attempt is not the current one any more (cancelled, or reclaimed because Redis did not hear from us) is
//! stopped: its outcome could not be recorded anyway. A handler that listens for that gets a moment to tidy up, others are
//! dropped where they wait.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use common::telemetry::continue_trace;
use futures_util::FutureExt;
use store::{
    StoreError, StoreResult,
    jobs::{Claimed, Completion, Ended, Fence, Settled, local_now},
    next_delay, reconnect_delays,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    handlers::{Context, Done, HandlerError, HandlerResult},
    rules::Dispatch,
    slots::Place,
    wakeup::Doorbell,
    worker::Shared,
};

/// Starts attempts. When the last clone is gone, no more results can come.
#[derive(Clone)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
    dispatch: Arc<Dispatch>,
    doorbell: Arc<Doorbell>,
    completions: mpsc::Sender<Completion>,
}

/// How an attempt went.
enum Outcome {
    Succeeded(Option<String>),
    Failed(HandlerError),
    /// Another program goes on with it.
    HandedOver {
        token: String,
        lease: Duration,
    },
    /// To be tried later, as if it had not been tried now.
    NotNow {
        delay: Duration,
        why: String,
    },
    /// Not the current attempt any more: nothing can be recorded.
    Gone,
    /// The process stops: hand the job back.
    Abandoned,
    /// It should have been started earlier.
    Expired,
}

/// Why a handler is stopped.
enum Stop {
    Gone,
    TimedOut(Duration),
    Abandoned,
}

impl Runner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        dispatch: Arc<Dispatch>,
        doorbell: Arc<Doorbell>,
        completions: mpsc::Sender<Completion>,
    ) -> Self {
        Self { shared, dispatch, doorbell, completions }
    }

    /// Starts an attempt, which waits for a place if it was not given one; false when it is here already.
    pub(crate) fn start(&self, claimed: Claimed, place: Option<Place>) -> bool {
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
        self.shared.attempts.spawn(async move { runner.run(claimed, place, gone).await }.instrument(span));
        true
    }

    async fn run(self, claimed: Claimed, place: Option<Place>, gone: CancellationToken) {
        let queue = claimed.job.queue.clone();
        let place = if let Some(place) = place {
            Some(place)
        } else {
            tokio::select! {
                place = self.shared.places.wait(&queue) => place,
                () = gone.cancelled() => None,
                () = self.shared.abandon.cancelled() => None,
            }
        };
        let claimed = Arc::new(claimed);
        let outcome = self.outcome(&claimed, &gone).await;
        match outcome {
            Outcome::Succeeded(result) => self.complete(Arc::unwrap_or_clone(claimed), result).await,
            Outcome::Failed(error) => self.settle(&claimed, &gone, &Step::Fail(error)).await,
            Outcome::HandedOver { token, lease } => {
                self.settle(&claimed, &gone, &Step::HandOver { token, lease }).await;
            }
            Outcome::NotNow { delay, why } => self.settle(&claimed, &gone, &Step::PutBack { delay, why }).await,
            Outcome::Abandoned => self.settle(&claimed, &gone, &Step::Release).await,
            Outcome::Expired => self.settle(&claimed, &gone, &Step::Expire).await,
            Outcome::Gone => {
                tracing::info!(id = %claimed.job.id, "job is not ours any more, stopped");
                self.forget(&claimed);
            }
        }
        if place.is_some_and(|place| self.shared.places.give_back(&queue, place)) {
            // Its queue was not listened to while all its places were taken
            self.doorbell.ring(&self.shared).await;
        }
    }

    async fn outcome(&self, claimed: &Arc<Claimed>, gone: &CancellationToken) -> Outcome {
        if self.shared.abandon.is_cancelled() {
            return Outcome::Abandoned;
        }
        if claimed.job.is_expired(claimed.started_at) {
            return Outcome::Expired;
        }
        self.shared.jobs.record_start(claimed, Some(&self.shared.settings.queue_worker.name));
        let limit = async {
            match claimed.job.timeout_ms.map(Duration::from_millis) {
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        let stopped = CancellationToken::new();
        let context = Context::new(claimed.clone(), self.shared.clone(), stopped.clone());
        // A handler that panics must not take the others along
        let handler = AssertUnwindSafe(self.dispatch.run(context.clone())).catch_unwind();
        tokio::pin!(handler);
        let stop = tokio::select! {
            biased;
            () = gone.cancelled() => Stop::Gone,
            result = &mut handler => return self.judge(unwound(result)),
            limit = limit => Stop::TimedOut(limit),
            () = self.shared.abandon.cancelled() => Stop::Abandoned,
        };
        stopped.cancel();
        let last_words = tokio::time::timeout(context.grace(), &mut handler).await.ok().map(unwound);
        match stop {
            Stop::Gone => Outcome::Gone,
            Stop::TimedOut(limit) => {
                let output = last_words.and_then(Result::err).and_then(HandlerError::into_output);
                Outcome::Failed(HandlerError::timed_out(limit).with_output(output.unwrap_or_default()))
            }
            // What it has done is done
            Stop::Abandoned => match last_words {
                Some(Ok(done)) => self.judge(Ok(done)),
                _ => Outcome::Abandoned,
            },
        }
    }

    fn judge(&self, result: HandlerResult) -> Outcome {
        let limit = self.shared.jobs.settings().result_limit_bytes;
        match result {
            Ok(Done::Result(Some(result))) if result.len() > limit => {
                Outcome::Failed(HandlerError::result_too_large(limit))
            }
            Ok(Done::Result(result)) => Outcome::Succeeded(result),
            Ok(Done::NotNow { delay, why }) => Outcome::NotNow { delay, why },
            Ok(Done::Later { token, lease }) => Outcome::HandedOver { token, lease },
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
                let recorded = jobs.fail(claimed, &fence, error.failure(attempt, local_now()), error.advice()).await?;
                let next = recorded.as_str();
                tracing::warn!(%id, %queue, attempt, code = error.code(), message = %error, next, "attempt failed");
                metrics::counter!("galley_attempts_total", "queue" => queue.to_string(), "outcome" => next)
                    .increment(1);
            }
            Step::HandOver { token, lease } => {
                let worker = &self.shared.settings.queue_worker.name;
                let is_ours = jobs.lend(claimed, &self.shared.consumer, worker, token, Some(*lease)).await?;
                tracing::info!(%id, %queue, is_ours, "job handed over to its endpoint");
            }
            Step::PutBack { delay, why } => {
                let due = jobs.put_back(claimed, &fence, *delay).await?;
                tracing::info!(%id, %queue, why, is_ours = due.is_some(), "job put back for a while");
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

/// What a handler came to that may have panicked.
fn unwound(result: Result<HandlerResult, Box<dyn std::any::Any + Send>>) -> HandlerResult {
    result.unwrap_or_else(|panic| Err(HandlerError::panicked(panic.as_ref())))
}

/// What to record of an attempt that did not succeed.
enum Step {
    Fail(HandlerError),
    HandOver { token: String, lease: Duration },
    PutBack { delay: Duration, why: String },
    Release,
    Expire,
}
