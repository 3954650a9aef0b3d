//! What every process needs besides Redis: maintenance, traces and logs.

use std::{path::PathBuf, time::Duration};

use super::{
    SettingError,
    declare::section,
    error::invalid_value,
    kinds::{Kind, millis, number, optional, optional_path, parse_value, switch, text_with},
    otel,
};
use crate::sampling::{SAMPLERS, Sampling};

section! {
    /// Encryption at rest: what clients sent is stored sealed, so that Redis and its files hold no plain text of it.
    pub struct EncryptionSettings = "encryption" {
        /// TOML file with the keys. All processes need the same keys. Empty: nothing is sealed.
        "keys_file" => keys_file: Option<PathBuf> = optional_path();
        /// Whether data that was stored before there were keys is read. Without it a value that is not sealed is refused,
        /// so that nobody can put one into Redis.
        "accept_plain" => accept_plain: bool = switch(true);
    }
}

section! {
    /// Files that are in use and may be exchanged: keys (`auth.keys_file`, `auth.jwt.jwks_file`, `encryption.keys_file`) and
    /// certificates (`gateway.tls_cert_file`, `redis.tls_ca_file` and those beside them).
    pub struct ReloadSettings = "reload" {
        /// How often they are looked at. What two looks in a row saw is used, by new connections where it is about connections.
        /// Files that cannot be used change nothing but a line in the log.
        "interval_ms" => interval: Duration = millis(100..=86_400_000, 2000);
    }
}

section! {
    /// Maintenance: one process at a time, the leader, moves due jobs, recovers lost ones and trims what is old.
    pub struct MaintenanceSettings = "maintenance" {
        /// Leader lease: how long after the leader dies another process may take over.
        "leader_lease_ms" => leader_lease: Duration = millis(500..=600_000, 3000);
        /// How often expired leases, lost workers and old dead letters are looked for.
        "sweep_ms" => sweep_interval: Duration = millis(50..=600_000, 2000);
        /// How often channel histories are trimmed to their limits of age and bytes.
        "history_trim_ms" => trim_interval: Duration = millis(50..=600_000, 10_000);
    }
}

section! {
    /// Statistics of jobs: what happened in each minute of the last day, and in each hour of the last thirty.
    pub struct StatisticsSettings = "statistics" {
        /// How often a process sends what it counted, if it counted anything. A process that dies loses as much.
        "flush_ms" => flush_interval: Duration = millis(100..=60_000, 10_000);
        /// Queues with a history of their own, each of up to about 300 kB. The jobs of the others have one together.
        "max_queues" => max_queues: usize = number(1..=65_536, 1000);
    }
}

section! {
    /// Metrics for Prometheus.
    pub struct MetricsSettings = "metrics" {
        /// How often the leader reads queues, lags of subscriptions and the state of Redis for its metrics.
        "interval_ms" => interval: Duration = millis(100..=3_600_000, 15_000);
        /// Queues that have series of their own, and subscriptions, and channels. The others are counted together as `_other`.
        "max_label_values" => max_label_values: usize = number(1..=100_000, 200);
        /// A series that does not change for so long is dropped until it counts again.
        "idle_timeout_ms" => idle_timeout: Duration = millis(1000..=604_800_000, 900_000);
    }
}

section! {
    /// Traces, and metrics and logs for receivers of OTLP.
    pub struct TelemetrySettings = "telemetry" {
        /// Where to send spans. Empty: where OpenTelemetry's variables say (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like), else
        /// nowhere.
        "otlp_endpoint" => otlp_endpoint: Option<String> = endpoint(TRACES_ENDPOINT);
        /// Where to send the metrics that `/metrics` shows, too. Empty: where OpenTelemetry's variables say, if they name
        /// metrics (`OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`, or `OTEL_METRICS_EXPORTER=otlp`), else nowhere.
        "otlp_metrics_endpoint" => otlp_metrics_endpoint: Option<String> = endpoint(METRICS_ENDPOINT);
        /// How often metrics are sent. If it is not set: what `OTEL_METRIC_EXPORT_INTERVAL` says, else every minute.
        "otlp_metrics_interval_ms" => otlp_metrics_interval: Option<Duration> =
            optional(millis(otel::METRIC_INTERVALS, 60_000), "otlp_metrics_interval_ms = 10000");
        /// Where to send log lines besides standard output. Empty: where OpenTelemetry's variables say, if they name logs
        /// (`OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`, or `OTEL_LOGS_EXPORTER=otlp`), else nowhere.
        "otlp_logs_endpoint" => otlp_logs_endpoint: Option<String> = endpoint(LOGS_ENDPOINT);
        /// PEM file of the authorities that https endpoints are checked against. Empty: those of the machine or image.
        "otlp_ca_file" => otlp_ca_file: Option<PathBuf> = optional_path();
        /// Which traces are recorded. With `parentbased_` a request's own trace is recorded if its client records it, and a job
        /// as the request that made it. Empty: what `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say, else
        /// `parentbased_traceidratio/0.1`. Failed attempts are recorded always.
        "sampler" => sampler: Option<Sampling> = text_with(SAMPLERS, "", |key, text| {
            if text.is_empty() { Ok(None) } else { parse_value(key, &text, SAMPLERS).map(Some) }
        });
        /// Spans that wait to be sent. More are lost, and counted: a receiver that is away takes no more memory.
        "max_queued_spans" => max_queued_spans: usize = number(512..=1_048_576, 4096);
        /// Log lines that wait to be sent. More are lost there, and counted.
        "max_queued_log_records" => max_queued_log_records: usize = number(512..=1_048_576, 4096);
    }
}

impl TelemetrySettings {
    /// Takes from OpenTelemetry's variables what no setting says.
    pub(super) fn complete(&mut self, variable: impl Fn(&str) -> Option<String> + Copy) -> Result<(), SettingError> {
        for (endpoint, signal) in [
            (&mut self.otlp_endpoint, otel::TRACES),
            (&mut self.otlp_metrics_endpoint, otel::METRICS),
            (&mut self.otlp_logs_endpoint, otel::LOGS),
        ] {
            if endpoint.is_none() {
                *endpoint = otel::otlp_endpoint(signal, variable)?;
            }
        }
        if self.otlp_metrics_interval.is_none() {
            self.otlp_metrics_interval = otel::metric_interval(variable)?;
        }
        if self.sampler.is_none() {
            self.sampler = otel::sampler(variable)?;
        }
        self.check()
    }

    /// A file of authorities protects nothing without TLS.
    pub(super) fn check(&self) -> Result<(), SettingError> {
        let endpoints = [&self.otlp_endpoint, &self.otlp_metrics_endpoint, &self.otlp_logs_endpoint];
        let mut endpoints = endpoints.into_iter().flatten().peekable();
        let is_plain = endpoints.peek().is_some() && !endpoints.any(|endpoint| endpoint.starts_with("https://"));
        match &self.otlp_ca_file {
            Some(path) if is_plain => {
                let allowed = "empty unless an endpoint of telemetry begins with https://";
                Err(invalid_value("telemetry.otlp_ca_file", allowed, format_args!("{:?}", path.display())))
            }
            _ => Ok(()),
        }
    }
}

const TRACES_ENDPOINT: &str =
    "empty, http://host:4317 or https://host:4317 (gRPC), http://host:4318/v1/traces or the same with https (HTTP)";
const METRICS_ENDPOINT: &str =
    "empty, http://host:4317 or https://host:4317 (gRPC), http://host:4318/v1/metrics or the same with https (HTTP)";
const LOGS_ENDPOINT: &str =
    "empty, http://host:4317 or https://host:4317 (gRPC), http://host:4318/v1/logs or the same with https (HTTP)";

/// The endpoint of a receiver; empty for none.
fn endpoint(allowed: &'static str) -> Kind<Option<String>> {
    text_with(allowed, "", move |key, url| {
        let has_scheme = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        if !url.is_empty() && !has_scheme {
            return Err(invalid_value(key, allowed, format_args!("{url:?}")));
        }
        Ok(Some(url).filter(|url| !url.is_empty()))
    })
}

section! {
    /// Logs.
    pub struct LogSettings = "log" {
        /// Format of log lines. `auto` is `pretty` on a terminal and `json` elsewhere.
        "format" => format: LogFormat = text_with(LOG_FORMAT, "auto", |key, text| match text.as_str() {
            "auto" => Ok(LogFormat::Auto),
            "pretty" => Ok(LogFormat::Pretty),
            "json" => Ok(LogFormat::Json),
            other => Err(invalid_value(key, LOG_FORMAT, format_args!("{other:?}"))),
        });
        /// What to log, as a filter of tracing's `EnvFilter`. For more detail of one module: `info,galley_worker=debug`.
        "level" => level: String = text_with(LOG_LEVEL, "info,actix_server=warn", |key, level| {
            match tracing_subscriber::EnvFilter::try_new(&level) {
                Ok(_) => Ok(level),
                Err(error) => Err(invalid_value(key, format_args!("{LOG_LEVEL} ({error})"), format_args!("{level:?}"))),
            }
        });
        /// Whether logs show the texts of failed attempts and deliveries beside their codes. They may quote arguments,
        /// messages and answers of endpoints. The job shows them in any case.
        "error_texts" => error_texts: bool = switch(false);
    }
}

const LOG_FORMAT: &str = "pretty, json or auto";
const LOG_LEVEL: &str = "a filter such as info or warn,galley_worker=debug";

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, else JSON.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}
