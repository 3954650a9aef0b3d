//! Who has to look where: one subscription to Redis's pub/sub hears the channels of all subscriptions of this process, and
//! rings for those to whom a message may be new. Nothing rests on it but time: whoever is not rung for looks every now and
//! then.

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
    connection::{
        notification::Notification,
        notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    },
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Rings that were heard and not passed on yet. More are dropped, and found out later.
const NOTIFICATION_BUFFER: usize = 4096;

/// All doors are rung at in this time, unless there are very many.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Those with many channels ask Redis a lot when they are rung at for everything.
const MIN_SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// Rings for subscriptions. Clone it freely.
#[derive(Clone)]
pub(crate) struct MessageNotifier(Arc<MessageNotifierInner>);

struct MessageNotifierInner {
    subscribed_channels: Topics,
    next_listener_id: AtomicU64,
    listeners: Mutex<MessageListeners>,
    /// The list of subscriptions may have changed.
    list_changed: Notify,
}

#[derive(Default)]
struct MessageListeners {
    all: HashMap<u64, (ChannelSelection, Arc<ListenerSignal>)>,
    /// Who listens to which channel.
    by_channel: HashMap<ChannelName, Vec<(u64, Arc<ListenerSignal>)>>,
}

#[derive(Default)]
struct ListenerSignal {
    pending: Mutex<PendingChannels>,
    notify: Notify,
}

/// Where there may be something new.
#[derive(Debug, Default)]
pub(crate) struct PendingChannels {
    pub(crate) channels: BTreeSet<ChannelName>,
    /// In all channels, and there may be other channels.
    pub(crate) is_all_channels: bool,
    /// A worker may have given messages back.
    pub(crate) has_released: bool,
}

/// Where a subscription is rung for.
pub(crate) struct MessageListener {
    notifier: MessageNotifier,
    id: u64,
    signal: Arc<ListenerSignal>,
}

impl MessageNotifier {
    /// Listens as long as the notifier runs.
    pub(crate) fn start(notifier: &Notifier) -> Self {
        let (topics, events) = notifier.subscribe(NOTIFICATION_BUFFER);
        topics.add_all([keys::NOTIFICATIONS.to_owned(), keys::CHANNELS.to_owned()]);
        let inner = MessageNotifierInner {
            subscribed_channels: topics,
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

    /// Rings for a subscription from now on, once at once.
    pub(crate) fn add_listener(&self, selection: &ChannelSelection) -> MessageListener {
        let (id, rung) = (self.0.next_listener_id.fetch_add(1, Relaxed), Arc::<ListenerSignal>::default());
        self.listeners().all.insert(id, (selection.clone(), rung.clone()));
        let door = MessageListener { notifier: self.clone(), id, signal: rung };
        door.signal.update(|ring| ring.is_all_channels = true);
        door
    }

    fn listeners(&self) -> MutexGuard<'_, MessageListeners> {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self, mut inbox: EventReceiver) {
        while let Some(heard) = inbox.recv().await {
            match heard {
                SubscriberEvent::Message { channel, payload } if channel == keys::NOTIFICATIONS => {
                    if Notification::decode(&payload) == Some(Notification::SubscriptionsChanged) {
                        // One that was changed begins anew; of the others only what was given back concerns anybody
                        self.0.list_changed.notify_one();
                        self.notify_released();
                    }
                }
                SubscriberEvent::Message { channel, payload } if channel == keys::CHANNELS => {
                    let name = std::str::from_utf8(&payload).ok().and_then(|name| name.parse().ok());
                    if let Some(name) = name {
                        self.notify_new_channel(&name);
                    }
                }
                SubscriberEvent::Message { channel, .. } => self.notify_channel(&channel),
                SubscriberEvent::Subscribed(channels) => {
                    for channel in channels {
                        if channel == keys::NOTIFICATIONS || channel == keys::CHANNELS {
                            self.0.list_changed.notify_one();
                            self.notify_all();
                        } else {
                            self.notify_channel(&channel);
                        }
                    }
                }
                SubscriberEvent::ConnectionLost => metrics::counter!("galley_subscriptions_lost_total").increment(1),
            }
            // What found no room rings all the same
            for channel in inbox.take_dropped_channels() {
                if keys::channel_of_live_messages(&channel).is_some() {
                    self.notify_channel(&channel);
                } else {
                    self.0.list_changed.notify_one();
                    self.notify_all();
                }
            }
        }
    }

    fn notify_channel(&self, live: &str) {
        let Some(name) = keys::channel_of_live_messages(live) else { return };
        for (_, rung) in self.listeners().by_channel.get(&name).into_iter().flatten() {
            rung.update(|ring| {
                ring.channels.insert(name.clone());
            });
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

    /// Rings for everything every so often, at one door after the other, until `stop` is cancelled: rings can be missed.
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
    fn update(&self, change: impl FnOnce(&mut PendingChannels)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }
}

impl MessageListener {
    /// Waits until somebody rings, and for what. A call that is given up loses nothing.
    pub(crate) async fn wait(&self) -> PendingChannels {
        loop {
            let ring = std::mem::take(&mut *self.signal.pending.lock().unwrap_or_else(PoisonError::into_inner));
            if ring.is_all_channels || ring.has_released || !ring.channels.is_empty() {
                return ring;
            }
            self.signal.notify.notified().await;
        }
    }

    /// Rings for everything.
    pub(crate) fn notify_all_channels(&self) {
        self.signal.update(|ring| ring.is_all_channels = true);
    }

    /// Listens to a channel no longer: it is there no more.
    pub(crate) fn stop_listening(&self, channel: &ChannelName) {
        let mut doors = self.notifier.listeners();
        let Some(listeners) = doors.by_channel.get_mut(channel) else { return };
        listeners.retain(|(id, _)| *id != self.id);
        if listeners.is_empty() {
            doors.by_channel.remove(channel);
            self.notifier.0.subscribed_channels.remove(&keys::live_messages(channel));
        }
    }

    /// Listens to a channel.
    pub(crate) fn listen_to(&self, channel: &ChannelName) {
        let mut doors = self.notifier.listeners();
        let listeners = doors.by_channel.entry(channel.clone()).or_default();
        if !listeners.iter().any(|(id, _)| *id == self.id) {
            listeners.push((self.id, self.signal.clone()));
            self.notifier.0.subscribed_channels.add(keys::live_messages(channel));
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
            self.notifier.0.subscribed_channels.remove(&keys::live_messages(&channel));
        }
    }
}
