//! Notifies subscriptions of new messages: one pub/sub subscription receives the channels of all subscriptions of this
//! process. A missed notification costs only time, because a sweep notifies every listener regularly.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::name::ChannelName;
use model::subscription::ChannelSelection;
use store::{
    channels::Channels,
    connection::{
        hint_pace::{LookPace, PacedHints},
        notification::Notification,
        notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    },
    keys::TopicNames,
    log_interruption,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Maximum number of unread notifications. More are dropped, and the sweep finds them later.
const NOTIFICATION_BUFFER: usize = 4096;

/// How often notifications may cause a look at the list of subscriptions, and at released messages.
const LIST_HINT_INTERVAL: Duration = Duration::from_millis(200);
const LIST_HINT_BURST: u32 = 20;
/// How often they may cause a look for new channels, and for how many.
const CHANNEL_HINT_INTERVAL: Duration = Duration::from_millis(50);
const CHANNEL_HINT_BURST: u32 = 20;
const CHANNEL_HINT_BATCH: usize = 256;
/// How often they may cause a look at the channels of one subscription.
const MESSAGE_HINT_INTERVAL: Duration = Duration::from_millis(5);
const MESSAGE_HINT_BURST: u32 = 100;

/// Target time for one sweep over all listeners.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Minimum pause between two listeners of a sweep: one with many channels costs Redis many reads.
const MIN_SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// Notifies subscriptions of new messages. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MessageNotifier(Arc<MessageNotifierInner>);

struct MessageNotifierInner {
    subscribed_channels: Topics,
    topic_names: TopicNames,
    channels: Channels,
    next_listener_id: AtomicU64,
    listeners: Mutex<MessageListeners>,
    /// The list of subscriptions may have changed.
    list_changed: Notify,
}

#[derive(Default)]
struct MessageListeners {
    all: HashMap<u64, (ChannelSelection, Arc<ListenerSignal>)>,
    /// The listeners of each channel.
    by_channel: HashMap<ChannelName, Vec<(u64, Arc<ListenerSignal>)>>,
}

struct ListenerSignal {
    pending: Mutex<PacedChannels>,
    notify: Notify,
}

/// What to check, and when.
struct PacedChannels {
    channels: PendingChannels,
    pace: LookPace,
    due: Option<Instant>,
}

/// What to check.
#[derive(Debug, Default)]
pub(crate) struct PendingChannels {
    pub(crate) channels: BTreeSet<ChannelName>,
    /// Check all channels, and find new ones.
    pub(crate) is_all_channels: bool,
    /// A worker may have released messages.
    pub(crate) has_released: bool,
}

/// Receives the notifications for one subscription.
pub(crate) struct MessageListener {
    notifier: MessageNotifier,
    id: u64,
    signal: Arc<ListenerSignal>,
}

impl MessageNotifier {
    /// Starts to receive notifications; runs as long as `notifier`.
    pub(crate) fn start(notifier: &Notifier, channels: Channels) -> Self {
        let (topics, events) = notifier.subscribe(NOTIFICATION_BUFFER);
        let topic_names = notifier.topic_names().clone();
        topics.add_all([topic_names.notifications(), topic_names.new_channels()]);
        let inner = MessageNotifierInner {
            subscribed_channels: topics,
            topic_names,
            channels,
            next_listener_id: AtomicU64::new(0),
            listeners: Mutex::default(),
            list_changed: Notify::new(),
        };
        let bell = Self(Arc::new(inner));
        tokio::spawn(bell.clone().listen(events));
        bell
    }

    /// Waits until the list of subscriptions may have changed.
    pub(crate) async fn wait_for_list_change(&self) {
        self.0.list_changed.notified().await;
    }

    /// Notifies the subscription from now on, and once immediately.
    pub(crate) fn add_listener(&self, selection: &ChannelSelection) -> MessageListener {
        let (id, rung) = (self.0.next_listener_id.fetch_add(1, Relaxed), Arc::new(ListenerSignal::new()));
        self.listeners().all.insert(id, (selection.clone(), rung.clone()));
        let door = MessageListener { notifier: self.clone(), id, signal: rung };
        door.signal.update(|ring| ring.is_all_channels = true);
        door
    }

    fn listeners(&self) -> MutexGuard<'_, MessageListeners> {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self, mut inbox: EventReceiver) {
        let (notifications, new_channels) = (self.0.topic_names.notifications(), self.0.topic_names.new_channels());
        let mut list_hints = PacedHints::new(LIST_HINT_BURST, LIST_HINT_INTERVAL);
        let mut channel_hints = PacedHints::new(CHANNEL_HINT_BURST, CHANNEL_HINT_INTERVAL);
        loop {
            let heard = tokio::select! {
                _ = list_hints.ready(1) => {
                    // A changed subscription restarts; for the others only released messages matter
                    self.0.list_changed.notify_one();
                    self.notify_released();
                    continue;
                }
                names = channel_hints.ready(CHANNEL_HINT_BATCH) => {
                    self.notify_new_channels(names).await;
                    continue;
                }
                heard = inbox.recv() => heard,
            };
            let Some(heard) = heard else { return };
            match heard {
                SubscriberEvent::Message { channel, payload } if channel == notifications => {
                    if Notification::decode(&payload) == Some(Notification::SubscriptionsChanged) {
                        list_hints.add(());
                    }
                }
                SubscriberEvent::Message { channel, payload } if channel == new_channels => {
                    let name = std::str::from_utf8(&payload).ok().and_then(|name| name.parse().ok());
                    if let Some(name) = name.filter(|name| self.is_selected(name)) {
                        channel_hints.add(name);
                    }
                }
                SubscriberEvent::Message { channel, .. } => self.notify_channel(&channel),
                SubscriberEvent::Subscribed(channels) => {
                    for channel in channels {
                        if channel == notifications || channel == new_channels {
                            self.0.list_changed.notify_one();
                            self.notify_all();
                        } else {
                            self.notify_channel(&channel);
                        }
                    }
                }
                SubscriberEvent::ConnectionLost => metrics::counter!("galley_subscriptions_lost_total").increment(1),
            }
            // Dropped notifications count as notifications
            for channel in inbox.take_dropped_channels() {
                if self.0.topic_names.channel_of_live_messages(&channel).is_some() {
                    self.notify_channel(&channel);
                } else {
                    // The sweep finds new channels
                    list_hints.add(());
                }
            }
        }
    }

    fn notify_channel(&self, live: &str) {
        let Some(name) = self.0.topic_names.channel_of_live_messages(live) else { return };
        for (_, rung) in self.listeners().by_channel.get(&name).into_iter().flatten() {
            rung.update(|ring| {
                ring.channels.insert(name.clone());
            });
        }
    }

    /// Whether a subscription of this process wants that channel.
    fn is_selected(&self, name: &ChannelName) -> bool {
        self.listeners().all.values().any(|(selection, _)| selection.matches(name))
    }

    /// Notifies of new channels, if they exist: anybody can announce any name.
    async fn notify_new_channels(&self, names: Vec<ChannelName>) {
        match self.0.channels.registered_channels(names).await {
            Ok(names) => names.iter().for_each(|name| self.notify_new_channel(name)),
            Err(error) => log_interruption("looking for new channels", &error),
        }
    }

    fn notify_new_channel(&self, name: &ChannelName) {
        for (selection, rung) in self.listeners().all.values() {
            if selection.matches(name) {
                rung.update(|ring| {
                    ring.channels.insert(name.clone());
                });
            }
        }
    }

    fn notify_all(&self) {
        for (_, rung) in self.listeners().all.values() {
            rung.update(|ring| ring.is_all_channels = true);
        }
    }

    fn notify_released(&self) {
        for (_, rung) in self.listeners().all.values() {
            rung.update(|ring| ring.has_released = true);
        }
    }

    /// Notifies all listeners of all channels, one after the other, until `stop` is cancelled: notifications may be
    /// missed.
    pub(crate) async fn sweep(self, stop: CancellationToken) {
        loop {
            let doors: Vec<Arc<ListenerSignal>> = self.listeners().all.values().map(|(_, rung)| rung.clone()).collect();
            let count = u32::try_from(doors.len()).unwrap_or(u32::MAX).max(1);
            let pause = (SWEEP_INTERVAL / count).max(MIN_SWEEP_PAUSE);
            if doors.is_empty() && stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            for door in doors {
                door.update(|ring| ring.is_all_channels = true);
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }
}

impl ListenerSignal {
    fn new() -> Self {
        let pace = LookPace::new(MESSAGE_HINT_BURST, MESSAGE_HINT_INTERVAL);
        let pending = PacedChannels { channels: PendingChannels::default(), pace, due: None };
        Self { pending: Mutex::new(pending), notify: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, PacedChannels> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut PendingChannels)) {
        let PacedChannels { channels, pace, due } = &mut *self.lock();
        change(channels);
        if due.is_none() {
            *due = Some(pace.plan());
            self.notify.notify_one();
        }
    }
}

impl MessageListener {
    /// Waits for a notification and returns what to check. Cancel safe.
    pub(crate) async fn wait(&self) -> PendingChannels {
        loop {
            let due = self.signal.lock().due;
            match due {
                Some(due) if due <= Instant::now() => {
                    let mut pending = self.signal.lock();
                    pending.due = None;
                    return std::mem::take(&mut pending.channels);
                }
                Some(due) => tokio::time::sleep_until(due).await,
                None => self.signal.notify.notified().await,
            }
        }
    }

    /// Notifies the listener of all channels.
    pub(crate) fn notify_all_channels(&self) {
        self.signal.update(|ring| ring.is_all_channels = true);
    }

    /// Stops listening to a channel that no longer exists.
    pub(crate) fn stop_listening(&self, channel: &ChannelName) {
        let mut doors = self.notifier.listeners();
        let Some(listeners) = doors.by_channel.get_mut(channel) else { return };
        listeners.retain(|(id, _)| *id != self.id);
        if listeners.is_empty() {
            doors.by_channel.remove(channel);
            self.notifier.0.subscribed_channels.remove(&self.notifier.0.topic_names.live_messages(channel));
        }
    }

    /// Listens to a channel.
    pub(crate) fn listen_to(&self, channel: &ChannelName) {
        let mut doors = self.notifier.listeners();
        let listeners = doors.by_channel.entry(channel.clone()).or_default();
        if !listeners.iter().any(|(id, _)| *id == self.id) {
            listeners.push((self.id, self.signal.clone()));
            self.notifier.0.subscribed_channels.add(self.notifier.0.topic_names.live_messages(channel));
        }
    }
}

impl Drop for MessageListener {
    fn drop(&mut self) {
        let mut doors = self.notifier.listeners();
        doors.all.remove(&self.id);
        let mut left = Vec::new();
        doors.by_channel.retain(|channel, listeners| {
            listeners.retain(|(id, _)| *id != self.id);
            if listeners.is_empty() {
                left.push(channel.clone());
            }
            !listeners.is_empty()
        });
        for channel in left {
            self.notifier.0.subscribed_channels.remove(&self.notifier.0.topic_names.live_messages(&channel));
        }
    }
}
