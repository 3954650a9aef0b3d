//! Where a load goes, and how: over plain connections, over TLS, or as streams of HTTP/2.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use testkit::TestAuthority;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::http::HttpConnection;

/// How many streams of one connection have a request under way at a time.
pub(crate) const STREAMS_PER_CONNECTION: usize = 8;

/// Where requests are sent.
#[derive(Clone)]
pub(crate) enum LoadTarget {
    /// HTTP/1.1 without TLS.
    Plain(SocketAddr),
    /// HTTP/1.1 with TLS.
    Tls(SocketAddr, Arc<TestAuthority>),
    /// HTTP/2, which has TLS. Its connections carry [`STREAMS_PER_CONNECTION`] requests each.
    Http2(SocketAddr, Arc<TestAuthority>),
}

impl From<SocketAddr> for LoadTarget {
    fn from(address: SocketAddr) -> Self {
        Self::Plain(address)
    }
}

impl LoadTarget {
    /// Opens what that many requests at a time need. All stay open.
    pub(crate) async fn open(&self, requests: u32) -> anyhow::Result<Vec<LoadConnection>> {
        let mut opened: Vec<LoadConnection> = Vec::new();
        for number in 0..requests as usize {
            opened.push(match (self, opened.last()) {
                (Self::Http2(..), Some(LoadConnection::Http2(client)))
                    if !number.is_multiple_of(STREAMS_PER_CONNECTION) =>
                {
                    LoadConnection::Http2(client.clone())
                }
                (Self::Http2(address, authority), _) => {
                    let (client, connection) = h2::client::handshake(connect(authority, *address, "h2").await?).await?;
                    tokio::spawn(connection);
                    LoadConnection::Http2(client)
                }
                (Self::Tls(address, authority), _) => {
                    let stream = connect(authority, *address, "http/1.1").await?;
                    LoadConnection::Tls(Box::new(HttpConnection::over(stream)))
                }
                (Self::Plain(address), _) => LoadConnection::Plain(HttpConnection::open(*address).await?),
            });
        }
        Ok(opened)
    }
}

async fn connect(
    authority: &TestAuthority,
    address: SocketAddr,
    protocol: &str,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream =
        authority.connect(address, "localhost", &[protocol]).await.context("the gateway takes no connection")?;
    stream.get_ref().0.set_nodelay(true)?;
    Ok(stream)
}

/// Carries one request at a time.
pub(crate) enum LoadConnection {
    Plain(HttpConnection),
    Tls(Box<HttpConnection<TlsStream<TcpStream>>>),
    Http2(SendRequest<Bytes>),
}

impl LoadConnection {
    /// Sends a request as HTTP/1.1 has it; the status and the body of the answer.
    pub(crate) async fn send(&mut self, request: &str) -> anyhow::Result<(u16, String)> {
        match self {
            Self::Plain(connection) => connection.send(request).await,
            Self::Tls(connection) => connection.send(request).await,
            Self::Http2(client) => send_http2(client, request).await,
        }
    }
}

async fn send_http2(client: &mut SendRequest<Bytes>, request: &str) -> anyhow::Result<(u16, String)> {
    let (head, body) = parse_request(request)?;
    futures_util::future::poll_fn(|cx| client.poll_ready(cx)).await?;
    let (answer, mut sending) = client.send_request(head, false)?;
    sending.send_data(body, true)?;
    let (head, mut body) = answer.await?.into_parts();
    let mut text = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        text.extend_from_slice(&part);
    }
    Ok((head.status.as_u16(), String::from_utf8(text)?))
}

/// The same request without what HTTP/2 does not have.
fn parse_request(request: &str) -> anyhow::Result<(::http::Request<()>, Bytes)> {
    let (head, body) = request.split_once("\r\n\r\n").context("a head")?;
    let mut lines = head.split("\r\n");
    let [method, path, _] = lines.next().unwrap_or_default().split(' ').collect::<Vec<_>>()[..] else {
        bail!("a request has a method, a path and a version")
    };
    let mut parsed = ::http::Request::builder().method(method).uri(format!("https://localhost{path}"));
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if !matches!(name, "host" | "content-length") {
            parsed = parsed.header(name, value);
        }
    }
    Ok((parsed.body(())?, Bytes::copy_from_slice(body.as_bytes())))
}
