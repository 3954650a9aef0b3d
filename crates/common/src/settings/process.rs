//! What every process needs: Redis, maintenance, traces and logs.

use std::{fmt, path::PathBuf, time::Duration};

use url::Url;

use super::{
    declare::section,
    error::invalid_value,
    kinds::{millis, number, optional_path, switch, text_with},
};

section! {
    /// Redis, which stores everything.
    pub struct RedisSettings = "redis" {
        /// URL of the server. It can contain a password, so never log it.
        "url" => url: RedisUrl = text_with(REDIS_URL, "redis://127.0.0.1:6379/5", |key, text| {
            let url = RedisUrl(text);
            if !is_redis_url(url.expose()) {
                return Err(invalid_value(key, REDIS_URL, format_args!("{url:?}")));
            }
            Ok(url)
        });
        /// Longest wait for a connection.
        "connect_timeout_ms" => connect_timeout: Duration = millis(10..=60_000, 1000);
        /// Longest wait for a reply. After it the connection is closed and opened again.
        "response_timeout_ms" => response_timeout: Duration = millis(50..=60_000, 2000);
        /// Connections in the pool, which serves work off the hot path.
        "pool_size" => pool_size: usize = number(1..=1000, 4);
    }
}

const REDIS_URL: &str = "redis://[user:password@]host[:port]/db or redis+unix:///path?db=N";

/// A Redis URL that parsed. Its debug form leaves the password out.
#[derive(Clone)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with its secrets.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The URL without user and password, for logs.
    #[must_use]
    pub fn redacted(&self) -> String {
        // A query may hold a password too; user and password end at the last @ before it
        let (base, query) = self.0.split_once('?').map_or((self.0.as_str(), ""), |(base, _)| (base, "?…"));
        match (base.split_once("://"), base.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}{query}"),
            _ => format!("{base}{query}"),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// Whether the client accepts the URL. The store parses it again, but here the error can name the setting.
fn is_redis_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let database = url.path().trim_start_matches('/');
    match url.scheme() {
        "redis" => url.has_host() && (database.is_empty() || database.parse::<u32>().is_ok()),
        "redis+unix" | "unix" => !database.is_empty(),
        _ => false,
    }
}

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
    /// Traces.
    pub struct TelemetrySettings = "telemetry" {
        /// Where to send spans. Empty: nowhere.
        "otlp_endpoint" => otlp_endpoint: Option<String> = text_with(OTLP_ENDPOINT, "", |key, url| {
            if !url.is_empty() && !url.starts_with("http://") {
                return Err(invalid_value(key, OTLP_ENDPOINT, format_args!("{url:?}")));
            }
            Ok(Some(url).filter(|url| !url.is_empty()))
        });
    }
}

const OTLP_ENDPOINT: &str = "empty, http://host:4317 (gRPC) or http://host:4318/v1/traces (HTTP)";

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
        /// What to log, as a filter of tracing's `EnvFilter`. For more detail of one module: `info,worker=debug`.
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
const LOG_LEVEL: &str = "a filter such as info or warn,worker=debug";

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
