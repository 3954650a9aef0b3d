//! Services whose spans a receiver gets, and whole traces as text: every span under its parent, with its kind, its
//! attributes, its links and its exceptions.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::Value;
use testkit::{OtlpReceiver, ReceivedSpan, RedisServer, ServiceProcess, eventually, eventually_or};

use crate::{
    kit::GalleyKit,
    subscriptions_delivery::PRIVATE,
    trace_context::{TRACE, post_with},
};

/// What of the attributes is shown, and how.
const SHOWN: [(&str, &str); 8] = [
    ("messaging.operation.type", ""),
    ("messaging.message.id", ""),
    ("messaging.batch.message_count", "batch="),
    ("galley.job.type", "type="),
    ("galley.job.attempt", "attempt="),
    ("http.response.status_code", "status="),
    ("error.type", "error="),
    ("galley.outcome", "outcome="),
];

/// A receiver, and the services that send to it.
pub(crate) struct TracedKit {
    pub(crate) kit: GalleyKit,
    pub(crate) receiver: OtlpReceiver,
    /// What stands for an id in a tree.
    pub(crate) names: BTreeMap<String, &'static str>,
}

impl TracedKit {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with other settings of the gateway.
    pub(crate) async fn start_with(more: &[(&str, &str)]) -> Self {
        let receiver = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
        let url = receiver.url();
        let all: Vec<(&str, &str)> = variables(&url).into_iter().chain(more.iter().copied()).collect();
        let kit = GalleyKit::start_with(RedisServer::start(), &all).await;
        Self { kit, receiver, names: BTreeMap::new() }
    }

    pub(crate) async fn worker(&self, more: &[(&str, &str)]) -> ServiceProcess {
        let url = self.receiver.url();
        let all: Vec<(&str, &str)> = variables(&url).into_iter().chain(more.iter().copied()).collect();
        self.kit.start_worker(&all).await
    }

    pub(crate) async fn pubsub_worker(&self) -> ServiceProcess {
        let url = self.receiver.url();
        let worker = ServiceProcess::start("pubsub-worker", &self.kit.redis, &variables(&url)).await;
        worker.wait_until_ready().await;
        worker
    }

    /// Enqueues a job in the trace of the tests.
    pub(crate) async fn enqueue(&mut self, name: &'static str, body: &Value) -> String {
        let job = post_with(&self.kit, "/ojs/v1/jobs", &TRACE[..1], body).await;
        let id = job["job"]["id"].as_str().expect("an id").to_owned();
        self.names.insert(id.clone(), name);
        id
    }

    /// Waits until a job is put into the queue, and names it.
    pub(crate) async fn name_enqueued(&mut self, queue: &str, name: &'static str) -> ReceivedSpan {
        let wanted = format!("enqueue {queue}");
        let find = || async { self.receiver.spans().into_iter().find(|span| span.name == wanted) };
        let span = eventually("the job is there", find).await;
        self.names.insert(span.attributes["messaging.message.id"].clone(), name);
        span
    }

    /// Waits until the trace has exactly this tree.
    pub(crate) async fn assert_tree(&self, trace_id: &str, expected: &str) {
        let expected = unindented(expected);
        let explain = || {
            let spans = self.receiver.spans();
            format!("the tree\n{expected}\nthere is\n{}\nof {spans:#?}", self.tree(&spans, trace_id))
        };
        let is_there = || async { (self.tree(&self.receiver.spans(), trace_id) == expected).then_some(()) };
        eventually_or(explain, is_there).await;
    }

    /// The spans of a trace, a line each, children below their parent and in the order of their lines.
    fn tree(&self, spans: &[ReceivedSpan], trace_id: &str) -> String {
        let own: Vec<&ReceivedSpan> = spans.iter().filter(|span| span.trace_id == trace_id).collect();
        let is_known = |id: &str| own.iter().any(|span| span.span_id == id);
        let mut roots: Vec<String> = own
            .iter()
            .filter(|span| !is_known(&span.parent_span_id))
            .map(|span| self.subtree(spans, span, 0))
            .collect();
        roots.sort();
        roots.concat()
    }

    fn subtree(&self, spans: &[ReceivedSpan], span: &ReceivedSpan, depth: usize) -> String {
        let mut text = format!("{:indent$}{}\n", "", self.line(spans, span), indent = depth * 2);
        let children = spans.iter().filter(|one| one.parent_span_id == span.span_id && one.trace_id == span.trace_id);
        let mut below: Vec<String> = children.map(|child| self.subtree(spans, child, depth + 1)).collect();
        below.sort();
        text.push_str(&below.concat());
        text
    }

    fn line(&self, spans: &[ReceivedSpan], span: &ReceivedSpan) -> String {
        let mut line = format!("{} {} {}", span.service, span.kind, span.name);
        for (name, shown) in SHOWN {
            if let Some(value) = span.attributes.get(name) {
                let value = self.names.get(value).map_or(value.as_str(), |name| name);
                let _ = write!(line, " {shown}{value}");
            }
        }
        for (trace_id, span_id) in &span.links {
            let target = spans.iter().find(|one| (&one.trace_id, &one.span_id) == (trace_id, span_id));
            let target = target.map_or("nothing".to_owned(), |target| {
                let attempt = target.attributes.get("galley.job.attempt");
                format!("{}{}", target.name, attempt.map_or(String::new(), |attempt| format!(" {attempt}")))
            });
            let _ = write!(line, " -> {target}");
        }
        for (name, attributes) in &span.events {
            let _ = write!(line, " !{name} {}", attributes.get("exception.type").map_or("", String::as_str));
        }
        assert_eq!(span.is_error, span.attributes.contains_key("error.type"), "{span:?}");
        assert!(span.ended >= span.began, "{span:?}");
        let is_messaging = span.attributes.contains_key("messaging.operation.type");
        assert_eq!(span.attributes.get("messaging.system").map(String::as_str), is_messaging.then_some("galley"));
        line
    }
}

/// Where spans go. What nobody asked to record is not recorded.
pub(crate) fn variables(url: &str) -> [(&str, &str); 3] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), PRIVATE]
}

fn unindented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let indent = lines.clone().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    lines.fold(String::new(), |all, line| all + &line[indent..] + "\n")
}
