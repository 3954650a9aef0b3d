//! Runs one attempt: calls the handler within its time limit and records the outcome.
//!
//! An attempt becomes stale when its job is cancelled or reclaimed (Redis did not hear from this process for a lease).
//! A stale attempt is stopped, because its outcome can no longer be recorded. A handler that asked for its
//! cancellation token gets `stop_grace_ms` to tidy up; any other handler is dropped at its next await point.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, SpanDescription, attribute},
    },
    time::Millis,
};
use futures_util::FutureExt;
use store::jobs::{AttemptMetrics, ClaimedJob, Completion, Fence, JobResult, WaitRequest, describe_attempt};
use tokio_util::sync::CancellationToken;

use crate::{
    handlers::{Context, HandlerError, HandlerOutcome, HandlerResult},
    results::CompletionSender,
    rules::Dispatcher,
    settlement::{Settlement, outcome_name, settle},
    settlement_report::log_settlement,
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
    completions: CompletionSender,
}

/// A job of this process that was not started yet.
pub(crate) struct RegisteredJob {
    pub(crate) claimed: Arc<ClaimedJob>,
    stale: CancellationToken,
}

/// How an attempt finished.
enum AttemptOutcome {
    Succeeded(Option<String>),
    SucceededWithoutResult {
        why: String,
    },
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
    /// The job waits for a signal or a time; this attempt does not count.
    Waiting(WaitRequest),
    /// No longer the current attempt: nothing can be recorded.
    Stale,
    /// The shutdown grace is over: release the job.
    HardShutdown,
    /// The job was claimed after its `expires_at`.
    Expired,
}

/// Why a running handler is stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Stale,
    TimedOut(Duration),
    HardShutdown,
}

/// What can stop a running handler.
pub(crate) struct HandlerStops<'a> {
    pub(crate) stale: &'a CancellationToken,
    pub(crate) limit: Option<Duration>,
    pub(crate) hard_shutdown: &'a CancellationToken,
    /// Tells the handler that it is stopped.
    pub(crate) stopped: &'a CancellationToken,
}

/// How a handler ended: by itself, or stopped, and then perhaps with a result within its grace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HandlerEnd<T> {
    Finished(T),
    Stopped(StopReason, Option<T>),
}

impl HandlerStops<'_> {
    /// Runs a handler until it finishes or is stopped. `grace` is how long a stopped one may go on. One that has not
    /// begun, or has no grace, is not polled any more: each poll may have effects.
    pub(crate) async fn run<T>(&self, handler: impl Future<Output = T>, grace: impl Fn() -> Duration) -> HandlerEnd<T> {
        let has_begun = AtomicBool::new(false);
        let handler = async {
            has_begun.store(true, Relaxed);
            handler.await
        };
        tokio::pin!(handler);
        let limit = async {
            match self.limit {
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        let stop = tokio::select! {
            biased;
            () = self.stale.cancelled() => StopReason::Stale,
            result = &mut handler => return HandlerEnd::Finished(result),
            limit = limit => StopReason::TimedOut(limit),
            () = self.hard_shutdown.cancelled() => StopReason::HardShutdown,
        };
        self.stopped.cancel();
        let grace = if has_begun.load(Relaxed) { grace() } else { Duration::ZERO };
        if grace.is_zero() {
            return HandlerEnd::Stopped(stop, None);
        }
        HandlerEnd::Stopped(stop, tokio::time::timeout(grace, &mut handler).await.ok())
    }
}

impl AttemptRunner {
    pub(crate) fn new(
        shared: Arc<WorkerShared>,
        dispatcher: Arc<Dispatcher>,
        wakeup: Arc<Wakeup>,
        completions: CompletionSender,
    ) -> Self {
        Self { shared, dispatcher, wakeup, completions }
    }

    /// Starts an attempt; without a permit it waits for one first. Does nothing if this process already holds the entry.
    pub(crate) fn start(&self, claimed: ClaimedJob, permit: Option<Permit>) {
        if let Some(registered) = self.register(claimed, permit.is_some()) {
            self.start_registered(registered, permit);
        }
    }

    /// Notes that this process holds a job, so that its lease is renewed. None if it already holds the entry.
    pub(crate) fn register(&self, claimed: ClaimedJob, has_permit: bool) -> Option<RegisteredJob> {
        let claimed = Arc::new(claimed);
        let stale = self.shared.in_flight.insert(&claimed, has_permit)?;
        Some(RegisteredJob { claimed, stale })
    }

    /// Lets others run a job that was not started.
    pub(crate) async fn release(&self, RegisteredJob { claimed, stale }: RegisteredJob) {
        self.settle(&claimed, &stale, Settlement::Release).await;
    }

    /// Starts an attempt; without a permit it waits for one first.
    pub(crate) fn start_registered(&self, registered: RegisteredJob, permit: Option<Permit>) {
        let RegisteredJob { claimed, stale } = registered;
        let span = ActiveSpan::start(&claimed.job.trace, || self.describe(&claimed));
        let work = WorkScope::of_job(claimed.job.id, span.context().clone());
        let runner = self.clone();
        self.shared.attempts.spawn(work.run(async move { runner.run(claimed, permit, stale, span).await }));
    }

    fn describe(&self, claimed: &ClaimedJob) -> SpanDescription {
        describe_attempt(claimed)
            .with(attribute::MESSAGING_CLIENT_ID, self.shared.settings.queue_worker.name.to_string())
    }

    async fn run(
        self,
        claimed: Arc<ClaimedJob>,
        permit: Option<Permit>,
        stale: CancellationToken,
        mut span: ActiveSpan,
    ) {
        let queue = claimed.job.queue.clone();
        let permit = if let Some(permit) = permit {
            Some(permit)
        } else {
            let permit = tokio::select! {
                permit = self.shared.slots.acquire(&queue) => permit,
                () = stale.cancelled() => None,
                () = self.shared.hard_shutdown.cancelled() => None,
            };
            self.shared.in_flight.mark_running(&claimed);
            permit
        };
        let outcome = self.run_handler(&claimed, &stale, &span).await;
        claimed.job.note_span(span.recorded());
        match outcome {
            AttemptOutcome::Succeeded(result) => self.complete(claimed, result, None).await,
            AttemptOutcome::SucceededWithoutResult { why } => {
                let (id, queue) = (claimed.job.id, &claimed.job.queue);
                tracing::warn!(event = "result.dropped", %id, %queue, why, "job completed, its result was dropped");
                self.complete(claimed, None, Some(why)).await;
            }
            AttemptOutcome::Failed(error) => {
                // The text may quote what the job or its endpoint sent
                let message = self.shared.settings.log.error_texts.then(|| error.to_string());
                span.record_failed(error.code(), message.as_deref(), || self.describe(&claimed));
                claimed.job.note_span(span.recorded());
                let failed = failed(&claimed, &error, self.shared.jobs.estimated_now());
                self.settle(&claimed, &stale, failed).await;
            }
            AttemptOutcome::AsyncCompletion { token, lease } => {
                let (consumer, worker) = (self.shared.consumer.clone(), self.shared.settings.queue_worker.name.clone());
                self.settle(&claimed, &stale, Settlement::CompleteAsync { consumer, worker, token, lease }).await;
            }
            AttemptOutcome::Snoozed { delay, why } => {
                tracing::info!(id = %claimed.job.id, why, "job cannot be tried now");
                self.settle(&claimed, &stale, Settlement::Snooze(delay)).await;
            }
            AttemptOutcome::Waiting(request) => self.settle(&claimed, &stale, Settlement::Wait(request)).await,
            AttemptOutcome::HardShutdown => self.settle(&claimed, &stale, Settlement::Release).await,
            AttemptOutcome::Expired => self.settle(&claimed, &stale, Settlement::Expire).await,
            AttemptOutcome::Stale => {
                tracing::info!(event = "attempt.lost", id = %claimed.job.id, "job is not ours any more, stopped");
                count_attempt(&claimed, "stale", self.shared.jobs.estimated_now());
                self.forget(&claimed);
            }
        }
        if permit.is_some_and(|permit| self.shared.slots.return_permit(&queue, permit)) {
            // While the queue had no free slot, the claim loop did not wait for its jobs
            self.wakeup.wake_for(&queue);
        }
    }

    async fn run_handler(
        &self,
        claimed: &Arc<ClaimedJob>,
        stale: &CancellationToken,
        span: &ActiveSpan,
    ) -> AttemptOutcome {
        if self.shared.hard_shutdown.is_cancelled() {
            return AttemptOutcome::HardShutdown;
        }
        // Cancelled while it waited for a permit
        if stale.is_cancelled() {
            return AttemptOutcome::Stale;
        }
        if self.is_expired(claimed).await {
            return AttemptOutcome::Expired;
        }
        self.shared.jobs.record_started(claimed, Some(&self.shared.settings.queue_worker.name));
        let limit = Some(self.shared.jobs.attempt_timeout(&claimed.job));
        let stopped = CancellationToken::new();
        let context = Context::new(claimed.clone(), self.shared.clone(), stopped.clone(), span.context().clone());
        // A handler that panics must not end the other attempts
        let handler = AssertUnwindSafe(span.attach(self.dispatcher.run(context.clone()))).catch_unwind();
        let stops = HandlerStops { stale, limit, hard_shutdown: &self.shared.hard_shutdown, stopped: &stopped };
        let end = stops.run(handler, || context.stop_grace()).await;
        if claimed.has_log() {
            Box::pin(context.finish_log()).await;
        }
        let (stop, final_result) = match end {
            HandlerEnd::Finished(result) => {
                let result = flatten_panic(result);
                let wait = result.is_err().then(|| context.wait_request()).flatten();
                return wait.map_or_else(|| self.classify_result(result), AttemptOutcome::Waiting);
            }
            HandlerEnd::Stopped(reason, final_result) => (reason, final_result.map(flatten_panic)),
        };
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

    /// Whether the job's `expires_at` has passed, by Redis's clock: an estimate decides only while Redis is away.
    async fn is_expired(&self, claimed: &ClaimedJob) -> bool {
        if claimed.job.summary.expires_at.is_none() {
            return false;
        }
        let now = Box::pin(self.shared.jobs.now()).await.unwrap_or_else(|_| self.shared.jobs.estimated_now());
        claimed.job.is_expired(now)
    }

    fn classify_result(&self, result: HandlerResult) -> AttemptOutcome {
        let limit = self.shared.jobs.settings().result_limit_bytes;
        match result {
            Ok(HandlerOutcome::Completed(Some(result))) if result.len() > limit => {
                AttemptOutcome::Failed(HandlerError::result_too_large(limit))
            }
            Ok(HandlerOutcome::Completed(result)) => AttemptOutcome::Succeeded(result),
            Ok(HandlerOutcome::CompletedWithoutResult { why }) => AttemptOutcome::SucceededWithoutResult { why },
            Ok(HandlerOutcome::Snoozed { delay, why }) => AttemptOutcome::Snoozed { delay, why },
            Ok(HandlerOutcome::AsyncCompletion { token, lease }) => AttemptOutcome::AsyncCompletion { token, lease },
            Err(error) => AttemptOutcome::Failed(error),
        }
    }

    /// Queues a result for `results`. Waits while the channel is full.
    async fn complete(&self, claimed: Arc<ClaimedJob>, result: Option<String>, dropped: Option<String>) {
        let now = self.shared.jobs.estimated_now();
        let kept = match (&dropped, &result) {
            (Some(why), _) => JobResult::Dropped(why),
            (None, Some(json)) => JobResult::Json(json),
            (None, None) => JobResult::None,
        };
        let finished = self.shared.jobs.succeeded(&claimed, kept, now);
        if self.completions.send(Completion { claimed, finished, ended_at: now }).await.is_err() {
            tracing::error!("a result came after the last batch was recorded: the job will run again");
        }
    }

    /// Records and logs every outcome except a success.
    async fn settle(&self, claimed: &ClaimedJob, stale: &CancellationToken, settlement: Settlement) {
        let shared = &self.shared;
        let fence = Fence::for_worker(&shared.consumer);
        // Boxed: few attempts need it, and each would have room for it
        let outcome = Box::pin(settle(&shared.jobs, claimed, &fence, &settlement, stale)).await;
        if let Some(outcome) = outcome {
            log_settlement(claimed, &settlement, outcome, shared.settings.log.error_texts);
        }
        count_attempt(claimed, outcome_name(&settlement, outcome), self.shared.jobs.estimated_now());
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

fn failed(claimed: &ClaimedJob, error: &HandlerError, now: Millis) -> Settlement {
    let attempt = claimed.job.history.current_attempt();
    Settlement::Fail { error: error.failure(attempt, now), advice: error.advice() }
}

fn count_attempt(claimed: &ClaimedJob, outcome: &'static str, now: Millis) {
    AttemptMetrics::new(&claimed.job.queue, outcome).count(claimed, now);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// Counts its polls, and ends at the last of them.
    async fn handler(polls: &AtomicU32, last: u32) -> u32 {
        std::future::poll_fn(|context| {
            if polls.fetch_add(1, Relaxed) + 1 >= last {
                return std::task::Poll::Ready(last);
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await
    }

    #[tokio::test]
    async fn a_handler_whose_job_is_cancelled_before_it_begins_is_never_polled() {
        let (stale, never, stopped) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        stale.cancel();
        let stops = HandlerStops { stale: &stale, limit: None, hard_shutdown: &never, stopped: &stopped };
        let polls = AtomicU32::new(0);
        let end = stops.run(handler(&polls, 1), || Duration::from_mins(1)).await;
        assert_eq!((end, polls.load(Relaxed)), (HandlerEnd::Stopped(StopReason::Stale, None), 0));
    }

    #[tokio::test]
    async fn a_stopped_handler_is_polled_only_within_its_grace() {
        let (stale, now, stopped) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        now.cancel();
        let stops = HandlerStops { stale: &stale, limit: None, hard_shutdown: &now, stopped: &stopped };
        let polls = AtomicU32::new(0);
        let end = stops.run(handler(&polls, 5), || Duration::ZERO).await;
        assert_eq!((end, polls.load(Relaxed)), (HandlerEnd::Stopped(StopReason::HardShutdown, None), 1));
        assert!(stopped.is_cancelled());
        let polls = AtomicU32::new(0);
        let end = stops.run(handler(&polls, 5), || Duration::from_mins(1)).await;
        assert_eq!((end, polls.load(Relaxed)), (HandlerEnd::Stopped(StopReason::HardShutdown, Some(5)), 5));
    }
}
