//! One attempt: run the handler, within its limits, and see to it that the outcome is recorded.
//!
//! A job whose attempt is not the current one any more (cancelled, or reclaimed because Redis did not hear from us) is
//! stopped: its outcome could not be recorded anyway. A handler that listens for that gets a moment to tidy up, others are
//! dropped where they wait.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use common::telemetry::continue_trace;
use futures_util::FutureExt;
use store::{
    jobs::{ClaimedJob, Completion, Fence, FinishedJob},
    local_now,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    handlers::{Context, HandlerError, HandlerOutcome, HandlerResult},
    rules::Dispatcher,
    settlement::{Settlement, SettlementOutcome, settle},
    shared::WorkerShared,
    slots::Permit,
    wakeup::Wakeup,
};

/// Starts attempts. When the last clone is gone, no more results can come.
#[derive(Clone)]
pub(crate) struct AttemptRunner {
    shared: Arc<WorkerShared>,
    dispatcher: Arc<Dispatcher>,
    wakeup: Arc<Wakeup>,
    completions: mpsc::Sender<Completion>,
}

/// How an attempt went.
enum AttemptOutcome {
    Succeeded(Option<String>),
    Failed(HandlerError),
    /// Another program goes on with it.
    AsyncCompletion {
        token: String,
        lease: Duration,
    },
    /// To be tried later, as if it had not been tried now.
    Snoozed {
        delay: Duration,
        why: String,
    },
    /// Not the current attempt any more: nothing can be recorded.
    Stale,
    /// The process stops: hand the job back.
    HardShutdown,
    /// It should have been started earlier.
    Expired,
}

/// Why a handler is stopped.
enum StopReason {
    Stale,
    TimedOut(Duration),
    HardShutdown,
}

impl AttemptRunner {
    pub(crate) fn new(
        shared: Arc<WorkerShared>,
        dispatcher: Arc<Dispatcher>,
        wakeup: Arc<Wakeup>,
        completions: mpsc::Sender<Completion>,
    ) -> Self {
        Self { shared, dispatcher, wakeup, completions }
    }

    /// Starts an attempt, which waits for a place if it was not given one; false when it is here already.
    pub(crate) fn start(&self, claimed: ClaimedJob, place: Option<Permit>) -> bool {
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

    async fn run(self, claimed: ClaimedJob, place: Option<Permit>, gone: CancellationToken) {
        let queue = claimed.job.queue.clone();
        let place = if let Some(place) = place {
            Some(place)
        } else {
            tokio::select! {
                place = self.shared.slots.acquire(&queue) => place,
                () = gone.cancelled() => None,
                () = self.shared.hard_shutdown.cancelled() => None,
            }
        };
        let claimed = Arc::new(claimed);
        let outcome = self.run_handler(&claimed, &gone).await;
        match outcome {
            AttemptOutcome::Succeeded(result) => self.complete(Arc::unwrap_or_clone(claimed), result).await,
            AttemptOutcome::Failed(error) => self.settle(&claimed, &gone, failed(&claimed, &error)).await,
            AttemptOutcome::AsyncCompletion { token, lease } => {
                let (consumer, worker) = (self.shared.consumer.clone(), self.shared.settings.queue_worker.name.clone());
                self.settle(&claimed, &gone, Settlement::CompleteAsync { consumer, worker, token, lease }).await;
            }
            AttemptOutcome::Snoozed { delay, why } => {
                tracing::info!(id = %claimed.job.id, why, "job cannot be tried now");
                self.settle(&claimed, &gone, Settlement::Snooze(delay)).await;
            }
            AttemptOutcome::HardShutdown => self.settle(&claimed, &gone, Settlement::Release).await,
            AttemptOutcome::Expired => self.settle(&claimed, &gone, Settlement::Expire).await,
            AttemptOutcome::Stale => {
                tracing::info!(id = %claimed.job.id, "job is not ours any more, stopped");
                self.forget(&claimed);
            }
        }
        if place.is_some_and(|place| self.shared.slots.return_permit(&queue, place)) {
            // Its queue was not listened to while all its places were taken
            self.wakeup.wake();
        }
    }

    async fn run_handler(&self, claimed: &Arc<ClaimedJob>, gone: &CancellationToken) -> AttemptOutcome {
        if self.shared.hard_shutdown.is_cancelled() {
            return AttemptOutcome::HardShutdown;
        }
        if claimed.job.is_expired(claimed.started_at) {
            return AttemptOutcome::Expired;
        }
        self.shared.jobs.record_started(claimed, Some(&self.shared.settings.queue_worker.name));
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
        let handler = AssertUnwindSafe(self.dispatcher.run(context.clone())).catch_unwind();
        tokio::pin!(handler);
        let stop = tokio::select! {
            biased;
            () = gone.cancelled() => StopReason::Stale,
            result = &mut handler => return self.classify_result(flatten_panic(result)),
            limit = limit => StopReason::TimedOut(limit),
            () = self.shared.hard_shutdown.cancelled() => StopReason::HardShutdown,
        };
        stopped.cancel();
        let last_words = tokio::time::timeout(context.stop_grace(), &mut handler).await.ok().map(flatten_panic);
        match stop {
            StopReason::Stale => AttemptOutcome::Stale,
            StopReason::TimedOut(limit) => {
                let output = last_words.and_then(Result::err).and_then(HandlerError::into_output);
                AttemptOutcome::Failed(HandlerError::timed_out(limit).with_output(output.unwrap_or_default()))
            }
            // What it has done is done
            StopReason::HardShutdown => match last_words {
                Some(Ok(done)) => self.classify_result(Ok(done)),
                _ => AttemptOutcome::HardShutdown,
            },
        }
    }

    fn classify_result(&self, result: HandlerResult) -> AttemptOutcome {
        let limit = self.shared.jobs.settings().result_limit_bytes;
        match result {
            Ok(HandlerOutcome::Completed(Some(result))) if result.len() > limit => {
                AttemptOutcome::Failed(HandlerError::result_too_large(limit))
            }
            Ok(HandlerOutcome::Completed(result)) => AttemptOutcome::Succeeded(result),
            Ok(HandlerOutcome::Snoozed { delay, why }) => AttemptOutcome::Snoozed { delay, why },
            Ok(HandlerOutcome::AsyncCompletion { token, lease }) => AttemptOutcome::AsyncCompletion { token, lease },
            Err(error) => AttemptOutcome::Failed(error),
        }
    }

    /// Gives a result to those that record many at once. Waits while too many are waiting.
    async fn complete(&self, claimed: ClaimedJob, result: Option<String>) {
        let now = local_now();
        let ended = FinishedJob::completed(&claimed.job, result.as_deref(), Some(claimed.started_at), now);
        if self.completions.send(Completion { claimed, finished: ended, ended_at: now }).await.is_err() {
            tracing::error!("a result came after the last were recorded: the job will run again");
        }
    }

    /// Records what is not a success, and logs it.
    async fn settle(&self, claimed: &ClaimedJob, gone: &CancellationToken, settlement: Settlement) {
        let shared = &self.shared;
        let fence = Fence::for_worker(&shared.consumer);
        let outcome = settle(&shared.jobs, claimed, &fence, &settlement, gone).await;
        if let Some(outcome) = outcome {
            log_settlement(claimed, &settlement, outcome);
        }
        self.forget(claimed);
    }

    fn forget(&self, claimed: &ClaimedJob) {
        self.shared.in_flight.remove(&claimed.job.queue, claimed.job.priority, claimed.entry);
    }
}

/// What a handler came to that may have panicked.
fn flatten_panic(result: Result<HandlerResult, Box<dyn std::any::Any + Send>>) -> HandlerResult {
    result.unwrap_or_else(|panic| Err(HandlerError::panicked(panic.as_ref())))
}

fn failed(claimed: &ClaimedJob, error: &HandlerError) -> Settlement {
    let attempt = claimed.job.history.current_attempt();
    Settlement::Fail { error: error.failure(attempt, local_now()), advice: error.advice() }
}

fn log_settlement(claimed: &ClaimedJob, settlement: &Settlement, outcome: SettlementOutcome) {
    let (id, queue, attempt) = (claimed.job.id, &claimed.job.queue, claimed.job.history.current_attempt());
    match (settlement, outcome) {
        (Settlement::Fail { error, .. }, outcome) => {
            let next = if let SettlementOutcome::Recorded(next) = outcome { next } else { "stale" };
            tracing::warn!(%id, %queue, attempt, code = error.code, message = error.message, next, "attempt failed");
            metrics::counter!("galley_attempts_total", "queue" => queue.to_string(), "outcome" => next).increment(1);
        }
        (_, SettlementOutcome::Stale) => tracing::info!(%id, %queue, attempt, "the attempt is not the current one"),
        (Settlement::Snooze(delay), _) => tracing::info!(%id, %queue, ?delay, "job snoozed"),
        (Settlement::Release, _) => tracing::info!(%id, %queue, "job released"),
        (Settlement::Expire, _) => tracing::info!(%id, %queue, "job expired before it was started"),
        (Settlement::CompleteAsync { .. }, _) => {
            tracing::info!(%id, %queue, "job handed over to its endpoint, which completes it");
        }
        (Settlement::Complete | Settlement::Discard, _) => {}
    }
}
