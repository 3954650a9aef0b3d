//! What all ways to deliver a subscription share: its target, its places, and what follows a failure.

use std::{sync::Arc, time::Duration};

use common::{
    json::ObjectWriter,
    name::{ChannelName, WorkerId},
    time::Millis,
};
use delivery::http::TargetAvailability;
use model::{
    job::{AttemptError as Recorded, RetryDecision},
    message::{StoredMessage, continuity::Gap},
    subscription::{Redelivery, Subscription},
};
use store::local_now;
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

/// A worker may be silent this much longer than its longest delivery, before others take its messages.
const RECLAIM_GRACE: Duration = Duration::from_secs(5);

/// A channel whose message was not tried asks for a place again this soon. Whoever gives places knows how long the target has to be
/// left alone; nobody else does, and nothing has to be undone when it is another one.
pub(crate) const MAX_DEFERRAL: Duration = Duration::from_millis(500);

/// What the subscriptions of a process share.
pub(crate) struct PubsubProcess {
    pub(crate) store: Subscriptions,
    pub(crate) jobs: Jobs,
    pub(crate) delivery_context: DeliveryContext,
    pub(crate) notifier: MessageNotifier,
    pub(crate) long_poll: LongPoll,
    /// The name by which it is known when it comes back.
    pub(crate) instance: WorkerId,
    /// A name that nobody else has or had.
    pub(crate) consumer: WorkerId,
    /// Since when it is there, on Redis's clock.
    pub(crate) started_at: Millis,
    /// Workers that may vanish while they have a message.
    pub(crate) crash_budget: u32,
    /// Cancelled when the grace is over: what is under way is given back.
    pub(crate) hard_shutdown: CancellationToken,
    /// Looks for messages that are under way at a time: hundreds of subscriptions with hundreds of channels each that look all at
    /// once must not wait for each other until their connection counts as broken.
    pub(crate) redis_read_permits: Semaphore,
    /// Room for messages that are under way, in kibibytes.
    pub(crate) memory_budget: Arc<Semaphore>,
}

/// See [`Process::room`]: messages of a mebibyte, a thousand of them at a time, must not be more than a worker has memory for.
pub(crate) const MEMORY_BUDGET_KIB: usize = 128 * 1024;

/// See [`Process::looks`].
pub(crate) const MAX_CONCURRENT_REDIS_READS: usize = 16;

/// Delivers one subscription.
pub(crate) struct SubscriptionRunner {
    pub(crate) process: Arc<PubsubProcess>,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    deliverer: Deliverer,
}

impl SubscriptionRunner {
    /// Makes one; the error is for people.
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

    /// Waits until there is room for so many bytes more; none when this runner stops.
    pub(crate) async fn reserve_memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room = self.process.memory_budget.clone().acquire_many_owned(kibibytes(bytes));
        self.stop.run_until_cancelled(room).await?.ok()
    }

    /// Waits until this process may look into Redis once more. To be held while it does.
    pub(crate) async fn acquire_redis_read(&self) -> Option<SemaphorePermit<'_>> {
        self.process.redis_read_permits.acquire().await.ok()
    }

    pub(crate) fn worker(&self) -> &WorkerId {
        &self.process.consumer
    }

    /// After so much silence a worker's messages are taken from it.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.subscription.ack_deadline_ms) + RECLAIM_GRACE
    }

    /// Waits; none when this runner stops.
    pub(crate) async fn pause(&self, delay: Duration) -> Option<()> {
        self.stop.run_until_cancelled(tokio::time::sleep(delay)).await
    }

    /// Waits for a place, and until the target may be asked. Takes as many more as there are and the target has room for, up to
    /// so many; none when this runner stops.
    pub(crate) async fn acquire_slots(&self, most: usize) -> Option<Vec<OwnedSemaphorePermit>> {
        let place = self.stop.run_until_cancelled(self.slots.clone().acquire_owned()).await?.ok()?;
        loop {
            let wait = match self.deliverer.availability() {
                TargetAvailability::UnavailableFor(wait) => wait,
                TargetAvailability::HalfOpen => return Some(vec![place]),
                TargetAvailability::Available => {
                    let more = std::iter::from_fn(|| self.try_acquire_slot());
                    return Some(std::iter::once(place).chain(more).take(most).collect());
                }
            };
            self.pause(wait).await?;
        }
    }

    /// One more place, if there is one.
    pub(crate) fn try_acquire_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Tries to deliver a message once, and notes what that says of the target.
    pub(crate) async fn deliver(
        &self,
        channel: &ChannelName,
        message: &StoredMessage,
        attempt: u32,
    ) -> Result<(), DeliveryError> {
        let delivery = DeliveryAttempt { channel, message, attempt };
        let delivered = self.deliverer.deliver(delivery, &self.process.hard_shutdown).await;
        let outcome = match &delivered {
            Ok(()) => "delivered",
            Err(DeliveryError::Deferred { .. }) => "later",
            Err(DeliveryError::Failed(_)) => "failed",
            Err(DeliveryError::Abandoned) => "abandoned",
        };
        let name = self.subscription.name.to_string();
        metrics::counter!("galley_deliveries_total", "subscription" => name, "outcome" => outcome).increment(1);
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
        tracing::warn!(subscription = %name, %channel, %id, attempt, code, message = failure.message, "not delivered");
        let noted = async {
            let failing_for = self.store().record_failure(&self.subscription).await?;
            let limit = self.store().settings().disable_after;
            if failure.is_gone {
                let reason = "the endpoint answered 410: it is gone";
                return self.store().disable(&self.subscription, reason).await;
            }
            if u128::try_from(failing_for).unwrap_or_default() >= limit.as_millis() {
                let reason = format!("nothing but failures for {} hours", limit.as_secs() / 3600);
                return self.store().disable(&self.subscription, &reason).await;
            }
            Ok(())
        };
        if let Err(error) = noted.await {
            log_interruption("noting a failed delivery", &error);
        }
    }

    /// Lets a message go on as a job after an attempt that failed, or was not made, and after `earlier` ones that failed. Repeats
    /// that until it is done: what comes out is false only when this runner stops before. Room that it takes up is given back when
    /// that takes longer: others must not wait for a queue that takes nothing.
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
                failures.push(attempt_error(failure, attempt));
                match verdict {
                    RetryDecision::Retry(delay) => (delay, false),
                    // It is shown as a dead letter, which only a job can become
                    RetryDecision::Discard { .. } => (Duration::ZERO, true),
                }
            }
        };
        let redelivery =
            Redelivery { channel: channel.clone(), message: message.clone(), is_permanent_failure: is_hopeless };
        let mut delays = reconnect_delays();
        loop {
            match self.enqueue_retry(&redelivery, delay, failures.clone()).await {
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

    /// Makes the job; the inner error says why there cannot be one.
    async fn enqueue_retry(
        &self,
        redelivery: &Redelivery,
        delay: Duration,
        failures: Vec<Recorded>,
    ) -> StoreResult<Result<(), String>> {
        let now = self.process.jobs.now().await?;
        let at = now.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        let job = match redelivery.to_job(&self.subscription, at, failures, now) {
            Ok(job) => job,
            Err(error) => return Ok(Err(error.to_string())),
        };
        match self.process.jobs.enqueue(job, None, now).await? {
            Ok(_) | Err(EnqueueRefusal::Duplicate(_)) => Ok(Ok(())),
            // Somebody closed the queue, or there are too many: that may change
            Err(refused) => {
                Err(StoreError::Damaged(format!("{} takes no job: {refused:?}", self.subscription.queue())))
            }
        }
    }

    /// A message that can be neither delivered nor kept.
    fn drop_message(&self, channel: &ChannelName, message: &StoredMessage, problem: &str) {
        let (name, id) = (&self.subscription.name, message.position);
        tracing::error!(subscription = %name, %channel, %id, problem, "a message was given up");
        metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string()).increment(1);
    }

    /// Messages are missing that this subscription would have had.
    pub(crate) fn record_gap(&self, channel: &ChannelName, gap: &Gap) {
        let name = &self.subscription.name;
        metrics::counter!("galley_subscription_gaps_total", "subscription" => name.to_string()).increment(1);
        tracing::error!(subscription = %name, %channel, gap = gap.to_json(), "messages are missing");
        self.store().record_event(name, "subscription.gap", |data: &mut ObjectWriter| {
            data.text("channel", channel.as_str());
            gap.write(data);
        });
    }
}

/// Kibibytes, begun ones counting as whole, within the room that there is.
pub(crate) fn kibibytes(bytes: usize) -> u32 {
    u32::try_from((bytes / 1024 + 1).min(MEMORY_BUDGET_KIB)).unwrap_or(u32::MAX)
}

/// A failure as the history of a job has it.
pub(crate) fn attempt_error(failure: &DeliveryFailure, attempt: u32) -> Recorded {
    Recorded::new(&failure.code, &failure.code, &failure.message, attempt, local_now()).with_output(&failure.output)
}
