//! Hearing channels: every replica hears every message, whoever published it, and logs it in the seed's words.
//!
//! Redis forgets subscribers that are away, so what is published during a gap is not heard here. The gap itself is
//! never silent: it is logged, counted, and shown in readiness.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{
    name::ChannelName,
    redis::{
        Redis,
        subscriber::{Heard, subscribe},
    },
    settings::PubsubWorkerSettings,
};
use tokio_util::sync::CancellationToken;

/// Follows channels until `stop` is cancelled and what was heard before is handled.
pub(crate) async fn run(redis: &Redis, settings: &PubsubWorkerSettings, hearing: &AtomicBool, stop: CancellationToken) {
    if settings.channels.is_empty() {
        stop.cancelled().await;
        return;
    }
    let channels: Vec<String> = settings.channels.iter().map(ChannelName::to_string).collect();
    let mut heard = subscribe(redis, channels.clone(), settings.buffer_messages, stop);
    let mut lost_before = false;
    // Ends when the subscription has stopped and its last message is taken
    while let Some(heard) = heard.recv().await {
        match heard {
            Heard::Subscribed(_) if lost_before => {
                tracing::info!(?channels, "subscribed again; messages in between were not heard");
            }
            Heard::Subscribed(_) => tracing::info!(?channels, "subscribed"),
            Heard::Lost => {
                tracing::warn!(?channels, "subscription lost, subscribing again");
                metrics::counter!("galley_subscriptions_lost_total").increment(1);
                lost_before = true;
            }
            Heard::Message { ref channel, ref payload } => handle(channel, payload),
        }
        match heard {
            Heard::Subscribed(_) => hearing.store(true, SeqCst),
            Heard::Lost => hearing.store(false, SeqCst),
            Heard::Message { .. } => {}
        }
    }
}

fn handle(channel: &str, payload: &[u8]) {
    metrics::counter!("galley_messages_heard_total", "channel" => channel.to_owned()).increment(1);
    tracing::info!(channel, "Task get {}", common::text::printable(payload));
}
