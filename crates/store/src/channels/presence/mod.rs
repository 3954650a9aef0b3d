//! Who is present on channels. Members take part through connections to gateways; watchers are told who joins and leaves.
//!
//! A gateway writes a member when its first connection comes, and removes it a grace after its last one went. It has a
//! lease on each channel on which it has members, and renews all of them together. Members of a gateway whose lease ends
//! leave. What a gateway writes follows from what it has (`sync`), so a lost answer, a lost key or an outage of Redis heals
//! with the next renewal.
//!
//! Events carry a version that grows by one. A gateway that watches a channel reads all members again when one is missing.
//! Channels without members and watchers at this gateway cost nothing.
//!
//! | file | what it does |
//! |---|---|
//! | `local` | members and watchers of one channel at this gateway, and what follows from them |
//! | `calls` | what Redis is asked |
//! | `view` | all members of a watched channel, and its events |

mod calls;
mod local;
mod stored_info;
mod view;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::view::{ChannelMember, PresenceEvent};
use self::{
    local::{LocalPresence, SyncPlan},
    view::MemberChange,
};
use super::Channels;
use crate::{
    StoreResult,
    connection::notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    keys::TopicNames,
    log_interruption,
};
use common::{name::ChannelName, settings::ChannelSettings};
use model::{MemberId, MemberInfo};

/// Maximum number of unread events of all channels.
const EVENT_BUFFER: usize = 1024;
/// Leases are renewed so often in their time.
const RENEWALS_PER_LEASE: u32 = 3;
/// Maximum number of channels whose leases are renewed in one pipeline.
const CHANNELS_PER_PIPELINE: usize = 256;

/// The channel has as many members as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyMembers {
    /// The limit `channels.presence_max_members`.
    pub max: u64,
}

/// Who is present on channels. Cheap to clone.
#[derive(Clone)]
pub struct ChannelPresence(Arc<PresenceInner>);

struct PresenceInner {
    /// Identifies this process to other gateways.
    gateway: String,
    channels: Channels,
    settings: Arc<ChannelSettings>,
    topics: Topics,
    topic_names: TopicNames,
    runtime: Handle,
    stop: CancellationToken,
    present: Mutex<HashMap<ChannelName, Arc<PresentChannel>>>,
    /// When leases were renewed last; none after an error.
    last_renewal: Mutex<Option<Instant>>,
}

/// A channel with members or watchers at this gateway.
struct PresentChannel {
    name: ChannelName,
    local: Mutex<LocalPresence>,
    /// One writes at a time.
    turn: Semaphore,
}

impl PresentChannel {
    fn local(&self) -> MutexGuard<'_, LocalPresence> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection by which a member takes part, until it is dropped.
pub struct MemberGuard {
    inner: Arc<PresenceInner>,
    channel: Arc<PresentChannel>,
    member: MemberId,
    is_left: bool,
}

impl MemberGuard {
    /// The member.
    #[must_use]
    pub fn member(&self) -> &MemberId {
        &self.member
    }

    /// Ends it without a grace: the client said so.
    pub fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for MemberGuard {
    fn drop(&mut self) {
        let grace = if self.is_left { Duration::ZERO } else { self.inner.settings.presence_grace };
        let leaves_at = Instant::now() + grace;
        let is_last = self.channel.local().disconnect(&self.member, leaves_at);
        // What this process has when it stops leaves with its lease
        if !is_last || self.inner.stop.is_cancelled() {
            return;
        }
        let (inner, channel) = (self.inner.clone(), self.channel.clone());
        self.inner.runtime.spawn(async move {
            tokio::time::sleep_until(leaves_at).await;
            // After an error the next renewal does it
            if let Err(error) = inner.sync(&channel).await {
                log_interruption("noting who left a channel", &error);
            }
        });
    }
}

/// Watches a channel until it is dropped.
pub struct WatchGuard {
    inner: Arc<PresenceInner>,
    channel: Arc<PresentChannel>,
    id: u64,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let mut present = self.inner.present();
        let mut local = self.channel.local();
        if local.remove_watcher(self.id) {
            self.inner.topics.remove(&self.inner.topic_names.presence(&self.channel.name));
        }
        if local.is_idle() {
            present.remove(&self.channel.name);
        }
    }
}

impl ChannelPresence {
    /// Starts it; it lasts until `stop` is cancelled.
    #[must_use]
    pub fn start(channels: &Channels, notifier: &Notifier, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let (topics, events) = notifier.subscribe(EVENT_BUFFER);
        let inner = Arc::new(PresenceInner {
            gateway: Uuid::new_v4().simple().to_string(),
            channels: channels.clone(),
            settings: channels.settings.clone(),
            topics,
            topic_names: channels.redis.topics().clone(),
            runtime: Handle::current(),
            stop,
            present: Mutex::default(),
            last_renewal: Mutex::default(),
        });
        (Self(inner.clone()), tokio::spawn(inner.run(events)))
    }

    /// Lets a member take part through one more connection. Drop the guard if it is refused. After an error it takes part as
    /// soon as Redis is back, unless the guard is dropped.
    pub async fn join(
        &self,
        channel: &ChannelName,
        member: MemberId,
        info: MemberInfo,
    ) -> (MemberGuard, StoreResult<Result<(), TooManyMembers>>) {
        let inner = &self.0;
        let channel = inner.with_channel(channel, |local| local.connect(&member, info));
        let guard = MemberGuard { inner: inner.clone(), channel: channel.clone(), member, is_left: false };
        // A task of its own: a request that is dropped must not leave a write half done
        let syncing = inner.runtime.spawn({
            let (inner, channel) = (inner.clone(), channel.clone());
            async move { inner.sync(&channel).await }
        });
        let synced = syncing.await.unwrap_or(Ok(()));
        let outcome = synced.map(|()| {
            let is_refused = channel.local().is_refused(&guard.member);
            if is_refused { Err(TooManyMembers { max: inner.settings.presence_max_members }) } else { Ok(()) }
        });
        (guard, outcome)
    }

    /// Sends the members of a channel, then each who joins and leaves. A watcher that reads too slowly gets the members
    /// again.
    #[must_use]
    pub fn watch(&self, channel: &ChannelName, sender: mpsc::Sender<PresenceEvent>) -> WatchGuard {
        let inner = &self.0;
        let (mut id, mut must_load) = (0, false);
        let channel = inner.with_channel(channel, |local| {
            id = local.add_watcher(sender, channel);
            must_load = local.watchers.len() > 1 && local.view.is_none();
            if local.watchers.len() == 1 {
                // They are read when events arrive
                inner.topics.add(inner.topic_names.presence(channel));
            }
        });
        if must_load {
            inner.load(&channel);
        }
        WatchGuard { inner: inner.clone(), channel, id }
    }

    /// The members of a channel, by id.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn members(&self, channel: &ChannelName) -> StoreResult<Vec<ChannelMember>> {
        let (_, members) = self.0.read_members(channel, true).await?;
        Ok(members)
    }
}

impl PresenceInner {
    fn present(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<PresentChannel>>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what this gateway has of a channel, which stays as long as it has something.
    fn with_channel(&self, name: &ChannelName, change: impl FnOnce(&mut LocalPresence)) -> Arc<PresentChannel> {
        let new = || {
            let (local, turn) = (Mutex::default(), Semaphore::new(1));
            Arc::new(PresentChannel { name: name.clone(), local, turn })
        };
        let mut present = self.present();
        let channel = present.entry(name.clone()).or_insert_with(new).clone();
        change(&mut channel.local());
        channel
    }

    fn last_renewal(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last_renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> Duration {
        self.settings.presence_ttl
    }

    async fn run(self: Arc<Self>, mut events: EventReceiver) {
        let mut renewal = tokio::time::interval(self.lease() / RENEWALS_PER_LEASE);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewing: Option<JoinHandle<()>> = None;
        loop {
            let heard = tokio::select! {
                () = self.stop.cancelled() => break,
                _ = renewal.tick() => {
                    if renewing.as_ref().is_none_or(JoinHandle::is_finished) && !self.present().is_empty() {
                        renewing = Some(tokio::spawn(self.clone().renew()));
                    }
                    continue;
                }
                heard = events.recv() => heard,
            };
            match heard {
                Some(SubscriberEvent::Message { channel: topic, payload }) => self.hear(&topic, &payload),
                Some(SubscriberEvent::Subscribed(topics)) => topics.iter().for_each(|topic| self.load_topic(topic)),
                Some(SubscriberEvent::ConnectionLost) => {}
                None => break,
            }
            events.take_dropped_channels().iter().for_each(|topic| self.load_topic(topic));
        }
        self.stop.cancelled().await;
        if let Some(renewing) = renewing {
            renewing.abort();
        }
        self.shorten_leases().await;
    }

    fn channel_of(&self, topic: &str) -> Option<Arc<PresentChannel>> {
        let name = self.topic_names.channel_of_presence(topic)?;
        self.present().get(&name).cloned()
    }

    fn load_topic(self: &Arc<Self>, topic: &str) {
        if let Some(channel) = self.channel_of(topic) {
            self.load(&channel);
        }
    }

    /// An event of a channel that is watched.
    fn hear(self: &Arc<Self>, topic: &str, payload: &[u8]) {
        let Some(channel) = self.channel_of(topic) else { return };
        let Some((version, change)) = MemberChange::parse(&self.infos(&channel.name), payload) else { return };
        let is_next = channel.local().hear(&channel.name, version, change);
        if !is_next {
            self.load(&channel);
        }
    }

    /// Reads the members of a watched channel, unless they are being read. After an error the next renewal does it.
    fn load(self: &Arc<Self>, channel: &Arc<PresentChannel>) {
        if !channel.local().begin_load() {
            return;
        }
        let (inner, channel) = (self.clone(), channel.clone());
        self.runtime.spawn(async move {
            loop {
                let read = inner.read_members(&channel.name, false).await;
                match read {
                    // Otherwise an event came that is newer
                    Ok((version, members)) => {
                        if channel.local().accept(&channel.name, version, members) {
                            return;
                        }
                    }
                    Err(error) => {
                        channel.local().is_loading = false;
                        return log_interruption("reading who is present on a channel", &error);
                    }
                }
            }
        });
    }

    /// Writes what this gateway has of a channel until nothing is left to write.
    async fn sync(&self, channel: &PresentChannel) -> StoreResult<()> {
        // It is never closed
        let Ok(_turn) = channel.turn.acquire().await else { return Ok(()) };
        loop {
            let plan = channel.local().plan(Instant::now());
            match plan {
                SyncPlan::Join(members) => {
                    let mut answers = self.join_members(&channel.name, &members).await?.into_iter();
                    let has_lease = answers.next().unwrap_or_default();
                    channel.local().joined(&members, answers, has_lease);
                }
                SyncPlan::Leave(members) => {
                    self.leave_members(&channel.name, &members).await?;
                    channel.local().left(&members);
                }
                SyncPlan::Nothing => break,
            }
        }
        let mut present = self.present();
        if channel.local().is_idle() {
            present.remove(&channel.name);
        }
        Ok(())
    }

    /// Renews the leases of all channels, and puts right what is not as it should be.
    async fn renew(self: Arc<Self>) {
        // After an outage, or a time without anything to renew, other gateways need a moment to renew their leases
        let began = Instant::now();
        let last = self.last_renewal().replace(began);
        let is_regular = last.is_some_and(|last| last + 2 * self.lease() / RENEWALS_PER_LEASE > began);
        let all: Vec<Arc<PresentChannel>> = self.present().values().cloned().collect();
        for channels in all.chunks(CHANNELS_PER_PIPELINE) {
            let renewed = self.renew_leases(channels, self.lease(), is_regular).await;
            if renewed.iter().any(Result::is_err) {
                *self.last_renewal() = None;
            }
            for (channel, renewed) in channels.iter().zip(renewed) {
                let Ok((has_lease, version)) = renewed else { continue };
                let must_load = channel.local().renewed(has_lease, version, &channel.name);
                if must_load {
                    self.load(channel);
                }
                if let Err(error) = self.sync(channel).await {
                    log_interruption("noting who is present on a channel", &error);
                }
            }
        }
    }

    /// When the process stops, its members leave a grace later, unless they come back elsewhere.
    async fn shorten_leases(&self) {
        let all: Vec<Arc<PresentChannel>> = self.present().values().cloned().collect();
        let lease = self.settings.presence_grace.clamp(Duration::from_millis(1), self.lease());
        for channels in all.chunks(CHANNELS_PER_PIPELINE) {
            if self.renew_leases(channels, lease, false).await.iter().any(Result::is_err) {
                return;
            }
        }
    }
}
