//! Hearing channels: every replica hears every message, whoever published it, and logs it in the seed's words.
//!
//! Redis forgets subscribers that are away, so what is published during a gap is not heard here. The gap itself is
//! never silent: it is logged, counted, and shown in readiness. So is a connection that is open and hears nothing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use common::{name::ChannelName, settings::Settings};
use store::{
    Redis,
    connection::notifier::{EventReceiver, Probe, SubscriberEvent, subscribe_with_probe},
};
use tokio_util::sync::CancellationToken;

/// The subscription to the worker's channels.
pub(crate) struct ChannelLogger {
    channels: Vec<String>,
    inbox: EventReceiver,
    health: ChannelLoggerHealth,
}

/// Whether they are heard. Clone it freely.
#[derive(Clone)]
pub(crate) struct ChannelLoggerHealth {
    is_subscribed: Arc<AtomicBool>,
    probe: Probe,
}

impl ChannelLoggerHealth {
    /// Why they are not; none if they are.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_subscribed = self.is_subscribed.load(SeqCst);
        if is_subscribed { self.probe.problem() } else { Some("not subscribed at the moment".to_owned()) }
    }
}

impl ChannelLogger {
    /// Subscribes to them until `stop` is cancelled; none if there are none.
    pub(crate) fn start(redis: &Redis, settings: &Settings, stop: CancellationToken) -> Option<Self> {
        let worker = &settings.pubsub_worker;
        let names: Vec<String> = worker.channels.iter().map(ChannelName::to_string).collect();
        if names.is_empty() {
            return None;
        }
        let (channels, heard, probe) =
            subscribe_with_probe(redis, worker.buffer_messages, settings.channels.probe_interval, stop);
        channels.add_all(names.clone());
        Some(Self {
            channels: names,
            inbox: heard,
            health: ChannelLoggerHealth { is_subscribed: Arc::default(), probe },
        })
    }

    pub(crate) fn health(&self) -> ChannelLoggerHealth {
        self.health.clone()
    }

    /// Ends when the subscription has stopped and its last message is handled.
    pub(crate) async fn run(mut self) {
        let (channels, is_subscribed) = (&self.channels, &self.health.is_subscribed);
        let mut lost_before = false;
        while let Some(heard) = self.inbox.recv().await {
            match heard {
                SubscriberEvent::Subscribed(names) if !channels.iter().all(|channel| names.contains(channel)) => {}
                SubscriberEvent::Subscribed(_) => {
                    if lost_before {
                        tracing::info!(?channels, "subscribed again; messages in between were not heard");
                    } else {
                        tracing::info!(?channels, "subscribed");
                    }
                    is_subscribed.store(true, SeqCst);
                }
                SubscriberEvent::ConnectionLost => {
                    tracing::warn!(?channels, "subscription lost, subscribing again");
                    metrics::counter!("galley_subscriptions_lost_total").increment(1);
                    is_subscribed.store(false, SeqCst);
                    lost_before = true;
                }
                SubscriberEvent::Message { ref channel, ref payload } => log_message(channel, payload),
            }
        }
    }
}

fn log_message(channel: &str, payload: &[u8]) {
    metrics::counter!("galley_messages_heard_total", "channel" => channel.to_owned()).increment(1);
    tracing::info!(channel, "Task get {}", common::text::printable(payload));
}
