//! Shared delivery: each message goes to one worker of the subscription. Each worker reads as many messages as it has
//! permits, delivers them side by side and acknowledges in batches. Messages of dead workers are reclaimed.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | reads and delivers |
//! | `in_flight` | the messages of this process |
//! | `acknowledge` | acknowledges finished messages, releases the others |
//! | `reclaim` | claims messages that were handed out and not delivered |

mod acknowledge;
mod in_flight;
mod reclaim;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use common::name::ChannelName;
use model::message::StoredMessage;
use store::{
    StoreResult, log_interruption, next_reconnect_delay, reconnect_delays,
    subscriptions::{ChannelMessages, MAX_BATCH_BYTES, MessageDisposition},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use self::{
    acknowledge::ACK_BUFFER,
    in_flight::{InFlightMessages, MessageAddress},
};
use super::{
    channel_tasks::ChannelQueue,
    message_notifier::MessageListener,
    runner::{SubscriptionRunner, kibibytes},
};
use crate::targets::{DeliveryAttempt, DeliveryError, DeliveryFailure};

/// Maximum number of channels in one read.
const CHANNEL_BATCH_SIZE: usize = 64;
/// Maximum number of messages in one read.
const MESSAGE_BATCH_SIZE: usize = 128;
/// Time between two searches for messages of dead workers: half of the lease, within these bounds.
const MIN_RECLAIM_INTERVAL: Duration = Duration::from_secs(5);
const MAX_RECLAIM_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two deletions of idle consumers, and how long they must be idle.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// A message's permits while it is in delivery: a slot and memory.
type DeliveryPermits = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// Delivers until the runner is stopped, then finishes the messages in flight.
pub(super) async fn run(runner: Arc<SubscriptionRunner>, door: MessageListener) {
    let (notes, noted) = mpsc::channel(ACK_BUFFER);
    let in_flight = Arc::<InFlightMessages>::default();
    let noting = tokio::spawn(acknowledge::run_acknowledger(runner.clone(), in_flight.clone(), noted));
    let tasks = TaskTracker::new();
    let mut reader = GroupReader {
        runner: runner.clone(),
        in_flight: in_flight.clone(),
        listener: door,
        tasks: tasks.clone(),
        acks: notes,
        channels: BTreeSet::new(),
        ready: ChannelQueue::default(),
        needs_recovery: true,
        reclaim_at: Instant::now(),
        prune_at: Instant::now() + PRUNE_INTERVAL,
    };
    let mut delays = reconnect_delays();
    while !reader.runner.stop.is_cancelled() {
        match reader.run_once().await {
            Ok(()) => delays = reconnect_delays(),
            Err(error) => {
                reader.needs_recovery = true;
                log_interruption("reading for a subscription", &error);
                reader.runner.pause(next_reconnect_delay(&mut delays)).await;
            }
        }
    }
    // The acknowledger ends with the last sender
    drop(reader);
    tasks.close();
    tasks.wait().await;
    if let Err(error) = noting.await {
        tracing::error!(%error, "acknowledging messages failed");
    }
    acknowledge::release_in_flight(&runner, &in_flight).await;
}

struct GroupReader {
    runner: Arc<SubscriptionRunner>,
    in_flight: Arc<InFlightMessages>,
    listener: MessageListener,
    tasks: TaskTracker,
    acks: mpsc::Sender<(MessageAddress, MessageDisposition)>,
    /// All channels of the subscription.
    channels: BTreeSet<ChannelName>,
    /// Channels that may have messages.
    ready: ChannelQueue,
    /// Messages may have been claimed in an answer that was lost.
    needs_recovery: bool,
    reclaim_at: Instant,
    prune_at: Instant,
}

impl GroupReader {
    /// One turn: waits for something to do and does it.
    async fn run_once(&mut self) -> StoreResult<()> {
        if self.needs_recovery {
            self.find_channels().await?;
            self.recover_own().await?;
            self.needs_recovery = false;
        }
        if self.reclaim_at <= Instant::now() {
            self.reclaim_idle().await?;
            let pause = (self.runner.lease() / 2).clamp(MIN_RECLAIM_INTERVAL, MAX_RECLAIM_INTERVAL);
            self.reclaim_at = Instant::now() + pause.mul_f64(rand::random_range(0.8..1.2));
        }
        let (runner, reclaim_at) = (self.runner.clone(), self.reclaim_at);
        let permits = async {
            if self.ready.is_empty() {
                std::future::pending().await
            } else {
                runner.acquire_slots(MESSAGE_BATCH_SIZE).await
            }
        };
        tokio::select! {
            biased;
            () = runner.stop.cancelled() => Ok(()),
            pending = self.listener.wait() => {
                // The fallible step comes last: the notification is not repeated
                if pending.has_released {
                    self.reclaim_at = Instant::now();
                }
                for channel in pending.channels {
                    self.add_channel(&channel);
                    self.ready.push(channel);
                }
                if pending.is_all_channels {
                    self.find_channels().await?;
                }
                Ok(())
            }
            () = tokio::time::sleep_until(reclaim_at) => Ok(()),
            permits = permits => match permits {
                Some(permits) => self.read(permits).await,
                None => Ok(()),
            },
        }
    }

    /// All channels may have messages, and there may be new channels.
    async fn find_channels(&mut self) -> StoreResult<()> {
        let found = {
            let _look = self.runner.acquire_redis_read().await;
            self.runner.store().matching_channels(&self.runner.subscription).await?
        };
        let gone: Vec<ChannelName> = {
            let found: HashSet<&ChannelName> = found.iter().collect();
            self.channels.iter().filter(|channel| !found.contains(channel)).cloned().collect()
        };
        for channel in gone {
            self.channels.remove(&channel);
            self.listener.stop_listening(&channel);
        }
        for channel in found {
            self.add_channel(&channel);
            self.ready.push(channel);
        }
        if self.prune_at <= Instant::now() {
            for channel in &self.channels {
                self.runner.store().prune_consumers(&self.runner.subscription, channel, PRUNE_INTERVAL).await?;
            }
            self.prune_at = Instant::now() + PRUNE_INTERVAL;
        }
        Ok(())
    }

    fn add_channel(&mut self, channel: &ChannelName) {
        if self.channels.insert(channel.clone()) {
            self.listener.listen_to(channel);
        }
    }

    /// Reads the next messages of channels that may have some.
    async fn read(&mut self, mut permits: Vec<OwnedSemaphorePermit>) -> StoreResult<()> {
        let channels: Vec<ChannelName> = std::iter::from_fn(|| self.ready.pop()).take(CHANNEL_BATCH_SIZE).collect();
        let (runner, subscription) = (self.runner.clone(), &self.runner.subscription);
        let Some(mut room) = runner.reserve_memory(MAX_BATCH_BYTES).await else { return Ok(()) };
        let look = runner.acquire_redis_read().await;
        let read = runner.store().read_messages(subscription, &channels, runner.worker(), permits.len()).await;
        drop(look);
        let given = match read {
            Ok(given) => given,
            Err(error) => {
                for channel in channels {
                    self.ready.push(channel);
                }
                return Err(error);
            }
        };
        let looked_at: HashSet<usize> = given.iter().map(|given| given.channel_index).collect();
        for given in given {
            let Some(channel) = channels.get(given.channel_index).cloned() else { continue };
            self.start_deliveries(channel, given, &mut permits, &mut room).await?;
        }
        for (number, channel) in channels.into_iter().enumerate() {
            if !looked_at.contains(&number) {
                self.ready.push(channel);
            }
        }
        Ok(())
    }

    async fn start_deliveries(
        &mut self,
        channel: ChannelName,
        given: ChannelMessages,
        permits: &mut Vec<OwnedSemaphorePermit>,
        room: &mut OwnedSemaphorePermit,
    ) -> StoreResult<()> {
        if let Some(gap) = &given.gap {
            self.runner.record_gap(&channel, gap);
        }
        let is_open = !given.needs_open || {
            let _look = self.runner.acquire_redis_read().await;
            self.runner.store().open_channel(&self.runner.subscription, &channel).await?.is_some()
        };
        for message in given.messages {
            let share = room.split(kibibytes(message.body.len()) as usize);
            self.deliver(channel.clone(), message, 0, (permits.pop(), share)).await;
        }
        // A channel without a history notifies when it gets one
        if given.has_more || given.needs_open && is_open {
            self.ready.push(channel);
        }
        Ok(())
    }

    /// Starts to deliver a message with which `crashes` workers have died.
    async fn deliver(&self, channel: ChannelName, message: StoredMessage, crashes: u32, held: DeliveryPermits) {
        let Some(guard) = self.in_flight.begin((channel.clone(), message.position)) else { return };
        if !self.runner.wants(&channel, &message) {
            if let Some(address) = guard.finish() {
                // Nobody waits for it: when the process stops, the message is released
                let _ = self.acks.send((address, MessageDisposition::Filtered)).await;
            }
            return;
        }
        let (runner, notes) = (self.runner.clone(), self.acks.clone());
        self.tasks.spawn(async move {
            let (permit, memory) = held;
            let done = deliver(&runner, &channel, &message, crashes, memory).await;
            drop(permit);
            // Without an acknowledgement it is released at the end
            if let (Some(address), Some(done)) = (guard.finish(), done) {
                let _ = notes.send((address, done)).await;
            }
        });
    }
}

/// Delivers a message, or hands it to the retry queue as a job; none if neither was possible.
async fn deliver(
    runner: &SubscriptionRunner,
    channel: &ChannelName,
    message: &StoredMessage,
    crashes: u32,
    room: Option<OwnedSemaphorePermit>,
) -> Option<MessageDisposition> {
    if crashes > runner.process.crash_budget {
        let problem = format!("{crashes} workers vanished while they had this message");
        let why = DeliveryFailure::permanent("crash_budget_exhausted", problem);
        let delivery = DeliveryAttempt { channel, message, attempt: crashes };
        return runner.retry_as_job(delivery, &why, Vec::new(), room).await.then_some(MessageDisposition::RetriedAsJob);
    }
    match runner.deliver(channel, message, 1).await {
        Ok(()) => Some(MessageDisposition::Delivered),
        Err(why @ (DeliveryError::Failed(_) | DeliveryError::Deferred { .. })) => {
            let delivery = DeliveryAttempt { channel, message, attempt: 1 };
            runner.retry_as_job(delivery, &why, Vec::new(), room).await.then_some(MessageDisposition::RetriedAsJob)
        }
        Err(DeliveryError::Abandoned) => None,
    }
}
