//! Subscriptions that survive whatever happens to their connection.
//!
//! Redis forgets a subscriber that was away, so being away is reported: [`Heard::Lost`] and, once heard again,
//! [`Heard::Subscribed`]. A connection that is open but dead is found out by a ping. What the reader does not take
//! in time is dropped, counted and named: memory stays bounded, and plain pub/sub promises no more than that.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Msg, PushInfo, PushKind, RedisResult, aio::MultiplexedConnection};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::bounded_channel::{EventSender, bounded_channel};
pub use super::{bounded_channel::EventReceiver, probe::Probe};
use crate::{Redis, next_reconnect_delay, reconnect_delays};

const PING_INTERVAL: Duration = Duration::from_secs(5);

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriberEvent {
    /// From here on messages of these channels are heard; what was published there before this moment was not. After
    /// [`Heard::Lost`] these are all channels, otherwise those that are new.
    Subscribed(Vec<String>),
    /// The connection is gone; messages published now are not heard.
    ConnectionLost,
    /// A message.
    Message {
        /// Where it was published.
        channel: String,
        /// Its bytes.
        payload: Vec<u8>,
    },
}

/// The channels to hear, which may change at any time. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct Topics(Arc<TopicSet>);

#[derive(Debug, Default)]
struct TopicSet {
    names: Mutex<BTreeSet<String>>,
    changed: Notify,
    reconnects: watch::Sender<()>,
}

impl Topics {
    /// Hears that one too from now on; [`Heard::Subscribed`] says when.
    pub fn add(&self, name: String) {
        self.add_all([name]);
    }

    /// The same with several, which are heard from the same moment on.
    pub fn add_all(&self, new: impl IntoIterator<Item = String>) {
        let mut names = self.names();
        let before = names.len();
        names.extend(new);
        if names.len() > before {
            self.0.changed.notify_one();
        }
    }

    /// Does not hear it any more.
    pub fn remove(&self, name: &str) {
        if self.names().remove(name) {
            self.0.changed.notify_one();
        }
    }

    /// Has the connection made anew, if there is one.
    pub(crate) fn reconnect(&self) {
        self.0.reconnects.send_replace(());
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears channels until `stop` is cancelled; at most `buffer` messages wait to be taken.
#[must_use]
pub fn subscribe(redis: &Redis, channels: Vec<String>, buffer: usize, stop: CancellationToken) -> EventReceiver {
    let (wanted, heard) = subscribe_to_changing(redis, buffer, stop);
    wanted.add_all(channels);
    heard
}

/// The same with channels that change. As long as there are none there is no connection.
#[must_use]
pub fn subscribe_to_changing(redis: &Redis, buffer: usize, stop: CancellationToken) -> (Topics, EventReceiver) {
    start(redis, buffer, (None, None), stop)
}

/// Looks at each message in the order in which they come, before anything is dropped; false for what nobody wants.
pub(crate) type TopicFilter = Arc<dyn Fn(&str, &[u8]) -> bool + Send + Sync>;

/// The same with a probe every so often, so that there is always a connection.
#[must_use]
pub fn subscribe_with_probe(
    redis: &Redis,
    buffer: usize,
    every: Duration,
    stop: CancellationToken,
) -> (Topics, EventReceiver, Probe) {
    subscribe_with_filter(redis, buffer, every, None, stop)
}

/// The same without what a sieve takes out.
pub(crate) fn subscribe_with_filter(
    redis: &Redis,
    buffer: usize,
    every: Duration,
    sieve: Option<TopicFilter>,
    stop: CancellationToken,
) -> (Topics, EventReceiver, Probe) {
    let probe = Probe::new();
    let (channels, inbox) = start(redis, buffer, (Some(probe.clone()), sieve), stop.clone());
    channels.add(probe.channel().to_owned());
    tokio::spawn(probe.clone().run(redis.clone(), channels.clone(), every, stop));
    (channels, inbox, probe)
}

fn start(
    redis: &Redis,
    buffer: usize,
    checks: (Option<Probe>, Option<TopicFilter>),
    stop: CancellationToken,
) -> (Topics, EventReceiver) {
    let (slot, inbox) = bounded_channel(buffer);
    let (redis, channels) = (redis.clone(), Topics::default());
    let wanted = channels.clone();
    tokio::spawn(async move {
        let mut delays = reconnect_delays();
        while !stop.is_cancelled() && !slot.is_closed() {
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = listen(&redis, &wanted, &slot, &checks, &mut delays) => result,
            };
            let Err(error) = result else { return };
            tracing::debug!(%error, "subscription interrupted");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
            }
        }
    });
    (channels, inbox)
}

/// One connection's life. Ends with an error when the connection does, with `Ok` when nobody listens any more.
async fn listen(
    redis: &Redis,
    channels: &Topics,
    slot: &EventSender,
    (probe, sieve): &(Option<Probe>, Option<TopicFilter>),
    delays: &mut backon::ExponentialBackoff,
) -> RedisResult<()> {
    while channels.names().is_empty() {
        tokio::select! {
            () = slot.closed() => return Ok(()),
            () = channels.0.changed.notified() => {}
        }
    }
    let gone = Arc::new(Notify::new());
    let push = push_handler(slot.clone(), probe.clone(), sieve.clone(), gone.clone());
    let config = redis.config().set_push_sender(push);
    let mut listener = PubSubConnection {
        connection: redis.client().get_multiplexed_async_connection_with_config(&config).await?,
        channels,
        subscribed: BTreeSet::new(),
        sender: slot,
        probe: probe.as_ref(),
    };
    if !listener.update_topics().await? {
        return Ok(());
    }
    *delays = reconnect_delays();
    let result = listener.watch(&gone).await;
    // Waits for room: this one must not be dropped
    if slot.send(SubscriberEvent::ConnectionLost).await { result } else { Ok(()) }
}

fn push_handler(
    slot: EventSender,
    probe: Option<Probe>,
    sieve: Option<TopicFilter>,
    gone: Arc<Notify>,
) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            gone.notify_one();
        } else if let Some(message) = Msg::from_push_info(push) {
            let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
            if let Some(probe) = probe.as_ref().filter(|probe| probe.channel() == channel) {
                probe.receive(payload);
            } else if sieve.as_ref().is_none_or(|sieve| sieve(channel, payload)) {
                slot.try_send_message(channel, payload);
            }
        }
        Ok(())
    }
}

/// A connection that hears channels.
struct PubSubConnection<'a> {
    connection: MultiplexedConnection,
    channels: &'a Topics,
    subscribed: BTreeSet<String>,
    sender: &'a EventSender,
    probe: Option<&'a Probe>,
}

impl PubSubConnection<'_> {
    /// Hears what is wanted now and nothing else; false when nobody listens any more.
    async fn update_topics(&mut self) -> RedisResult<bool> {
        // There may be very many, of which few have changed: only these are copied
        let (news, old): (Vec<String>, Vec<String>) = {
            let wanted = self.channels.names();
            let (news, old) = (wanted.difference(&self.subscribed), self.subscribed.difference(&wanted));
            (news.cloned().collect(), old.cloned().collect())
        };
        if !old.is_empty() {
            self.connection.unsubscribe(&old).await?;
            for name in &old {
                self.subscribed.remove(name);
            }
        }
        if !news.is_empty() {
            self.connection.subscribe(&news).await?;
            self.subscribed.extend(news.iter().cloned());
        }
        if let Some(probe) = self.probe.filter(|probe| news.iter().any(|name| name == probe.channel())) {
            probe.subscribed();
        }
        Ok(news.is_empty() || self.sender.send(SubscriberEvent::Subscribed(news)).await)
    }

    async fn watch(&mut self, gone: &Notify) -> RedisResult<()> {
        let closed = || redis::RedisError::from((redis::ErrorKind::Io, "connection closed"));
        let mut renewals = self.channels.0.reconnects.subscribe();
        loop {
            tokio::select! {
                () = gone.notified() => return Err(closed()),
                Ok(()) = renewals.changed() => return Err(closed()),
                () = self.sender.closed() => return Ok(()),
                () = self.channels.0.changed.notified() => if !self.update_topics().await? { return Ok(()) },
                () = tokio::time::sleep(PING_INTERVAL) => redis::cmd("PING").exec_async(&mut self.connection).await?,
            }
            let lost = self.sender.take_dropped_count();
            if lost > 0 {
                tracing::error!(lost, "messages dropped: they came faster than they were handled");
            }
        }
    }
}
