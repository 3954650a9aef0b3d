//! Logs the messages of the configured channels: every replica logs every message, in the log
//! format of the original demo.
//!
//! Pub/sub drops messages while a subscriber is disconnected, so this log has gaps. Every gap is logged, counted and
//! shown in readiness; so is an open connection that delivers nothing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use common::{name::ChannelName, settings::Settings};
use store::connection::notifier::{EventReceiver, Notifier, SubscriberEvent};
use tokio_util::sync::CancellationToken;

/// The subscription to the configured channels.
pub(crate) struct ChannelLogger {
    channels: Vec<String>,
    inbox: EventReceiver,
    health: ChannelLoggerHealth,
}

/// Whether the subscription delivers messages. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ChannelLoggerHealth {
    is_subscribed: Arc<AtomicBool>,
    notifier: Notifier,
}

impl ChannelLoggerHealth {
    /// Why the channels are not received; none if they are.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_subscribed = self.is_subscribed.load(SeqCst);
        if is_subscribed { self.notifier.problem() } else { Some("not subscribed at the moment".to_owned()) }
    }
}

impl ChannelLogger {
    /// Subscribes to the configured channels; none if there are none.
    pub(crate) fn start(notifier: &Notifier, settings: &Settings) -> Option<Self> {
        let worker = &settings.pubsub_worker;
        let names: Vec<String> = worker.channels.iter().map(ChannelName::to_string).collect();
        if names.is_empty() {
            return None;
        }
        let (topics, inbox) = notifier.subscribe(worker.buffer_messages);
        topics.add_all(names.clone());
        Some(Self {
            channels: names,
            inbox,
            health: ChannelLoggerHealth { is_subscribed: Arc::default(), notifier: notifier.clone() },
        })
    }

    pub(crate) fn health(&self) -> ChannelLoggerHealth {
        self.health.clone()
    }

    /// Logs messages until `stop` is cancelled, then those already received.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut lost_before = false;
        while let Some(Some(event)) = stop.run_until_cancelled(self.inbox.recv()).await {
            self.handle(event, &mut lost_before);
        }
        while let Some(event) = self.inbox.try_recv() {
            self.handle(event, &mut lost_before);
        }
    }

    fn handle(&self, event: SubscriberEvent, lost_before: &mut bool) {
        let (channels, is_subscribed) = (&self.channels, &self.health.is_subscribed);
        match event {
            SubscriberEvent::Subscribed(names) if !channels.iter().all(|channel| names.contains(channel)) => {}
            SubscriberEvent::Subscribed(_) => {
                if *lost_before {
                    let event = "channel.resubscribed";
                    tracing::info!(
                        event,
                        ?channels,
                        "subscribed again; messages published in between are missing here"
                    );
                } else {
                    tracing::info!(event = "channel.subscribed", ?channels, "subscribed");
                }
                is_subscribed.store(true, SeqCst);
            }
            SubscriberEvent::ConnectionLost => {
                tracing::warn!(event = "channel.subscription_lost", ?channels, "subscription lost, subscribing again");
                metrics::counter!("galley_subscriptions_lost_total").increment(1);
                is_subscribed.store(false, SeqCst);
                *lost_before = true;
            }
            SubscriberEvent::Message { channel, payload } => log_message(&channel, &payload),
        }
    }
}

fn log_message(channel: &str, payload: &[u8]) {
    metrics::counter!("galley_messages_heard_total", "channel" => channel.to_owned()).increment(1);
    tracing::info!(channel, "Task get {}", common::text::printable(payload));
}
