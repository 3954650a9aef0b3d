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
    CATCH_UP, Ends,
    readers::body_of,
    stage::Stage,
    verdict::{Answer, Mark, Position},
};
use testkit::http::Connection;

/// Publishers at most; each publishes so many messages a second.
const MOST: u32 = 64;
const RATE_OF_ONE: u32 = 50;
/// Longest wait for an answer: longer than a gateway waits for Redis.
const ANSWER: Duration = Duration::from_secs(10);
/// Before it is tried again to find a gateway.
const PAUSE: Duration = Duration::from_millis(50);
/// Who publishes the last messages.
const LAST: u32 = u32::MAX;

/// A message that was sent.
pub(super) struct Publication {
    pub(super) channel: usize,
    pub(super) mark: Mark,
    pub(super) answer: Answer,
}

pub(super) struct Publisher {
    number: u32,
    channels: Vec<String>,
    every: Duration,
    random: StdRng,
    connection: Option<(SocketAddr, Connection)>,
    left: Option<SocketAddr>,
}

impl Publisher {
    pub(super) fn all(rate: u32, channels: &[String], seed: u64) -> Vec<Self> {
        let count = rate.div_ceil(RATE_OF_ONE).min(MOST);
        let every = Duration::from_secs(1) * count / rate;
        (0..count).map(|number| Self::new(number, channels, every, seed ^ (u64::from(number) << 40))).collect()
    }

    fn new(number: u32, channels: &[String], every: Duration, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { number, channels: channels.to_vec(), every, random, connection: None, left: None }
    }

    /// Publishes until it is over, in one channel after the other; what was sent.
    pub(super) async fn publish_until(mut self, is_over: Arc<AtomicBool>, stage: Arc<Stage>) -> Vec<Publication> {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = Vec::new();
        while !is_over.load(Relaxed) {
            ticks.tick().await;
            let channel = (self.number as usize + sent.len()) % self.channels.len();
            let mark = Mark { publisher: self.number, number: sent.len() as u64 };
            match self.publish(&stage, channel, mark).await {
                Some(answer) => sent.push(Publication { channel, mark, answer }),
                None => sleep(PAUSE).await,
            }
        }
        sent
    }

    /// Nothing if it was not sent.
    async fn publish(&mut self, stage: &Stage, channel: usize, mark: Mark) -> Option<Answer> {
        let (address, mut connection) = if let Some(open) = self.connection.take() {
            open
        } else {
            let address = stage.pick(self.random.random_range(0..1 << 20), self.left)?;
            (address, Connection::open(address).await.ok()?)
        };
        let channel = &self.channels[channel];
        let body = body_of(channel, mark);
        let request = format!(
            "POST /v1/channels/{channel}/messages HTTP/1.1\r\nhost: galley\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let Ok(Ok((status, answer))) = timeout(ANSWER, connection.send(&request)).await else {
            self.left = Some(address);
            return Some(Answer::Unknown);
        };
        self.connection = Some((address, connection));
        let position = position(&answer).ok().filter(|_| status == 201);
        Some(position.map_or(Answer::Unknown, Answer::Acknowledged))
    }
}

fn position(answer: &str) -> anyhow::Result<Position> {
    #[derive(Deserialize)]
    struct Published {
        id: String,
    }
    serde_json::from_str::<Published>(answer)?.id.parse()
}

/// Publishes one more message in each channel, until each is acknowledged; where they are.
pub(super) async fn publish_ends(
    channels: &[String],
    stage: &Stage,
    publications: &mut Vec<Publication>,
) -> anyhow::Result<Ends> {
    let mut publisher = Publisher::new(LAST, channels, Duration::ZERO, 0);
    let (mut ends, deadline) = (Ends::new(), Instant::now() + CATCH_UP);
    for (channel, name) in channels.iter().enumerate() {
        loop {
            ensure!(Instant::now() < deadline, "no gateway takes messages again");
            let mark = Mark { publisher: LAST, number: publications.len() as u64 };
            let Some(answer) = publisher.publish(stage, channel, mark).await else {
                sleep(PAUSE).await;
                continue;
            };
            publications.push(Publication { channel, mark, answer });
            if let Answer::Acknowledged(position) = answer {
                ends.insert(name.clone(), position);
                break;
            }
        }
    }
    Ok(ends)
}
