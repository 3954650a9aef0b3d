//! HTTP/1.1 over a connection of one's own, with as little work as possible: the client shares its processors with what
//! it measures. It knows what Galley's gateway sends and nothing more.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Longest wait for an answer: longer than the gateway lets anybody wait.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(90);
/// Largest answer.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// A connection that is kept open.
pub struct HttpConnection<S = TcpStream> {
    stream: BufReader<S>,
    line: String,
}

impl HttpConnection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("the gateway takes no connection")?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HttpConnection<S> {
    /// Over a stream that is connected, such as one of TLS.
    pub fn over(stream: S) -> Self {
        // Small: there are thousands of them
        Self { stream: BufReader::with_capacity(1024, stream), line: String::new() }
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// The answer is another, or there is none.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: galley\r\n\r\n");
        let (status, body) = self.send(&request).await?;
        ensure!(status == 200, "GET {path} was answered with {status}: {body}");
        Ok(body)
    }

    /// The body of a 201 or 200.
    ///
    /// # Errors
    /// The answer is another, or there is none.
    pub async fn post(&mut self, path: &str, json: &str) -> anyhow::Result<String> {
        let request = post_request(path, json);
        let (status, body) = self.send(&request).await?;
        ensure!(status == 201 || status == 200, "POST {path} was answered with {status}: {body}");
        Ok(body)
    }

    /// Sends a request as it is; the status and the body of the answer.
    ///
    /// # Errors
    /// No answer came, or none that is understood: whether the request was carried out is not known.
    pub async fn send(&mut self, request: &str) -> anyhow::Result<(u16, String)> {
        timeout(RESPONSE_TIMEOUT, self.exchange(request)).await.context("no answer")?
    }

    async fn exchange(&mut self, request: &str) -> anyhow::Result<(u16, String)> {
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let status = self.read_line().await?.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.context("no HTTP status")?;
        let mut length = 0;
        loop {
            let line = self.read_line().await?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().context("content-length")?;
                } else if name.eq_ignore_ascii_case("transfer-encoding") {
                    bail!("answers in chunks are not understood here");
                }
            }
        }
        ensure!(length <= MAX_RESPONSE_BYTES, "an answer of {length} bytes");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, String::from_utf8(body)?))
    }

    async fn read_line(&mut self) -> anyhow::Result<&str> {
        self.line.clear();
        ensure!(self.stream.read_line(&mut self.line).await? > 0, "the connection was closed");
        Ok(self.line.trim_end())
    }
}

/// A request with a JSON body.
#[must_use]
pub fn post_request(path: &str, json: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: galley\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    )
}
