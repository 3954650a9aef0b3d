//! Connections and streams: how many there may be, and what those that do nothing take of memory.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, eventually, eventually_for, skip};

use crate::{
    idle_cost::count_commands,
    kit::{GalleyKit, job_body},
    sse::ChannelEventsClient,
};

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a limit");
    stream
}

/// A connection that has been answered.
fn connect_and_ask(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(address);
    let _ = stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).unwrap_or(0);
    (stream, String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_a_number_of_connections_and_gets_more_when_it_closes_some() {
    let redis = RedisServer::start();
    let settings = [("GALLEY__GATEWAY__MAX_CONNECTIONS_PER_ADDRESS", "3")];
    let gateway = ServiceProcess::start("gateway", &redis, &settings).await;
    let address = gateway.address();
    let open: Vec<_> = (0..3).map(|_| connect_and_ask(address)).collect();
    assert!(open.iter().all(|(_, answer)| answer.starts_with("HTTP/1.1 200")), "{open:?}");
    let (_refused, answer) = connect_and_ask(address);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
    let other: SocketAddr = ([127, 0, 0, 1], address.port()).into();
    assert!(connect_from([127, 0, 0, 2], other).starts_with("HTTP/1.1 200"), "another address has its own");
    drop(open);
    eventually("there is room again", || async {
        connect_and_ask(address).1.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

fn connect_from(from: [u8; 4], to: SocketAddr) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of this machine");
    socket.connect(&to.into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a limit");
    stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[tokio::test]
async fn a_client_has_a_number_of_streams_and_gets_more_when_it_closes_some() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__MAX_STREAMS_PER_CLIENT", "2")]).await;
    let url = kit.gateway.url("/v1/channels/orders/stream");
    let first = ChannelEventsClient::open(url.clone(), None).await;
    let second = ChannelEventsClient::open(kit.gateway.url("/v1/stream?channel=o*"), None).await;
    for path in ["/v1/channels/orders/stream", "/ojs/v1/events/stream"] {
        let refused = kit.get(path).await;
        assert_eq!(refused.status(), 503, "{path}");
        assert!(refused.headers().contains_key("retry-after"));
    }
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
    drop((first, second));
    eventually("there is room again", || async {
        let request = kit.http.get(&url).send().await.ok()?;
        (request.status() == 200).then_some(())
    })
    .await;
}

/// Allows this process, and those that it starts, files for that many connections; fewer where the machine forbids it.
fn allow_connections(wanted: usize) -> usize {
    const OTHER_FILES: u64 = 1500;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let needed = wanted as u64 + OTHER_FILES;
    let allowed = if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many as it may have");
        hard
    } else {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).expect("as many as it may have");
        needed
    };
    usize::try_from(allowed.saturating_sub(OTHER_FILES)).expect("a number")
}

/// Limits the memory that a running process may have: everything that it allocates counts, used or not.
fn limit_memory(gateway: &ServiceProcess, bytes: u64) -> bool {
    let process = gateway.process_id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &process, &format!("--data={bytes}")]).status();
    limited.is_ok_and(|status| status.success())
}

/// The most memory that a process has had, in bytes.
fn peak_memory(gateway: &ServiceProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

const MEBIBYTE: u64 = 1 << 20;
/// All that a gateway may ask Redis in a second while readers open: fifty lists of channels with what surrounds each.
const MAX_COMMANDS_OF_READERS: u64 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_idle_connections_and_slow_heads_and_bodies_leave_the_gateway_in_its_memory() {
    let idle = allow_connections(21_000) - 1000;
    let kit = GalleyKit::start_with(RedisServer::start(), &[]).await;
    if !limit_memory(&kit.gateway, 768 * MEBIBYTE) {
        return skip("the memory of a process cannot be limited here");
    }
    let address = kit.gateway.address();
    let open: Vec<TcpStream> = (0..idle).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    // A head that does not end, and a body that does not come
    let slow: Vec<TcpStream> = (0..1000)
        .map(|number| {
            let mut stream = connect(address);
            let text: &[u8] = if number % 2 == 0 {
                b"POST /ojs/v1/jobs HTTP/1.1\r\nhost: localhost\r\nx-slow: "
            } else {
                b"POST /ojs/v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n{"
            };
            stream.write_all(text).expect("sent");
            stream
        })
        .collect();
    let id = kit.enqueue(&job_body("a", &json!([1]))).await;
    assert_eq!(kit.job(&id).await["state"], "available", "others are served");
    for mut stream in slow {
        // 408 or the end: not the test's own limit
        assert!(stream.read(&mut [0; 64]).is_ok(), "a slow client is cut off");
    }
    let peak = peak_memory(&kit.gateway);
    assert!(peak < 512 * MEBIBYTE, "{} MiB", peak / MEBIBYTE);
    drop(open);
}

/// A reader that takes the beginning of its stream and then nothing any more.
fn open_reader(address: SocketAddr, path: &str) -> TcpStream {
    let mut reader = ask_for_stream(address, path);
    read_until(&mut reader, "event: begin");
    reader
}

fn ask_for_stream(address: SocketAddr, path: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    // So that the kernel takes as little as it can, and the gateway keeps the rest
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.into()).expect("it listens");
    let mut reader = TcpStream::from(socket);
    reader.set_read_timeout(Some(TEST_TIMEOUT)).expect("a limit");
    write!(reader, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    reader
}

fn read_until(reader: &mut TcpStream, end: &str) {
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(end.as_bytes()) {
        reader.read_exact(&mut byte).unwrap_or_else(|_| panic!("no {end}: {}", String::from_utf8_lossy(&answer)));
        answer.push(byte[0]);
    }
}

fn open_readers(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let paths = ["/v1/channels/orders/stream", "/v1/stream?channel=ord*"];
    // Each thread waits for the answers to its own
    let open = |first| (first..count).step_by(8).map(|number| open_reader(address, paths[number % 2])).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|first| scope.spawn(move || -> Vec<_> { open(first) })).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

async fn publish(kit: &GalleyKit, length: usize) {
    let message = json!("m".repeat(length)).to_string();
    // Not the client that checks answers: it would read the message as JSON
    let request = reqwest::Client::new()
        .post(kit.gateway.url("/v1/channels/orders/messages"))
        .header("content-type", "application/json")
        .body(message);
    // Ten thousand readers can keep a small machine from reading the answer of Redis in time: 503 says to publish again
    eventually_for(Duration::from_mins(2), "the message is accepted", || async {
        let answer = request.try_clone().expect("a text").send().await.expect("an answer");
        assert!(answer.status().is_success() || answer.status() == 503, "{}", answer.status());
        answer.status().is_success().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_readers_that_take_nothing_leave_the_gateway_in_its_memory() {
    // Their sockets are open in this process too
    let readers = allow_connections(10_000);
    let settings = [("GALLEY__CHANNELS__STALL_MS", "600000"), ("GALLEY__CHANNELS__MAX_READERS", "20000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &settings).await;
    if !limit_memory(&kit.gateway, 1536 * MEBIBYTE) {
        return skip("the memory of a process cannot be limited here");
    }
    let open = open_readers(kit.gateway.address(), readers);
    // Nearly a mebibyte each and too long for the ring: a copy for each reader would be ten gigabytes
    for _ in 0..3 {
        publish(&kit, 900_000).await;
    }
    // One that reads gets all of it: the gateway has come as far with the others
    let mut reading = ChannelEventsClient::open(kit.gateway.url("/v1/channels/orders/stream?since=-PT1H"), None).await;
    for _ in 0..3 {
        reading.expect("message").await;
    }
    let id = kit.enqueue(&job_body("a", &json!([1]))).await;
    assert_eq!(kit.job(&id).await["state"], "available", "others are served");
    let peak = peak_memory(&kit.gateway);
    assert!(peak < 1024 * MEBIBYTE, "{} MiB", peak / MEBIBYTE);
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_readers_by_pattern_that_open_at_once_share_what_they_have_to_read() {
    let readers = allow_connections(10_000);
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__CHANNELS__MAX_READERS", "20000")]).await;
    if !limit_memory(&kit.gateway, 1536 * MEBIBYTE) {
        return skip("the memory of a process cannot be limited here");
    }
    publish(&kit, 10).await;
    let connection = kit.redis.connection().await;
    let (before, begin) = (count_commands(&connection).await, Instant::now());
    // All have asked before the first takes its answer
    let paths = ["/v1/stream?channel=ord*", "/v1/stream?channel=*s&channel=none.*"];
    let address = kit.gateway.address();
    let mut open: Vec<TcpStream> =
        (0..readers).map(|number| ask_for_stream(address, paths[number % paths.len()])).collect();
    for reader in &mut open {
        read_until(reader, "HTTP/1.1 200 OK\r\n");
        read_until(reader, "event: begin");
    }
    // However many there are: without sharing each reader costs two or three
    let (commands, seconds) = (count_commands(&connection).await - before, begin.elapsed().as_secs() + 1);
    assert!(commands < MAX_COMMANDS_OF_READERS * seconds, "{commands} commands for {readers} readers in {seconds} s");
    publish(&kit, 10).await;
    for reader in &mut open {
        read_until(reader, "event: message");
    }
    let peak = peak_memory(&kit.gateway);
    assert!(peak < 1024 * MEBIBYTE, "{} MiB", peak / MEBIBYTE);
}
