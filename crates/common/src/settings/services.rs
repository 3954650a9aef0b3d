//! The three services: gateway, queue-worker, pubsub-worker.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    YEAR_MS,
    declare::section,
    error::invalid_value,
    hostname,
    kinds::{
        Kind, bytes, list, millis, number, optional_path, parse_value, per_queue, switch, text, text_with, zero_or,
    },
};
use crate::name::{ChannelName, HostPattern, Origin, QueueName, WorkerId};

fn address(default: &str) -> Kind<SocketAddr> {
    text("an address and port such as 127.0.0.1:8080", default)
}

section! {
    /// The dashboard: the pages of the gateway.
    pub struct DashboardSettings = "dashboard" {
        /// How long somebody stays logged in.
        "session_ms" => session_time: Duration = millis(60_000..=2_592_000_000, 43_200_000);
        /// Where a trace is shown, such as `http://127.0.0.1:16686/trace/{trace_id}` for Jaeger. Empty: jobs have no link.
        "trace_url" => trace_url: Option<String> = text_with(TRACE_URL, "", |key, url| {
            let is_usable = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) && url.contains("{trace_id}");
            if !url.is_empty() && !is_usable {
                return Err(invalid_value(key, TRACE_URL, format_args!("{url:?}")));
            }
            Ok(Some(url).filter(|url| !url.is_empty()))
        });
    }
}

const TRACE_URL: &str = "empty, or an http or https address with {trace_id} in it";

section! {
    /// The gateway: the HTTP interface.
    pub struct GatewaySettings = "gateway" {
        /// Address and port of the HTTP interface. Port 0 picks a free port.
        "listen" => listen: SocketAddr = address("127.0.0.1:8080");
        /// PEM file of the certificate with its chain. With it the HTTP interface speaks TLS (1.2 and 1.3) and nothing else,
        /// with HTTP/2 for clients that can.
        "tls_cert_file" => tls_cert_file: Option<PathBuf> = optional_path();
        /// PEM file of the private key of `tls_cert_file`.
        "tls_key_file" => tls_key_file: Option<PathBuf> = optional_path();
        /// Connections at a time. More are answered with 503, or closed if they speak TLS. The process needs an open file
        /// for each, and raises its limit as far as it may.
        "max_connections" => max_connections: usize = number(1..=1_000_000, 25_000);
        /// Connections of one address (IPv6: of one /64) at a time. Behind a proxy all clients have its address.
        "max_connections_per_address" => max_connections_per_address: Option<usize> =
            zero_or(number(1..=1_000_000, 0));
        /// Largest body of a request. A larger one is answered with 413.
        "body_limit_bytes" => body_limit_bytes: usize = bytes(1024..=64 << 20, 1 << 20);
        /// Deepest nesting of JSON in a request.
        "json_depth_limit" => json_depth_limit: usize = number(8..=1000, 64);
        /// Longest wait for the head of each request of a connection, from its first byte.
        "head_timeout_ms" => head_timeout: Duration = millis(1000..=600_000, 5000);
        /// Longest wait for the body of a request. Raise it for clients on slow connections.
        "body_timeout_ms" => body_timeout: Duration = millis(100..=600_000, 10_000);
        /// On SIGTERM: time for requests in progress to finish. It is rounded to whole seconds, at least one.
        "shutdown_grace_ms" => shutdown_grace: Duration = millis(1000..=600_000, 10_000);
        /// Longest time that a request may wait for a job to finish, or for a job to claim (`wait_ms`, `Prefer: wait`).
        "max_wait_ms" => max_wait: Duration = millis(0..=600_000, 60_000);
        /// Requests that may wait at a time. More are answered with 503.
        "max_waiters" => max_waiters: usize = number(0..=1_000_000, 10_000);
        /// How long the response to a request with an `Idempotency-Key` is kept.
        "idempotency_ttl_ms" => idempotency_ttl: Duration = millis(60_000..=YEAR_MS, 86_400_000);
        /// Most jobs in one batch request. A stream of lines has no such limit.
        "batch_max_jobs" => batch_max_jobs: usize = number(1..=10_000, 1000);
        /// Largest body of a batch request.
        "batch_limit_bytes" => batch_limit_bytes: usize = bytes(1024..=256 << 20, 16 << 20);
        /// Memory for the bodies of all requests that a gateway reads at a time. A request for which none is left is
        /// answered with 503.
        "bodies_max_bytes" => bodies_max_bytes: usize = bytes(1 << 20..=16 << 30, 96 << 20);
        /// Memory for the answers that a gateway is sending: pages, lists, fetched jobs; and as much again for the
        /// long messages that it sends over WebSocket connections. When it is used up by clients that
        /// read slowly, more large answers and fetches are refused with 503.
        "answers_max_bytes" => answers_max_bytes: usize = bytes(1 << 20..=16 << 30, 96 << 20);
        /// Answers heartbeats with the directive in a job's `metadata.test_directive`. Only for conformance suites.
        "test_directives" => test_directives: bool = switch(false);
        /// Clients that may follow job events at a time. More are answered with 503.
        "max_event_streams" => max_event_streams: usize = number(1..=100_000, 1000);
        /// Streams of events and messages, with those over WebSocket, that one client has open: one address (IPv6: one /64).
        /// More are answered with 503. Behind a proxy all clients have its address.
        "max_streams_per_client" => max_streams_per_client: Option<usize> = zero_or(number(1..=1_000_000, 0));
        /// Longest silence on a stream of events. The gateway then sends a comment, so that proxies keep the
        /// connection. Set it below the idle timeout of your proxy.
        "event_keep_alive_ms" => event_keep_alive: Duration = millis(100..=600_000, 15_000);
        /// Serves `GET /prodcons` and `GET /pubsub`, the two links of the original demo, which need no key. Each visit adds a
        /// digit to a list, or publishes one.
        "demo_routes" => demo_routes: bool = switch(true);
        /// Names under which clients reach the gateway: `galley.example.com`, `*.example.com`, or `*` for any. Without
        /// being listed here it answers to addresses, names without a dot (compose, Kubernetes), `localhost`, this
        /// machine's name, and names below `.localhost`, `.local`, `.internal`, `.home.arpa`, `.svc` and
        /// `.cluster.local`. Any other name is answered with 403, because the page of a stranger could have it.
        "allowed_hosts" => allowed_hosts: Vec<HostPattern> =
            list("names of hosts: galley.example.com, *.example.com, *", &[]);
        /// Other sites whose pages may read channels: as event streams, over `WebSocket` and as histories.
        /// Empty: only pages from the gateway's own host and port may.
        "allowed_origins" => allowed_origins: Vec<Origin> =
            list("origins, each with scheme and host, and port if any: https://app.example.com", &[]);
    }
}

impl GatewaySettings {
    /// Certificate and key belong together. The largest body must fit into three quarters of the memory for bodies: the
    /// rest is for small ones.
    pub(super) fn check(&self) -> Result<(), super::SettingError> {
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            let allowed = "set together with gateway.tls_key_file, or neither of them";
            return Err(invalid_value("gateway.tls_cert_file", allowed, "one of them"));
        }
        let largest = self.body_limit_bytes.max(self.batch_limit_bytes);
        if largest <= self.bodies_max_bytes / 4 * 3 {
            return Ok(());
        }
        let allowed = format!("at least {} (a third more than the largest body)", largest.div_ceil(3) * 4);
        Err(invalid_value("gateway.bodies_max_bytes", &allowed, self.bodies_max_bytes))
    }
}

section! {
    /// queue-worker: the service that runs jobs.
    pub struct QueueWorkerSettings = "queue_worker" {
        /// Address and port of health and metrics. Port 0 picks a free port.
        "listen" => listen: SocketAddr = address("127.0.0.1:8081");
        /// Queues to run jobs from, the most important first.
        "queues" => queues: Vec<QueueName> =
            list("queue names (^[a-z0-9][a-z0-9.-]*$)", &["default", "demo", "prodcons"]);
        /// Weights of queues. A queue of weight 3 is asked before one of weight 1 three times out of four, so no queue
        /// starves. A queue without a weight has weight 1. Without any weight the worker asks the queues strictly in
        /// their order.
        "weights.<queue>" => weights: BTreeMap<QueueName, u32> = per_queue(1..=1000, "weights.default = 3");
        /// Name of the worker in jobs and logs. Empty: host name and process id.
        "name" => name: WorkerId =
            text_with(WORKER_NAME, "", |key, name| worker_name(key, name, host_and_process));
        /// Jobs that this process runs at a time.
        "concurrency" => concurrency: usize = number(1..=10_000, 100);
        /// Jobs of one queue that this process runs at a time. The other queues share the rest of `concurrency`.
        "queue_concurrency.<queue>" => queue_concurrency: BTreeMap<QueueName, usize> =
            per_queue(1..=10_000, "queue_concurrency.reports = 2");
        /// Path of a TOML file of rules that say how to run each type of job (docs/handlers.md). It is read again on
        /// SIGHUP. Empty: only the handlers that the worker registers run jobs.
        "rules" => rules: Option<PathBuf> = optional_path();
        /// Registers the `test.*` handlers of the Open Job Spec's conformance suites, and `demo.dish`. For trying
        /// Galley out: some of them sleep, fail or never end, and every client can run them.
        "demo_handlers" => demo_handlers: bool = switch(false);
        /// On SIGTERM: time for running jobs to finish. Jobs that still run are then released without using up an
        /// attempt.
        "shutdown_grace_ms" => shutdown_grace: Duration = millis(0..=3_600_000, 25_000);
        /// Time for a handler to clean up after its job is cancelled, its timeout ends or the worker stops.
        /// Only handlers that listen for cancellation get it.
        "stop_grace_ms" => stop_grace: Duration = millis(0..=60_000, 2000);
        /// How often the worker reports that it is alive. After three intervals without a report it leaves the list of
        /// workers.
        "heartbeat_ms" => heartbeat_interval: Duration = millis(100..=600_000, 5000);
    }
}

section! {
    /// pubsub-worker: the service that delivers messages of subscriptions and logs channels.
    pub struct PubsubWorkerSettings = "pubsub_worker" {
        /// Address and port of health and metrics. Port 0 picks a free port.
        "listen" => listen: SocketAddr = address("127.0.0.1:8082");
        /// Channels whose messages the worker logs, including those that other programs publish with plain Redis.
        "channels" => channels: Vec<ChannelName> = list(CHANNEL_NAMES, &["task:pubsub:channel"]);
        /// Whether the worker delivers the messages of subscriptions.
        "subscriptions" => subscriptions: bool = switch(true);
        /// Name of the worker. A broadcast subscription continues where the last worker of that name stopped, so give
        /// each worker a name that is unique and stays the same. Empty: the host name.
        "name" => name: WorkerId = text_with(WORKER_NAME, "", |key, name| worker_name(key, name, hostname));
        /// On SIGTERM: time for deliveries to finish. Other workers take over the rest.
        "shutdown_grace_ms" => shutdown_grace: Duration = millis(0..=3_600_000, 20_000);
        /// Path of a TOML file of programs that subscriptions can name (docs/commands.md). It is read again on SIGHUP.
        /// Empty: no programs.
        "commands" => commands: Option<PathBuf> = optional_path();
        /// Messages received from `channels` that may wait to be logged. More are dropped, counted and reported in the
        /// log.
        "buffer_messages" => buffer_messages: usize = number(1..=1_000_000, 65_536);
    }
}

/// What `pubsub_worker.channels` and `channels.plain` can hold.
pub(super) const CHANNEL_NAMES: &str = "channel names (^[A-Za-z0-9][A-Za-z0-9._:-]*$)";

const WORKER_NAME: &str = "1 to 128 printable ASCII characters without spaces";

fn host_and_process() -> String {
    format!("{}-{}", hostname(), std::process::id())
}

/// The name that is set, or the usual name if it is empty.
fn worker_name(key: &str, name: String, usual: impl Fn() -> String) -> Result<WorkerId, super::SettingError> {
    parse_value(key, &if name.is_empty() { usual() } else { name }, WORKER_NAME)
}
