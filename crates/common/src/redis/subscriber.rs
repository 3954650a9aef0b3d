//! Subscriptions that survive whatever happens to their connection.
//!
//! Redis forgets a subscriber that was away, so being away is reported: [`Heard::Lost`] and, once heard again,
//! [`Heard::Subscribed`]. A connection that is open but dead is found out by a ping. What the reader does not take
//! in time is dropped and counted: memory stays bounded, and plain pub/sub promises no more than that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Msg, PushInfo, PushKind, RedisResult, aio::MultiplexedConnection};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Redis, next_delay, reconnect_delays};

const PING_EVERY: Duration = Duration::from_secs(5);

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// From here on messages are heard; what was published before this moment was not.
    Subscribed,
    /// The connection is gone; messages published now are not heard.
    Lost,
    /// A message.
    Message {
        /// Where it was published.
        channel: String,
        /// Its bytes.
        payload: Vec<u8>,
    },
}

/// Hears channels until `stop` is cancelled; at most `buffer` messages wait to be taken.
#[must_use]
pub fn subscribe(
    redis: &Redis,
    channels: Vec<String>,
    buffer: usize,
    stop: CancellationToken,
) -> mpsc::Receiver<Heard> {
    let (sender, receiver) = mpsc::channel(buffer.max(2));
    let redis = redis.clone();
    tokio::spawn(async move {
        let mut delays = reconnect_delays();
        while !stop.is_cancelled() && !sender.is_closed() {
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = listen(&redis, &channels, &sender, &mut delays) => result,
            };
            let Err(error) = result else { return };
            tracing::debug!(%error, ?channels, "subscription interrupted");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(next_delay(&mut delays)) => {}
            }
        }
    });
    receiver
}

/// One connection's life. Ends with an error when the connection does, with `Ok` when nobody listens any more.
async fn listen(
    redis: &Redis,
    channels: &[String],
    sender: &mpsc::Sender<Heard>,
    delays: &mut backon::ExponentialBackoff,
) -> RedisResult<()> {
    let gone = Arc::new(Notify::new());
    let dropped = Arc::new(AtomicU64::new(0));
    let push = forwarder(sender.clone(), gone.clone(), dropped.clone());
    let config = redis.config().set_push_sender(push);
    let mut connection = redis.client().get_multiplexed_async_connection_with_config(&config).await?;
    connection.subscribe(channels).await?;
    *delays = reconnect_delays();
    if sender.send(Heard::Subscribed).await.is_err() {
        return Ok(());
    }
    let result = watch(&mut connection, &gone, &dropped, sender).await;
    // Waits for room: this one must not be dropped
    if sender.send(Heard::Lost).await.is_err() {
        return Ok(());
    }
    result
}

fn forwarder(
    sender: mpsc::Sender<Heard>,
    gone: Arc<Notify>,
    dropped: Arc<AtomicU64>,
) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
    move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            gone.notify_one();
        } else if let Some(message) = Msg::from_push_info(push) {
            let heard = Heard::Message {
                channel: message.get_channel_name().to_owned(),
                payload: message.get_payload_bytes().to_vec(),
            };
            if sender.try_send(heard).is_err() {
                dropped.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("galley_messages_dropped_total").increment(1);
            }
        }
        Ok(())
    }
}

async fn watch(
    connection: &mut MultiplexedConnection,
    gone: &Notify,
    dropped: &AtomicU64,
    sender: &mpsc::Sender<Heard>,
) -> RedisResult<()> {
    let closed = || redis::RedisError::from((redis::ErrorKind::Io, "connection closed"));
    loop {
        tokio::select! {
            () = gone.notified() => return Err(closed()),
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(PING_EVERY) => redis::cmd("PING").exec_async(connection).await?,
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::error!(lost, "messages dropped: they came faster than they were handled");
        }
    }
}
