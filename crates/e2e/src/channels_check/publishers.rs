//! Publishers over HTTP, each with one message on its way at a time. Nothing is sent twice: what was not answered stays
//! unknown, and the next message has the next number.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{
    CATCH_UP_TIMEOUT, LastPositions,
    cluster::GatewayPool,
    reader_check::{CheckedPosition, CheckedPublishOutcome, MessageTag},
    stream_event::message_body,
};
use testkit::http::HttpConnection;

/// Publishers at most; each publishes that many messages a second.
const MAX_PUBLISHERS: u32 = 64;
const RATE_PER_PUBLISHER: u32 = 50;
/// Longest wait for an answer: longer than a gateway waits for Redis.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Before it is tried again to find a gateway.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Who publishes the last messages.
const FINAL_PUBLISHER: u32 = u32::MAX;

/// A message that was sent.
pub(super) struct CheckedPublication {
    pub(super) channel: usize,
    pub(super) tag: MessageTag,
    pub(super) outcome: CheckedPublishOutcome,
}

pub(super) struct CheckedPublisher {
    number: u32,
    channels: Vec<String>,
    publish_interval: Duration,
    random: StdRng,
    connection: Option<(SocketAddr, HttpConnection)>,
    previous_gateway: Option<SocketAddr>,
}

impl CheckedPublisher {
    pub(super) fn build_all(rate: u32, channels: &[String], seed: u64) -> Vec<Self> {
        let count = rate.div_ceil(RATE_PER_PUBLISHER).min(MAX_PUBLISHERS);
        let every = Duration::from_secs(1) * count / rate;
        (0..count).map(|number| Self::new(number, channels, every, seed ^ (u64::from(number) << 40))).collect()
    }

    fn new(number: u32, channels: &[String], publish_interval: Duration, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { number, channels: channels.to_vec(), publish_interval, random, connection: None, previous_gateway: None }
    }

    /// Publishes until it is over, in one channel after the other; what was sent.
    pub(super) async fn publish_until(
        mut self,
        is_over: Arc<AtomicBool>,
        stage: Arc<GatewayPool>,
    ) -> Vec<CheckedPublication> {
        let mut ticks = interval(self.publish_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = Vec::new();
        while !is_over.load(Relaxed) {
            ticks.tick().await;
            let channel = (self.number as usize + sent.len()) % self.channels.len();
            let mark = MessageTag { publisher: self.number, number: sent.len() as u64 };
            match self.publish(&stage, channel, mark).await {
                Some(answer) => sent.push(CheckedPublication { channel, tag: mark, outcome: answer }),
                None => sleep(RETRY_DELAY).await,
            }
        }
        sent
    }

    /// Nothing if it was not sent.
    async fn publish(
        &mut self,
        stage: &GatewayPool,
        channel: usize,
        mark: MessageTag,
    ) -> Option<CheckedPublishOutcome> {
        let (address, mut connection) = if let Some(open) = self.connection.take() {
            open
        } else {
            let address = stage.pick(self.random.random_range(0..1 << 20), self.previous_gateway)?;
            (address, HttpConnection::open(address).await.ok()?)
        };
        let channel = &self.channels[channel];
        let body = message_body(channel, mark);
        let request = format!(
            "POST /v1/channels/{channel}/messages HTTP/1.1\r\nhost: galley\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let Ok(Ok((status, answer))) = timeout(RESPONSE_TIMEOUT, connection.send(&request)).await else {
            self.previous_gateway = Some(address);
            return Some(CheckedPublishOutcome::Unknown);
        };
        self.connection = Some((address, connection));
        let position = parse_position(&answer).ok().filter(|_| status == 201);
        Some(position.map_or(CheckedPublishOutcome::Unknown, CheckedPublishOutcome::Acknowledged))
    }
}

fn parse_position(answer: &str) -> anyhow::Result<CheckedPosition> {
    #[derive(Deserialize)]
    struct CheckedPublishResponse {
        id: String,
    }
    serde_json::from_str::<CheckedPublishResponse>(answer)?.id.parse()
}

/// Publishes one more message in each channel, until each is acknowledged; where they are.
pub(super) async fn publish_final_messages(
    channels: &[String],
    stage: &GatewayPool,
    publications: &mut Vec<CheckedPublication>,
) -> anyhow::Result<LastPositions> {
    let mut publisher = CheckedPublisher::new(FINAL_PUBLISHER, channels, Duration::ZERO, 0);
    let (mut ends, deadline) = (LastPositions::new(), Instant::now() + CATCH_UP_TIMEOUT);
    for (channel, name) in channels.iter().enumerate() {
        loop {
            ensure!(Instant::now() < deadline, "no gateway takes messages again");
            let mark = MessageTag { publisher: FINAL_PUBLISHER, number: publications.len() as u64 };
            let Some(answer) = publisher.publish(stage, channel, mark).await else {
                sleep(RETRY_DELAY).await;
                continue;
            };
            publications.push(CheckedPublication { channel, tag: mark, outcome: answer });
            if let CheckedPublishOutcome::Acknowledged(position) = answer {
                ends.insert(name.clone(), position);
                break;
            }
        }
    }
    Ok(ends)
}
