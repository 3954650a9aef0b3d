//! The gateway with TLS: HTTP/1.1 and HTTP/2, certificates that change, streams, health checks.

use std::process::{Output, Stdio};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use testkit::{CertificateFiles, RedisServer, ServiceProcess, TEST_TIMEOUT, TestAuthority, eventually};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
};

/// A gateway with TLS, and the authority that signed its certificate.
pub(crate) struct TlsGateway {
    pub(crate) authority: TestAuthority,
    pub(crate) certificate: CertificateFiles,
    pub(crate) gateway: ServiceProcess,
    pub(crate) redis: RedisServer,
}

impl TlsGateway {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let authority = TestAuthority::new();
        let certificate = authority.issue("gateway", &["localhost"]);
        let redis = RedisServer::start();
        let mut variables = Self::variables(&certificate);
        variables.extend_from_slice(settings);
        let gateway = ServiceProcess::start("gateway", &redis, &variables).await;
        let started = Self { authority, certificate, gateway, redis };
        eventually("the gateway is ready", || async {
            (started.curl(&["/health/ready"]).await.status == "200").then_some(())
        })
        .await;
        started
    }

    fn variables(certificate: &CertificateFiles) -> Vec<(&str, &str)> {
        vec![
            ("GALLEY__GATEWAY__TLS_CERT_FILE", &certificate.cert),
            ("GALLEY__GATEWAY__TLS_KEY_FILE", &certificate.key),
            ("GALLEY__RELOAD__INTERVAL_MS", "100"),
        ]
    }

    /// Asks with curl, whose last argument is the path.
    async fn curl(&self, arguments: &[&str]) -> CurlAnswer {
        let (path, options) = arguments.split_last().expect("a path");
        let output = self.curl_command(path).args(options).output();
        let output = tokio::time::timeout(TEST_TIMEOUT, output).await.expect("in time").expect("curl is installed");
        CurlAnswer::from(&output)
    }

    fn curl_command(&self, path: &str) -> Command {
        let mut command = Command::new("curl");
        let url = format!("https://localhost:{}{path}", self.gateway.address().port());
        command.args(["--silent", "--cacert", &self.authority.ca_file()]);
        command.args(["--write-out", "\n%{http_code} %{http_version}", &url]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn connect(&self, protocol: &str) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        self.authority.connect(self.gateway.address(), "localhost", &[protocol]).await.expect("TLS")
    }

    /// The certificate that a new connection is shown.
    async fn shown_certificate(&self) -> Vec<u8> {
        let stream = self.connect("http/1.1").await;
        stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
    }
}

struct CurlAnswer {
    body: String,
    status: String,
    version: String,
}

impl CurlAnswer {
    fn from(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = text.rsplit_once('\n').unwrap_or(("", &text));
        let (status, version) = last.split_once(' ').unwrap_or((last, ""));
        Self { body: body.to_owned(), status: status.to_owned(), version: version.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("JSON: {}", self.body))
    }
}

#[tokio::test]
async fn clients_choose_http2_or_http1_and_jobs_and_large_bodies_go_over_both() {
    let tls = TlsGateway::start(&[]).await;
    for (option, version) in [("--http2", "2"), ("--http1.1", "1.1"), ("--tls-max", "2")] {
        let mut options = vec![option];
        if option == "--tls-max" {
            options.push("1.2");
        }
        let ask = async |more: &[&str]| {
            let arguments = [&options[..], more].concat();
            tls.curl(&arguments).await
        };
        // Larger than the windows of HTTP/2, and so large that curl asks first over HTTP/1.1
        let long = "x".repeat(900_000);
        let folder = crate::kit::TestFolder::new();
        folder.write("job.json", &job_body("test.echo", &json!([long])).to_string());
        let body = format!("@{}", folder.path_text("job.json"));
        let post = ["--header", "content-type: application/json", "--data-binary", &body, "/ojs/v1/jobs"];
        let made = ask(&post).await;
        assert_eq!((made.status.as_str(), made.version.as_str()), ("201", version), "{option}: {}", made.body);
        let id = made.json()["job"]["id"].as_str().expect("an id").to_owned();
        let shown = ask(&[&format!("/ojs/v1/jobs/{id}")]).await;
        assert_eq!(shown.json()["job"]["args"], json!([long]), "{option}");
        let missing = ask(&["/ojs/v1/no-such-path"]).await;
        assert_eq!(
            (missing.status.as_str(), &missing.json()["error"]["code"]),
            ("404", &json!("not_found")),
            "{option}"
        );
        let head = ask(&["--head", "/ojs/v1/queues"]).await;
        assert!(head.status == "200" && head.body.to_ascii_lowercase().contains("x-request-id"), "{}", head.body);
        let other = ask(&["--header", "Host: evil.example.com", "/ojs/v1/queues"]).await;
        assert_eq!(other.status, "403", "{option}: the name that a client asks for counts");
        let invalid = ask(&["--header", "content-type: application/json", "--data", "{", "/ojs/v1/jobs"]).await;
        assert_eq!(invalid.status, "400", "{option}");
    }
    let plain = CheckedClient::new().get(tls.gateway.url("/health/live")).send().await;
    assert!(plain.is_err(), "nothing is answered without TLS");
}

#[tokio::test]
async fn a_certificate_that_changes_is_used_at_once_and_a_broken_pair_changes_nothing() {
    let tls = TlsGateway::start(&[]).await;
    let first = tls.shown_certificate().await;
    let mut open = BufReader::new(tls.connect("http/1.1").await);
    assert_answers(&mut open).await;
    let _ = tls.authority.issue("gateway", &["localhost"]);
    let second = eventually("the new certificate is shown", || async {
        Some(tls.shown_certificate().await).filter(|shown| *shown != first)
    })
    .await;
    assert_answers(&mut open).await;
    tls.gateway.wait_for_event("files.reloaded").await;
    let key = std::fs::read(&tls.certificate.key).expect("a file");
    let refused = tls.gateway.events("files.reload_failed").len();
    std::fs::write(&tls.certificate.key, "no key").expect("a file");
    eventually("the broken pair is refused", || async {
        (tls.gateway.events("files.reload_failed").len() > refused).then_some(())
    })
    .await;
    assert_eq!(tls.shown_certificate().await, second);
    let other = tls.authority.issue("other", &["localhost"]);
    std::fs::copy(&other.key, &tls.certificate.key).expect("a file");
    eventually("a key of another certificate is refused", || async {
        (tls.gateway.events("files.reload_failed").len() > refused + 1).then_some(())
    })
    .await;
    std::fs::remove_file(&tls.certificate.key).expect("a file");
    eventually("a missing file is refused", || async {
        (tls.gateway.events("files.reload_failed").len() > refused + 2).then_some(())
    })
    .await;
    assert_eq!(tls.shown_certificate().await, second);
    let reloaded = tls.gateway.events("files.reloaded").len();
    std::fs::write(&tls.certificate.key, key).expect("a file");
    eventually("the old pair is good again", || async {
        (tls.gateway.events("files.reloaded").len() > reloaded).then_some(())
    })
    .await;
    assert_answers(&mut open).await;
    assert!(!tls.gateway.raw_log().contains("no key"), "nothing of a file is logged");
}

/// Whether an open connection of HTTP/1.1 still answers.
async fn assert_answers(stream: &mut BufReader<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>) {
    let exchange = async {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a head");
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().expect("a number"),
                Some(_) => {}
                None if line == "\r\n" => break,
                None => assert!(line.starts_with("HTTP/1.1 200"), "{line:?}"),
            }
        }
        stream.read_exact(&mut vec![0; length]).await.expect("a body");
    };
    tokio::time::timeout(TEST_TIMEOUT, exchange).await.expect("in time");
}

#[tokio::test]
async fn streams_and_websockets_work_over_tls() {
    let tls = TlsGateway::start(&[]).await;
    let mut streams = Vec::new();
    for version in ["--http2", "--http1.1"] {
        let mut curl = tls.curl_command("/v1/channels/orders/stream").args([version, "--no-buffer"]).spawn();
        let mut lines = BufReader::new(curl.as_mut().expect("curl").stdout.take().expect("piped")).lines();
        wait_for_line(&mut lines, "event: begin").await;
        streams.push((curl, lines));
    }
    let stream = tls.connect("http/1.1").await;
    let url = format!("wss://localhost:{}/v1/ws", tls.gateway.address().port());
    let (mut socket, _) = client_async(url, stream).await.expect("a websocket");
    socket.send(Message::text(r#"{"type":"subscribe","channel":"orders"}"#)).await.expect("sent");
    let subscribed = tokio::time::timeout(TEST_TIMEOUT, socket.next()).await.expect("in time");
    let subscribed = subscribed.expect("open").expect("a frame").into_text().expect("text");
    assert!(subscribed.contains("subscribed"), "{subscribed}");
    let long = "y".repeat(300_000);
    let folder = crate::kit::TestFolder::new();
    folder.write("message", &long);
    let body = format!("@{}", folder.path_text("message"));
    let post = ["--header", "content-type: text/plain", "--data-binary", &body, "/v1/channels/orders/messages"];
    let sent = tls.curl(&post).await;
    assert!(sent.status.starts_with('2'), "{}", sent.body);
    for (_, lines) in &mut streams {
        wait_for_line(lines, &long).await;
    }
    let message = tokio::time::timeout(TEST_TIMEOUT, socket.next()).await.expect("in time");
    assert!(message.expect("open").expect("a frame").into_text().expect("text").contains(&long));
}

async fn wait_for_line(lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>, text: &str) {
    let find = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains(text) {
                return;
            }
        }
        panic!("the stream ended");
    };
    tokio::time::timeout(TEST_TIMEOUT, find).await.expect("in time");
}

#[tokio::test]
async fn the_health_check_speaks_tls_and_files_that_cannot_be_used_stop_the_gateway() {
    let tls = TlsGateway::start(&[]).await;
    let kit = GalleyKit { gateway: tls.gateway, http: CheckedClient::new(), redis: tls.redis };
    let address = kit.gateway.address().to_string();
    let mut variables = TlsGateway::variables(&tls.certificate);
    variables.push(("GALLEY__GATEWAY__LISTEN", &address));
    let healthy = kit.run_binary("gateway", &["healthcheck"], &variables).await;
    assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stderr));
    let listen = ("GALLEY__GATEWAY__LISTEN", "127.0.0.1:0");
    let plain = kit.run_binary("gateway", &["healthcheck"], &[("GALLEY__GATEWAY__LISTEN", &address)]).await;
    assert!(!plain.status.success(), "it asks as the settings say");
    let (cert, key) = ("GALLEY__GATEWAY__TLS_CERT_FILE", "GALLEY__GATEWAY__TLS_KEY_FILE");
    let other = tls.authority.issue("other", &["localhost"]);
    for (cert_file, key_file, problem) in [
        (tls.certificate.cert.as_str(), "", "gateway.tls_cert_file"),
        ("/no/such.pem", tls.certificate.key.as_str(), "/no/such.pem"),
        (&tls.certificate.key, &tls.certificate.key, "no certificate in it"),
        (&tls.certificate.cert, &tls.certificate.cert, "no private key"),
        (&tls.certificate.cert, &other.key, "do not belong together"),
    ] {
        let refused = kit.run_binary("gateway", &[], &[(cert, cert_file), (key, key_file), listen]).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(problem), "{problem} in {said}");
        assert!(said.contains("tls_cert_file") && !said.contains("PRIVATE KEY"), "{said}");
    }
}
