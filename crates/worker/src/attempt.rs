//! Runs one attempt: calls the handler within its time limit and records the outcome.
//!
//! An attempt becomes stale when its job is cancelled or reclaimed (Redis did not hear from this process for a lease).
//! A stale attempt is stopped, because its outcome can no longer be recorded. A handler that asked for its
//! cancellation token gets `stop_grace_ms` to tidy up; any other handler is dropped at its next await point.

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

/// Starts attempts. The completion channel closes when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct AttemptRunner {
    shared: Arc<WorkerShared>,
    dispatcher: Arc<Dispatcher>,
    wakeup: Arc<Wakeup>,
    completions: mpsc::Sender<Completion>,
}

/// How an attempt finished.
enum AttemptOutcome {
    Succeeded(Option<String>),
    Failed(HandlerError),
    /// Another program finishes the job with this token.
    AsyncCompletion {
        token: String,
        lease: Duration,
    },
    /// Try the job again later; this attempt does not count.
    Snoozed {
        delay: Duration,
        why: String,
    },
    /// No longer the current attempt: nothing can be recorded.
    Stale,
    /// The shutdown grace is over: release the job.
    HardShutdown,
    /// The job was claimed after its `expires_at`.
    Expired,
}

/// Why a running handler is stopped.
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

    /// Starts an attempt; without a permit it waits for one first. False if this process already holds the entry.
    pub(crate) fn start(&self, claimed: ClaimedJob, permit: Option<Permit>) -> bool {
        let Some(stale) = self.shared.in_flight.insert(&claimed) else { return false };
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
        self.shared.attempts.spawn(async move { runner.run(claimed, permit, stale).await }.instrument(span));
        true
    }

    async fn run(self, claimed: ClaimedJob, permit: Option<Permit>, stale: CancellationToken) {
        let queue = claimed.job.queue.clone();
        let permit = if let Some(permit) = permit {
            Some(permit)
        } else {
            tokio::select! {
                permit = self.shared.slots.acquire(&queue) => permit,
                () = stale.cancelled() => None,
                () = self.shared.hard_shutdown.cancelled() => None,
            }
        };
        let claimed = Arc::new(claimed);
        let outcome = self.run_handler(&claimed, &stale).await;
        match outcome {
            AttemptOutcome::Succeeded(result) => self.complete(Arc::unwrap_or_clone(claimed), result).await,
            AttemptOutcome::Failed(error) => self.settle(&claimed, &stale, failed(&claimed, &error)).await,
            AttemptOutcome::AsyncCompletion { token, lease } => {
                let (consumer, worker) = (self.shared.consumer.clone(), self.shared.settings.queue_worker.name.clone());
                self.settle(&claimed, &stale, Settlement::CompleteAsync { consumer, worker, token, lease }).await;
            }
            AttemptOutcome::Snoozed { delay, why } => {
                tracing::info!(id = %claimed.job.id, why, "job cannot be tried now");
                self.settle(&claimed, &stale, Settlement::Snooze(delay)).await;
            }
            AttemptOutcome::HardShutdown => self.settle(&claimed, &stale, Settlement::Release).await,
            AttemptOutcome::Expired => self.settle(&claimed, &stale, Settlement::Expire).await,
            AttemptOutcome::Stale => {
                tracing::info!(event = "attempt.lost", id = %claimed.job.id, "job is not ours any more, stopped");
                self.forget(&claimed);
            }
        }
        if permit.is_some_and(|permit| self.shared.slots.return_permit(&queue, permit)) {
            // While the queue had no free slot, the claim loop did not wait for its jobs
            self.wakeup.wake();
        }
    }

    async fn run_handler(&self, claimed: &Arc<ClaimedJob>, stale: &CancellationToken) -> AttemptOutcome {
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
        // A handler that panics must not end the other attempts
        let handler = AssertUnwindSafe(self.dispatcher.run(context.clone())).catch_unwind();
        tokio::pin!(handler);
        let stop = tokio::select! {
            biased;
            () = stale.cancelled() => StopReason::Stale,
            result = &mut handler => return self.classify_result(flatten_panic(result)),
            limit = limit => StopReason::TimedOut(limit),
            () = self.shared.hard_shutdown.cancelled() => StopReason::HardShutdown,
        };
        stopped.cancel();
        let final_result = tokio::time::timeout(context.stop_grace(), &mut handler).await.ok().map(flatten_panic);
        match stop {
            StopReason::Stale => AttemptOutcome::Stale,
            StopReason::TimedOut(limit) => {
                let output = final_result.and_then(Result::err).and_then(HandlerError::into_output);
                AttemptOutcome::Failed(HandlerError::timed_out(limit).with_output(output.unwrap_or_default()))
            }
            // If the handler finished, record its result
            StopReason::HardShutdown => match final_result {
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

    /// Queues a result for `results`, which records many in one call. Waits while the channel is full.
    async fn complete(&self, claimed: ClaimedJob, result: Option<String>) {
        let now = local_now();
        let finished = FinishedJob::completed(&claimed.job, result.as_deref(), Some(claimed.started_at), now);
        if self.completions.send(Completion { claimed, finished, ended_at: now }).await.is_err() {
            tracing::error!("a result came after the last batch was recorded: the job will run again");
        }
    }

    /// Records and logs every outcome except a success.
    async fn settle(&self, claimed: &ClaimedJob, stale: &CancellationToken, settlement: Settlement) {
        let shared = &self.shared;
        let fence = Fence::for_worker(&shared.consumer);
        let outcome = settle(&shared.jobs, claimed, &fence, &settlement, stale).await;
        if let Some(outcome) = outcome {
            log_settlement(claimed, &settlement, outcome);
        }
        self.forget(claimed);
    }

    fn forget(&self, claimed: &ClaimedJob) {
        self.shared.in_flight.remove(&claimed.job.queue, claimed.job.priority, claimed.entry);
    }
}

/// The handler's result; a panic becomes a failure.
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
            let event = "attempt.failed";
            let (code, error) = (&error.code, &error.message);
            tracing::warn!(event, %id, %queue, attempt, code, error, next, "attempt failed");
            metrics::counter!("galley_attempts_total", "queue" => queue.to_string(), "outcome" => next).increment(1);
        }
        (_, SettlementOutcome::Stale) => {
            tracing::info!(event = "result.stale", %id, %queue, attempt, "the attempt is not the current one");
        }
        (Settlement::Snooze(delay), _) => tracing::info!(event = "job.snoozed", %id, %queue, ?delay, "job snoozed"),
        (Settlement::Release, _) => tracing::info!(event = "job.released", %id, %queue, "job released"),
        (Settlement::Expire, _) => {
            tracing::info!(event = "job.expired", %id, %queue, "job expired before it was started");
        }
        (Settlement::CompleteAsync { .. }, _) => {
            tracing::info!(event = "job.waiting_for_callback", %id, %queue, "job waits for its endpoint to complete it");
        }
        (Settlement::Complete | Settlement::Discard, _) => {}
    }
}
