//! Broadcast delivery: every worker gets every message, each channel in order. The worker reads the history by itself
//! and saves its positions, so that it continues there when it restarts under the same name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{name::ChannelName, time::Millis};
use model::{
    job::{AttemptError as Recorded, RetryAdvice, RetryDecision, RetryPolicy},
    message::{Position, StoredMessage, continuity::Gap},
};
use store::{StoreResult, log_interruption, next_reconnect_delay, reconnect_delays, subscriptions::Checkpoint};
use tokio::time::Instant;

use super::{
    channel_tasks::{self, RescheduleDelay},
    message_notifier::MessageListener,
    runner::{MAX_DEFERRAL, SubscriptionRunner},
};
use crate::targets::{DeliveryAttempt, DeliveryError, DeliveryFailure};

/// Maximum number of messages in one read of a channel.
const PAGE_SIZE: usize = 64;
/// How often changed positions are saved.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the worker's presence is saved when nothing else changed.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// How often all positions are saved and those of removed channels deleted.
const FULL_CHECKPOINT_INTERVAL: Duration = Duration::from_hours(1);
/// Local attempts at a failed message, with short pauses; after them it becomes a job.
const MAX_LOCAL_ATTEMPTS: u32 = 3;
const MAX_LOCAL_RETRY_DELAY: Duration = Duration::from_secs(2);

struct BroadcastRunner {
    runner: Arc<SubscriptionRunner>,
    progress: Mutex<BroadcastProgress>,
}

/// The positions of this worker.
#[derive(Default)]
struct BroadcastProgress {
    positions: BTreeMap<ChannelName, Position>,
    /// Channels whose position is not saved yet.
    unsaved: BTreeSet<ChannelName>,
    /// The last reported gap of each channel, until the message after it is delivered.
    reported_gaps: BTreeMap<ChannelName, Gap>,
    /// When this worker first served the subscription.
    first_seen_at: Millis,
    delivered: u64,
    filtered: u64,
    /// Whether this process has saved positions.
    has_saved: bool,
    /// Another process saves its own under the same name.
    is_name_shared: bool,
}

impl BroadcastProgress {
    fn advance(&mut self, channel: &ChannelName, position: Position) {
        if self.positions.insert(channel.clone(), position) != Some(position) {
            self.unsaved.insert(channel.clone());
            self.reported_gaps.remove(channel);
        }
    }

    /// Whether a gap is new: the same gap is found again each time the message after it cannot be delivered.
    fn is_new_gap(&mut self, channel: &ChannelName, gap: &Gap) -> bool {
        self.reported_gaps.insert(channel.clone(), *gap) != Some(*gap)
    }
}

/// Delivers until the runner is stopped.
pub(super) async fn run(runner: Arc<SubscriptionRunner>, listener: MessageListener) {
    let Some(found) = load_checkpoint(&runner).await else { return };
    // A worker that returns existed when channels that are new to it began
    let first_seen_at = found.first_seen_at.unwrap_or(runner.process.started_at);
    let at = BroadcastProgress { positions: found.positions, first_seen_at, ..BroadcastProgress::default() };
    let broadcast = Arc::new(BroadcastRunner { runner: runner.clone(), progress: Mutex::new(at) });
    // Save before the first delivery, so that a worker killed early still has its position
    if broadcast.save_first_checkpoint().await.is_none() {
        return;
    }
    let noting = tokio::spawn(broadcast.clone().run_checkpoints());
    let work = |channel| {
        let broadcast = broadcast.clone();
        async move { broadcast.work(&channel).await }
    };
    channel_tasks::run(&runner, &listener, work).await;
    if let Err(error) = noting.await {
        tracing::error!(%error, "saving broadcast positions failed");
    }
    // The last deliveries may end after the last save
    if !runner.is_obsolete().await
        && let Err(error) = broadcast.save_changes().await
    {
        log_interruption("noting where a broadcast is", &error);
    }
}

/// Loads this worker's positions; none if it stops first.
async fn load_checkpoint(runner: &SubscriptionRunner) -> Option<Checkpoint> {
    let mut delays = reconnect_delays();
    loop {
        match runner.store().load_checkpoint(&runner.subscription, &runner.process.instance).await {
            Ok(place) => return Some(place.unwrap_or_default()),
            Err(error) => {
                log_interruption("looking where a broadcast was", &error);
                runner.pause(next_reconnect_delay(&mut delays)).await?;
            }
        }
    }
}

impl BroadcastRunner {
    fn progress(&self) -> MutexGuard<'_, BroadcastProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves this worker's presence; none if it stops first.
    async fn save_first_checkpoint(&self) -> Option<()> {
        let mut delays = reconnect_delays();
        while let Err(error) = self.save_all().await {
            log_interruption("noting where a broadcast is", &error);
            self.runner.pause(next_reconnect_delay(&mut delays)).await?;
        }
        Some(())
    }

    async fn run_checkpoints(self: Arc<Self>) {
        let (mut say_at, mut all_at) = (Instant::now() + HEARTBEAT_INTERVAL, Instant::now() + FULL_CHECKPOINT_INTERVAL);
        loop {
            let (now, has_news) = (Instant::now(), !self.progress().unsaved.is_empty());
            let noted = if all_at <= now {
                self.save_all().await.map(|()| all_at = now + FULL_CHECKPOINT_INTERVAL)
            } else if has_news || say_at <= now {
                self.save_changes().await
            } else {
                Ok(())
            };
            match noted {
                Ok(()) if has_news || say_at <= now => say_at = now + HEARTBEAT_INTERVAL,
                Ok(()) => {}
                Err(error) => log_interruption("noting where a broadcast is", &error),
            }
            if self.runner.pause(CHECKPOINT_INTERVAL).await.is_none() {
                return;
            }
        }
    }

    /// Saves changed positions; saves all if Redis lost the earlier ones.
    async fn save_changes(&self) -> StoreResult<()> {
        if self.save_checkpoint(false).await? { Ok(()) } else { self.save_checkpoint(true).await.map(drop) }
    }

    /// Drops the positions of removed channels and saves all others.
    async fn save_all(&self) -> StoreResult<()> {
        let before: Vec<ChannelName> = self.progress().positions.keys().cloned().collect();
        let there: BTreeSet<ChannelName> =
            self.runner.store().matching_channels(&self.runner.subscription).await?.into_iter().collect();
        {
            let mut at = self.progress();
            // Channels that appeared meanwhile stay
            for gone in before.iter().filter(|channel| !there.contains(channel)) {
                at.positions.remove(gone);
                at.unsaved.remove(gone);
            }
        }
        self.save_checkpoint(true).await.map(drop)
    }

    /// Saves positions; false if there was no earlier checkpoint.
    async fn save_checkpoint(&self, is_whole: bool) -> StoreResult<bool> {
        let checkpoint = {
            let mut at = self.progress();
            let changed = std::mem::take(&mut at.unsaved);
            let positions = if is_whole {
                at.positions.clone()
            } else {
                let position = |channel: ChannelName| at.positions.get(&channel).map(|position| (channel, *position));
                changed.into_iter().filter_map(position).collect()
            };
            let (delivered, filtered) = (std::mem::take(&mut at.delivered), std::mem::take(&mut at.filtered));
            Checkpoint {
                positions,
                first_seen_at: Some(at.first_seen_at),
                delivered,
                filtered,
                is_complete: is_whole,
                process: self.runner.worker().to_string(),
            }
        };
        let runner = &self.runner;
        let noted = runner.store().save_checkpoint(&runner.subscription, &runner.process.instance, &checkpoint).await;
        let mut at = self.progress();
        if let Ok(earlier) = &noted {
            // A process that started again under the same name saves no more
            let is_shared = std::mem::replace(&mut at.has_saved, true)
                && ![checkpoint.process.as_str(), ""].contains(&earlier.process.as_str());
            if is_shared && !std::mem::replace(&mut at.is_name_shared, true) {
                let (subscription, worker) = (&runner.subscription.name, &runner.process.instance);
                let event = "subscription.name_shared";
                tracing::error!(event, %subscription, %worker, "another process saves its positions under the same name: set pubsub_worker.name");
            }
        } else {
            at.delivered += checkpoint.delivered;
            at.filtered += checkpoint.filtered;
            at.unsaved.extend(checkpoint.positions.into_keys());
        }
        drop(at);
        noted.map(|earlier| earlier.exists)
    }

    async fn work(&self, channel: &ChannelName) -> RescheduleDelay {
        let mut delays = reconnect_delays();
        loop {
            match self.deliver_available(channel).await {
                Ok(again) => return again,
                Err(error) => {
                    log_interruption("reading for a broadcast", &error);
                    self.runner.pause(next_reconnect_delay(&mut delays)).await?;
                }
            }
        }
    }

    /// Delivers the available messages of a channel.
    async fn deliver_available(&self, channel: &ChannelName) -> StoreResult<RescheduleDelay> {
        let (runner, channels) = (&self.runner, self.runner.store().channels());
        let known = self.progress().positions.get(channel).copied();
        let mut after = if let Some(position) = known {
            position
        } else {
            let since = self.progress().first_seen_at;
            let _look = runner.acquire_redis_read().await;
            let begin = runner.store().broadcast_start_position(&runner.subscription, channel, since).await?;
            self.progress().advance(channel, begin);
            begin
        };
        loop {
            let page = {
                let _look = runner.acquire_redis_read().await;
                channels.read_channel_page(channel, after, PAGE_SIZE).await?
            };
            if let Some(gap) = page.gap(after).filter(|gap| self.progress().is_new_gap(channel, gap)) {
                runner.record_gap(channel, &gap);
            }
            for message in &page.messages {
                if runner.stop.is_cancelled() {
                    return Ok(None);
                }
                if let Some(pause) = self.deliver(channel, message).await {
                    return Ok(Some(pause));
                }
                after = message.position;
            }
            if page.messages.is_empty() {
                after = page.read_up_to;
                self.progress().advance(channel, after);
            }
            if !page.has_more {
                return Ok(None);
            }
        }
    }

    /// Delivers a message, or hands it to the retry queue as a job; returns a pause if neither was possible.
    async fn deliver(&self, channel: &ChannelName, message: &StoredMessage) -> Option<Duration> {
        let runner = &self.runner;
        if !runner.wants(channel, message) {
            self.record_processed(channel, message.position, false);
            return None;
        }
        let mut failures = Vec::new();
        loop {
            let attempt = u32::try_from(failures.len()).unwrap_or(MAX_LOCAL_ATTEMPTS) + 1;
            let why = match runner.deliver(channel, message, attempt).await {
                Ok(()) => {
                    self.record_processed(channel, message.position, true);
                    return None;
                }
                Err(DeliveryError::Abandoned) => return Some(Duration::from_secs(1)),
                // Earlier attempts count, also when the target has to be left alone in between
                Err(later @ DeliveryError::Deferred { .. }) if !failures.is_empty() => {
                    return self.retry_as_job(DeliveryAttempt { channel, message, attempt }, &later, failures).await;
                }
                Err(DeliveryError::Deferred { delay, .. }) => return Some(delay.min(MAX_DEFERRAL)),
                Err(DeliveryError::Failed(failure)) => failure,
            };
            let Some(pause) = local_retry_delay(&runner.subscription.retry_policy(), &why, attempt) else {
                let why = DeliveryError::Failed(why);
                return self.retry_as_job(DeliveryAttempt { channel, message, attempt }, &why, failures).await;
            };
            failures.push(runner.attempt_error(&why, attempt));
            if runner.pause(pause).await.is_none() {
                return Some(pause);
            }
        }
    }

    /// Hands a message to the retry queue as a job after earlier failures; returns a pause if that is not possible.
    async fn retry_as_job(
        &self,
        delivery: DeliveryAttempt<'_>,
        why: &DeliveryError,
        earlier: Vec<Recorded>,
    ) -> Option<Duration> {
        let is_kept = self.runner.retry_as_job(delivery, why, earlier, None).await;
        if is_kept {
            self.progress().advance(delivery.channel, delivery.message.position);
        }
        (!is_kept).then_some(Duration::from_secs(1))
    }

    fn record_processed(&self, channel: &ChannelName, position: Position, is_delivered: bool) {
        let mut at = self.progress();
        at.advance(channel, position);
        if is_delivered { at.delivered += 1 } else { at.filtered += 1 }
    }
}

/// The delay before the next local attempt, where `attempt` attempts have failed; none if the message should become a
/// job.
fn local_retry_delay(policy: &RetryPolicy, failure: &DeliveryFailure, attempt: u32) -> Option<Duration> {
    let verdict = policy.after_failure(attempt - 1, &failure.code, failure.advice, rand::random());
    match (verdict, failure.advice) {
        _ if attempt >= MAX_LOCAL_ATTEMPTS => None,
        // The delay is limited so that the channel does not wait longer; the endpoint is not asked sooner than it said
        (RetryDecision::Retry(delay), RetryAdvice::After(_)) => {
            Some(delay).filter(|delay| *delay <= MAX_LOCAL_RETRY_DELAY)
        }
        (RetryDecision::Retry(delay), _) => Some(delay.min(MAX_LOCAL_RETRY_DELAY)),
        (RetryDecision::Discard { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_waits_here_for_a_moment_and_goes_on_as_a_job_when_that_is_not_enough() {
        let patient =
            RetryPolicy { initial_interval: Duration::from_hours(1), jitter: false, ..RetryPolicy::default() };
        let (twice, second) = (RetryPolicy { max_attempts: 2, ..patient.clone() }, Duration::from_secs(1));
        for (policy, advice, attempt, expected) in [
            (&patient, RetryAdvice::ByPolicy, 1, Some(MAX_LOCAL_RETRY_DELAY)),
            (&patient, RetryAdvice::ByPolicy, MAX_LOCAL_ATTEMPTS, None),
            (&patient, RetryAdvice::Never, 1, None),
            (&patient, RetryAdvice::After(second), 1, Some(second)),
            (&patient, RetryAdvice::After(MAX_LOCAL_RETRY_DELAY + second), 1, None),
            (&twice, RetryAdvice::ByPolicy, 1, Some(MAX_LOCAL_RETRY_DELAY)),
            (&twice, RetryAdvice::ByPolicy, 2, None),
        ] {
            let DeliveryError::Failed(failure) = DeliveryFailure::error("code", "message", advice) else {
                panic!("it failed")
            };
            assert_eq!(local_retry_delay(policy, &failure, attempt), expected, "{advice:?} {attempt}");
        }
    }
}
