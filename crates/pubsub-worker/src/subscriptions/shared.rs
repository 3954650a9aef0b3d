//! A message goes to one worker of the subscription, side by side with others: read as many as there are places, deliver each,
//! note many at once that they are done with. Messages of workers that vanished are taken over.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    message::{Position, Stored, continuity::Gap},
    name::ChannelName,
    redis::{
        StoreError, StoreResult, next_delay, note_interruption, reconnect_delays,
        subscriptions::{BYTES_AT_ONCE, Done, Given},
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    bell::Door,
    lanes::Line,
    runner::{Runner, kibibytes},
};
use crate::targets::{Failure, NotDelivered};

/// Channels that are read in one go.
const CHANNELS_AT_ONCE: usize = 64;
/// Messages that are read in one go.
const MESSAGES_AT_ONCE: usize = 128;
/// Messages that are done with and not noted yet, beyond those that wait for it with their place.
const NOTES: usize = 256;
/// Between two looks for messages of workers that vanished: half of the time after which they are taken over, within bounds.
const SOONEST_LOOK: Duration = Duration::from_secs(5);
const LATEST_LOOK: Duration = Duration::from_secs(30);
/// Between two looks for workers that can be forgotten, and how long such a one was silent.
const FORGET: Duration = Duration::from_hours(1);

/// What a message takes up while it is under way: a place, and room for its bytes.
type Held = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// Where a message is.
type Place = (ChannelName, Position);

struct Shared {
    runner: Arc<Runner>,
    /// Messages that this process has.
    in_flight: Mutex<HashSet<Place>>,
}

/// Delivers until the runner is stopped, then finishes what it has.
pub(super) async fn run(runner: Arc<Runner>, door: Door) {
    let (notes, noted) = mpsc::channel(NOTES);
    let shared = Arc::new(Shared { runner: runner.clone(), in_flight: Mutex::default() });
    let noting = tokio::spawn(note(shared.clone(), noted));
    let tasks = TaskTracker::new();
    let mut reader = Reader {
        runner,
        shared: shared.clone(),
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
    shared.give_back().await;
}

struct Reader {
    runner: Arc<Runner>,
    shared: Arc<Shared>,
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
            self.take_over(Duration::ZERO, true).await?;
            self.is_unsure = false;
        }
        if self.look_at <= Instant::now() {
            self.take_over(self.runner.lease(), false).await?;
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
                if ring.everywhere {
                    self.find_channels().await?;
                }
                if ring.given_back {
                    self.look_at = Instant::now();
                }
                for channel in ring.channels {
                    self.know(&channel);
                    self.ready.push(channel);
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

    /// Takes messages of workers that were silent for so long, or of this one, that it did not hear of.
    async fn take_over(&mut self, silent: Duration, own: bool) -> StoreResult<()> {
        let runner = self.runner.clone();
        let (of, channels) = (own.then(|| runner.worker()), self.channels.iter().cloned().collect::<Vec<_>>());
        let silent_in = {
            let _look = runner.look().await;
            runner.store().with_silent(&runner.subscription, &channels, silent, of).await?
        };
        for channel in silent_in {
            loop {
                let mut places: Vec<OwnedSemaphorePermit> =
                    std::iter::from_fn(|| runner.another_place()).take(MESSAGES_AT_ONCE).collect();
                let most = if own { MESSAGES_AT_ONCE } else { places.len() };
                if most == 0 {
                    return Ok(());
                }
                let taken = runner
                    .store()
                    .take_over(&runner.subscription, &channel, runner.worker(), (silent, of, most))
                    .await?;
                let is_whole = taken.messages.len() + taken.lost.len() < most;
                for position in &taken.lost {
                    let (name, id) = (&runner.subscription.name, position);
                    tracing::error!(subscription = %name, %channel, %id, "a message is not kept any more and was not delivered");
                    metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string())
                        .increment(1);
                }
                // Whoever was handed the message behind it may not have heard of it
                let unheard = |gap: &&Gap| gap.to.is_some_and(|to| !self.shared.has(&channel, to));
                taken.gaps.iter().filter(unheard).for_each(|gap| runner.note_gap(&channel, gap));
                let mut started = 0;
                for (message, times) in taken.messages {
                    if self.shared.has(&channel, message.position) {
                        continue;
                    }
                    started += 1;
                    tracing::info!(subscription = %runner.subscription.name, %channel, id = %message.position, times, "taken over");
                    // Its own were handed out to itself
                    let vanished = if own { times.saturating_sub(1) } else { times };
                    self.deliver(channel.clone(), message, vanished, (places.pop(), None)).await;
                }
                // Its own come again as long as it has them
                if is_whole || own && started == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Starts to deliver a message with which so many workers have vanished.
    async fn deliver(&self, channel: ChannelName, message: Stored, vanished: u32, held: Held) {
        let key = (channel.clone(), message.position);
        if !self.shared.in_flight().insert(key.clone()) {
            return;
        }
        if !self.runner.subscription.filter.fits(&message) {
            // Nobody waits for it: when the process stops it is given back
            let _ = self.notes.send((key, Done::Unwanted)).await;
            return;
        }
        let (runner, notes) = (self.runner.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            let done = deliver(&runner, &channel, &message, vanished).await;
            drop(held);
            // Without a note it is given back at the end
            if let Some(done) = done {
                let _ = notes.send((key, done)).await;
            }
        });
    }
}

/// Delivers a message, or lets it go on as a job; none if neither could be done.
async fn deliver(runner: &Runner, channel: &ChannelName, message: &Stored, vanished: u32) -> Option<Done> {
    if vanished > runner.process.crash_budget {
        let problem = format!("{vanished} workers vanished while they had this message");
        let why = Failure::hopeless("crash_budget_exhausted", problem);
        return runner.hand_on(channel, message, &why, vanished).await.then_some(Done::HandedOn);
    }
    match runner.deliver(channel, message, 1).await {
        Ok(()) => Some(Done::Delivered),
        Err(why @ (NotDelivered::Failed(_) | NotDelivered::Later { .. })) => {
            runner.hand_on(channel, message, &why, 1).await.then_some(Done::HandedOn)
        }
        Err(NotDelivered::Abandoned) => None,
    }
}

impl Shared {
    fn in_flight(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, channel: &ChannelName, position: Position) -> bool {
        self.in_flight().contains(&(channel.clone(), position))
    }

    /// What was not delivered is another worker's, at once.
    async fn give_back(&self) {
        let left: Vec<Place> = self.in_flight().drain().collect();
        if left.is_empty() {
            return;
        }
        let store = self.runner.store();
        let given = async {
            store.give_back(&self.runner.subscription, self.runner.worker(), &left).await?;
            store.wake().await
        };
        let (name, messages) = (&self.runner.subscription.name, left.len());
        match given.await {
            Ok(()) => tracing::info!(subscription = %name, messages, "messages given back"),
            Err(error) => {
                tracing::warn!(subscription = %name, messages, %error, "messages wait for their deadline");
            }
        }
    }
}

/// Notes that messages are done with, as many at a time as have gathered.
async fn note(shared: Arc<Shared>, mut noted: mpsc::Receiver<(Place, Done)>) {
    let mut batch = Vec::with_capacity(NOTES);
    while noted.recv_many(&mut batch, NOTES).await > 0 {
        let mut channels: HashMap<ChannelName, Vec<(Position, Done)>> = HashMap::new();
        for ((channel, position), done) in batch.drain(..) {
            channels.entry(channel).or_default().push((position, done));
        }
        for (channel, done) in channels {
            let is_noted = note_channel(&shared.runner, &channel, &done).await;
            // What Redis refuses to note comes again when the deadline has passed
            if is_noted || !shared.runner.process.abandon.is_cancelled() {
                let mut in_flight = shared.in_flight();
                for (position, _) in done {
                    in_flight.remove(&(channel.clone(), position));
                }
            }
        }
    }
}

/// False when the process stops before Redis has heard of it.
async fn note_channel(runner: &Runner, channel: &ChannelName, done: &[(Position, Done)]) -> bool {
    let mut delays = reconnect_delays();
    loop {
        match runner.store().ack(&runner.subscription, channel, done).await {
            Ok(()) => return true,
            Err(error) => {
                note_interruption("noting what was delivered", &error);
                let pause = tokio::time::sleep(next_delay(&mut delays));
                let goes_on = runner.process.abandon.run_until_cancelled(pause).await.is_some();
                if !goes_on || !matches!(error, StoreError::Unavailable(_)) {
                    return false;
                }
            }
        }
    }
}
