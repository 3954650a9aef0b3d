//! Readers who come back whatever happens, at another gateway if there is one, with what they saw last, and note what they
//! are told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokio::{sync::Notify, time::timeout};

use super::{
    Ends,
    sse::EventStream,
    stage::Stage,
    verdict::{Heard, Mark, Position},
    ws::Socket,
};

/// Before it is tried again to find a gateway.
const PAUSE: Duration = Duration::from_millis(50);
/// A gateway gives a sign of life each second: one that does not for so long is given up. So is one where no stream begins.
const SILENCE: Duration = Duration::from_secs(15);
/// Odd things about one reader that are noted.
const MOST_FINDINGS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sse,
    Ws,
}

/// One of them.
pub(super) struct Reader {
    pub(super) name: String,
    pub(super) channels: Vec<String>,
    kind: Kind,
    seed: u64,
    cut: Notify,
    log: Mutex<Log>,
}

/// What it has noted.
#[derive(Default)]
pub(super) struct Log {
    /// Of each channel.
    pub(super) heard: Vec<Vec<Heard>>,
    pub(super) resumes: u64,
    pub(super) silent: u64,
    pub(super) findings: Vec<String>,
    /// What it comes back with: of an event stream one id, of a WebSocket one for each channel.
    last_ids: Vec<Option<String>>,
    is_open: bool,
}

/// Something that came.
pub(super) enum Told {
    Message(Message),
    Gap(Gap),
    /// The position from which a channel is read: the same as the id of a stream that begins.
    Begins {
        channel: usize,
        id: String,
    },
    SignOfLife,
}

/// A message as gateways show it.
#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) id: String,
    channel: String,
    data: String,
    /// The id that an event stream comes back with.
    #[serde(skip)]
    pub(super) stream_id: Option<String>,
}

/// A gap as gateways show it.
#[derive(Deserialize)]
pub(super) struct Gap {
    channel: String,
    from: String,
    to: Option<String>,
}

impl Reader {
    pub(super) fn new(kind: Kind, number: u32, channels: Vec<String>, seed: u64) -> Self {
        let (name, salt) = match kind {
            Kind::Sse => (format!("event stream {number}"), 0),
            Kind::Ws => (format!("WebSocket {number}"), 1 << 32),
        };
        let ids = if kind == Kind::Sse { 1 } else { channels.len() };
        let heard = vec![Vec::new(); channels.len()];
        let log = Mutex::new(Log { heard, last_ids: vec![None; ids], ..Log::default() });
        Self { name, channels, kind, seed: seed ^ salt ^ u64::from(number), cut: Notify::new(), log }
    }

    /// Whether it has begun to read every channel.
    pub(super) fn is_open(&self) -> bool {
        self.log().is_open
    }

    /// Whether it has come to these ends, or beyond.
    pub(super) fn has(&self, ends: &Ends) -> bool {
        let log = self.log();
        self.channels.iter().zip(&log.heard).all(|(channel, heard)| {
            let newest = heard.iter().rev().find_map(|heard| match heard {
                Heard::Message(position, _) => Some(*position),
                Heard::Gap { .. } => None,
            });
            newest >= ends.get(channel).copied()
        })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks its connection.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Reads for ever.
    pub(super) async fn read(self: Arc<Self>, stage: Arc<Stage>) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut last = None;
        loop {
            if let Some(address) = stage.pick(random.random_range(0..1 << 20), last) {
                last = Some(address);
                tokio::select! {
                    () = self.cut.notified() => {}
                    ended = self.read_at(address) => drop(ended),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads at one gateway, as long as that goes on. How it ends is of no interest: the reader comes back.
    async fn read_at(&self, address: SocketAddr) -> anyhow::Result<()> {
        let last_ids = self.log().last_ids.clone();
        let mut connection = timeout(SILENCE, self.open(address, &last_ids)).await.context("no answer")??;
        if self.log().is_open {
            self.log().resumes += 1;
        }
        loop {
            let next = async {
                match &mut connection {
                    Connected::Sse(stream) => stream.next().await,
                    Connected::Ws(socket) => socket.next(&self.channels).await,
                }
            };
            let Ok(told) = timeout(SILENCE, next).await else {
                self.log().silent += 1;
                return Ok(());
            };
            let told = told?;
            let mut log = self.log();
            if let Err(error) = self.note(&mut log, told)
                && log.findings.len() < MOST_FINDINGS
            {
                log.findings.push(format!("{error:#}"));
            }
        }
    }

    async fn open(&self, address: SocketAddr, last_ids: &[Option<String>]) -> anyhow::Result<Connected> {
        Ok(match self.kind {
            Kind::Sse => {
                Connected::Sse(EventStream::open(address, &self.channels, last_ids.first().cloned().flatten()).await?)
            }
            Kind::Ws => Connected::Ws(Box::new(Socket::open(address, &self.channels, last_ids).await?)),
        })
    }

    fn note(&self, log: &mut Log, told: Told) -> anyhow::Result<()> {
        match told {
            Told::Message(message) => {
                let channel = self.index_of(&message.channel)?;
                let position: Position = message.id.parse()?;
                log.heard[channel].push(Heard::Message(position, mark_of(&message.channel, &message.data)?));
                let id = match self.kind {
                    Kind::Sse => {
                        let id = message.stream_id.context("a message without an id")?;
                        ensure!(self.channels.len() > 1 || id == message.id, "message {} has id {id}", message.id);
                        id
                    }
                    Kind::Ws => message.id,
                };
                let slot = if self.kind == Kind::Sse { 0 } else { channel };
                log.last_ids[slot] = Some(id);
            }
            Told::Gap(gap) => {
                let channel = self.index_of(&gap.channel)?;
                let to = gap.to.as_deref().map(str::parse).transpose()?;
                log.heard[channel].push(Heard::Gap { from: gap.from.parse()?, to });
            }
            Told::Begins { channel, id } => {
                // Where it goes on by what the gateway says: a browser takes that for its last id
                log.last_ids[channel] = Some(id);
                log.is_open = log.last_ids.iter().all(Option::is_some);
            }
            Told::SignOfLife => {}
        }
        Ok(())
    }

    fn index_of(&self, channel: &str) -> anyhow::Result<usize> {
        let index = self.channels.iter().position(|one| one == channel);
        index.with_context(|| format!("it was told of {channel}, which it does not read"))
    }
}

enum Connected {
    Sse(EventStream),
    Ws(Box<Socket>),
}

/// The body of a message.
pub(super) fn body_of(channel: &str, mark: Mark) -> String {
    format!("{channel} {} {}", mark.publisher, mark.number)
}

/// Who published it, of what a message of that channel has as its body.
pub(super) fn mark_of(channel: &str, body: &str) -> anyhow::Result<Mark> {
    let mut parts = body.split(' ');
    let (of, publisher, number) = (parts.next(), parts.next(), parts.next());
    ensure!(of == Some(channel), "{body:?} is in {channel}");
    let number = number.with_context(|| format!("{body:?} is no message of this run"))?;
    Ok(Mark { publisher: publisher.context("a publisher")?.parse()?, number: number.parse()? })
}
