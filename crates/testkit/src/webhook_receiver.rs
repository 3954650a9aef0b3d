//! A receiver of pushes that answers what a test wants, byte for byte, and remembers who came.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

/// What the receiver does with a request.
#[derive(Debug, Clone)]
pub enum WebhookReply {
    /// Sends these bytes.
    Raw(Vec<u8>),
    /// Sends these bytes, then closes the connection.
    Cut(Vec<u8>),
    /// Sends these bytes once a permit is there.
    Gated(Arc<Semaphore>, Vec<u8>),
    /// Sends everything that it was sent, the last line first, as the body of a 500.
    Echo,
    /// Nothing, for as long as the connection is there.
    Hang,
    /// A head, then bytes without end, as fast as they are taken.
    Endless(&'static str),
    /// A head, then a byte now and then without end.
    Trickle(&'static str),
    /// Closes the connection.
    Close,
}

impl WebhookReply {
    /// An answer of that status; header lines end with `\r\n`.
    #[must_use]
    pub fn new(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::Raw(format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes())
    }

    /// A success with JSON.
    #[must_use]
    pub fn ok(body: &str) -> Self {
        Self::new(200, "content-type: application/json\r\n", body)
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// Request line and headers.
    pub head: String,
    /// The bytes behind them.
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

#[derive(Debug, Default)]
struct WebhookReceiverState {
    connections: usize,
    closed_connections: usize,
    requests: Vec<ReceivedRequest>,
    in_flight: usize,
    max_in_flight: usize,
    replies: VecDeque<WebhookReply>,
}

/// A receiver on a port of its own.
#[derive(Debug, Clone)]
pub struct WebhookReceiver {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<WebhookReceiverState>>,
}

impl WebhookReceiver {
    /// Gives one reply after the other; the last one stays.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(replies: impl IntoIterator<Item = WebhookReply>) -> Self {
        Self::listen(replies, None).await
    }

    /// The same behind TLS.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start_with_tls(replies: impl IntoIterator<Item = WebhookReply>, tls: TlsAcceptor) -> Self {
        Self::listen(replies, Some(tls)).await
    }

    async fn listen(replies: impl IntoIterator<Item = WebhookReply>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let seen = Arc::new(Mutex::new(WebhookReceiverState {
            replies: replies.into_iter().collect(),
            ..WebhookReceiverState::default()
        }));
        let server = Self { address: listener.local_addr().expect("bound"), state: seen };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.with_state(|seen| seen.connections += 1);
                let (serving, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    serving.handle_connection(stream, tls).await;
                    serving.with_state(|seen| seen.closed_connections += 1);
                });
            }
        });
        server
    }

    async fn handle_connection(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        match tls {
            None => self.serve(stream).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.serve(stream).await;
                }
            }
        }
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(received) = read_request(&mut stream).await {
            let echo = received.head.lines().rev().collect::<Vec<_>>().join("\n");
            let reply = self.with_state(|seen| {
                seen.requests.push(received);
                seen.in_flight += 1;
                seen.max_in_flight = seen.max_in_flight.max(seen.in_flight);
                if seen.replies.len() > 1 { seen.replies.pop_front() } else { seen.replies.front().cloned() }
            });
            let goes_on =
                send_reply(&mut stream, reply.expect("a reply"), &echo, || self.with_state(|s| s.in_flight -= 1)).await;
            if !goes_on {
                return;
            }
        }
    }

    fn with_state<T>(&self, look: impl FnOnce(&mut WebhookReceiverState) -> T) -> T {
        look(&mut self.state.lock().expect("no panic"))
    }

    /// Gives that reply from now on.
    pub fn reply_with(&self, reply: WebhookReply) {
        self.with_state(|seen| seen.replies = [reply].into());
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.with_state(|seen| seen.connections)
    }

    /// Those of them that are closed.
    #[must_use]
    pub fn closed_connections(&self) -> usize {
        self.with_state(|seen| seen.closed_connections)
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.with_state(|seen| seen.requests.clone())
    }

    /// Most requests that were not answered yet at any time.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.with_state(|seen| seen.max_in_flight)
    }

    /// `http://127.0.0.1:<port><path>`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits until that many requests have come.
    ///
    /// # Panics
    /// They do not come.
    pub async fn wait_for_requests(&self, count: usize) {
        crate::eventually("requests", || async { (self.requests().len() >= count).then_some(()) }).await;
    }
}

/// Reads one request; `None` at the end of the connection.
///
/// # Panics
/// What arrives is not a request.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<ReceivedRequest> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut received = ReceivedRequest { head, body: bytes.split_off(end + 4) };
            let length = received.header("content-length").map_or(0, |text| text.parse().expect("a length"));
            while received.body.len() < length {
                if stream.read_buf(&mut received.body).await.ok()? == 0 {
                    return None;
                }
            }
            return Some(received);
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Answers, and says whether the connection is still of use. `done` is called before the last byte is on its way.
async fn send_reply(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    reply: WebhookReply,
    echo: &str,
    done: impl FnOnce(),
) -> bool {
    match reply {
        WebhookReply::Raw(bytes) => {
            done();
            stream.write_all(&bytes).await.is_ok()
        }
        WebhookReply::Cut(bytes) => {
            done();
            // Fails when the other side has gone
            let _ = stream.write_all(&bytes).await;
            false
        }
        WebhookReply::Gated(gate, bytes) => {
            gate.acquire().await.expect("open").forget();
            done();
            stream.write_all(&bytes).await.is_ok()
        }
        WebhookReply::Echo => {
            done();
            let WebhookReply::Raw(bytes) = WebhookReply::new(500, "", echo) else { return false };
            stream.write_all(&bytes).await.is_ok()
        }
        WebhookReply::Hang => {
            // Ends when the other side closes
            let _ = stream.read(&mut [0; 1]).await;
            false
        }
        WebhookReply::Endless(head) => {
            let mut alive = stream.write_all(head.as_bytes()).await.is_ok();
            while alive {
                alive = stream.write_all(&[b'x'; 8192]).await.is_ok();
            }
            false
        }
        WebhookReply::Trickle(head) => {
            // A trickle takes time by its nature; nothing waits for it
            let mut beat = tokio::time::interval(Duration::from_millis(5));
            let mut alive = stream.write_all(head.as_bytes()).await.is_ok();
            while alive {
                beat.tick().await;
                alive = stream.write_all(b"x").await.is_ok();
            }
            false
        }
        WebhookReply::Close => false,
    }
}
