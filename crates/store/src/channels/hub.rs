//! Serves many readers of many channels with one subscription: a task hears that a channel that is read has messages,
//! reads them once, and appends them to that channel's ring (`catch_up`).
//!
//! What is heard is only a reason to look: messages come out of the history. Announcements may also be lost. So the task
//! reads a channel when it is subscribed again, and every `channels.sweep_ms`. Messages that cannot be read any more are
//! a gap, which each reader finds in the history.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Channels,
    catch_up_state::CatchUp,
    changed_channels::ChangedChannels,
    encoded_message::EncodedMessage,
    message_ring::{MessageRing, RingBudget},
    page_budget::PageBudget,
    plain_messages::{PlainMessageTagger, parse_position},
    shared_deltas::SharedDeltas,
    shared_events::SharedEvents,
    shared_filter::{FilterVerdicts, SharedFilters},
    shared_pages::SharedPages,
    shared_read::{SharedRead, SharedReadResult},
};
use crate::{
    StoreResult,
    connection::{
        hint_pace::PacedHints,
        notifier::{EventReceiver, Notifier, SubscriberEvent, TopicTagger, Topics},
    },
    keys::TopicNames,
    log_interruption,
    reader_limiter::ReaderLimiter,
};
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::{Position, StoredMessage};

/// Maximum number of unprocessed messages; their bytes are bounded too. More are dropped and read from the history.
const NOTIFICATION_BUFFER: usize = 1024;
/// How long a channel stays subscribed after its last reader left.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_secs(10);
/// Maximum number of concurrent page reads, for all readers together; and of reads into rings.
const MAX_CONCURRENT_PAGE_READS: usize = 16;
/// How often announcements of new channels may cause a look.
const NEW_CHANNELS_INTERVAL: Duration = Duration::from_millis(50);
const NEW_CHANNELS_BURST: u32 = 20;
/// Maximum number of names in one look.
const NEW_CHANNELS_BATCH: usize = 256;
/// Maximum number of unread batches of new channel names, for readers of patterns.
const CHANNEL_NAMES_BUFFER: usize = 64;

/// Receives channels for many readers. Cheap to clone.
#[derive(Clone)]
pub struct ChannelHub(pub(super) Arc<ChannelHubInner>);

pub(super) struct ChannelHubInner {
    /// Identifies this process to other gateways.
    pub(super) gateway_id: Uuid,
    pub(super) channels: Channels,
    pub(super) settings: Arc<ChannelSettings>,
    pub(super) stop: CancellationToken,
    /// Like `stop`, but cheap to check for readers. All readers are woken after it is set.
    pub(super) is_stopped: AtomicBool,
    pub(super) page_permits: Semaphore,
    /// The names that readers of patterns match.
    readable: SharedRead<Arc<Vec<ChannelName>>>,
    /// For reads into rings: they must not wait for readers that are behind.
    pub(super) catch_up_permits: Semaphore,
    pub(super) page_budget: Arc<PageBudget>,
    /// The runtime for page reads.
    pub(super) runtime: Handle,
    pub(super) limiter: ReaderLimiter,
    /// New channel names, or all names when some may have been missed.
    pub(super) channel_names: broadcast::Sender<Arc<Vec<ChannelName>>>,
    active_channels: Mutex<HashMap<ChannelName, Arc<ChannelState>>>,
    /// Channels whose number of readers changed.
    pub(super) changed_channels: ChangedChannels,
    subscribed_channels: Topics,
    topic_names: TopicNames,
    budget: RingBudget,
    pub(super) filters: SharedFilters,
}

/// A channel with readers now or a moment ago.
pub(super) struct ChannelState {
    pub(super) name: ChannelName,
    ring: Mutex<MessageRing>,
    readers: Mutex<(usize, Instant)>,
    changed_channels: ChangedChannels,
    pub(super) shared_events: SharedEvents,
    pub(super) shared_pages: SharedPages,
    pub(super) verdicts: FilterVerdicts,
    pub(super) deltas: SharedDeltas,
    head: SharedRead<Option<Position>>,
}

/// Counts as a reader of a channel until it is dropped.
pub(super) struct ReaderGuard(pub(super) Arc<ChannelState>);

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        let mut readers = self.0.readers();
        *readers = (readers.0 - 1, Instant::now());
        drop(readers);
        self.0.changed_channels.mark(&self.0.name);
    }
}

impl ChannelState {
    pub(super) fn ring(&self) -> MutexGuard<'_, MessageRing> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all readers.
    pub(super) fn wake_readers(&self) {
        // Woken readers lock the ring, so do not hold it here
        let waiting = self.ring().take_wakers();
        waiting.into_iter().for_each(Waker::wake);
    }

    fn readers(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelHub {
    /// Starts a hub that serves readers until `stop` is cancelled.
    #[must_use]
    pub fn start(channels: &Channels, notifier: &Notifier, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let settings = &channels.settings;
        let topic_names = channels.redis.topics().clone();
        let plain = &settings.plain_channels;
        let tagger = (!plain.is_empty()).then(|| PlainMessageTagger::new(plain, &topic_names));
        let tagger =
            tagger.map(|tagger| Arc::new(move |topic: &str, payload: &[u8]| tagger.tag(topic, payload)) as TopicTagger);
        let (topics, events) = notifier.subscribe_with_tagger(NOTIFICATION_BUFFER, tagger);
        let budget = RingBudget {
            max_ring_bytes: settings.ring_bytes,
            max_total_bytes: settings.rings_bytes,
            used_bytes: Arc::default(),
        };
        let inner = Arc::new(ChannelHubInner {
            gateway_id: Uuid::new_v4(),
            channels: channels.clone(),
            settings: settings.clone(),
            stop,
            is_stopped: AtomicBool::new(false),
            page_permits: Semaphore::new(MAX_CONCURRENT_PAGE_READS),
            catch_up_permits: Semaphore::new(MAX_CONCURRENT_PAGE_READS),
            readable: SharedRead::default(),
            page_budget: Arc::new(PageBudget::new(settings.reader_pages_bytes)),
            runtime: Handle::current(),
            limiter: ReaderLimiter::new(settings.max_readers, "galley_channel_readers"),
            channel_names: broadcast::Sender::new(CHANNEL_NAMES_BUFFER),
            active_channels: Mutex::default(),
            changed_channels: ChangedChannels::default(),
            subscribed_channels: topics,
            topic_names,
            budget,
            filters: SharedFilters::default(),
        });
        (Self(inner.clone()), tokio::spawn(inner.run(events)))
    }
}

impl ChannelHubInner {
    fn active_channels(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<ChannelState>>> {
        self.active_channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of readers of a channel in this process.
    pub(super) fn local_readers(&self, channel: &ChannelName) -> usize {
        self.active_channels().get(channel).map_or(0, |followed| followed.readers().0)
    }

    /// The number of readers in this process, for at most `max` channels.
    pub(super) fn local_reader_counts(&self, max: usize) -> HashMap<ChannelName, usize> {
        let all = self.active_channels();
        let readers = all.iter().map(|(name, followed)| (name, followed.readers().0));
        readers.filter(|(_, readers)| *readers > 0).take(max).map(|(name, readers)| (name.clone(), readers)).collect()
    }

    /// Adds a reader of a channel, and follows the channel if it is the first.
    pub(super) fn add_reader(&self, name: &ChannelName) -> ReaderGuard {
        let is_plain = self.settings.plain_channels.contains(name);
        let mut all = self.active_channels();
        let new = || {
            Arc::new(ChannelState {
                name: name.clone(),
                ring: Mutex::new(MessageRing::new(self.budget.clone(), CatchUp::new(is_plain))),
                readers: Mutex::new((0, Instant::now())),
                changed_channels: self.changed_channels.clone(),
                shared_events: SharedEvents::default(),
                shared_pages: SharedPages::default(),
                verdicts: FilterVerdicts::default(),
                deltas: SharedDeltas::new(self.budget.clone()),
                head: SharedRead::default(),
            })
        };
        let followed = all.entry(name.clone()).or_insert_with(new).clone();
        followed.readers().0 += 1;
        // Subscribe to both at the same moment: a copy whose original was not received looks like a plain message
        let bare = is_plain.then(|| name.to_string());
        self.subscribed_channels.add_all(bare.into_iter().chain([self.topic_names.live_messages(name)]));
        drop(all);
        self.changed_channels.mark(name);
        ReaderGuard(followed)
    }

    /// Subscribes to the names of new channels.
    pub(super) fn subscribe_to_new_channels(&self) {
        self.subscribed_channels.add(self.topic_names.new_channels());
    }

    async fn run(self: Arc<Self>, inbox: EventReceiver) {
        let noting = tokio::spawn(self.clone().publish_reader_counts());
        self.listen(inbox).await;
        self.is_stopped.store(true, SeqCst);
        let all: Vec<Arc<ChannelState>> = self.active_channels().values().cloned().collect();
        for followed in &all {
            followed.wake_readers();
        }
        if let Err(error) = noting.await {
            tracing::error!(%error, "publishing reader counts failed");
        }
    }

    async fn listen(self: &Arc<Self>, mut inbox: EventReceiver) {
        let mut sweep = tokio::time::interval(self.settings.sweep_interval);
        let mut sweeping: Option<JoinHandle<()>> = None;
        let mut new_channels = PacedHints::new(NEW_CHANNELS_BURST, NEW_CHANNELS_INTERVAL);
        loop {
            let heard = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = sweep.tick() => {
                    self.unsubscribe_unread();
                    if sweeping.as_ref().is_none_or(JoinHandle::is_finished) {
                        sweeping = Some(tokio::spawn(self.clone().sweep()));
                    }
                    continue;
                }
                names = new_channels.ready(NEW_CHANNELS_BATCH) => {
                    tokio::spawn(self.clone().tell_new_channels(names));
                    continue;
                }
                heard = inbox.recv() => heard,
            };
            match heard {
                Some(SubscriberEvent::Message { channel, payload }) => {
                    self.handle_message(&channel, &payload, &mut new_channels);
                }
                Some(SubscriberEvent::Subscribed(channels)) => self.handle_subscribed(&channels),
                Some(SubscriberEvent::ConnectionLost) => {
                    metrics::counter!("galley_subscriptions_lost_total").increment(1);
                }
                None => return,
            }
            // What was dropped is in the history, and the sweep finds new channels
            for topic in inbox.take_dropped_channels() {
                let name = self.topic_names.channel_of_live_messages(&topic);
                if let Some(followed) = name.and_then(|name| self.active_channels().get(&name).cloned()) {
                    self.look_for(&followed, Position::MAX);
                }
            }
        }
    }

    /// Channels are received from now on: earlier messages are in the history.
    fn handle_subscribed(self: &Arc<Self>, channels: &[String]) {
        for channel in channels {
            let followed = self
                .topic_names
                .channel_of_live_messages(channel)
                .and_then(|name| self.active_channels().get(&name).cloned());
            if let Some(followed) = followed {
                self.catch_up(&followed);
            } else if *channel == self.topic_names.new_channels() {
                tokio::spawn(self.clone().broadcast_channel_names());
            }
        }
    }

    fn handle_message(self: &Arc<Self>, topic: &str, payload: &[u8], new_channels: &mut PacedHints<ChannelName>) {
        if topic == self.topic_names.new_channels() {
            if self.channel_names.receiver_count() > 0
                && let Some(name) = std::str::from_utf8(payload).ok().and_then(|name| name.parse().ok())
            {
                new_channels.add(name);
            }
            return;
        }
        let followed = |name: &ChannelName| self.active_channels().get(name).cloned();
        match self.topic_names.channel_of_live_messages(topic) {
            Some(name) => {
                if let (Some(followed), Some(position)) = (followed(&name), parse_position(payload)) {
                    self.look_for(&followed, position);
                }
            }
            None => {
                if let Some(followed) = topic.parse().ok().and_then(|name: ChannelName| followed(&name)) {
                    self.handle_plain_message(&followed, payload);
                }
            }
        }
    }

    /// The newest position of a channel. While the ring does not know it yet, all who ask at the same moment read it
    /// together.
    pub(super) async fn head(&self, followed: &ChannelState) -> StoreResult<Position> {
        let known = followed.ring().head;
        if let Some(head) = known {
            return Ok(head);
        }
        let (channels, name) = (self.channels.clone(), followed.name.clone());
        let read = followed.head.read(&self.runtime, || async move { channels.channel_head(&name).await });
        Ok(read.await?.unwrap_or(Position::START))
    }

    /// Unsubscribes from channels without readers for a while.
    fn unsubscribe_unread(&self) {
        let mut all = self.active_channels();
        all.retain(|name, followed| {
            let (readers, since) = *followed.readers();
            let stays = readers > 0 || since.elapsed() < UNSUBSCRIBE_DELAY;
            if !stays {
                self.subscribed_channels.remove(&self.topic_names.live_messages(name));
                self.subscribed_channels.remove(name.as_str());
            }
            stays
        });
        metrics::gauge!("galley_channels_followed").set(u32::try_from(all.len()).unwrap_or(u32::MAX));
    }

    /// Finds messages and channels whose notifications were lost.
    async fn sweep(self: Arc<Self>) {
        let all: Vec<Arc<ChannelState>> = self.active_channels().values().cloned().collect();
        for followed in all {
            let Ok(head) = self.channels.channel_head(&followed.name).await else { return };
            let known = followed.ring().head;
            if known != Some(head.unwrap_or(Position::START)) {
                self.catch_up(&followed);
            }
        }
        if self.channel_names.receiver_count() > 0 {
            self.broadcast_channel_names().await;
        }
    }

    /// All channels, and those with plain publishers, which need no history. All who ask at the same moment share them.
    pub(super) fn readable_channels(&self) -> SharedReadResult<Arc<Vec<ChannelName>>> {
        let (channels, settings) = (self.channels.clone(), self.settings.clone());
        self.readable.read(&self.runtime, || async move {
            let mut names = channels.all_channels().await?;
            let plain: Vec<ChannelName> =
                settings.plain_channels.iter().filter(|name| !names.contains(name)).cloned().collect();
            if !plain.is_empty() {
                Arc::make_mut(&mut names).extend(plain);
            }
            Ok(names)
        })
    }

    /// Tells readers of patterns of new channels, if they exist: anybody can announce any name.
    async fn tell_new_channels(self: Arc<Self>, names: Vec<ChannelName>) {
        match self.channels.registered_channels(names).await {
            Ok(names) => drop(self.channel_names.send(Arc::new(names))),
            Err(error) => log_interruption("looking for new channels", &error),
        }
    }

    async fn broadcast_channel_names(self: Arc<Self>) {
        match self.readable_channels().await {
            Ok(names) => drop(self.channel_names.send(names)),
            Err(error) => log_interruption("listing channels", &error),
        }
    }
}

pub(super) fn encode_message(channel: &ChannelName, message: &StoredMessage) -> Arc<EncodedMessage> {
    let json = message.to_json(channel);
    Arc::new(EncodedMessage::new(channel.clone(), Some(message.position), &json))
}
