//! Serves many readers of many channels with one subscription: a task receives every channel that is read, once, and
//! appends its messages to that channel's ring.
//!
//! Pub/sub may lose messages. So the task checks that positions are contiguous and repairs from the history: when they
//! are not, when a channel is subscribed again, and every `channels.sweep_ms`, because nothing follows a lost last
//! message. Messages that cannot be read any more are a gap, which each reader finds in the history.

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
    changed_channels::ChangedChannels,
    message_ring::{EncodedMessage, MessageRing, RingBudget},
    page_budget::PageBudget,
    plain_publish_filter::PlainPublishFilter,
};
use crate::{
    StoreResult,
    connection::notifier::{EventReceiver, Notifier, SubscriberEvent, TopicFilter, Topics},
    keys, log_interruption, next_reconnect_delay,
    reader_limiter::ReaderLimiter,
    reconnect_delays,
};
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::{Position, StoredMessage, plain_to_json};

/// Maximum number of unprocessed messages; their bytes are bounded too. More are dropped and read from the history.
const NOTIFICATION_BUFFER: usize = 1024;
/// How long a channel stays subscribed after its last reader left.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_secs(10);
/// Maximum number of concurrent page reads, for all readers together.
const MAX_CONCURRENT_PAGE_READS: usize = 16;
/// Maximum number of messages in one read of a repair.
const REPAIR_PAGE_SIZE: usize = 100;
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
    budget: RingBudget,
}

/// A channel with readers now or a moment ago.
pub(super) struct ChannelState {
    pub(super) name: ChannelName,
    ring: Mutex<MessageRing>,
    readers: Mutex<(usize, Instant)>,
    changed_channels: ChangedChannels,
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
    fn wake_readers(&self) {
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
        let copies = (!settings.plain_channels.is_empty()).then(|| PlainPublishFilter::new(&settings.plain_channels));
        let filter = copies
            .map(|copies| Arc::new(move |name: &str, payload: &[u8]| copies.accepts(name, payload)) as TopicFilter);
        let (topics, events) = notifier.subscribe_with_filter(NOTIFICATION_BUFFER, filter);
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
            page_budget: Arc::new(PageBudget::new(settings.reader_pages_bytes)),
            runtime: Handle::current(),
            limiter: ReaderLimiter::new(settings.max_readers, "galley_channel_readers"),
            channel_names: broadcast::Sender::new(CHANNEL_NAMES_BUFFER),
            active_channels: Mutex::default(),
            changed_channels: ChangedChannels::default(),
            subscribed_channels: topics,
            budget,
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
        let mut all = self.active_channels();
        let new = || {
            Arc::new(ChannelState {
                name: name.clone(),
                ring: Mutex::new(MessageRing::new(self.budget.clone())),
                readers: Mutex::new((0, Instant::now())),
                changed_channels: self.changed_channels.clone(),
            })
        };
        let followed = all.entry(name.clone()).or_insert_with(new).clone();
        followed.readers().0 += 1;
        // Subscribe to both at the same moment: a copy whose original was not received looks like a plain message
        let bare = self.settings.plain_channels.contains(name).then(|| name.to_string());
        self.subscribed_channels.add_all(bare.into_iter().chain([keys::live_messages(name)]));
        drop(all);
        self.changed_channels.mark(name);
        ReaderGuard(followed)
    }

    /// Subscribes to the names of new channels.
    pub(super) fn subscribe_to_new_channels(&self) {
        self.subscribed_channels.add(keys::CHANNELS.to_owned());
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
                heard = inbox.recv() => heard,
            };
            match heard {
                Some(SubscriberEvent::Message { channel, payload }) => self.handle_message(&channel, &payload),
                Some(SubscriberEvent::Subscribed(channels)) => self.handle_subscribed(&channels),
                Some(SubscriberEvent::ConnectionLost) => {
                    metrics::counter!("galley_subscriptions_lost_total").increment(1);
                }
                None => return,
            }
            // Dropped messages are in the history
            self.handle_subscribed(&inbox.take_dropped_channels());
        }
    }

    /// Channels are received from now on: earlier messages are in the history.
    fn handle_subscribed(self: &Arc<Self>, channels: &[String]) {
        for channel in channels {
            let followed =
                keys::channel_of_live_messages(channel).and_then(|name| self.active_channels().get(&name).cloned());
            if let Some(followed) = followed {
                self.repair(&followed, None);
            } else if channel == keys::CHANNELS {
                tokio::spawn(self.clone().broadcast_channel_names());
            }
        }
    }

    fn handle_message(self: &Arc<Self>, channel: &str, payload: &[u8]) {
        if channel == keys::CHANNELS {
            let name = std::str::from_utf8(payload).ok().and_then(|name| name.parse().ok());
            let _ = self.channel_names.send(Arc::new(name.into_iter().collect()));
            return;
        }
        let Some(name) = keys::channel_of_live_messages(channel) else {
            return self.handle_plain_message(channel, payload);
        };
        let Some(followed) = self.active_channels().get(&name).cloned() else { return };
        let Some(message) = StoredMessage::from_frame(payload) else { return };
        let position = message.position;
        let mut ring = followed.ring();
        let is_next = !ring.is_repairing && ring.head.is_some_and(|head| position == head.next());
        if is_next {
            ring.push(encode_message(&name, &message));
            drop(ring);
            followed.wake_readers();
        } else if ring.is_repairing || ring.head.is_none_or(|head| position > head) {
            drop(ring);
            self.repair(&followed, Some(position));
        }
    }

    /// Delivers a message from a plain Redis publisher to the current readers; it is not stored.
    fn handle_plain_message(&self, channel: &str, payload: &[u8]) {
        let Some(followed) =
            channel.parse().ok().and_then(|name: ChannelName| self.active_channels().get(&name).cloned())
        else {
            return;
        };
        let json = plain_to_json(&followed.name, payload, self.channels.redis.estimated_now());
        followed.ring().push(Arc::new(EncodedMessage::new(followed.name.clone(), None, &json)));
        followed.wake_readers();
    }

    /// Repairs a channel from the history, unless a repair is running.
    pub(super) fn repair(self: &Arc<Self>, followed: &Arc<ChannelState>, wanted: Option<Position>) {
        let mut ring = followed.ring();
        ring.repair_target = ring.repair_target.max(wanted);
        if std::mem::replace(&mut ring.is_repairing, true) {
            // The running repair reads once more
            ring.repair_target = ring.repair_target.or(Some(Position::START));
            return;
        }
        drop(ring);
        let (inner, followed) = (self.clone(), followed.clone());
        tokio::spawn(async move {
            let mut delays = reconnect_delays();
            while let Err(error) = inner.repair_from_history(&followed).await {
                log_interruption("reading a channel", &error);
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        });
    }

    async fn repair_from_history(&self, followed: &ChannelState) -> StoreResult<()> {
        loop {
            let head = {
                let mut ring = followed.ring();
                ring.repair_target = None;
                ring.head
            };
            let permit = self.page_permits.acquire().await;
            let is_more = match head {
                None => {
                    let head = self.channels.channel_head(&followed.name).await?;
                    followed.ring().reset(head.unwrap_or(Position::START));
                    false
                }
                Some(head) => {
                    let page = self.channels.read_channel_page(&followed.name, head, REPAIR_PAGE_SIZE).await?;
                    let mut ring = followed.ring();
                    if page.gap(head).is_some() {
                        ring.reset(page.read_up_to);
                    } else {
                        page.messages.iter().for_each(|message| ring.push(encode_message(&followed.name, message)));
                    }
                    page.has_more
                }
            };
            drop(permit);
            followed.wake_readers();
            let mut ring = followed.ring();
            if !is_more
                && ring.repair_target.is_none_or(|wanted| wanted != Position::START && Some(wanted) <= ring.head)
            {
                ring.is_repairing = false;
                return Ok(());
            }
        }
    }

    /// Unsubscribes from channels without readers for a while.
    fn unsubscribe_unread(&self) {
        let mut all = self.active_channels();
        all.retain(|name, followed| {
            let (readers, since) = *followed.readers();
            let stays = readers > 0 || since.elapsed() < UNSUBSCRIBE_DELAY;
            if !stays {
                self.subscribed_channels.remove(&keys::live_messages(name));
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
                self.repair(&followed, None);
            }
        }
        if self.channel_names.receiver_count() > 0 {
            self.broadcast_channel_names().await;
        }
    }

    /// All channels, and those with plain publishers, which need no history.
    pub(super) async fn readable_channels(&self) -> StoreResult<Vec<ChannelName>> {
        let mut names = self.channels.all_channels().await?;
        let plain: Vec<ChannelName> =
            self.settings.plain_channels.iter().filter(|name| !names.contains(name)).cloned().collect();
        names.extend(plain);
        Ok(names)
    }

    async fn broadcast_channel_names(self: Arc<Self>) {
        match self.readable_channels().await {
            Ok(names) => drop(self.channel_names.send(Arc::new(names))),
            Err(error) => log_interruption("listing channels", &error),
        }
    }
}

pub(super) fn encode_message(channel: &ChannelName, message: &StoredMessage) -> Arc<EncodedMessage> {
    let json = message.to_json(channel);
    Arc::new(EncodedMessage::new(channel.clone(), Some(message.position), &json))
}
