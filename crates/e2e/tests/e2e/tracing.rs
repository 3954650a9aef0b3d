//! Where spans go, and who may have them. What they tell is in `trace_trees`.

use serde_json::{Value, json};
use testkit::{OtlpReceiver, TestAuthority, WebhookReceiver, WebhookReply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::{GalleyKit, job_body};

const EVERY_TRACE: (&str, &str) = ("GALLEY__TELEMETRY__SAMPLER", "always_on");

#[tokio::test]
async fn a_job_that_is_fetched_carries_its_trace_whether_or_not_spans_are_exported() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let endpoint = receiver.url();
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for variables in [&[][..], &[("GALLEY__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str())]] {
        let kit = GalleyKit::start_with(testkit::RedisServer::start(), variables).await;
        let post = |path: &str, body: Value| {
            kit.http.post(kit.gateway.url(path)).header("content-type", "application/json").body(body.to_string())
        };
        // What the client puts into the job itself is not the trace of its request
        let job = json!({ "type": "a", "args": [], "traceparent": "00-ffffffffffffffffffffffffffffffff-b7ad6b7169203331-01" });
        let made = post("/ojs/v1/jobs", job).header("traceparent", given).send().await.expect("an answer");
        assert_eq!(made.status(), 201);
        let fetched = post("/ojs/v1/workers/fetch", json!({ "queues": ["default"] })).send().await.expect("an answer");
        let fetched: Value = fetched.json().await.expect("JSON");
        let traceparent = fetched["jobs"][0]["traceparent"].as_str().unwrap_or_else(|| panic!("no trace: {fetched}"));
        assert_eq!(&traceparent[..36], &given[..36], "the trace of the request");
        // With spans the parent is the span of the request, not the client's
        assert_eq!(traceparent == given, variables.is_empty());
        let id = fetched["jobs"][0]["id"].as_str().expect("an id");
        assert_eq!(kit.job(id).await["traceparent"], traceparent, "people find the trace of a job by it");
    }
}

#[tokio::test]
async fn the_variables_of_opentelemetry_say_where_spans_go_whose_they_are_and_how_many() {
    let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let endpoint = receiver.url();
    let variables = |sampler| {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_SERVICE_NAME", "door"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging"),
            ("OTEL_TRACES_SAMPLER", sampler),
        ]
    };
    for (sampler, arrives) in [("always_off", false), ("always_on", true)] {
        let kit = GalleyKit::start_with(testkit::RedisServer::start(), &variables(sampler)).await;
        assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
        let GalleyKit { gateway, redis, .. } = kit;
        // Ending sends what is left
        assert!(gateway.terminate().await.success());
        drop(redis);
        let spans = receiver.spans();
        assert_eq!(spans.iter().any(|span| span.service == "door"), arrives, "{sampler}: {spans:?}");
    }
    assert!(receiver.received_text().contains("staging"));
    let kit = GalleyKit::start().await;
    let refused = kit.run_binary("gateway", &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "jaeger:4317")]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{said}");
}

#[tokio::test]
async fn spans_are_sent_over_http_too_and_a_receiver_that_is_away_holds_nothing_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1/traces", listener.local_addr().expect("an address"));
    let variables = [("GALLEY__TELEMETRY__OTLP_ENDPOINT", url.as_str()), EVERY_TRACE];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &variables).await;
    let _worker = kit.start_worker(&[("GALLEY__TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1")]).await;
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    let (mut stream, _) = listener.accept().await.expect("the exporter connects");
    let mut head = vec![0; 1024];
    let read = stream.read(&mut head).await.expect("a request");
    assert!(head[..read].starts_with(b"POST /v1/traces HTTP/1.1"));
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.expect("sent");
}

#[tokio::test]
async fn spans_metrics_and_log_lines_go_over_tls_to_a_receiver_that_is_trusted_and_to_no_other() {
    let (authority, stranger) = (TestAuthority::new(), TestAuthority::new());
    let certificate = authority.issue("receiver", &["localhost"]);
    let grpc = OtlpReceiver::start_with_tls(&certificate);
    let acceptor = TestAuthority::acceptor(&certificate);
    let http = WebhookReceiver::start_with_tls([WebhookReply::new(200, "", "")], acceptor).await;
    let posted = |path: &str| {
        let start = format!("POST {path} ");
        http.requests().iter().filter(|request| request.head.starts_with(&start)).count()
    };
    let received = || {
        [
            [grpc.spans().len(), grpc.points().len(), grpc.log_records().len()],
            ["/v1/traces", "/v1/metrics", "/v1/logs"].map(posted),
        ]
    };
    let grpc_url = format!("https://localhost:{}", grpc.port());
    let http_url = |signal: &str| format!("https://localhost:{}/v1/{signal}", http.address.port());
    let endpoints = [[(); 3].map(|()| grpc_url.clone()), ["traces", "metrics", "logs"].map(http_url)];
    for (protocol, [spans, metrics, logs]) in endpoints.iter().enumerate() {
        for (trusted, arrives) in [(&stranger, false), (&authority, true)] {
            let before = received()[protocol];
            let ca_file = trusted.ca_file();
            let variables = [
                ("GALLEY__TELEMETRY__OTLP_ENDPOINT", spans.as_str()),
                ("GALLEY__TELEMETRY__OTLP_METRICS_ENDPOINT", metrics),
                ("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", logs),
                ("GALLEY__TELEMETRY__OTLP_CA_FILE", &ca_file),
                EVERY_TRACE,
            ];
            let kit = GalleyKit::start_with(testkit::RedisServer::start(), &variables).await;
            assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
            let GalleyKit { gateway, redis, .. } = kit;
            // Ending sends what is left
            assert!(gateway.terminate().await.success());
            drop(redis);
            let after = received()[protocol];
            let arrived = [0, 1, 2].map(|signal| after[signal] != before[signal]);
            assert_eq!(arrived, [arrives; 3], "spans, metrics and log lines to {spans}");
        }
    }
}
