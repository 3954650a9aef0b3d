//! Servers that send what is published to everybody who listens: Galley, and the peers that do the same.

use std::{collections::VecDeque, net::SocketAddr};

use anyhow::{Context, ensure};
use testkit::{
    RedisServer,
    http::HttpConnection,
    redis::{AsyncCommands, aio::MultiplexedConnection},
};
use tokio::task::JoinHandle;

use super::{
    peer_server::{NchanServer, NodeServer, check_installed},
    readers::HandshakeStep,
};
use crate::{
    bare_server::BareServer,
    galley::{BenchDurability, BenchGalley},
    machine::process_tree,
};

/// The channel.
pub(super) const CHANNEL: &str = "news";
/// Where it is published with Galley.
pub(crate) const GALLEY_PATH: &str = "/v1/channels/news/messages";

/// Connections that publish over HTTP: as many messages are on their way as with Redis.
const PUBLISHING_CONNECTIONS: usize = 8;

/// Which of them, and how its readers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BenchServerKind {
    EventStream,
    WebSocket,
    BareStream,
    NodeWs,
    SocketIo,
    Nchan,
}

impl BenchServerKind {
    pub(super) const ALL: [Self; 6] =
        [Self::EventStream, Self::WebSocket, Self::BareStream, Self::NodeWs, Self::SocketIo, Self::Nchan];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::EventStream => "event streams",
            Self::WebSocket => "WebSockets",
            Self::BareStream => "bare actix streams",
            Self::NodeWs => "Node ws",
            Self::SocketIo => "socket.io",
            Self::Nchan => "nchan",
        }
    }

    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::NodeWs | Self::SocketIo | Self::Nchan)
    }

    /// Whether it can be started; the reason if it cannot.
    pub(super) fn check_installed(self) -> Result<(), String> {
        if self.is_peer() { check_installed(self == Self::Nchan) } else { Ok(()) }
    }

    /// How a client begins.
    pub(crate) fn handshake_steps(self) -> Vec<HandshakeStep> {
        let end: &[u8] = b"\r\n\r\n";
        match self {
            Self::EventStream => {
                let request = format!("GET /v1/channels/{CHANNEL}/stream HTTP/1.1\r\nhost: galley\r\n\r\n");
                vec![(request.into_bytes(), b"\nid: ")]
            }
            Self::WebSocket => {
                let frame = format!(r#"{{"type":"subscribe","channel":"{CHANNEL}"}}"#);
                vec![(upgrade_request("/v1/ws"), end), (text_frame(&frame), b"subscribed")]
            }
            Self::Nchan => {
                let request = "GET /sub HTTP/1.1\r\nhost: nchan\r\naccept: text/event-stream\r\n\r\n";
                vec![(request.as_bytes().to_vec(), end)]
            }
            Self::BareStream => vec![(b"GET /stream HTTP/1.1\r\nhost: bare\r\n\r\n".to_vec(), b": hi")],
            Self::NodeWs => vec![(upgrade_request("/"), end)],
            // Engine.IO's handshake is `0{...}`, then Socket.IO's connection to the main namespace is `40`
            Self::SocketIo => {
                vec![
                    (upgrade_request("/socket.io/?EIO=4&transport=websocket"), b"0{\"sid\""),
                    (text_frame("40"), b"40{"),
                ]
            }
        }
    }
}

fn upgrade_request(path: &str) -> Vec<u8> {
    let fixed = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13";
    // Anything of sixteen bytes in base64
    let key = "MDEyMzQ1Njc4OWFiY2RlZg==";
    format!("GET {path} HTTP/1.1\r\nhost: galley\r\n{fixed}\r\nsec-websocket-key: {key}\r\n\r\n").into_bytes()
}

/// A short text in one frame, masked with zeros: clients have to mask.
fn text_frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).unwrap_or_default();
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// One that runs.
pub(super) struct BenchServer {
    pub(super) address: SocketAddr,
    pub(super) processes: Vec<u32>,
    pub(super) publisher: BenchPublisher,
    _running: BenchServerProcess,
}

#[expect(dead_code, reason = "they run as long as they are held")]
enum BenchServerProcess {
    Galley(Box<BenchGalley>),
    Node(Box<(NodeServer, RedisServer)>),
    Bare(Box<(BareServer, RedisServer)>),
    Nchan(Box<NchanServer>),
}

impl BenchServer {
    pub(super) async fn start(kind: BenchServerKind, durability: BenchDurability) -> anyhow::Result<Self> {
        if kind == BenchServerKind::BareStream {
            let redis = RedisServer::start_with(durability.persistence());
            let server = BareServer::start(&redis.url(), Some(CHANNEL)).await?;
            let publisher = BenchPublisher::Redis(redis.connection().await);
            let (address, processes) = (server.address, vec![server.process_id()?]);
            return Ok(Self {
                address,
                processes,
                publisher,
                _running: BenchServerProcess::Bare(Box::new((server, redis))),
            });
        }
        if !kind.is_peer() {
            let galley = BenchGalley::start_with(durability, &[("GALLEY__CHANNELS__MAX_READERS", "100000")]).await;
            let (address, processes) = (galley.gateway.address(), vec![galley.gateway.process_id()]);
            let publisher = BenchPublisher::http(address, GALLEY_PATH).await?;
            return Ok(Self { address, processes, publisher, _running: BenchServerProcess::Galley(Box::new(galley)) });
        }
        if kind == BenchServerKind::Nchan {
            let server = NchanServer::start().await?;
            let processes = process_tree(server.process_id().context("it has ended")?);
            let address = server.address;
            let publisher = BenchPublisher::http(address, "/pub").await?;
            return Ok(Self { address, processes, publisher, _running: BenchServerProcess::Nchan(Box::new(server)) });
        }
        let redis = RedisServer::start_with(durability.persistence());
        let script = if kind == BenchServerKind::NodeWs { "ws.mjs" } else { "socket-io.mjs" };
        let peer = NodeServer::start(script, &redis.url()).await.with_context(|| kind.name())?;
        let publisher = BenchPublisher::Redis(redis.connection().await);
        let (address, processes) = (peer.address, vec![peer.process_id().context("it has ended")?]);
        Ok(Self { address, processes, publisher, _running: BenchServerProcess::Node(Box::new((peer, redis))) })
    }
}

/// How messages get there: over HTTP to this path of Galley or nchan, with `PUBLISH` to Redis otherwise.
pub(crate) enum BenchPublisher {
    /// Its connections, the next one first: a message need not wait for the answer to the one before.
    Http(VecDeque<HttpPublisher>, &'static str),
    Redis(MultiplexedConnection),
}

/// A connection, and the message that it is publishing.
pub(crate) enum HttpPublisher {
    Idle(Box<HttpConnection>),
    Publishing(JoinHandle<anyhow::Result<HttpConnection>>),
}

impl BenchPublisher {
    pub(crate) async fn http(address: SocketAddr, path: &'static str) -> anyhow::Result<Self> {
        let mut connections = VecDeque::new();
        for _ in 0..PUBLISHING_CONNECTIONS {
            connections.push_back(HttpPublisher::Idle(Box::new(HttpConnection::open(address).await?)));
        }
        Ok(Self::Http(connections, path))
    }

    /// Publishes a message. Over HTTP it may be on its way when this returns; an error of an earlier one is returned too.
    pub(crate) async fn publish(&mut self, body: &str) -> anyhow::Result<()> {
        match self {
            Self::Http(connections, path) => {
                let mut connection = match connections.pop_front().context("a connection")? {
                    HttpPublisher::Idle(connection) => *connection,
                    HttpPublisher::Publishing(publishing) => publishing.await??,
                };
                // Text, as peers get it: without a content type
                let request =
                    format!("POST {path} HTTP/1.1\r\nhost: galley\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                connections.push_back(HttpPublisher::Publishing(tokio::spawn(async move {
                    let (status, answer) = connection.send(&request).await?;
                    ensure!((200..300).contains(&status), "publishing was answered with {status}: {answer}");
                    Ok(connection)
                })));
            }
            Self::Redis(redis) => redis.publish::<_, _, ()>(CHANNEL, body).await?,
        }
        Ok(())
    }
}
