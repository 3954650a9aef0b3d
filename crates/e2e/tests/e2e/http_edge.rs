//! Connections byte by byte: deadlines, old versions of HTTP, and what is answered before a body comes.

use std::cell::RefCell;

use serde_json::{Value, json};
use testkit::{RedisServer, TEST_TIMEOUT, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::kit::GalleyKit;

struct RawConnection {
    stream: TcpStream,
    received: String,
}

impl RawConnection {
    async fn open(kit: &GalleyKit) -> Self {
        let stream = TcpStream::connect(kit.gateway.address()).await.expect("it listens");
        Self { stream, received: String::new() }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.expect("sent");
    }

    /// Reads until that text has come, and gives everything up to its end.
    async fn read_until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.received.find(text) {
                let rest = self.received.split_off(at + text.len());
                return std::mem::replace(&mut self.received, rest);
            }
            assert!(self.read_some().await, "{text:?} does not come: {:?}", self.received);
        }
    }

    /// Everything until the server closes the connection.
    async fn read_to_end(&mut self) -> String {
        while self.read_some().await {}
        std::mem::take(&mut self.received)
    }

    /// False at the end.
    async fn read_some(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(TEST_TIMEOUT, self.stream.read(&mut buffer)).await;
        // A client that is reset has also been closed
        let count = read.expect("something comes, or the connection ends").unwrap_or_default();
        self.received += &String::from_utf8_lossy(&buffer[..count]);
        count > 0
    }
}

const SHORT_LIMITS: [(&str, &str); 2] =
    [("GALLEY__GATEWAY__HEAD_TIMEOUT_MS", "1000"), ("GALLEY__GATEWAY__BODY_TIMEOUT_MS", "1000")];
const LIVE: &str = "GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn every_head_of_a_connection_has_a_deadline() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LIMITS).await;
    let mut slow = RawConnection::open(&kit).await;
    for _ in 0..2 {
        slow.send(LIVE).await;
        assert!(slow.read_until("{\"status\":\"ok\"}").await.starts_with("HTTP/1.1 200"));
    }
    slow.send("GET /health/live HTT").await;
    assert!(slow.read_to_end().await.starts_with("HTTP/1.1 408"), "the third head");
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_hold_its_connection_open() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LIMITS).await;
    for (path, site, status) in [
        ("/nothing", "", "404"),
        ("/health/live", "", "405"),
        ("/ojs/v1/jobs", "origin: http://evil.example\r\n", "403"),
    ] {
        let mut client = RawConnection::open(&kit).await;
        client
            .send(format!("POST {path} HTTP/1.1\r\nhost: x\r\n{site}transfer-encoding: chunked\r\n\r\n1\r\nx\r\n"))
            .await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn lines_that_never_end_do_not_hold_their_connection_open() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LIMITS).await;
    let mut client = RawConnection::open(&kit).await;
    let head = "content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    client.send(format!("POST /ojs/v1/jobs/stream HTTP/1.1\r\nhost: x\r\n{head}")).await;
    // Each part comes in time, the line does not
    let drip = async {
        loop {
            client.stream.writable().await.expect("it is open");
            if client.stream.write_all(b"1\r\nx\r\n").await.is_err() {
                return;
            }
            let mut buffer = [0; 4096];
            match tokio::time::timeout(std::time::Duration::from_millis(300), client.stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(count)) => client.received += &String::from_utf8_lossy(&buffer[..count]),
                Err(_) => {}
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, drip).await.expect("the server closes");
    // What came before a write failed
    let received = client.read_to_end().await;
    assert!(received.contains("a line took too long"), "{received}");
}

#[tokio::test]
async fn an_http_1_0_client_gets_a_body_that_ends_with_the_connection() {
    let kit = GalleyKit::start().await;
    let line = json!({ "type": "a", "args": [] }).to_string();
    let mut client = RawConnection::open(&kit).await;
    let head = format!("content-type: application/x-ndjson\r\ncontent-length: {}", line.len());
    client.send(format!("POST /ojs/v1/jobs/stream HTTP/1.0\r\nconnection: keep-alive\r\n{head}\r\n\r\n{line}")).await;
    let answer = client.read_to_end().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200") && !head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert!(!head.to_lowercase().contains("keep-alive"), "{head}");
    let answered: Value = serde_json::from_str(body).expect("a line of JSON, without the lengths of chunks");
    assert_eq!(answered["job"]["type"], "a", "{body}");

    let mut stream = RawConnection::open(&kit).await;
    stream.send("GET /v1/channels/a/stream HTTP/1.0\r\n\r\n").await;
    assert!(stream.read_until("\r\n\r\n").await.starts_with("HTTP/1.0 200"));
    let first = stream.read_until("\n\n").await;
    assert!(first.starts_with("retry: "), "{first}");
}

#[tokio::test]
async fn what_is_no_handshake_of_a_websocket_is_told_what_is() {
    let kit = GalleyKit::start().await;
    let key = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "sec-websocket-version: 13\r\n";
    for (request, status) in [
        (format!("GET /v1/ws HTTP/1.0\r\nhost: x\r\n{key}{version}\r\n"), "HTTP/1.0 426"),
        ("GET /v1/ws HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "HTTP/1.1 426"),
        (format!("GET /v1/ws HTTP/1.1\r\nhost: x\r\n{key}sec-websocket-version: 8\r\n\r\n"), "HTTP/1.1 426"),
    ] {
        let mut client = RawConnection::open(&kit).await;
        client.send(&request).await;
        let answer = client.read_until("upgrade_required").await.to_lowercase();
        assert!(answer.starts_with(&status.to_lowercase()), "{request}: {answer}");
        assert!(answer.contains("upgrade: websocket") && answer.contains("sec-websocket-version: 13"), "{answer}");
    }
    let bad_key = key.replace("dGhlIHNhbXBsZSBub25jZQ==", "short");
    let mut client = RawConnection::open(&kit).await;
    client.send(format!("GET /v1/ws HTTP/1.1\r\nhost: x\r\n{bad_key}{version}\r\n")).await;
    assert!(client.read_until("invalid_request").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_a_body_learns_at_once_that_it_is_too_large() {
    let kit = GalleyKit::start().await;
    let ask = async |path: &str, length: usize| {
        let mut client = RawConnection::open(&kit).await;
        let head = format!("content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {length}");
        client.send(format!("POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n")).await;
        client.read_until("\r\n\r\n").await
    };
    for path in ["/ojs/v1/jobs", "/v1/channels/a/messages"] {
        let answer = ask(path, (1 << 20) + 1).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("x-request-id"), "{path}: {answer}");
        assert!(ask(path, 1 << 20).await.starts_with("HTTP/1.1 100"), "{path}");
    }
    for path in ["/ojs/v1/jobs/batch", "/v1/channels/a/messages/batch", "/ojs/v1/workers/ack"] {
        assert!(ask(path, (1 << 20) + 1).await.starts_with("HTTP/1.1 100"), "{path}");
        assert!(ask(path, (16 << 20) + 1).await.starts_with("HTTP/1.1 413"), "{path}");
    }
}

#[tokio::test]
async fn all_bodies_together_use_bounded_memory() {
    let limits = [
        ("GALLEY__GATEWAY__BODIES_MAX_BYTES", "2097152"),
        ("GALLEY__GATEWAY__BATCH_LIMIT_BYTES", "1048576"),
        ("GALLEY__GATEWAY__BODY_TIMEOUT_MS", "600000"),
    ];
    let kit = GalleyKit::start_with(RedisServer::start(), &limits).await;
    let body = |bytes: usize| json!({ "type": "a", "args": ["x".repeat(bytes)] });
    let unfinished = RefCell::new(Vec::new());
    eventually("there is no memory for a large body", || async {
        // Again each time: one that came while the body below was being read was refused itself
        for _ in 0..2 {
            let mut client = RawConnection::open(&kit).await;
            let head = "content-type: application/json\r\ncontent-length: 900000";
            client.send(format!("POST /ojs/v1/jobs HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n")).await;
            // The gateway may have refused it already
            let _ = client.stream.write_all(&vec![b' '; 700_000]).await;
            unfinished.borrow_mut().push(client);
        }
        let response = kit.post("/ojs/v1/jobs", &body(750_000)).await;
        if response.status() != 503 {
            return None;
        }
        assert!(response.headers().contains_key("retry-after"));
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["retryable"]),
            (&json!("too_many_bodies"), &json!(true))
        );
        Some(())
    })
    .await;
    assert_eq!(kit.post("/ojs/v1/jobs", &body(10_000)).await.status(), 201, "small bodies have room");
    drop(unfinished);
    eventually("the memory is free again", || async {
        (kit.post("/ojs/v1/jobs", &body(750_000)).await.status() == 201).then_some(())
    })
    .await;
}

const NOOP: &str = r#"{"type":"a","args":[]}"#;

fn enqueue(headers: &str) -> String {
    let length = NOOP.len();
    format!(
        "POST /ojs/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{NOOP}"
    )
}

#[tokio::test]
async fn nothing_that_follows_the_last_request_of_a_connection_is_done() {
    let kit = GalleyKit::start().await;
    for last in
        ["GET /ojs/v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET /ojs/v1/health HTTP/1.0\r\n\r\n"]
    {
        let mut client = RawConnection::open(&kit).await;
        client.send(format!("{last}{}", enqueue(""))).await;
        let answers = client.read_to_end().await;
        assert!(answers.contains(" 200 OK") && !answers.contains(" 201 "), "{answers}");
    }
    let queues: Value = kit.get("/ojs/v1/queues").await.json().await.expect("JSON");
    assert_eq!(queues["queues"], json!([]), "{queues}");
}

#[tokio::test]
async fn a_header_of_which_one_is_read_is_refused_when_there_are_two() {
    let kit = GalleyKit::start().await;
    for (headers, name) in [
        ("idempotency-key: a\r\nidempotency-key: b\r\n", "Idempotency-Key"),
        ("content-type: text/plain\r\n", "Content-Type"),
        ("content-encoding: identity\r\ncontent-encoding: gzip\r\n", "Content-Encoding"),
    ] {
        let mut client = RawConnection::open(&kit).await;
        client.send(enqueue(headers)).await;
        let answer = client.read_until("must be given once").await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(name), "{headers}: {answer}");
    }
}

#[tokio::test]
async fn a_handshake_with_a_body_is_refused_at_once() {
    let kit = GalleyKit::start().await;
    let mut client = RawConnection::open(&kit).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ncontent-length: 5\r\n";
    client.send(format!("GET /v1/ws HTTP/1.1\r\nhost: x\r\n{upgrade}{key}\r\nhello")).await;
    let answer = client.read_until("takes no body").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn what_is_no_host_and_no_method_of_ours_is_named_in_the_refusal() {
    let kit = GalleyKit::start().await;
    for host in ["a b", "[::1", "127.0.0.1:99999", "a\"b", "\u{e9}"] {
        let mut client = RawConnection::open(&kit).await;
        client.send(format!("GET /ojs/v1/health HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let answer = client.read_until("Host must be a name").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{host}: {answer}");
    }
    let mut client = RawConnection::open(&kit).await;
    client.send("BREW /ojs/v1/jobs HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = client.read_until("is not allowed on").await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("BREW"), "{answer}");
}

#[tokio::test]
async fn a_body_with_a_byte_order_mark_is_told_so() {
    let kit = GalleyKit::start().await;
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let refused = request.body(format!("\u{feff}{NOOP}")).send().await.expect("an answer");
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.expect("text").contains("byte order mark"));
}
