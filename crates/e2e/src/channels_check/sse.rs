//! An event stream as a program reads it that knows what it sends and nothing more.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::stream_event::{CheckedMessage, CheckedStreamEvent};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest chunk of an answer.
const MAX_CHUNK_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) struct EventStreamClient {
    stream: BufReader<TcpStream>,
    line: String,
    /// What came and was not looked at, from `taken` on.
    buffer: Vec<u8>,
    consumed: usize,
}

impl EventStreamClient {
    /// Opens a stream of these channels, behind the id that was seen last.
    pub(super) async fn open(address: SocketAddr, channels: &[String], last: Option<String>) -> anyhow::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        let stream = BufReader::with_capacity(BUFFER_BYTES, stream);
        let mut events = Self { stream, line: String::new(), buffer: Vec::new(), consumed: 0 };
        let path = match channels {
            [channel] => format!("/v1/channels/{channel}/stream"),
            several => format!("/v1/stream?channel={}", several.join("&channel=")),
        };
        let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: galley\r\n{last}\r\n");
        events.stream.write_all(request.as_bytes()).await?;
        let status = events.read_line().await?.to_owned();
        ensure!(status.starts_with("HTTP/1.1 200"), "answered with {status}");
        while !events.read_line().await?.is_empty() {}
        Ok(events)
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> anyhow::Result<CheckedStreamEvent> {
        loop {
            let rest = &self.buffer[self.consumed..];
            if let Some(length) = rest.windows(2).position(|pair| pair == b"\n\n") {
                let block = std::str::from_utf8(&rest[..length])?;
                let told = parse_block(block).with_context(|| format!("in {block:?}"));
                self.consumed += length + 2;
                return told;
            }
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            self.read_chunk().await?;
        }
    }

    async fn read_chunk(&mut self) -> anyhow::Result<()> {
        let length = usize::from_str_radix(self.read_line().await?, 16)?;
        ensure!(length <= MAX_CHUNK_BYTES, "a chunk of {length} bytes");
        if length == 0 {
            bail!("the stream has ended");
        }
        let begin = self.buffer.len();
        self.buffer.resize(begin + length, 0);
        self.stream.read_exact(&mut self.buffer[begin..]).await?;
        ensure!(self.read_line().await?.is_empty(), "a chunk does not end where it should");
        Ok(())
    }

    async fn read_line(&mut self) -> anyhow::Result<&str> {
        self.line.clear();
        ensure!(self.stream.read_line(&mut self.line).await? > 0, "the connection was closed");
        Ok(self.line.trim_end())
    }
}

fn parse_block(block: &str) -> anyhow::Result<CheckedStreamEvent> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let id = field("id: ").map(ToOwned::to_owned);
    Ok(match (field("event: "), field("data: "), id) {
        (Some("message"), Some(data), id) => {
            let mut message: CheckedMessage = serde_json::from_str(data)?;
            message.stream_id = id;
            CheckedStreamEvent::Message(message)
        }
        (Some("gap"), Some(data), _) => CheckedStreamEvent::Gap(serde_json::from_str(data)?),
        (Some("begin"), Some(_), Some(id)) => CheckedStreamEvent::Subscribed { channel: 0, id },
        (Some(other), ..) => bail!("an event {other}"),
        _ => CheckedStreamEvent::KeepAlive,
    })
}
