//! How spans get to their receiver, and what a receiver that dies or hangs costs: no request, no job, no memory.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::json;
use testkit::{
    OtlpReceiver, ReceivedSpan, RedisServer, ReservedPort, ServiceProcess, WebhookReceiver, WebhookReply, binary_path,
    decode_spans, eventually,
};

use crate::{
    kit::{GalleyKit, job_body},
    traced_kit::variables,
};

/// Requests under load, each with a job.
const JOBS: usize = 1800;
/// Spans that a process keeps.
const MAX_QUEUED: u64 = 512;
const EVERY_TRACE: (&str, &str) = ("OTEL_TRACES_SAMPLER", "always_on");
const SMALL_QUEUE: (&str, &str) = ("GALLEY__TELEMETRY__MAX_QUEUED_SPANS", "512");

pub(crate) async fn metric(service: &ServiceProcess, name: &str) -> u64 {
    let text = reqwest::get(service.url("/metrics")).await.expect("it answers").text().await.expect("text");
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Enqueues jobs, many at a time; each must be accepted.
pub(crate) async fn load(kit: &GalleyKit, jobs: usize) {
    let body = job_body("test.noop", &json!([]));
    for _ in 0..jobs / 30 {
        let posts = (0..30).map(|_| kit.enqueue(&body));
        futures_util::future::join_all(posts).await;
    }
}

pub(crate) async fn wait_until_done(kit: &GalleyKit, jobs: usize) {
    eventually("all jobs are done", || async {
        let stats: serde_json::Value = kit.get("/ojs/v1/queues/default/stats").await.json().await.ok()?;
        let stats = &stats["queue"];
        (stats["available"] == 0 && stats["active"] == 0 && stats["completed"] == json!(jobs)).then_some(())
    })
    .await;
}

/// A receiver in a process of its own, which can be killed.
pub(crate) struct ReceiverProcess(Child);

impl ReceiverProcess {
    pub(crate) fn start(port: u16) -> Self {
        let mut command = Command::new(binary_path("otlp-receiver"));
        let child = command.arg(format!("127.0.0.1:{port}")).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.expect("a binary of ours starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("a process of ours");
        self.0.wait().expect("it was killed");
    }
}

impl Drop for ReceiverProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a service has logged an event, and checks that it has not done so more than once a minute.
pub(crate) async fn assert_once_a_minute(service: &ServiceProcess, event: &str, began: Instant) {
    service.wait_for_event(event).await;
    let (lines, minutes) = (service.events(event).len() as u64, began.elapsed().as_secs() / 60);
    assert!(lines <= 1 + minutes, "{lines} lines of {event} in {:?}", began.elapsed());
}

#[tokio::test]
async fn spans_go_over_http_compressed_with_headers_and_the_names_of_the_variables() {
    let receiver = WebhookReceiver::start([WebhookReply::new(200, "", "")]).await;
    let url = receiver.url("");
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.trim_end_matches('/')),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_SERVICE_NAME", "door"),
        EVERY_TRACE,
    ];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
    let is_it = |span: &ReceivedSpan| span.service == "door" && span.name == "GET /ojs/v1/queues";
    let request = eventually("the span arrives", || async {
        receiver.requests().into_iter().find(|request| decode_spans(&request.body, true).iter().any(is_it))
    })
    .await;
    assert!(request.head.starts_with("POST /v1/traces HTTP/1.1"), "{}", request.head);
    assert_eq!((request.header("content-encoding"), request.header("x-tenant")), (Some("gzip"), Some("acme")));
}

#[tokio::test]
async fn spans_go_over_grpc_compressed_with_headers() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let url = receiver.url();
    let more =
        [("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), EVERY_TRACE];
    let variables: Vec<(&str, &str)> = variables(&url).into_iter().chain(more).collect();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
    eventually("the span arrives", || async { (!receiver.spans().is_empty()).then_some(()) }).await;
    let text = receiver.received_text();
    assert!(text.contains("x-tenant") && text.contains("acme") && text.contains("gzip"), "{text}");
}

#[tokio::test]
async fn a_receiver_that_is_killed_under_load_costs_no_request_and_no_job() {
    let (port, began) = (ReservedPort::choose(), Instant::now());
    let mut receiver = ReceiverProcess::start(port.number());
    let url = format!("http://127.0.0.1:{}", port.number());
    let variables: Vec<(&str, &str)> = variables(&url).into_iter().chain([EVERY_TRACE, SMALL_QUEUE]).collect();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    load(&kit, JOBS / 3).await;
    eventually("spans arrive", || async { (metric(&worker, "galley_spans_sent_total").await > 0).then_some(()) }).await;
    receiver.kill();
    load(&kit, JOBS - JOBS / 3).await;
    wait_until_done(&kit, JOBS).await;
    for service in [&kit.gateway, &worker] {
        eventually("what is lost is counted", || async {
            (metric(service, "galley_spans_lost_total").await > 0).then_some(())
        })
        .await;
        assert_once_a_minute(service, "spans.lost", began).await;
    }
    // Back again, it gets what follows
    let receiver = ReceiverProcess::start(port.number());
    let sent = metric(&kit.gateway, "galley_spans_sent_total").await;
    eventually("spans arrive again", || async {
        kit.get("/ojs/v1/queues").await;
        (metric(&kit.gateway, "galley_spans_sent_total").await > sent).then_some(())
    })
    .await;
    drop(receiver);
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_nothing_up_and_takes_no_more_memory_than_the_queue_has() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    receiver.hang();
    let (url, began) = (receiver.url(), Instant::now());
    let variables: Vec<(&str, &str)> = variables(&url).into_iter().chain([EVERY_TRACE, SMALL_QUEUE]).collect();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    load(&kit, JOBS).await;
    wait_until_done(&kit, JOBS).await;
    // Two spans of each request: whatever does not fit is lost at once
    let least = 2 * JOBS as u64 - MAX_QUEUED;
    eventually("all but the queue is lost", || async {
        (metric(&kit.gateway, "galley_spans_lost_total").await >= least).then_some(())
    })
    .await;
    assert!(receiver.spans().is_empty());
    for service in [&kit.gateway, &worker] {
        assert_once_a_minute(service, "spans.lost", began).await;
    }
    // And stopping waits for it only so long
    let GalleyKit { gateway, redis, .. } = kit;
    assert!(worker.terminate().await.success() && gateway.terminate().await.success());
    drop(redis);
}

#[tokio::test]
async fn what_is_left_is_sent_when_a_service_stops() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let url = receiver.url();
    let variables: Vec<(&str, &str)> = variables(&url).into_iter().chain([EVERY_TRACE]).collect();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    load(&kit, 300).await;
    wait_until_done(&kit, 300).await;
    let GalleyKit { gateway, redis, .. } = kit;
    assert!(worker.terminate().await.success() && gateway.terminate().await.success());
    drop(redis);
    let spans = receiver.spans();
    let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
    assert_eq!((count("enqueue default"), count("process default")), (300, 300));
}
