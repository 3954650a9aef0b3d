//! The pub/sub connection: subscribes to the wanted topics, routes messages, reconnects when it breaks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{ErrorKind, Msg, PushInfo, PushKind, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::NotifierInner;
use crate::{connection::client::Redis, next_reconnect_delay, reconnect_delays};

/// Maximum bytes of a message on a topic of Galley; nobody of Galley sends longer ones.
const MAX_HINT_BYTES: usize = 64 * 1024;
/// A connection that lasted this long did not break because of what it received at first.
pub(super) const STABLE_TIME: Duration = Duration::from_secs(10);
/// How often dropped messages are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Maintains the connection until `stop` is cancelled.
pub(super) async fn run(redis: Redis, notifier: Arc<NotifierInner>, stop: CancellationToken) {
    let mut delays = reconnect_delays();
    loop {
        let begin = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = listen(&redis, &notifier) => ended,
        };
        // Each new connection makes everybody look at Redis, and who may publish much can break one after the other
        if begin.elapsed() >= STABLE_TIME {
            delays = reconnect_delays();
        }
        notifier.registry().connection_lost();
        if let Err(error) = ended {
            tracing::debug!(%error, "pub/sub connection lost");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
        }
    }
    notifier.registry().stop();
}

/// One connection's life; returns an error when the connection breaks.
async fn listen(redis: &Redis, notifier: &Arc<NotifierInner>) -> RedisResult<()> {
    let gone = Arc::new(Notify::new());
    let config = redis.config().set_push_sender(push_handler(notifier.clone(), gone.clone()));
    let mut reconnects = notifier.reconnects.subscribe();
    // In a cluster each node hears what is published at any other
    let redis = redis.some_server().await?;
    let (connection, known_at) = redis.connect_separately(&config).await?;
    let mut server_left = redis.server_left();
    if redis.left_server_since(known_at) {
        return Err(closed());
    }
    let mut connection = PubSubConnection { connection, notifier };
    connection.update_topics().await?;
    loop {
        tokio::select! {
            () = gone.notified() => return Err(closed()),
            Ok(()) = reconnects.changed() => return Err(closed()),
            Ok(()) = server_left.changed() => return Err(closed()),
            () = notifier.changed.notified() => connection.update_topics().await?,
            () = tokio::time::sleep(LOG_INTERVAL) => {}
        }
        let dropped = notifier.registry().take_dropped_count();
        if dropped > 0 {
            tracing::error!(dropped, "messages dropped: they came faster than they were handled");
        }
    }
}

pub(super) fn closed() -> RedisError {
    RedisError::from((ErrorKind::Io, "connection closed"))
}

fn push_handler(
    notifier: Arc<NotifierInner>,
    gone: Arc<Notify>,
) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            gone.notify_one();
        } else if let Some(message) = Msg::from_push_info(push) {
            route(&notifier, message.get_channel_name(), message.get_payload_bytes());
        }
        Ok(())
    }
}

pub(super) fn route(notifier: &NotifierInner, topic: &str, payload: &[u8]) {
    if topic == notifier.probe.topic() {
        return notifier.probe.receive(payload);
    }
    if payload.len() > MAX_HINT_BYTES && topic.starts_with(notifier.topic_names.prefix()) {
        return;
    }
    // A tagger may lock its own state and add topics: never hold both locks
    let Some(routes) = notifier.registry().routes(topic) else { return };
    for route in routes.iter() {
        let tagged = route.tagger.as_ref().and_then(|tag| tag(topic, payload));
        route.sender.try_send_message(topic, tagged.as_deref().unwrap_or(payload));
    }
}

struct PubSubConnection<'a> {
    connection: MultiplexedConnection,
    notifier: &'a NotifierInner,
}

impl PubSubConnection<'_> {
    /// Subscribes to exactly the wanted topics.
    async fn update_topics(&mut self) -> RedisResult<()> {
        let probe = self.notifier.probe.topic();
        let (added, removed) = self.notifier.registry().changed_topics(probe);
        if !removed.is_empty() {
            self.connection.unsubscribe(&removed).await?;
        }
        let has_probe = added.iter().any(|topic| topic == probe);
        if !added.is_empty() {
            self.connection.subscribe(&added).await?;
        }
        self.notifier.registry().note_subscribed(added, &removed);
        if has_probe {
            self.notifier.probe.subscribed();
        }
        Ok(())
    }
}
