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
use model::message::Stored;
use store::{
    StoreResult, next_delay, note_interruption, reconnect_delays,
    subscriptions::{BYTES_AT_ONCE, Done, Given},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use self::{
    acknowledge::NOTES,
    in_flight::{InFlight, Place},
};
use super::{
    channel_tasks::Line,
    message_notifier::Door,
    runner::{Runner, kibibytes},
};
use crate::targets::{Delivery, Failure, NotDelivered};

/// Channels that are read in one go.
const CHANNELS_AT_ONCE: usize = 64;
/// Messages that are read in one go.
const MESSAGES_AT_ONCE: usize = 128;
/// Between two looks for messages of workers that vanished: half of the time after which they are taken over, within bounds.
const SOONEST_LOOK: Duration = Duration::from_secs(5);
const LATEST_LOOK: Duration = Duration::from_secs(30);
/// Between two looks for workers that can be forgotten, and how long such a one was silent.
const FORGET: Duration = Duration::from_hours(1);

/// What a message takes up while it is under way: a place, and room for its bytes.
type Held = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// Delivers until the runner is stopped, then finishes what it has.
pub(super) async fn run(runner: Arc<Runner>, door: Door) {
    let (notes, noted) = mpsc::channel(NOTES);
    let in_flight = Arc::<InFlight>::default();
    let noting = tokio::spawn(acknowledge::note(runner.clone(), in_flight.clone(), noted));
    let tasks = TaskTracker::new();
    let mut reader = Reader {
        runner: runner.clone(),
        in_flight: in_flight.clone(),
        door,
        tasks: tasks.clone(),
        notes,
        channels: BTreeSet::new(),
        ready: Line::default(),
        is_unsure: true,
        look_at: Instant::now(),
        forget_at: Instant::now() + FORGET,
    };
    let mut delays = reconnect_delays();
    while !reader.runner.stop.is_cancelled() {
        match reader.step().await {
            Ok(()) => delays = reconnect_delays(),
            Err(error) => {
                reader.is_unsure = true;
                note_interruption("reading for a subscription", &error);
                reader.runner.pause(next_delay(&mut delays)).await;
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
    acknowledge::give_back(&runner, &in_flight).await;
}

struct Reader {
    runner: Arc<Runner>,
    in_flight: Arc<InFlight>,
    door: Door,
    tasks: TaskTracker,
    notes: mpsc::Sender<(Place, Done)>,
    /// All channels of the subscription.
    channels: BTreeSet<ChannelName>,
    /// Those that may have something.
    ready: Line,
    /// Something may have been handed to this worker that it did not hear of.
    is_unsure: bool,
    look_at: Instant,
    forget_at: Instant,
}

impl Reader {
    /// One turn: waits for something to do, and does it.
    async fn step(&mut self) -> StoreResult<()> {
        if self.is_unsure {
            self.find_channels().await?;
            self.find_own().await?;
            self.is_unsure = false;
        }
        if self.look_at <= Instant::now() {
            self.take_over().await?;
            let pause = (self.runner.lease() / 2).clamp(SOONEST_LOOK, LATEST_LOOK);
            self.look_at = Instant::now() + pause.mul_f64(rand::random_range(0.8..1.2));
        }
        let (runner, look_at) = (self.runner.clone(), self.look_at);
        let places = async {
            if self.ready.is_empty() { std::future::pending().await } else { runner.places(MESSAGES_AT_ONCE).await }
        };
        tokio::select! {
            biased;
            () = runner.stop.cancelled() => Ok(()),
            ring = self.door.rung() => {
                // What may fail comes last: nobody rings twice
                if ring.given_back {
                    self.look_at = Instant::now();
                }
                for channel in ring.channels {
                    self.know(&channel);
                    self.ready.push(channel);
                }
                if ring.everywhere {
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
            let _look = self.runner.look().await;
            self.runner.store().channels_of(&self.runner.subscription).await?
        };
        let gone: Vec<ChannelName> = {
            let found: HashSet<&ChannelName> = found.iter().collect();
            self.channels.iter().filter(|channel| !found.contains(channel)).cloned().collect()
        };
        for channel in gone {
            self.channels.remove(&channel);
            self.door.forget(&channel);
        }
        for channel in found {
            self.know(&channel);
            self.ready.push(channel);
        }
        if self.forget_at <= Instant::now() {
            for channel in &self.channels {
                self.runner.store().forget_workers(&self.runner.subscription, channel, FORGET).await?;
            }
            self.forget_at = Instant::now() + FORGET;
        }
        Ok(())
    }

    fn know(&mut self, channel: &ChannelName) {
        if self.channels.insert(channel.clone()) {
            self.door.listen_to(channel);
        }
    }

    /// Reads what comes next in channels that may have something.
    async fn read(&mut self, mut places: Vec<OwnedSemaphorePermit>) -> StoreResult<()> {
        let channels: Vec<ChannelName> = std::iter::from_fn(|| self.ready.pop()).take(CHANNELS_AT_ONCE).collect();
        let (runner, subscription) = (self.runner.clone(), &self.runner.subscription);
        let Some(mut room) = runner.room(BYTES_AT_ONCE).await else { return Ok(()) };
        let look = runner.look().await;
        let read = runner.store().read(subscription, &channels, runner.worker(), places.len()).await;
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
        let looked_at: HashSet<usize> = given.iter().map(|given| given.number).collect();
        for given in given {
            let Some(channel) = channels.get(given.number).cloned() else { continue };
            self.start(channel, given, &mut places, &mut room).await?;
        }
        for (number, channel) in channels.into_iter().enumerate() {
            if !looked_at.contains(&number) {
                self.ready.push(channel);
            }
        }
        Ok(())
    }

    async fn start(
        &mut self,
        channel: ChannelName,
        given: Given,
        places: &mut Vec<OwnedSemaphorePermit>,
        room: &mut OwnedSemaphorePermit,
    ) -> StoreResult<()> {
        if let Some(gap) = &given.gap {
            self.runner.note_gap(&channel, gap);
        }
        let is_open = !given.is_closed || {
            let _look = self.runner.look().await;
            self.runner.store().open(&self.runner.subscription, &channel).await?.is_some()
        };
        for message in given.messages {
            let share = room.split(kibibytes(message.body.len()) as usize);
            self.deliver(channel.clone(), message, 0, (places.pop(), share)).await;
        }
        // One without a history rings when it has one
        if given.is_more || given.is_closed && is_open {
            self.ready.push(channel);
        }
        Ok(())
    }

    /// Starts to deliver a message with which so many workers have vanished.
    async fn deliver(&self, channel: ChannelName, message: Stored, vanished: u32, held: Held) {
        let Some(under_way) = self.in_flight.begin((channel.clone(), message.position)) else { return };
        if !self.runner.subscription.filter.fits(&message) {
            if let Some(place) = under_way.ended() {
                // Nobody waits for it: when the process stops it is given back
                let _ = self.notes.send((place, Done::Unwanted)).await;
            }
            return;
        }
        let (runner, notes) = (self.runner.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            let (place, room) = held;
            let done = deliver(&runner, &channel, &message, vanished, room).await;
            drop(place);
            // Without a note it is given back at the end
            if let (Some(place), Some(done)) = (under_way.ended(), done) {
                let _ = notes.send((place, done)).await;
            }
        });
    }
}

/// Delivers a message, or lets it go on as a job; none if neither could be done.
async fn deliver(
    runner: &Runner,
    channel: &ChannelName,
    message: &Stored,
    vanished: u32,
    room: Option<OwnedSemaphorePermit>,
) -> Option<Done> {
    if vanished > runner.process.crash_budget {
        let problem = format!("{vanished} workers vanished while they had this message");
        let why = Failure::hopeless("crash_budget_exhausted", problem);
        let delivery = Delivery { channel, message, attempt: vanished };
        return runner.hand_on(delivery, &why, Vec::new(), room).await.then_some(Done::HandedOn);
    }
    match runner.deliver(channel, message, 1).await {
        Ok(()) => Some(Done::Delivered),
        Err(why @ (NotDelivered::Failed(_) | NotDelivered::Later { .. })) => {
            let delivery = Delivery { channel, message, attempt: 1 };
            runner.hand_on(delivery, &why, Vec::new(), room).await.then_some(Done::HandedOn)
        }
        Err(NotDelivered::Abandoned) => None,
    }
}
