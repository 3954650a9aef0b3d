//! Shared by all delivery modes of a subscription: its target, its slots, and what follows a failure.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    json::ObjectWriter,
    name::{ChannelName, WorkerId},
    telemetry::spans::ActiveSpan,
    time::Millis,
    trace_context::TraceContext,
};
use delivery::http::TargetAvailability;
use model::{
    job::{AttemptError as Recorded, RetryDecision},
    message::{StoredMessage, continuity::Gap},
    subscription::{DeliveryOrdering, FilterVerdict, Redelivery, Subscription},
};
use store::{
    StoreError, StoreResult,
    jobs::{EnqueueRefusal, Jobs},
    log_interruption,
    long_poll::LongPoll,
    next_reconnect_delay, reconnect_delays,
    subscriptions::Subscriptions,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::message_notifier::MessageNotifier;
use crate::targets::{Deliverer, DeliveryAttempt, DeliveryContext, DeliveryError, DeliveryFailure};

/// How much longer than its longest delivery a worker may stay silent before others reclaim its messages.
const RECLAIM_GRACE: Duration = Duration::from_secs(5);

/// Maximum delay before a channel whose message was not tried asks for a slot again. Only `acquire_slots` knows how
/// long the target must be left alone, so nothing needs an update when the target changes.
pub(crate) const MAX_DEFERRAL: Duration = Duration::from_millis(500);

/// What all subscriptions of a process share.
pub(crate) struct PubsubProcess {
    pub(crate) store: Subscriptions,
    pub(crate) jobs: Jobs,
    pub(crate) delivery_context: DeliveryContext,
    pub(crate) notifier: MessageNotifier,
    pub(crate) long_poll: LongPoll,
    /// The worker's configured name, which stays the same after a restart.
    pub(crate) instance: WorkerId,
    /// A name that is unique to this process.
    pub(crate) consumer: WorkerId,
    /// When this process started, by Redis's clock.
    pub(crate) started_at: Millis,
    /// Workers that may die with a message before it is a dead letter.
    pub(crate) crash_budget: u32,
    /// Whether logs show the texts of failures.
    pub(crate) logs_error_texts: bool,
    /// Cancelled when the shutdown grace is over: messages in flight are released.
    pub(crate) hard_shutdown: CancellationToken,
    /// Limits concurrent reads of channels: hundreds of subscriptions with hundreds of channels that read at once
    /// would queue on the connection until it counts as broken.
    pub(crate) redis_read_permits: Semaphore,
    /// Memory for messages in flight, in KiB.
    pub(crate) memory_budget: Arc<Semaphore>,
}

/// See [`SubscriptionRunner::reserve_memory`]: a thousand messages of a mebibyte must not exhaust the worker's memory.
pub(crate) const MEMORY_BUDGET_KIB: usize = 128 * 1024;

/// See [`SubscriptionRunner::acquire_redis_read`].
pub(crate) const MAX_CONCURRENT_REDIS_READS: usize = 16;

/// Delivers one subscription.
pub(crate) struct SubscriptionRunner {
    pub(crate) process: Arc<PubsubProcess>,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    pub(super) deliverer: Deliverer,
}

impl SubscriptionRunner {
    /// Creates a runner; the error is a message for people.
    pub(crate) fn new(
        process: &Arc<PubsubProcess>,
        subscription: Arc<Subscription>,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let deliverer = Deliverer::new(&subscription, &process.delivery_context)?;
        Ok(Self {
            process: process.clone(),
            slots: Arc::new(Semaphore::new(deliverer.max_concurrency())),
            subscription,
            stop,
            deliverer,
        })
    }

    pub(crate) fn store(&self) -> &Subscriptions {
        &self.process.store
    }

    /// Waits until there is memory for `bytes` more; none when this runner stops.
    pub(crate) async fn reserve_memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room = self.process.memory_budget.clone().acquire_many_owned(kibibytes(bytes));
        self.stop.run_until_cancelled(room).await?.ok()
    }

    /// Waits for a permit to read from Redis; hold it during the read.
    pub(crate) async fn acquire_redis_read(&self) -> Option<SemaphorePermit<'_>> {
        self.process.redis_read_permits.acquire().await.ok()
    }

    pub(crate) fn worker(&self) -> &WorkerId {
        &self.process.consumer
    }

    /// After this much silence a worker's messages are reclaimed.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.subscription.ack_deadline_ms) + RECLAIM_GRACE
    }

    /// Waits; none when this runner stops.
    pub(crate) async fn pause(&self, delay: Duration) -> Option<()> {
        self.stop.run_until_cancelled(tokio::time::sleep(delay)).await
    }

    /// Waits for a slot and until the target is available. Returns more permits if slots and target allow, up to
    /// `max`; none when this runner stops.
    pub(crate) async fn acquire_slots(&self, max: usize) -> Option<Vec<OwnedSemaphorePermit>> {
        let permit = self.stop.run_until_cancelled(self.slots.clone().acquire_owned()).await?.ok()?;
        loop {
            let wait = match self.deliverer.availability() {
                TargetAvailability::UnavailableFor(wait) => wait,
                TargetAvailability::HalfOpen => return Some(vec![permit]),
                TargetAvailability::Available => {
                    let more = std::iter::from_fn(|| self.try_acquire_slot());
                    return Some(std::iter::once(permit).chain(more).take(max).collect());
                }
            };
            self.pause(wait).await?;
        }
    }

    /// One more permit, if a slot is free.
    pub(crate) fn try_acquire_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Tries to deliver a message once and records the result for the target's availability.
    pub(crate) async fn deliver(
        &self,
        channel: &ChannelName,
        message: &StoredMessage,
        attempt: u32,
    ) -> Result<(), DeliveryError> {
        let delivery = DeliveryAttempt { channel, message, attempt };
        let mut span = ActiveSpan::start(&message.trace(), || self.describe(delivery));
        self.deliver_in(delivery, &mut span, None).await
    }

    /// Tries once, inside its span.
    pub(super) async fn deliver_once(
        &self,
        delivery: DeliveryAttempt<'_>,
        span: &mut ActiveSpan,
    ) -> Result<(), DeliveryError> {
        let DeliveryAttempt { channel, message, attempt } = delivery;
        let (at, began) = (self.process.jobs.estimated_now(), Instant::now());
        let delivered = self.deliverer.deliver(delivery, &self.process.hard_shutdown).await;
        if self.deliverer.is_logged() {
            self.log_attempt(delivery, &delivered, (at, began.elapsed()));
        }
        let delivered = delivered.map(drop);
        let outcome = match &delivered {
            Ok(()) => "delivered",
            Err(DeliveryError::Deferred { .. }) => "later",
            Err(DeliveryError::Failed(_)) => "failed",
            Err(DeliveryError::Abandoned) => "abandoned",
        };
        let name = self.subscription.name.to_string();
        metrics::counter!("galley_deliveries_total", "subscription" => name, "outcome" => outcome).increment(1);
        span.set("galley.outcome", outcome);
        if let Err(DeliveryError::Failed(failure)) = &delivered {
            let message = self.process.logs_error_texts.then_some(failure.message.as_str());
            span.record_failed(&failure.code, message, || self.describe(delivery));
        }
        match &delivered {
            Err(DeliveryError::Deferred { reason: why, .. }) => {
                tracing::debug!(subscription = %self.subscription.name, why, "not delivered now");
            }
            Err(DeliveryError::Failed(failure)) => self.record_failure(channel, message, attempt, failure).await,
            Ok(()) | Err(DeliveryError::Abandoned) => {}
        }
        delivered
    }

    async fn record_failure(
        &self,
        channel: &ChannelName,
        message: &StoredMessage,
        attempt: u32,
        failure: &DeliveryFailure,
    ) {
        let (name, id, code) = (&self.subscription.name, message.position, &failure.code);
        // The text may quote the message or the endpoint
        let error = self.process.logs_error_texts.then_some(failure.message.as_str());
        let event = "message.not_delivered";
        tracing::warn!(event, subscription = %name, %channel, %id, attempt, code, error, "message not delivered");
        let noted = async {
            if self.is_deleted().await? {
                let event = "delivery.obsolete";
                tracing::info!(event, subscription = %name, %channel, %id, "its subscription was deleted: dropped");
                return Ok(());
            }
            // The attempts of one message count once, unless it blocks all others
            let is_first = attempt == 1 || self.subscription.ordering == DeliveryOrdering::Channel;
            let streak =
                self.store().record_failure(&self.subscription, !failure.is_message_at_fault, is_first).await?;
            let settings = self.store().settings();
            if failure.is_gone {
                let reason = "the endpoint answered 410: it is gone";
                return self.store().disable(&self.subscription, reason).await;
            }
            if streak.duration >= settings.disable_after && streak.failures >= settings.disable_min_failures {
                let reason = format!("nothing but failures for {} hours", settings.disable_after.as_secs() / 3600);
                return self.store().disable(&self.subscription, &reason).await;
            }
            Ok(())
        };
        if let Err(error) = noted.await {
            log_interruption("noting a failed delivery", &error);
        }
    }

    /// Whether the filter wants a message. One that nobody can judge is delivered, with a warning that counts.
    pub(crate) fn wants(&self, channel: &ChannelName, message: &StoredMessage) -> bool {
        match self.subscription.filter.matches(message) {
            FilterVerdict::Matches => true,
            FilterVerdict::Excluded => false,
            FilterVerdict::Unreadable(problem) => {
                let (name, id) = (&self.subscription.name, message.position);
                tracing::warn!(
                    event = "message.filter_unreadable",
                    subscription = %name,
                    %channel,
                    %id,
                    problem,
                    "a message says that it is JSON and is not: delivered unfiltered"
                );
                metrics::counter!("galley_messages_unfiltered_total", "subscription" => name.to_string()).increment(1);
                true
            }
        }
    }

    /// Hands a message to the retry queue as a job, after a failed or skipped attempt and after `earlier` failed ones.
    /// Repeats until it is done; false only if this runner stops first. Frees the message's memory if it takes longer,
    /// so that others do not wait for a queue that accepts nothing.
    pub(crate) async fn retry_as_job(
        &self,
        DeliveryAttempt { channel, message, attempt }: DeliveryAttempt<'_>,
        why: &DeliveryError,
        earlier: Vec<Recorded>,
        mut room: Option<OwnedSemaphorePermit>,
    ) -> bool {
        let mut failures = earlier;
        let (delay, is_hopeless) = match why {
            DeliveryError::Abandoned => return false,
            DeliveryError::Deferred { delay, .. } => (*delay, false),
            DeliveryError::Failed(failure) => {
                let policy = self.subscription.retry_policy();
                let verdict = policy.after_failure(attempt - 1, &failure.code, failure.advice, rand::random());
                failures.push(self.attempt_error(failure, attempt));
                match verdict {
                    RetryDecision::Retry(delay) => (delay, false),
                    // Shown as a dead letter, which only a job can become
                    RetryDecision::Discard { .. } => (Duration::ZERO, true),
                }
            }
        };
        let redelivery = Redelivery::new(&self.subscription, channel, message, is_hopeless);
        let mut delays = reconnect_delays();
        loop {
            match self.enqueue_retry(&redelivery, delay, failures.clone(), message.trace()).await {
                Ok(Ok(())) => return true,
                Ok(Err(problem)) => {
                    self.drop_message(channel, message, &problem);
                    return true;
                }
                Err(error) => {
                    log_interruption("keeping a message that was not delivered", &error);
                    drop(room.take());
                    if self.pause(next_reconnect_delay(&mut delays)).await.is_none() {
                        return false;
                    }
                }
            }
        }
    }

    /// Whether the subscription was deleted, perhaps because another one of that name exists now.
    pub(crate) async fn is_deleted(&self) -> StoreResult<bool> {
        self.store().is_deleted(&self.subscription.name, self.subscription.created_at).await
    }

    /// Whether this runner stops because its subscription was deleted. What it still does must not count for the next
    /// subscription of that name.
    pub(crate) async fn is_obsolete(&self) -> bool {
        self.stop.is_cancelled() && matches!(self.is_deleted().await, Ok(true))
    }

    /// Enqueues the job; the inner error says why that is not possible.
    async fn enqueue_retry(
        &self,
        redelivery: &Redelivery,
        delay: Duration,
        failures: Vec<Recorded>,
        trace: TraceContext,
    ) -> StoreResult<Result<(), String>> {
        if self.is_deleted().await? {
            // It would be a job of the next subscription of that name
            return Ok(Ok(()));
        }
        let now = self.process.jobs.now().await?;
        let at = now.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        let job = match redelivery.to_job(&self.subscription, at, failures, now) {
            Ok(job) => job,
            Err(error) => return Ok(Err(error.to_string())),
        };
        match self.process.jobs.enqueue(job, trace, now).await? {
            Ok(_) | Err(EnqueueRefusal::Duplicate(_)) => Ok(Ok(())),
            // The queue may be closed or full: both may change
            Err(refused) => {
                Err(StoreError::Damaged(format!("{} takes no job: {refused:?}", self.subscription.queue())))
            }
        }
    }

    /// Drops a message that can be neither delivered nor stored.
    fn drop_message(&self, channel: &ChannelName, message: &StoredMessage, problem: &str) {
        let (name, id) = (&self.subscription.name, message.position);
        tracing::error!(event = "message.dropped", subscription = %name, %channel, %id, problem, "message dropped");
        metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string()).increment(1);
    }

    /// A failure as a job's history records it.
    pub(crate) fn attempt_error(&self, failure: &DeliveryFailure, attempt: u32) -> Recorded {
        let now = self.process.jobs.estimated_now();
        Recorded::new(&failure.code, &failure.code, &failure.message, attempt, now).with_output(&failure.output)
    }

    /// Records that messages of this subscription are missing.
    pub(crate) fn record_gap(&self, channel: &ChannelName, gap: &Gap) {
        let name = &self.subscription.name;
        metrics::counter!("galley_subscription_gaps_total", "subscription" => name.to_string()).increment(1);
        let missing = gap.to_json();
        tracing::error!(event = "subscription.gap", subscription = %name, %channel, gap = missing, "messages are missing");
        self.store().record_event(name, "subscription.gap", |data: &mut ObjectWriter| {
            data.text("channel", channel.as_str());
            gap.write(data);
        });
    }
}

/// Converts bytes to KiB, rounded up, at most the whole budget.
pub(crate) fn kibibytes(bytes: usize) -> u32 {
    u32::try_from((bytes / 1024 + 1).min(MEMORY_BUDGET_KIB)).unwrap_or(u32::MAX)
}
