//! Readers who come back whatever happens, at another gateway if there is one, with what they saw last, and note what they
//! are told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::Notify, time::timeout};

use super::{
    LastPositions,
    cluster::GatewayPool,
    reader_check::{CheckedEvent, CheckedPosition},
    sse::EventStreamClient,
    stream_event::{CheckedStreamEvent, parse_tag},
    ws::WebSocketClient,
};

/// Before it is tried again to find a gateway.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// A gateway gives a sign of life each second: one that does not for so long is given up. So is one where no stream begins.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Odd things about one reader that are noted.
const MAX_FINDINGS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderTransport {
    Sse,
    Ws,
}

/// One of them.
pub(super) struct CheckedReader {
    pub(super) name: String,
    pub(super) channels: Vec<String>,
    transport: ReaderTransport,
    seed: u64,
    disconnect_signal: Notify,
    log: Mutex<ReaderLog>,
}

/// What it has noted.
#[derive(Default)]
pub(super) struct ReaderLog {
    /// Of each channel.
    pub(super) events: Vec<Vec<CheckedEvent>>,
    pub(super) reconnects: u64,
    pub(super) timed_out_connections: u64,
    pub(super) findings: Vec<String>,
    /// What it comes back with: of an event stream one id, of a WebSocket one for each channel.
    last_ids: Vec<Option<String>>,
    is_open: bool,
}

impl CheckedReader {
    pub(super) fn new(transport: ReaderTransport, number: u32, channels: Vec<String>, seed: u64) -> Self {
        let (name, salt) = match transport {
            ReaderTransport::Sse => (format!("event stream {number}"), 0),
            ReaderTransport::Ws => (format!("WebSocket {number}"), 1 << 32),
        };
        let ids = if transport == ReaderTransport::Sse { 1 } else { channels.len() };
        let heard = vec![Vec::new(); channels.len()];
        let log = Mutex::new(ReaderLog { events: heard, last_ids: vec![None; ids], ..ReaderLog::default() });
        Self { name, channels, transport, seed: seed ^ salt ^ u64::from(number), disconnect_signal: Notify::new(), log }
    }

    /// Whether it has begun to read every channel.
    pub(super) fn is_open(&self) -> bool {
        self.log().is_open
    }

    /// Whether it has come to these ends, or beyond.
    pub(super) fn has_reached(&self, ends: &LastPositions) -> bool {
        let log = self.log();
        self.channels.iter().zip(&log.events).all(|(channel, heard)| {
            let newest = heard.iter().rev().find_map(|heard| match heard {
                CheckedEvent::Message(position, _) => Some(*position),
                CheckedEvent::Gap { .. } => None,
            });
            newest >= ends.get(channel).copied()
        })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, ReaderLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks its connection.
    pub(super) fn disconnect(&self) {
        self.disconnect_signal.notify_one();
    }

    /// Reads for ever.
    pub(super) async fn run(self: Arc<Self>, stage: Arc<GatewayPool>) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut last = None;
        loop {
            if let Some(address) = stage.pick(random.random_range(0..1 << 20), last) {
                last = Some(address);
                tokio::select! {
                    () = self.disconnect_signal.notified() => {}
                    ended = self.read_from(address) => drop(ended),
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Reads at one gateway, as long as that goes on. How it ends is of no interest: the reader comes back.
    async fn read_from(&self, address: SocketAddr) -> anyhow::Result<()> {
        let last_ids = self.log().last_ids.clone();
        let mut connection = timeout(IDLE_TIMEOUT, self.connect(address, &last_ids)).await.context("no answer")??;
        if self.log().is_open {
            self.log().reconnects += 1;
        }
        loop {
            let next = async {
                match &mut connection {
                    ReaderConnection::Sse(stream) => stream.next().await,
                    ReaderConnection::Ws(socket) => socket.next(&self.channels).await,
                }
            };
            let Ok(told) = timeout(IDLE_TIMEOUT, next).await else {
                self.log().timed_out_connections += 1;
                return Ok(());
            };
            let told = told?;
            let mut log = self.log();
            if let Err(error) = self.record(&mut log, told)
                && log.findings.len() < MAX_FINDINGS
            {
                log.findings.push(format!("{error:#}"));
            }
        }
    }

    async fn connect(&self, address: SocketAddr, last_ids: &[Option<String>]) -> anyhow::Result<ReaderConnection> {
        Ok(match self.transport {
            ReaderTransport::Sse => ReaderConnection::Sse(
                EventStreamClient::open(address, &self.channels, last_ids.first().cloned().flatten()).await?,
            ),
            ReaderTransport::Ws => {
                ReaderConnection::Ws(Box::new(WebSocketClient::open(address, &self.channels, last_ids).await?))
            }
        })
    }

    fn record(&self, log: &mut ReaderLog, told: CheckedStreamEvent) -> anyhow::Result<()> {
        match told {
            CheckedStreamEvent::Message(message) => {
                let channel = self.channel_index(&message.channel)?;
                let position: CheckedPosition = message.id.parse()?;
                log.events[channel].push(CheckedEvent::Message(position, parse_tag(&message.channel, &message.data)?));
                let id = match self.transport {
                    ReaderTransport::Sse => {
                        let id = message.stream_id.context("a message without an id")?;
                        ensure!(self.channels.len() > 1 || id == message.id, "message {} has id {id}", message.id);
                        id
                    }
                    ReaderTransport::Ws => message.id,
                };
                let slot = if self.transport == ReaderTransport::Sse { 0 } else { channel };
                log.last_ids[slot] = Some(id);
            }
            CheckedStreamEvent::Gap(gap) => {
                let channel = self.channel_index(&gap.channel)?;
                let to = gap.to.as_deref().map(str::parse).transpose()?;
                log.events[channel].push(CheckedEvent::Gap { from: gap.from.parse()?, to });
            }
            CheckedStreamEvent::Subscribed { channel, id } => {
                // Where it goes on by what the gateway says: a browser takes that for its last id
                log.last_ids[channel] = Some(id);
                log.is_open = log.last_ids.iter().all(Option::is_some);
            }
            CheckedStreamEvent::KeepAlive => {}
        }
        Ok(())
    }

    fn channel_index(&self, channel: &str) -> anyhow::Result<usize> {
        let index = self.channels.iter().position(|one| one == channel);
        index.with_context(|| format!("it received {channel}, which it does not read"))
    }
}

enum ReaderConnection {
    Sse(EventStreamClient),
    Ws(Box<WebSocketClient>),
}
