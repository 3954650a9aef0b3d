//! Tests whether the subscription delivers. A connection may be open, answer commands and still deliver nothing. So
//! the process publishes a number on its own channel, and reconnects if the number does not come back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{StoreError, connection::client::Redis, keys::TopicNames};

/// The result of a probe.
enum ProbeOutcome {
    Received(Duration),
    /// It was not published.
    SendFailed(StoreError),
    NotReceived,
    /// The connection was replaced meanwhile: the next probe decides.
    Superseded,
}

/// Probes a subscription. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Probe(Arc<ProbeInner>);

#[derive(Debug)]
struct ProbeInner {
    topic: String,
    /// The number that was sent last, and whether it came back.
    sent: watch::Sender<(u64, bool)>,
    /// Notified when the channel is subscribed: time for a probe.
    subscribed: Notify,
    problem: Mutex<Option<String>>,
}

impl Probe {
    /// A probe on a channel that is unique to this process.
    pub(super) fn new(names: &TopicNames) -> Self {
        Self(Arc::new(ProbeInner {
            topic: names.probe(&uuid::Uuid::new_v4()),
            sent: watch::Sender::new((0, false)),
            subscribed: Notify::new(),
            problem: Mutex::new(Some("no message of our own has been heard yet".to_owned())),
        }))
    }

    /// Why messages do not arrive; none if they do.
    #[must_use]
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn topic(&self) -> &str {
        &self.0.topic
    }

    /// Handles a message of the channel, before any queue: a full queue elsewhere must not look like silence.
    pub(super) fn receive(&self, payload: &[u8]) {
        // Anybody can publish other numbers
        let heard = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
        self.0.sent.send_if_modified(|(number, is_back)| heard == Some(*number) && !std::mem::replace(is_back, true));
    }

    /// The channel is subscribed.
    pub(super) fn subscribed(&self) {
        self.0.subscribed.notify_one();
    }

    /// Probes regularly until `stop` is cancelled.
    pub(super) async fn run(self, redis: Redis, reconnect: impl Fn() + Send, every: Duration, stop: CancellationToken) {
        // As long as any answer may take
        let limit = redis.response_timeout();
        let mut heard_at = Instant::now();
        for number in 1.. {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.wait_and_send(&redis, number, every, limit) => outcome,
            };
            let trouble = match outcome {
                ProbeOutcome::Received(took) => {
                    metrics::histogram!("galley_probe_seconds").record(took.as_secs_f64());
                    heard_at = Instant::now();
                    self.set_problem(None);
                    continue;
                }
                ProbeOutcome::Superseded if heard_at.elapsed() < every + limit => continue,
                ProbeOutcome::Superseded => "the subscription breaks again and again".to_owned(),
                ProbeOutcome::SendFailed(error) => error.to_string(),
                ProbeOutcome::NotReceived => {
                    metrics::counter!("galley_probes_lost_total").increment(1);
                    reconnect();
                    format!("a message of our own was not heard within {} ms", limit.as_millis())
                }
            };
            self.set_problem(Some(trouble));
        }
    }

    /// Waits for the interval or a new subscription, then sends the number and waits for it.
    async fn wait_and_send(&self, redis: &Redis, number: u64, every: Duration, limit: Duration) -> ProbeOutcome {
        let _ = tokio::time::timeout(every, self.0.subscribed.notified()).await;
        let (sent_at, mut heard) = (Instant::now(), self.0.sent.subscribe());
        self.0.sent.send_replace((number, false));
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(&self.0.topic).arg(number);
        let published = async { publish.exec_async(&mut redis.some_server().await?).await };
        if let Err(error) = published.await {
            return ProbeOutcome::SendFailed(error.into());
        }
        tokio::select! {
            biased;
            Ok(_) = heard.wait_for(|(_, is_back)| *is_back) => ProbeOutcome::Received(sent_at.elapsed()),
            () = self.0.subscribed.notified() => {
                self.subscribed();
                ProbeOutcome::Superseded
            }
            () = tokio::time::sleep(limit) => ProbeOutcome::NotReceived,
        }
    }

    /// Logs the start and the end of a problem once.
    fn set_problem(&self, trouble: Option<String>) {
        let mut known = self.lock();
        match (&*known, &trouble) {
            (None, Some(trouble)) => tracing::warn!(trouble, "messages are not heard"),
            (Some(_), None) => tracing::info!("messages are heard"),
            _ => {}
        }
        *known = trouble;
    }
}
