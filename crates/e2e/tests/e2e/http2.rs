//! HTTP/2: clients that cancel, hang up, open too much or take nothing.

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Request, Response};
use serde_json::json;
use testkit::{TEST_TIMEOUT, eventually};

use crate::{gateway_tls::TlsGateway, kit::job_body};

type Client = SendRequest<Bytes>;

/// A connection, and the task that ends with it.
async fn connect(tls: &TlsGateway, window: u32) -> (Client, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = tls.authority.connect(tls.gateway.address(), "localhost", &["h2"]).await.expect("TLS");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake(stream).await.expect("HTTP/2");
    (client, tokio::spawn(connection))
}

fn request(method: &str, path: &str) -> Request<()> {
    let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    request.header("content-type", "application/json").body(()).expect("a request")
}

async fn post(client: &Client, path: &str, body: String) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let mut client = client.clone().ready().await.expect("room for a stream");
    let (response, mut stream) = client.send_request(request("POST", path), false).expect("sent");
    stream.send_data(body.into(), true).expect("sent");
    (response, stream)
}

async fn get(client: &Client, path: &str) -> Response<h2::RecvStream> {
    let mut client = client.clone().ready().await.expect("room for a stream");
    let (response, _) = client.send_request(request("GET", path), true).expect("sent");
    tokio::time::timeout(TEST_TIMEOUT, response).await.expect("in time").expect("an answer")
}

async fn text(mut body: h2::RecvStream) -> String {
    let mut text = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes.expect("a body");
        let _ = body.flow_control().release_capacity(bytes.len());
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).expect("text")
}

/// Waits until that many requests wait at the gateway.
async fn wait_for_waiters(client: &Client, count: u64) {
    eventually(&format!("{count} requests wait"), || async {
        let metrics = text(get(client, "/metrics").await.into_body()).await;
        metrics.lines().any(|line| line == format!("galley_waiters {count}")).then_some(())
    })
    .await;
}

fn long_fetch() -> String {
    json!({ "queues": ["default"], "wait_ms": 60000 }).to_string()
}

#[tokio::test]
async fn a_client_that_cancels_a_request_or_hangs_up_frees_what_it_waited_with() {
    let tls = TlsGateway::start(&[]).await;
    let (watcher, _) = connect(&tls, 1 << 20).await;
    let (client, connection) = connect(&tls, 1 << 20).await;
    let (response, mut stream) = post(&client, "/ojs/v1/workers/fetch", long_fetch()).await;
    wait_for_waiters(&watcher, 1).await;
    stream.send_reset(Reason::CANCEL);
    drop(response);
    wait_for_waiters(&watcher, 0).await;
    let _waiting = post(&client, "/ojs/v1/workers/fetch", long_fetch()).await;
    wait_for_waiters(&watcher, 1).await;
    connection.abort();
    wait_for_waiters(&watcher, 0).await;
}

#[tokio::test]
async fn a_connection_has_a_hundred_streams_and_ends_with_a_farewell_when_the_gateway_stops() {
    let tls = TlsGateway::start(&[]).await;
    let (watcher, _) = connect(&tls, 1 << 20).await;
    let (client, connection) = connect(&tls, 1 << 20).await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(post(&client, "/ojs/v1/workers/fetch", long_fetch()).await);
    }
    wait_for_waiters(&watcher, 100).await;
    assert_eq!(client.current_max_send_streams(), 100);
    drop(watcher);
    let gateway = tokio::spawn(tls.gateway.terminate());
    for (response, _) in waiting {
        let answer = tokio::time::timeout(TEST_TIMEOUT, response).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), 200, "a request in progress is answered");
    }
    drop(client);
    // The gateway may be gone before the client has answered the farewell
    let ended = connection.await.expect("no panic");
    assert!(ended.as_ref().err().is_none_or(h2::Error::is_io), "{ended:?}");
    assert!(gateway.await.expect("no panic").success());
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_loses_it_and_the_connection_goes_on() {
    // Longer than a machine that is busy takes between two reads of an answer
    let tls = TlsGateway::start(&[("GALLEY__CHANNELS__STALL_MS", "6000")]).await;
    let (client, _connection) = connect(&tls, 65_535).await;
    let (made, _) = post(&client, "/ojs/v1/jobs", job_body("a", &json!(["x".repeat(500_000)])).to_string()).await;
    let made: serde_json::Value =
        serde_json::from_str(&text(made.await.expect("an answer").into_body()).await).expect("JSON");
    let path = format!("/ojs/v1/jobs/{}", made["job"]["id"].as_str().expect("an id"));
    let mut stalled = get(&client, &path).await.into_body();
    // Without room for more it gets what the first window takes, then the end
    let ended = async {
        loop {
            match stalled.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("the answer is complete"),
            }
        }
    };
    let error = tokio::time::timeout(TEST_TIMEOUT, ended).await.expect("in time");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(get(&client, "/health/live").await.status(), 200);
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_next_one_is_answered() {
    let tls = TlsGateway::start(&[]).await;
    let (client, _connection) = connect(&tls, 1 << 20).await;
    // More headers than HTTP/1.1 may have
    let mut large = request("GET", "/health/live");
    large.headers_mut().insert("x-large", "x".repeat(200_000).parse().expect("a value"));
    let mut sender = client.clone().ready().await.expect("room");
    let (response, _) = sender.send_request(large, true).expect("sent");
    match tokio::time::timeout(TEST_TIMEOUT, response).await.expect("in time") {
        Ok(answer) => assert_eq!(answer.status(), 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    let (fresh, _connection) = connect(&tls, 1 << 20).await;
    for path in ["/ojs/v1/jobs/%00", "/v1/ws", "/ojs/v1/queues/../x"] {
        let status = get(&fresh, path).await.status();
        assert!(status.is_client_error(), "{path}: {status}");
    }
    assert_eq!(get(&fresh, "/health/live").await.status(), 200);
}
