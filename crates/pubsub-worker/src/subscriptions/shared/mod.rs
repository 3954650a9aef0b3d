//! A message goes to one worker of the subscription, side by side with others: read as many as there are places, deliver each,
//! note many at once that they are done with. Messages of workers that vanished are taken over.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | reads, and delivers |
//! | `in_flight` | which messages this process has |
//! | `acknowledge` | notes what is done with, gives back what is not |
//! | `reclaim` | takes what others, or this worker, were handed and do not deliver |

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

/// Channels that are read in one go.
const CHANNEL_BATCH_SIZE: usize = 64;
/// Messages that are read in one go.
const MESSAGE_BATCH_SIZE: usize = 128;
/// Between two looks for messages of workers that vanished: half of the time after which they are taken over, within bounds.
const MIN_RECLAIM_INTERVAL: Duration = Duration::from_secs(5);
const MAX_RECLAIM_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks for workers that can be forgotten, and how long such a one was silent.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// What a message takes up while it is under way: a place, and room for its bytes.
type DeliveryPermits = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// Delivers until the runner is stopped, then finishes what it has.
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
    // Whoever notes ends with the last who has something to note
    drop(reader);
    tasks.close();
    tasks.wait().await;
    if let Err(error) = noting.await {
        tracing::error!(%error, "noting what was delivered failed");
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
    /// Those that may have something.
    ready: ChannelQueue,
    /// Something may have been handed to this worker that it did not hear of.
    needs_recovery: bool,
    reclaim_at: Instant,
    prune_at: Instant,
}

impl GroupReader {
    /// One turn: waits for something to do, and does it.
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
        let (runner, look_at) = (self.runner.clone(), self.reclaim_at);
        let places = async {
            if self.ready.is_empty() {
                std::future::pending().await
            } else {
                runner.acquire_slots(MESSAGE_BATCH_SIZE).await
            }
        };
        tokio::select! {
            biased;
            () = runner.stop.cancelled() => Ok(()),
            ring = self.listener.wait() => {
                // What may fail comes last: nobody rings twice
                if ring.has_released {
                    self.reclaim_at = Instant::now();
                }
                for channel in ring.channels {
                    self.add_channel(&channel);
                    self.ready.push(channel);
                }
                if ring.is_all_channels {
                    self.find_channels().await?;
                }
                Ok(())
            }
            () = tokio::time::sleep_until(look_at) => Ok(()),
            places = places => match places {
                Some(places) => self.read(places).await,
                None => Ok(()),
            },
        }
    }

    /// All channels may have something, and there may be others.
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

    /// Reads what comes next in channels that may have something.
    async fn read(&mut self, mut places: Vec<OwnedSemaphorePermit>) -> StoreResult<()> {
        let channels: Vec<ChannelName> = std::iter::from_fn(|| self.ready.pop()).take(CHANNEL_BATCH_SIZE).collect();
        let (runner, subscription) = (self.runner.clone(), &self.runner.subscription);
        let Some(mut room) = runner.reserve_memory(MAX_BATCH_BYTES).await else { return Ok(()) };
        let look = runner.acquire_redis_read().await;
        let read = runner.store().read_messages(subscription, &channels, runner.worker(), places.len()).await;
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
            self.start_deliveries(channel, given, &mut places, &mut room).await?;
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
        places: &mut Vec<OwnedSemaphorePermit>,
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
            self.deliver(channel.clone(), message, 0, (places.pop(), share)).await;
        }
        // One without a history rings when it has one
        if given.has_more || given.needs_open && is_open {
            self.ready.push(channel);
        }
        Ok(())
    }

    /// Starts to deliver a message with which so many workers have vanished.
    async fn deliver(&self, channel: ChannelName, message: StoredMessage, vanished: u32, held: DeliveryPermits) {
        let Some(under_way) = self.in_flight.begin((channel.clone(), message.position)) else { return };
        if !self.runner.subscription.filter.matches(&message) {
            if let Some(place) = under_way.finish() {
                // Nobody waits for it: when the process stops it is given back
                let _ = self.acks.send((place, MessageDisposition::Filtered)).await;
            }
            return;
        }
        let (runner, notes) = (self.runner.clone(), self.acks.clone());
        self.tasks.spawn(async move {
            let (place, room) = held;
            let done = deliver(&runner, &channel, &message, vanished, room).await;
            drop(place);
            // Without a note it is given back at the end
            if let (Some(place), Some(done)) = (under_way.finish(), done) {
                let _ = notes.send((place, done)).await;
            }
        });
    }
}

/// Delivers a message, or lets it go on as a job; none if neither could be done.
async fn deliver(
    runner: &SubscriptionRunner,
    channel: &ChannelName,
    message: &StoredMessage,
    vanished: u32,
    room: Option<OwnedSemaphorePermit>,
) -> Option<MessageDisposition> {
    if vanished > runner.process.crash_budget {
        let problem = format!("{vanished} workers vanished while they had this message");
        let why = DeliveryFailure::permanent("crash_budget_exhausted", problem);
        let delivery = DeliveryAttempt { channel, message, attempt: vanished };
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
