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
use model::subscription::Selection;
use store::{
    Redis,
    connection::{
        notification::Wake,
        notifier::{Channels, Heard, Inbox, subscribe_with_probe},
    },
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Rings that were heard and not passed on yet. More are dropped, and found out later.
const BUFFER: usize = 4096;

/// All doors are rung at in this time, unless there are very many.
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// Those with many channels ask Redis a lot when they are rung at for everything.
const BETWEEN_DOORS: Duration = Duration::from_millis(50);

/// Rings for subscriptions. Clone it freely.
#[derive(Clone)]
pub(crate) struct Bell(Arc<Inner>);

struct Inner {
    channels: Channels,
    next: AtomicU64,
    doors: Mutex<Doors>,
    /// The list of subscriptions may have changed.
    list_changed: Notify,
}

#[derive(Default)]
struct Doors {
    all: HashMap<u64, (Selection, Arc<Rung>)>,
    /// Who listens to which channel.
    by_channel: HashMap<ChannelName, Vec<(u64, Arc<Rung>)>>,
}

#[derive(Default)]
struct Rung {
    for_what: Mutex<Ring>,
    notify: Notify,
}

/// Where there may be something new.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) channels: BTreeSet<ChannelName>,
    /// In all channels, and there may be other channels.
    pub(crate) everywhere: bool,
    /// A worker may have given messages back.
    pub(crate) given_back: bool,
}

/// Where a subscription is rung for.
pub(crate) struct Door {
    bell: Bell,
    id: u64,
    rung: Arc<Rung>,
}

impl Bell {
    /// Listens until `stop` is cancelled.
    pub(crate) fn hang(redis: &Redis, probe: Duration, stop: CancellationToken) -> Self {
        let (channels, heard, _) = subscribe_with_probe(redis, BUFFER, probe, stop);
        channels.add_all([keys::WAKE.to_owned(), keys::CHANNELS.to_owned()]);
        let inner = Inner { channels, next: AtomicU64::new(0), doors: Mutex::default(), list_changed: Notify::new() };
        let bell = Self(Arc::new(inner));
        tokio::spawn(bell.clone().listen(heard));
        bell
    }

    /// Waits until the list of subscriptions may have changed.
    pub(crate) async fn list_changed(&self) {
        self.0.list_changed.notified().await;
    }

    /// Rings for a subscription from now on, once at once.
    pub(crate) fn door(&self, selection: &Selection) -> Door {
        let (id, rung) = (self.0.next.fetch_add(1, Relaxed), Arc::<Rung>::default());
        self.doors().all.insert(id, (selection.clone(), rung.clone()));
        let door = Door { bell: self.clone(), id, rung };
        door.rung.ring(|ring| ring.everywhere = true);
        door
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        self.0.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self, mut inbox: Inbox) {
        while let Some(heard) = inbox.recv().await {
            match heard {
                Heard::Message { channel, payload } if channel == keys::WAKE => {
                    if Wake::decode(&payload) == Some(Wake::Subscriptions) {
                        // One that was changed begins anew; of the others only what was given back concerns anybody
                        self.0.list_changed.notify_one();
                        self.given_back();
                    }
                }
                Heard::Message { channel, payload } if channel == keys::CHANNELS => {
                    let name = std::str::from_utf8(&payload).ok().and_then(|name| name.parse().ok());
                    if let Some(name) = name {
                        self.is_new(&name);
                    }
                }
                Heard::Message { channel, .. } => self.ring(&channel),
                Heard::Subscribed(channels) => {
                    for channel in channels {
                        if channel == keys::WAKE || channel == keys::CHANNELS {
                            self.0.list_changed.notify_one();
                            self.everywhere();
                        } else {
                            self.ring(&channel);
                        }
                    }
                }
                Heard::Lost => metrics::counter!("galley_subscriptions_lost_total").increment(1),
            }
            // What found no room rings all the same
            for channel in inbox.take_missed() {
                if keys::channel_of_live(&channel).is_some() {
                    self.ring(&channel);
                } else {
                    self.0.list_changed.notify_one();
                    self.everywhere();
                }
            }
        }
    }

    fn ring(&self, live: &str) {
        let Some(name) = keys::channel_of_live(live) else { return };
        for (_, rung) in self.doors().by_channel.get(&name).into_iter().flatten() {
            rung.ring(|ring| {
                ring.channels.insert(name.clone());
            });
        }
    }

    fn is_new(&self, name: &ChannelName) {
        for (selection, rung) in self.doors().all.values() {
            if selection.fits(name) {
                rung.ring(|ring| {
                    ring.channels.insert(name.clone());
                });
            }
        }
    }

    fn everywhere(&self) {
        for (_, rung) in self.doors().all.values() {
            rung.ring(|ring| ring.everywhere = true);
        }
    }

    fn given_back(&self) {
        for (_, rung) in self.doors().all.values() {
            rung.ring(|ring| ring.given_back = true);
        }
    }

    /// Rings for everything every so often, at one door after the other, until `stop` is cancelled: rings can be missed.
    pub(crate) async fn sweep(self, stop: CancellationToken) {
        loop {
            let doors: Vec<Arc<Rung>> = self.doors().all.values().map(|(_, rung)| rung.clone()).collect();
            let count = u32::try_from(doors.len()).unwrap_or(u32::MAX).max(1);
            let pause = (SWEEP_EVERY / count).max(BETWEEN_DOORS);
            if doors.is_empty() && stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            for door in doors {
                door.ring(|ring| ring.everywhere = true);
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }
}

impl Rung {
    fn ring(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.for_what.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }
}

impl Door {
    /// Waits until somebody rings, and for what. A call that is given up loses nothing.
    pub(crate) async fn rung(&self) -> Ring {
        loop {
            let ring = std::mem::take(&mut *self.rung.for_what.lock().unwrap_or_else(PoisonError::into_inner));
            if ring.everywhere || ring.given_back || !ring.channels.is_empty() {
                return ring;
            }
            self.rung.notify.notified().await;
        }
    }

    /// Rings for everything.
    pub(crate) fn ring_everywhere(&self) {
        self.rung.ring(|ring| ring.everywhere = true);
    }

    /// Listens to a channel no longer: it is there no more.
    pub(crate) fn forget(&self, channel: &ChannelName) {
        let mut doors = self.bell.doors();
        let Some(listeners) = doors.by_channel.get_mut(channel) else { return };
        listeners.retain(|(id, _)| *id != self.id);
        if listeners.is_empty() {
            doors.by_channel.remove(channel);
            self.bell.0.channels.remove(&keys::live(channel));
        }
    }

    /// Listens to a channel.
    pub(crate) fn listen_to(&self, channel: &ChannelName) {
        let mut doors = self.bell.doors();
        let listeners = doors.by_channel.entry(channel.clone()).or_default();
        if !listeners.iter().any(|(id, _)| *id == self.id) {
            listeners.push((self.id, self.rung.clone()));
            self.bell.0.channels.add(keys::live(channel));
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut doors = self.bell.doors();
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
            self.bell.0.channels.remove(&keys::live(&channel));
        }
    }
}
