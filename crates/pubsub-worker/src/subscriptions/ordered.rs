//! Ordered delivery: one worker owns a channel and delivers one message at a time. A failed message blocks the channel
//! until it succeeds or somebody skips it; one that can never be delivered becomes a dead letter. Every worker computes the owner from the list of live workers; if two
//! consider themselves the owner, the one that holds the channel's claim is right.

use std::{sync::Arc, time::Duration};

use common::name::ChannelName;
use model::{
    job::{RetryAdvice, RetryPolicy},
    message::StoredMessage,
};
use store::{
    StoreResult, log_interruption, next_reconnect_delay, reconnect_delays,
    subscriptions::{ChannelFence, ClaimedChannel, MessageDisposition, SubscriptionWorkers},
};
use tokio::sync::watch;

use super::{
    channel_tasks::{self, RescheduleDelay},
    message_notifier::MessageListener,
    runner::{MAX_DEFERRAL, SubscriptionRunner},
};
use crate::targets::{DeliveryAttempt, DeliveryError, DeliveryFailure};

/// How often a worker reports itself, and after what silence it counts as gone.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
const WORKER_TTL: Duration = Duration::from_secs(10);
/// Delay before asking again for a channel that another worker still holds.
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum delay before a failed message is tried again, unless the endpoint asks for more: the whole channel waits
/// behind it.
const MAX_RETRY_DELAY: Duration = Duration::from_mins(5);

/// Delivers until the runner is stopped.
pub(super) async fn run(runner: Arc<SubscriptionRunner>, listener: MessageListener) {
    let (members, known) = watch::channel(None);
    let listener = Arc::new(listener);
    let reporting = tokio::spawn(run_heartbeat(runner.clone(), listener.clone(), members));
    channel_tasks::run(&runner, &listener, |channel| {
        let (runner, known) = (runner.clone(), known.clone());
        async move {
            let lane = OrderedChannel { runner, channel, workers: known };
            lane.work().await
        }
    })
    .await;
    if let Err(error) = reporting.await {
        tracing::error!(%error, "worker heartbeat failed");
    }
}

/// Reports this worker and reads the list of live workers, until the runner is stopped.
async fn run_heartbeat(
    runner: Arc<SubscriptionRunner>,
    listener: Arc<MessageListener>,
    members: watch::Sender<Option<SubscriptionWorkers>>,
) {
    let (store, subscription) = (runner.store(), &runner.subscription);
    while !runner.stop.is_cancelled() {
        match store.register_worker(subscription, runner.worker(), WORKER_TTL).await {
            Ok(now) => {
                let is_news = members.send_replace(Some(now.clone())) != Some(now);
                if is_news {
                    listener.notify_all_channels();
                }
            }
            Err(error) => log_interruption("looking for other workers", &error),
        }
        runner.pause(HEARTBEAT_INTERVAL).await;
    }
    let left = async {
        store.unregister_worker(subscription, runner.worker()).await?;
        store.notify_workers().await;
        StoreResult::Ok(())
    };
    if let Err(error) = left.await {
        log_interruption("leaving a subscription", &error);
    }
}

struct OrderedChannel {
    runner: Arc<SubscriptionRunner>,
    channel: ChannelName,
    workers: watch::Receiver<Option<SubscriptionWorkers>>,
}

/// The delay after this many failed attempts.
fn retry_delay(policy: &RetryPolicy, advice: RetryAdvice, attempt: u32) -> Duration {
    match advice {
        RetryAdvice::After(delay) => delay,
        _ => policy.delay(attempt, rand::random()).min(MAX_RETRY_DELAY),
    }
}

/// Whether a message must make way for the next ones: it is at fault itself and no attempt could succeed, or the policy
/// wants no other attempt after such an error.
fn is_hopeless(policy: &RetryPolicy, failure: &DeliveryFailure) -> bool {
    failure.is_message_at_fault && failure.advice == RetryAdvice::Never || policy.is_non_retryable(&failure.code)
}

/// The next step of a channel.
enum OrderedStep {
    /// Deliver the next message.
    Continue(ClaimedChannel),
    /// Stop for now.
    Stop(RescheduleDelay),
}

impl OrderedChannel {
    fn is_preferred_here(&self) -> bool {
        self.workers.borrow().as_ref().is_some_and(|members| members.is_preferred(self.runner.worker(), &self.channel))
    }

    async fn work(&self) -> RescheduleDelay {
        if !self.is_preferred_here() {
            return None;
        }
        let mut delays = reconnect_delays();
        loop {
            match self.deliver_available().await {
                Ok(again) => return again,
                Err(error) => {
                    log_interruption("delivering in order", &error);
                    self.runner.pause(next_reconnect_delay(&mut delays)).await?;
                }
            }
        }
    }

    /// Delivers the available messages of a channel.
    async fn deliver_available(&self) -> StoreResult<RescheduleDelay> {
        let (runner, lease) = (&self.runner, self.runner.lease());
        let (store, subscription, channel) = (runner.store(), &runner.subscription, &self.channel);
        let mut taken = {
            let _look = runner.acquire_redis_read().await;
            store.claim_channel(subscription, channel, runner.worker(), lease).await?
        };
        loop {
            match taken {
                ClaimedChannel::Messages { fence: held, messages, gap, failures, crashes } => {
                    if let Some(gap) = &gap {
                        runner.record_gap(channel, gap);
                    }
                    match self.deliver_all(&held, messages, (failures, crashes)).await? {
                        OrderedStep::Continue(next) => taken = next,
                        OrderedStep::Stop(again) => return Ok(again),
                    }
                }
                ClaimedChannel::NotOpened => match store.open_channel(subscription, channel).await? {
                    Some(_) => taken = store.claim_channel(subscription, channel, runner.worker(), lease).await?,
                    // A notification follows when it has a history
                    None => return Ok(None),
                },
                ClaimedChannel::Empty => return Ok(None),
                ClaimedChannel::Blocked(delay) => return Ok(Some(delay)),
                ClaimedChannel::OwnedElsewhere(_) => return Ok(Some(CLAIM_RETRY_INTERVAL)),
                ClaimedChannel::Lost => return Ok(Some(Duration::ZERO)),
            }
        }
    }

    async fn deliver_all(
        &self,
        held: &ChannelFence,
        messages: Vec<StoredMessage>,
        (failures, crashes): (u32, u32),
    ) -> StoreResult<OrderedStep> {
        let (runner, lease) = (&self.runner, self.runner.lease());
        let (store, subscription, channel) = (runner.store(), &runner.subscription, &self.channel);
        let count = messages.len();
        for (number, message) in messages.into_iter().enumerate() {
            if runner.stop.is_cancelled() || !self.is_preferred_here() {
                return self.block_channel(held, Duration::ZERO, None).await;
            }
            let (attempt, crashes) = if number == 0 { (failures + 1, crashes) } else { (1, 0) };
            let done = match self.deliver(&message, attempt, crashes).await {
                Ok(done) => done,
                Err((delay, problem)) => return self.block_channel(held, delay, problem.as_deref()).await,
            };
            let is_last = number + 1 == count;
            let next = store.advance_channel(
                subscription,
                channel,
                runner.worker(),
                lease,
                (held, message.position, done, is_last),
            );
            match next.await? {
                ClaimedChannel::Messages { .. } if !is_last => {}
                next => return Ok(OrderedStep::Continue(next)),
            }
        }
        Ok(OrderedStep::Stop(Some(Duration::ZERO)))
    }

    /// Delivers a message, or hands one that can never be delivered to the dead letters. An error blocks the channel for
    /// that long, with the error of the attempt if there was one.
    async fn deliver(
        &self,
        message: &StoredMessage,
        attempt: u32,
        crashes: u32,
    ) -> Result<MessageDisposition, (Duration, Option<String>)> {
        let (runner, channel) = (&self.runner, &self.channel);
        if !runner.wants(channel, message) {
            return Ok(MessageDisposition::Filtered);
        }
        if crashes > runner.process.crash_budget {
            let problem = format!("{crashes} workers vanished while they had this message");
            return self
                .discard(message, crashes, &DeliveryFailure::permanent("crash_budget_exhausted", problem))
                .await;
        }
        let failure = match runner.deliver(channel, message, attempt).await {
            Ok(()) => return Ok(MessageDisposition::Delivered),
            Err(DeliveryError::Abandoned) => return Err((Duration::ZERO, None)),
            Err(DeliveryError::Deferred { delay, .. }) => return Err((delay.min(MAX_DEFERRAL), None)),
            Err(DeliveryError::Failed(failure)) => failure,
        };
        let policy = runner.subscription.retry_policy();
        if !is_hopeless(&policy, &failure) {
            return Err((retry_delay(&policy, failure.advice, attempt), Some(failure.message)));
        }
        self.discard(message, attempt, &DeliveryError::Failed(failure)).await
    }

    /// Hands a message to the dead letters, so that the next one follows.
    async fn discard(
        &self,
        message: &StoredMessage,
        attempt: u32,
        why: &DeliveryError,
    ) -> Result<MessageDisposition, (Duration, Option<String>)> {
        let delivery = DeliveryAttempt { channel: &self.channel, message, attempt };
        let is_kept = self.runner.retry_as_job(delivery, why, Vec::new(), None).await;
        if is_kept { Ok(MessageDisposition::RetriedAsJob) } else { Err((Duration::ZERO, None)) }
    }

    /// Releases the channel; its message is tried again after a delay.
    async fn block_channel(
        &self,
        held: &ChannelFence,
        delay: Duration,
        problem: Option<&str>,
    ) -> StoreResult<OrderedStep> {
        let (runner, channel) = (&self.runner, &self.channel);
        runner.store().block_channel(&runner.subscription, channel, runner.worker(), (held, delay, problem)).await?;
        // A channel that another worker owns now needs no delay
        let is_ours = !runner.stop.is_cancelled() && self.is_preferred_here();
        Ok(OrderedStep::Stop(is_ours.then_some(delay.max(Duration::from_millis(1)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_order_waits_as_its_endpoint_says_and_otherwise_not_for_long() {
        let day = Duration::from_hours(24);
        let policy = RetryPolicy { initial_interval: day, max_interval: day, jitter: false, ..RetryPolicy::default() };
        for (advice, expected) in [
            (RetryAdvice::ByPolicy, MAX_RETRY_DELAY),
            (RetryAdvice::Never, MAX_RETRY_DELAY),
            (RetryAdvice::After(Duration::from_secs(1)), Duration::from_secs(1)),
            (RetryAdvice::After(day), day),
        ] {
            assert_eq!(retry_delay(&policy, advice, 1), expected, "{advice:?}");
        }
    }
}
