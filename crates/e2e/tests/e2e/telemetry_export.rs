//! Metrics and log lines over OTLP: what `/metrics` and standard output show, and what a receiver that is away or hangs costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use nix::sys::signal::Signal;
use serde_json::json;
use testkit::{
    OtlpReceiver, ReceivedLogRecord, ReceivedPoint, RedisServer, ReservedPort, ServiceProcess, WebhookReceiver,
    WebhookReply, decode_log_records, decode_points, eventually,
};

use crate::{
    kit::GalleyKit,
    trace_context::{TRACE, TRACE_ID, post_with},
    trace_export::{ReceiverProcess, assert_once_a_minute, load, metric, wait_until_done},
};

const OFTEN: (&str, &str) = ("OTEL_METRIC_EXPORT_INTERVAL", "100");
const JOBS: usize = 300;
/// Everything that is logged, and room for a part of it.
const VERY_MANY_LINES: [(&str, &str); 2] =
    [("GALLEY__LOG__LEVEL", "trace"), ("GALLEY__TELEMETRY__MAX_QUEUED_LOG_RECORDS", "512")];

/// Metrics and log lines go there, and no spans.
fn variables(url: &str) -> [(&str, &str); 3] {
    [("GALLEY__TELEMETRY__OTLP_METRICS_ENDPOINT", url), ("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", url), OFTEN]
}

/// The lines that `/metrics` has for a point.
fn lines_of(point: &ReceivedPoint) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let ReceivedPoint { name, labels, value, buckets, bounds, .. } = point;
    if point.kind != "histogram" {
        return vec![(name.clone(), labels.clone(), *value)];
    }
    let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    let mut count = 0;
    let mut lines = Vec::new();
    for (bound, counted) in bounds.zip(buckets) {
        count += counted;
        let mut labels = labels.clone();
        labels.insert("le".to_owned(), bound);
        lines.push((format!("{name}_bucket"), labels, f64::from(u32::try_from(count).expect("few"))));
    }
    lines.push((format!("{name}_sum"), labels.clone(), *value));
    lines.push((format!("{name}_count"), labels.clone(), f64::from(u32::try_from(count).expect("few"))));
    lines
}

/// The values of the last time that a service sent them, as `/metrics` shows them.
fn last_page(points: &[ReceivedPoint], service: &str) -> BTreeSet<String> {
    let own: Vec<&ReceivedPoint> = points.iter().filter(|point| point.service == service).collect();
    let last = own.iter().map(|point| point.at).max().unwrap_or_default();
    let lines = own.iter().filter(|point| point.at == last).flat_map(|point| lines_of(point));
    lines.map(|(name, labels, value)| line(&name, &labels, value)).collect()
}

fn line(name: &str, labels: &BTreeMap<String, String>, value: f64) -> String {
    format!("{name} {labels:?} {value}")
}

/// The lines of `/metrics` in the same form.
async fn shown_page(service: &ServiceProcess) -> BTreeSet<String> {
    let text = reqwest::get(service.url("/metrics")).await.expect("it answers").text().await.expect("text");
    let parse = |text: &str| {
        let (series, value) = text.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once("=\"").expect("a label");
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        line(name, &labels.collect(), value.parse().expect("a number"))
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

fn names(page: &BTreeSet<String>) -> BTreeSet<&str> {
    page.iter().filter_map(|line| line.split(' ').next()).collect()
}

#[tokio::test]
async fn metrics_over_grpc_have_the_names_labels_and_values_of_the_page() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let url = receiver.url();
    let kit = GalleyKit::start_with(RedisServer::start(), &variables(&url)).await;
    let worker = kit.start_worker(&variables(&url)).await;
    let pubsub_worker = ServiceProcess::start("pubsub-worker", &kit.redis, &variables(&url)).await;
    load(&kit, JOBS).await;
    wait_until_done(&kit, JOBS).await;
    for (service, name) in [(&kit.gateway, "gateway"), (&worker, "queue-worker"), (&pubsub_worker, "pubsub-worker")] {
        // What stays as it is between two looks, such as what was counted of the jobs
        eventually(&format!("the values of {name} arrive"), || async {
            let shown = shown_page(service).await;
            let sent = last_page(&receiver.points(), name);
            let is_settled = |line: &&String| {
                ["galley_jobs_", "galley_attempt", "galley_queue_wait", "galley_build_info", "galley_claim_batch"]
                    .iter()
                    .any(|name| line.starts_with(name))
            };
            let settled: BTreeSet<&String> = shown.iter().filter(is_settled).collect();
            let is_same = !settled.is_empty() && settled.iter().all(|line| sent.contains(*line));
            (is_same && names(&shown) == names(&sent)).then_some(())
        })
        .await;
    }
    // The last of them may count a moment after their end
    let attempts = eventually("all attempts are counted", || async {
        let last = receiver.points().into_iter().rfind(|point| point.name == "galley_attempt_seconds")?;
        (last.buckets.iter().sum::<u64>() == JOBS as u64).then_some(last)
    })
    .await;
    assert_eq!((attempts.kind.as_str(), attempts.unit.as_str(), attempts.buckets.len()), ("histogram", "s", 15));
    let points = receiver.points();
    let find = |name: &str| points.iter().rfind(|point| point.name == name).unwrap_or_else(|| panic!("no {name}"));
    let enqueued = points.iter().filter(|point| point.name == "galley_jobs_enqueued_total");
    let began: BTreeSet<u64> = enqueued.clone().map(|point| point.began).collect();
    assert_eq!(began.len(), 1, "a series that goes on began once");
    assert!(enqueued.clone().all(|point| point.kind == "counter" && point.began > 0 && point.began <= point.at));
    assert_eq!(
        (find("process_resident_memory_bytes").kind.as_str(), find("process_resident_memory_bytes").unit.as_str()),
        ("gauge", "By")
    );
    assert!(receiver.spans().is_empty(), "nobody asked for spans");
}

#[tokio::test]
async fn metrics_and_log_lines_go_over_http_compressed_with_headers_where_the_variables_say() {
    let receiver = WebhookReceiver::start([WebhookReply::new(200, "", "")]).await;
    let url = receiver.url("");
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.trim_end_matches('/')),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme%20inc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
        ("OTEL_SERVICE_NAME", "door"),
        OFTEN,
    ];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let path = |path: &str| format!("POST {path} HTTP/1.1");
    let is_info = |point: &ReceivedPoint| point.service == "door" && point.name == "galley_build_info";
    let is_listening = |record: &ReceivedLogRecord| {
        record.service == "door" && record.fields.get("event").is_some_and(|event| event == "gateway.listening")
    };
    // The first ones may have been sent before these were there
    let (metrics, logs) = eventually("both arrive", || async {
        let of = |signal: &str| {
            let start = path(signal);
            receiver.requests().into_iter().filter(move |request| request.head.starts_with(&start))
        };
        let metrics = of("/v1/metrics").find(|request| decode_points(&request.body, true).iter().any(is_info))?;
        let logs = of("/v1/logs").find(|request| decode_log_records(&request.body, true).iter().any(is_listening))?;
        Some((metrics, logs))
    })
    .await;
    for request in [&metrics, &logs] {
        let headers = ["content-encoding", "content-type", "x-tenant"].map(|name| request.header(name));
        assert_eq!(headers, [Some("gzip"), Some("application/x-protobuf"), Some("acme inc")]);
    }
    let all = receiver.requests();
    assert!(!all.iter().any(|request| request.head.starts_with(&path("/v1/traces"))), "OTEL_TRACES_EXPORTER");
    drop(kit);
}

#[tokio::test]
async fn log_lines_over_grpc_are_those_of_standard_output_with_their_ids() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let url = receiver.url();
    let logs =
        [("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", url.as_str()), ("GALLEY__LOG__LEVEL", "info,galley_worker=debug")];
    let kit = GalleyKit::start_with(RedisServer::start(), &logs).await;
    let mut worker = kit.start_worker(&logs).await;
    let body = json!({ "type": "test.fail_always", "args": [], "retry": { "max_attempts": 1 } });
    let job = post_with(&kit, "/ojs/v1/jobs", &TRACE[..1], &body).await;
    let id = job["job"]["id"].as_str().expect("an id").to_owned();
    kit.wait_for_state(&id, "discarded").await;
    let GalleyKit { mut gateway, redis, .. } = kit;
    for service in [&mut worker, &mut gateway] {
        service.signal(Signal::SIGTERM);
        assert!(service.wait_for_exit().await.success());
    }
    drop(redis);
    let field = |record: &ReceivedLogRecord, name: &str| record.fields.get(name).cloned().unwrap_or_default();
    for (name, service) in [("queue-worker", &worker), ("gateway", &gateway)] {
        eventually("the last line was read, and was sent as the service stopped", || async {
            let records = receiver.log_records();
            let own = records.iter().filter(|record| record.service == name);
            let sent = own.map(|record| {
                [&record.level, &record.message, &field(record, "job_id"), &record.span_id].map(ToOwned::to_owned)
            });
            let written = service.log_entries();
            let written = written.iter().map(|line| {
                ["level", "message", "job_id", "span_id"].map(|name| line[name].as_str().unwrap_or_default().to_owned())
            });
            (sent.collect::<BTreeSet<_>>() == written.collect::<BTreeSet<_>>()).then_some(())
        })
        .await;
    }
    let records = receiver.log_records();
    let of_job: Vec<_> = records.iter().filter(|record| record.fields.get("job_id") == Some(&id)).collect();
    assert!(!of_job.is_empty() && of_job.iter().all(|record| record.trace_id == TRACE_ID), "{of_job:?}");
    assert!(of_job.iter().all(|record| record.module.starts_with("galley_worker")), "{of_job:?}");
}

#[tokio::test]
async fn a_dead_receiver_of_metrics_and_log_lines_costs_no_job_and_a_line_a_minute() {
    let (port, began) = (ReservedPort::choose(), Instant::now());
    let url = format!("http://127.0.0.1:{}", port.number());
    let kit = GalleyKit::start_with(RedisServer::start(), &variables(&url)).await;
    let worker = kit.start_worker(&variables(&url)).await;
    load(&kit, JOBS).await;
    wait_until_done(&kit, JOBS).await;
    for service in [&kit.gateway, &worker] {
        for (counter, event) in [
            ("galley_metric_points_lost_total", "metric_points.lost"),
            ("galley_log_records_lost_total", "log_records.lost"),
        ] {
            eventually("what is lost is counted", || async { (metric(service, counter).await > 0).then_some(()) })
                .await;
            // Once more, and it is not said again
            let lost = metric(service, "galley_metric_points_lost_total").await;
            eventually("more is lost", || async {
                (metric(service, "galley_metric_points_lost_total").await > lost).then_some(())
            })
            .await;
            assert_once_a_minute(service, event, began).await;
        }
        assert_eq!(metric(service, "galley_log_records_sent_total").await, 0);
    }
    // There again, it gets what follows
    let receiver = ReceiverProcess::start(port.number());
    eventually("metrics arrive", || async {
        (metric(&kit.gateway, "galley_metric_points_sent_total").await > 0).then_some(())
    })
    .await;
    drop(receiver);
}

#[tokio::test]
async fn a_receiver_of_log_lines_that_hangs_holds_nothing_up_and_takes_no_more_memory_than_the_queue_has() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    receiver.hang();
    let url = receiver.url();
    let all: Vec<(&str, &str)> = variables(&url).into_iter().chain(VERY_MANY_LINES).collect();
    let kit = GalleyKit::start_with(RedisServer::start(), &all).await;
    let worker = kit.start_worker(&variables(&url)).await;
    load(&kit, JOBS).await;
    wait_until_done(&kit, JOBS).await;
    let full = "galley_log_records_lost_total{reason=\"queue_full\"}";
    eventually("what has no room is lost", || async { (metric(&kit.gateway, full).await > 512).then_some(()) }).await;
    assert!(receiver.log_records().is_empty() && receiver.points().is_empty());
    // And stopping waits for it only so long
    let GalleyKit { gateway, redis, .. } = kit;
    assert!(worker.terminate().await.success() && gateway.terminate().await.success());
    drop(redis);
}

#[tokio::test]
async fn the_last_values_are_sent_when_a_service_stops() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let url = receiver.url();
    // Nothing is sent before: an hour
    let rarely = [
        ("GALLEY__TELEMETRY__OTLP_METRICS_ENDPOINT", url.as_str()),
        ("GALLEY__TELEMETRY__OTLP_METRICS_INTERVAL_MS", "3600000"),
        OFTEN,
    ];
    let kit = GalleyKit::start_with(RedisServer::start(), &rarely).await;
    load(&kit, 30).await;
    assert!(receiver.points().is_empty());
    let GalleyKit { gateway, redis, .. } = kit;
    assert!(gateway.terminate().await.success());
    drop(redis);
    let points = receiver.points();
    let enqueued: Vec<f64> =
        points.iter().filter(|point| point.name == "galley_jobs_enqueued_total").map(|point| point.value).collect();
    assert_eq!(enqueued, [30.0]);
}
