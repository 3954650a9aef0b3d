//! Common client libraries of event streams, as `make test` installs them: a client whose connection breaks before it has
//! received a message gets what was published meanwhile, keep-alives are no messages, and every text stays one message.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use testkit::{RedisServer, eventually, skip};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::kit::GalleyKit;

/// Before a gateway: it breaks all connections, and holds new ones up until it is told to pass them on.
struct BreakableProxy {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    /// Connections so far.
    passed: watch::Receiver<usize>,
}

impl BreakableProxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let is_open = watch::Sender::new(true);
        let (count, passed) = watch::channel(0);
        let count = Arc::new(count);
        let gate = is_open.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut gate, count) = (gate.subscribe(), count.clone());
                tokio::spawn(async move {
                    gate.wait_for(|is_open| *is_open).await.expect("the test runs");
                    let mut server = TcpStream::connect(target).await.expect("the gateway listens");
                    count.send_modify(|count| *count += 1);
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = gate.wait_for(|is_open| !*is_open) => {}
                    }
                });
            }
        });
        Self { address, is_open, passed }
    }
}

/// A program that follows a stream and prints its events.
struct LibraryClient {
    process: Child,
    events: Arc<Mutex<Vec<Value>>>,
}

impl LibraryClient {
    fn start(mut command: Command, library: &str, url: &str) -> Self {
        command.args([library, url]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let events: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (kept, output) = (events.clone(), process.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("JSON");
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        Self { process, events }
    }

    fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The messages so far.
    fn messages(&self) -> Vec<String> {
        let events = self.events();
        let messages = events.iter().filter(|event| event["event"] == "message");
        messages
            .map(|event| {
                let message: Value = serde_json::from_str(event["data"].as_str().expect("text")).expect("a message");
                message["data"].as_str().expect("text").to_owned()
            })
            .collect()
    }
}

impl Drop for LibraryClient {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn programs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/libraries")
}

/// None where the packages are missing; `make test` installs them where it can.
fn node() -> Option<Command> {
    let Some(folder) = std::env::var_os("GALLEY_TEST_NODE_FOLDER") else {
        skip("GALLEY_TEST_NODE_FOLDER is not set");
        return None;
    };
    let mut command = Command::new("node");
    command.arg(programs().join("event_streams.mjs")).current_dir(folder);
    Some(command)
}

fn python() -> Option<Command> {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let packages = ["-c", "import httpx, httpx_sse, requests, sseclient"];
    if !Command::new(&python).args(packages).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        skip(&format!("{python} has no packages for event streams"));
        return None;
    }
    let mut command = Command::new(python);
    command.arg(programs().join("event_streams.py"));
    Some(command)
}

async fn nothing_is_lost_or_made_up(command: Option<Command>, library: &str) {
    let Some(command) = command else { return };
    // Keep-alives come all the time
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "100")]).await;
    let publish = async |body: &str| {
        let request = kit.http.post(kit.gateway.url("/v1/channels/orders/messages")).body(body.to_owned());
        assert_eq!(request.send().await.expect("an answer").status(), 201);
    };
    publish("before").await;
    let mut proxy = BreakableProxy::start(kit.gateway.address()).await;
    let url = format!("http://{}/v1/channels/orders/stream", proxy.address);
    let client = LibraryClient::start(command, library, &url);
    eventually("the stream begins", || async { client.events().first().cloned() }).await;

    proxy.is_open.send_replace(false);
    kit.wait_for_readers("orders", 0).await;
    publish("missed").await;
    proxy.is_open.send_replace(true);
    proxy.passed.wait_for(|connections| *connections >= 2).await.expect("it comes back");
    eventually("the missed message comes", || async { (client.messages() == ["missed"]).then_some(()) }).await;
    let text = "a\u{85}b\u{2028}c\u{2029}d\u{b}e";
    publish(text).await;
    eventually("any text is one message", || async { (client.messages() == ["missed", text]).then_some(()) }).await;
    for event in client.events() {
        assert!(["begin", "message"].contains(&event["event"].as_str().expect("a name")), "{event}");
        assert!(!event["data"].as_str().expect("text").is_empty(), "a keep-alive became a message: {event}");
    }
}

#[tokio::test]
async fn eventsource_2_loses_nothing() {
    nothing_is_lost_or_made_up(node(), "eventsource2").await;
}

#[tokio::test]
async fn eventsource_4_loses_nothing() {
    nothing_is_lost_or_made_up(node(), "eventsource4").await;
}

#[tokio::test]
async fn the_polyfill_of_yaffle_loses_nothing() {
    nothing_is_lost_or_made_up(node(), "event-source-polyfill").await;
}

#[tokio::test]
async fn fetch_event_source_loses_nothing() {
    nothing_is_lost_or_made_up(node(), "@microsoft/fetch-event-source").await;
}

#[tokio::test]
async fn httpx_sse_loses_nothing() {
    nothing_is_lost_or_made_up(python(), "httpx-sse").await;
}

#[tokio::test]
async fn sseclient_loses_nothing() {
    nothing_is_lost_or_made_up(python(), "sseclient-py").await;
}
