//! Many readers of many channels, one subscription: a task hears every channel that anybody reads, once, and puts its
//! messages into the ring of that channel.
//!
//! Pub/sub may lose messages. So the task looks whether positions follow one another, and reads in the history what is
//! missing: when they do not, when a channel is heard anew, and every `channels.sweep_ms`, because the last message of all is
//! missed by nobody. What cannot be read any more is a gap, which each reader finds in the history by itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
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
    plain::Copies,
    reader_counts::Changed,
    ring::{Budget, Ring, Shown},
};
use crate::{
    Redis, StoreResult,
    connection::notifier::{Channels, Heard, Inbox, Probe, subscribe_with_sieve},
    jobs::local_now,
    keys, next_delay, note_interruption, reconnect_delays,
};
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::{Position, Stored, plain_to_json};

/// Messages heard and not looked at yet; their bytes are bounded too. More are dropped, and then read in the history.
const BUFFER: usize = 1024;
/// A channel is heard this much longer than somebody reads it.
const LINGER: Duration = Duration::from_secs(10);
/// Pages of histories that are read at a time, for all readers together.
const PAGES_AT_ONCE: usize = 16;
/// Messages read in one go to fill a gap.
const REPAIR_PAGE: usize = 100;
/// Names of new channels that wait for readers of patterns.
const NAMES: usize = 64;

/// Hears channels for many readers. Clone it freely.
#[derive(Clone)]
pub struct ChannelHub(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// By which others know it.
    pub(super) id: Uuid,
    pub(super) redis: Redis,
    pub(super) settings: ChannelSettings,
    pub(super) stop: CancellationToken,
    /// As `stop`, but costs readers nothing to look at. All are woken after it was set.
    pub(super) is_stopped: AtomicBool,
    pub(super) pages: Semaphore,
    /// Where pages are read.
    pub(super) runtime: Handle,
    pub(super) readers: AtomicUsize,
    /// Names that are new, or all of them when some may have been missed.
    pub(super) names: broadcast::Sender<Arc<Vec<ChannelName>>>,
    followed: Mutex<HashMap<ChannelName, Arc<Followed>>>,
    /// Channels that more or fewer read than a moment ago.
    pub(super) changed: Changed,
    channels: Channels,
    probe: Probe,
    budget: Budget,
}

/// A channel that somebody reads, or did a moment ago.
pub(super) struct Followed {
    pub(super) name: ChannelName,
    ring: Mutex<Ring>,
    readers: Mutex<(usize, Instant)>,
    changed: Changed,
}

/// A reader's hold on a channel.
pub(super) struct Hold(pub(super) Arc<Followed>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut readers = self.0.readers();
        *readers = (readers.0 - 1, Instant::now());
        drop(readers);
        self.0.changed.note(&self.0.name);
    }
}

impl Followed {
    pub(super) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all readers look again.
    fn tell(&self) {
        // Woken readers want the ring
        let waiting = self.ring().change();
        waiting.into_iter().for_each(Waker::wake);
    }

    fn readers(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChannelHub {
    /// Starts a hub that serves readers until `stop` is cancelled.
    #[must_use]
    pub fn start(redis: &Redis, settings: &ChannelSettings, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let copies = (!settings.plain.is_empty()).then(|| Copies::new(&settings.plain));
        let sieve =
            copies.map(|copies| Arc::new(move |name: &str, payload: &[u8]| copies.is_wanted(name, payload)) as _);
        let (channels, heard, probe) = subscribe_with_sieve(redis, BUFFER, settings.probe, sieve, stop.clone());
        let budget = Budget { each: settings.ring_bytes, all: settings.rings_bytes, used: Arc::default() };
        let inner = Arc::new(Inner {
            id: Uuid::new_v4(),
            redis: redis.clone(),
            settings: settings.clone(),
            stop,
            is_stopped: AtomicBool::new(false),
            pages: Semaphore::new(PAGES_AT_ONCE),
            runtime: Handle::current(),
            readers: AtomicUsize::new(0),
            names: broadcast::Sender::new(NAMES),
            followed: Mutex::default(),
            changed: Changed::default(),
            channels,
            probe,
            budget,
        });
        (Self(inner.clone()), tokio::spawn(inner.run(heard)))
    }

    /// Why messages that are published are not heard here; none if they are.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.probe.trouble()
    }
}

impl Inner {
    fn followed(&self) -> MutexGuard<'_, HashMap<ChannelName, Arc<Followed>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many read a channel here.
    pub(super) fn readers_here(&self, channel: &ChannelName) -> usize {
        self.followed().get(channel).map_or(0, |followed| followed.readers().0)
    }

    /// How many read here, of so many of the channels that anybody reads.
    pub(super) fn all_readers(&self, most: usize) -> HashMap<ChannelName, usize> {
        let all = self.followed();
        let readers = all.iter().map(|(name, followed)| (name, followed.readers().0));
        readers.filter(|(_, readers)| *readers > 0).take(most).map(|(name, readers)| (name.clone(), readers)).collect()
    }

    /// Follows a channel for one more reader.
    pub(super) fn follow(&self, name: &ChannelName) -> Hold {
        let mut all = self.followed();
        let new = || {
            Arc::new(Followed {
                name: name.clone(),
                ring: Mutex::new(Ring::new(self.budget.clone())),
                readers: Mutex::new((0, Instant::now())),
                changed: self.changed.clone(),
            })
        };
        let followed = all.entry(name.clone()).or_insert_with(new).clone();
        followed.readers().0 += 1;
        // From the same moment on: a message that is heard without its position is told as somebody else's
        let bare = self.settings.plain.contains(name).then(|| name.to_string());
        self.channels.add_all(bare.into_iter().chain([keys::live(name)]));
        drop(all);
        self.changed.note(name);
        Hold(followed)
    }

    /// Hears of channels that are new.
    pub(super) fn hear_of_new(&self) {
        self.channels.add(keys::CHANNELS.to_owned());
    }

    async fn run(self: Arc<Self>, inbox: Inbox) {
        let noting = tokio::spawn(self.clone().note_readers());
        self.listen(inbox).await;
        self.is_stopped.store(true, SeqCst);
        let all: Vec<Arc<Followed>> = self.followed().values().cloned().collect();
        for followed in &all {
            followed.tell();
        }
        if let Err(error) = noting.await {
            tracing::error!(%error, "noting how many read channels failed");
        }
    }

    async fn listen(self: &Arc<Self>, mut inbox: Inbox) {
        let mut sweep = tokio::time::interval(self.settings.sweep);
        let mut sweeping: Option<JoinHandle<()>> = None;
        loop {
            let heard = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = sweep.tick() => {
                    self.let_go();
                    if sweeping.as_ref().is_none_or(JoinHandle::is_finished) {
                        sweeping = Some(tokio::spawn(self.clone().sweep()));
                    }
                    continue;
                }
                heard = inbox.recv() => heard,
            };
            match heard {
                Some(Heard::Message { channel, payload }) => self.hear(&channel, &payload),
                Some(Heard::Subscribed(channels)) => self.look(&channels),
                Some(Heard::Lost) => metrics::counter!("galley_subscriptions_lost_total").increment(1),
                None => return,
            }
            // What found no room is in the history
            self.look(&inbox.take_missed());
        }
    }

    /// Channels are heard from now on: what came before is in the history.
    fn look(self: &Arc<Self>, channels: &[String]) {
        for channel in channels {
            let followed = keys::channel_of_live(channel).and_then(|name| self.followed().get(&name).cloned());
            if let Some(followed) = followed {
                self.repair(&followed, None);
            } else if channel == keys::CHANNELS {
                tokio::spawn(self.clone().tell_all_names());
            }
        }
    }

    fn hear(self: &Arc<Self>, channel: &str, payload: &[u8]) {
        if channel == keys::CHANNELS {
            let name = std::str::from_utf8(payload).ok().and_then(|name| name.parse().ok());
            let _ = self.names.send(Arc::new(name.into_iter().collect()));
            return;
        }
        let Some(name) = keys::channel_of_live(channel) else { return self.hear_plain(channel, payload) };
        let Some(followed) = self.followed().get(&name).cloned() else { return };
        let Some(message) = Stored::from_frame(payload) else { return };
        let position = message.position;
        let mut ring = followed.ring();
        let is_next = !ring.is_under_repair && ring.head.is_some_and(|head| position == head.next());
        if is_next {
            ring.push(shown(&name, &message));
            drop(ring);
            followed.tell();
        } else if ring.is_under_repair || ring.head.is_none_or(|head| position > head) {
            drop(ring);
            self.repair(&followed, Some(position));
        }
    }

    /// What somebody published with plain Redis is handed on to those who are there, and kept nowhere.
    fn hear_plain(&self, channel: &str, payload: &[u8]) {
        let Some(followed) = channel.parse().ok().and_then(|name: ChannelName| self.followed().get(&name).cloned())
        else {
            return;
        };
        let json = plain_to_json(&followed.name, payload, local_now());
        followed.ring().push(Arc::new(Shown::new(followed.name.clone(), None, &json)));
        followed.tell();
    }

    /// Reads in the history what may be missing, unless that is under way.
    pub(super) fn repair(self: &Arc<Self>, followed: &Arc<Followed>, wanted: Option<Position>) {
        let mut ring = followed.ring();
        ring.wanted = ring.wanted.max(wanted);
        if std::mem::replace(&mut ring.is_under_repair, true) {
            // Whoever reads does so once more
            ring.wanted = ring.wanted.or(Some(Position::START));
            return;
        }
        drop(ring);
        let (inner, followed) = (self.clone(), followed.clone());
        tokio::spawn(async move {
            let mut delays = reconnect_delays();
            while let Err(error) = inner.read_on(&followed).await {
                note_interruption("reading a channel", &error);
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(next_delay(&mut delays)) => {}
                }
            }
        });
    }

    async fn read_on(&self, followed: &Followed) -> StoreResult<()> {
        loop {
            let head = {
                let mut ring = followed.ring();
                ring.wanted = None;
                ring.head
            };
            let permit = self.pages.acquire().await;
            let is_more = match head {
                None => {
                    let head = self.redis.channel_head(&followed.name).await?;
                    followed.ring().begin(head.unwrap_or(Position::START));
                    false
                }
                Some(head) => {
                    let page = self.redis.channel_page(&followed.name, head, REPAIR_PAGE).await?;
                    let mut ring = followed.ring();
                    if page.gap(head).is_some() {
                        ring.begin(page.after);
                    } else {
                        page.messages.iter().for_each(|message| ring.push(shown(&followed.name, message)));
                    }
                    page.is_more
                }
            };
            drop(permit);
            followed.tell();
            let mut ring = followed.ring();
            if !is_more && ring.wanted.is_none_or(|wanted| wanted != Position::START && Some(wanted) <= ring.head) {
                ring.is_under_repair = false;
                return Ok(());
            }
        }
    }

    /// Channels that nobody has read for a while are not heard any more.
    fn let_go(&self) {
        let mut all = self.followed();
        all.retain(|name, followed| {
            let (readers, since) = *followed.readers();
            let stays = readers > 0 || since.elapsed() < LINGER;
            if !stays {
                self.channels.remove(&keys::live(name));
                self.channels.remove(name.as_str());
            }
            stays
        });
        metrics::gauge!("galley_channels_followed").set(u32::try_from(all.len()).unwrap_or(u32::MAX));
    }

    /// Looks for messages that nobody heard, and for channels that nobody heard of.
    async fn sweep(self: Arc<Self>) {
        let all: Vec<Arc<Followed>> = self.followed().values().cloned().collect();
        for followed in all {
            let Ok(head) = self.redis.channel_head(&followed.name).await else { return };
            let known = followed.ring().head;
            if known != Some(head.unwrap_or(Position::START)) {
                self.repair(&followed, None);
            }
        }
        if self.names.receiver_count() > 0 {
            self.tell_all_names().await;
        }
    }

    /// Channels there are, and those where plain publishers are heard: they need no history.
    pub(super) async fn all_names(&self) -> StoreResult<Vec<ChannelName>> {
        let mut names = self.redis.all_channels().await?;
        let plain: Vec<ChannelName> =
            self.settings.plain.iter().filter(|name| !names.contains(name)).cloned().collect();
        names.extend(plain);
        Ok(names)
    }

    async fn tell_all_names(self: Arc<Self>) {
        match self.all_names().await {
            Ok(names) => drop(self.names.send(Arc::new(names))),
            Err(error) => note_interruption("listing channels", &error),
        }
    }
}

pub(super) fn shown(channel: &ChannelName, message: &Stored) -> Arc<Shown> {
    let json = message.to_json(channel);
    Arc::new(Shown::new(channel.clone(), Some(message.position), &json))
}
