//! Settings: `config/default.toml`, then the file named by `GALLEY_CONFIG`, then `GALLEY__SECTION__KEY`.
//!
//! `raw` is what was written, [`Settings`] what was checked. A value that is not allowed is an error that names
//! the key, the value and what is allowed; so is a key that does not exist.

mod channels;
mod check;
mod raw;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use config::{Config, Environment, File, FileFormat};

pub use channels::{BacklogCap, ChannelSettings, Retention, RetentionRules};
pub use check::{SettingError, hostname};

use crate::name::{ChannelName, JobType, Origin, QueueName, WorkerId};
use crate::rate::Rate;

/// The defaults, as they stand in the repository.
pub const DEFAULTS: &str = include_str!("../../../../config/default.toml");

/// Checked settings, one struct per concern.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store.
    pub redis: RedisSettings,
    /// The HTTP service.
    pub gateway: GatewaySettings,
    /// The service that runs jobs.
    pub queue_worker: QueueWorkerSettings,
    /// The service that hears channels.
    pub pubsub_worker: PubsubWorkerSettings,
    /// Jobs wherever they are handled.
    pub jobs: JobSettings,
    /// Jobs that depend on each other.
    pub workflows: WorkflowSettings,
    /// Limits of single queues.
    pub queues: BTreeMap<QueueName, QueueLimits>,
    /// Jobs that are made by the clock.
    pub cron: CronSettings,
    /// The list whose elements become jobs.
    pub bridge: Option<BridgeSettings>,
    /// Channels and their history.
    pub channels: ChannelSettings,
    /// Durable subscriptions.
    pub subscriptions: SubscriptionSettings,
    /// The upkeep of queues.
    pub maintenance: MaintenanceSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// Logs.
    pub log: LogSettings,
}

/// The store.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Where it is. May hold a password: never log it.
    pub url: RedisUrl,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub response_timeout: Duration,
    /// Connections of the pool.
    pub pool_size: usize,
}

/// A Redis URL that parsed. Its debug form leaves the password out.
#[derive(Clone)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with whatever secrets it holds.
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

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// The HTTP service.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct GatewaySettings {
    pub listen: SocketAddr,
    pub body_limit_bytes: usize,
    pub json_depth_limit: usize,
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub shutdown_grace: Duration,
    pub max_wait: Duration,
    pub max_waiters: usize,
    pub idempotency_ttl: Duration,
    pub batch_max_jobs: usize,
    pub batch_limit_bytes: usize,
    pub test_directives: bool,
    pub max_event_streams: usize,
    pub event_keep_alive: Duration,
    pub allowed_origins: Vec<Origin>,
}

/// The service that runs jobs.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct QueueWorkerSettings {
    pub listen: SocketAddr,
    pub queues: Vec<QueueName>,
    pub weights: BTreeMap<QueueName, u32>,
    pub name: WorkerId,
    pub concurrency: usize,
    pub queue_concurrency: BTreeMap<QueueName, usize>,
    pub rules: Option<PathBuf>,
    pub demo_handlers: bool,
    pub shutdown_grace: Duration,
    pub stop_grace: Duration,
    pub heartbeat_interval: Duration,
}

/// The service that hears channels.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct PubsubWorkerSettings {
    pub listen: SocketAddr,
    pub channels: Vec<ChannelName>,
    pub subscriptions: bool,
    pub name: WorkerId,
    pub shutdown_grace: Duration,
    pub commands: Option<PathBuf>,
    pub buffer_messages: usize,
}

/// Durable subscriptions.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct SubscriptionSettings {
    pub max: u64,
    pub disable_after: Duration,
    pub checkpoint_ttl: Duration,
    pub allow_private: bool,
}

/// The largest `workflows.max_jobs`: the jobs of a workflow are written in one script call.
pub const MAX_WORKFLOW_JOBS: u64 = 1000;
/// Queues that one process can watch for those who wait, and the largest `subscriptions.max`: each has a queue of retries.
pub const MAX_WATCHED_QUEUES: usize = 4096;

/// Jobs wherever they are handled.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct JobSettings {
    pub lease: Duration,
    pub pull_lease: Duration,
    pub crash_budget: u32,
    pub result_ttl: Duration,
    pub dead_letter_ttl: Duration,
    pub dead_letter_max: u64,
    pub result_limit_bytes: usize,
    pub max_queues: u64,
    pub events_max: u64,
    pub started_events: bool,
    pub max_pull_workers: u64,
}

/// Jobs that depend on each other.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct WorkflowSettings {
    pub max_jobs: usize,
    pub results_limit_bytes: u64,
    pub check_interval: Duration,
}

/// Limits of one queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueLimits {
    /// Waiting jobs at most.
    pub max_depth: Option<u64>,
    /// Jobs that run at once, at most.
    pub concurrency: Option<u32>,
    /// How many may start in which time.
    pub rate: Option<Rate>,
}

/// Jobs that are made by the clock.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct CronSettings {
    pub max_entries: u64,
    pub catch_up_max: usize,
    pub catch_up_window: Duration,
}

/// The list whose elements become jobs.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct BridgeSettings {
    pub list: String,
    pub queue: QueueName,
    pub job_type: JobType,
}

/// The upkeep of queues.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is described beside its default in config/default.toml")]
pub struct MaintenanceSettings {
    pub leader_lease: Duration,
    pub sweep_interval: Duration,
    pub trim_interval: Duration,
}

/// Traces.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    /// Where spans go, if anywhere.
    pub otlp_endpoint: Option<String>,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// How lines look.
    pub format: LogFormat,
    /// What is logged, as tracing's `EnvFilter`.
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, else JSON.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// A file that cannot be read, a key that does not exist or a value that is not allowed.
    pub fn load() -> Result<Self, SettingError> {
        // Variables of others may hold anything; ours are text, and what is not is shown as it can be and then refused
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with("GALLEY__"))?;
            Some((name, value.to_string_lossy().into_owned()))
        });
        Self::from_sources(std::env::var("GALLEY_CONFIG").ok().as_deref(), variables.collect())
    }

    /// Reads settings from a file, if one is named, and variables.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_sources(
        file: Option<&str>,
        variables: std::collections::HashMap<String, String>,
    ) -> Result<Self, SettingError> {
        let mut builder = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(path) = file {
            builder = builder.add_source(File::new(path, FileFormat::Toml));
        }
        let environment =
            Environment::with_prefix("GALLEY").prefix_separator("__").separator("__").source(Some(variables));
        let raw: raw::RawSettings = builder.add_source(environment).build()?.try_deserialize()?;
        Self::try_from(raw)
    }

    /// The depth limit of a queue, if it has one.
    #[must_use]
    pub fn max_depth(&self, queue: &QueueName) -> Option<u64> {
        self.queues.get(queue).and_then(|limits| limits.max_depth)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn with(name: &str, value: &str) -> Result<Settings, SettingError> {
        Settings::from_sources(None, HashMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn the_defaults_are_allowed_and_are_the_documented_ones() {
        let settings = Settings::from_sources(None, HashMap::new()).expect("the defaults");
        assert_eq!(settings.redis.url.expose(), "redis://127.0.0.1:6379/5");
        assert_eq!(settings.gateway.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.jobs.lease, Duration::from_secs(30));
        assert_eq!(settings.queue_worker.queues.len(), 3);
        assert_eq!(settings.telemetry.otlp_endpoint, None);
        assert_eq!((settings.queue_worker.rules, settings.pubsub_worker.commands), (None, None));
    }

    #[test]
    fn the_environment_wins() {
        assert_eq!(
            with("GALLEY__GATEWAY__LISTEN", "0.0.0.0:1").expect("allowed").gateway.listen.to_string(),
            "0.0.0.0:1"
        );
        let queues = with("GALLEY__QUEUE_WORKER__QUEUES", "a,b-1").expect("allowed").queue_worker.queues;
        assert_eq!(queues.iter().map(QueueName::as_str).collect::<Vec<_>>(), ["a", "b-1"]);
        for (written, queues) in [("a", 1), ("1", 1), (" a , b,", 2), ("", 0)] {
            let settings = with("GALLEY__QUEUE_WORKER__QUEUES", written).expect("allowed");
            assert_eq!(settings.queue_worker.queues.len(), queues, "{written:?}");
        }
        assert_eq!(with("GALLEY__QUEUE_WORKER__NAME", "007").expect("allowed").queue_worker.name.as_str(), "007");
        assert!(with("GALLEY__GATEWAY__TEST_DIRECTIVES", "true").expect("allowed").gateway.test_directives);
        let settings = with("GALLEY__QUEUES__DEMO__MAX_DEPTH", "10").expect("allowed");
        assert_eq!(settings.max_depth(&"demo".parse().expect("a name")), Some(10));
        let commands = with("GALLEY__PUBSUB_WORKER__COMMANDS", "a.toml").expect("allowed").pubsub_worker.commands;
        assert_eq!(commands.as_deref(), Some(std::path::Path::new("a.toml")));
    }

    #[test]
    fn each_bad_value_is_an_error_that_names_the_key_the_value_and_what_is_allowed() {
        for (name, value, key, allowed) in [
            ("GALLEY__REDIS__URL", "http://x", "redis.url", "redis://"),
            ("GALLEY__REDIS__POOL_SIZE", "0", "redis.pool_size", "1 to 1000"),
            ("GALLEY__GATEWAY__LISTEN", "8080", "gateway.listen", "an address and port"),
            ("GALLEY__GATEWAY__BODY_LIMIT_BYTES", "1", "gateway.body_limit_bytes", "1024 to 67108864"),
            ("GALLEY__QUEUE_WORKER__QUEUES", "A", "queue_worker.queues", "^[a-z0-9]"),
            ("GALLEY__QUEUE_WORKER__CONCURRENCY", "0", "queue_worker.concurrency", "1 to 10000"),
            ("GALLEY__QUEUE_WORKER__STOP_GRACE_MS", "60001", "queue_worker.stop_grace_ms", "0 to 60000"),
            ("GALLEY__QUEUE_WORKER__QUEUE_CONCURRENCY__A", "0", "queue_worker.queue_concurrency.a", "1 to 10000"),
            ("GALLEY__QUEUE_WORKER__WEIGHTS__A", "1001", "queue_worker.weights.a", "1 to 1000"),
            ("GALLEY__JOBS__LEASE_MS", "5", "jobs.lease_ms", "100 to 86400000"),
            ("GALLEY__WORKFLOWS__MAX_JOBS", "1001", "workflows.max_jobs", "1 to 1000"),
            ("GALLEY__WORKFLOWS__RESULTS_LIMIT_BYTES", "1", "workflows.results_limit_bytes", "65536 to 67108864"),
            ("GALLEY__WORKFLOWS__CHECK_MS", "99", "workflows.check_ms", "100 to 3600000"),
            ("GALLEY__GATEWAY__MAX_EVENT_STREAMS", "0", "gateway.max_event_streams", "1 to 100000"),
            ("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "5", "gateway.event_keep_alive_ms", "100 to 600000"),
            ("GALLEY__QUEUE_WORKER__BEAT_MS", "5", "queue_worker.beat_ms", "100 to 600000"),
            ("GALLEY__JOBS__MAX_PULL_WORKERS", "0", "jobs.max_pull_workers", "1 to 1000000"),
            ("GALLEY__LOG__FORMAT", "xml", "log.format", "pretty, json or auto"),
            ("GALLEY__LOG__LEVEL", "a=b=c", "log.level", "a filter"),
            ("GALLEY__TELEMETRY__OTLP_ENDPOINT", "jaeger", "telemetry.otlp_endpoint", "http://"),
            ("GALLEY__QUEUES__DEMO__MAX_DEPTH", "0", "queues.demo.max_depth", "1 to 1000000000"),
            ("GALLEY__CRON__MAX_ENTRIES", "0", "cron.max_entries", "1 to 100000"),
            ("GALLEY__SUBSCRIPTIONS__MAX", "4097", "subscriptions.max", "1 to 4096"),
            ("GALLEY__CRON__CATCH_UP_MAX", "101", "cron.catch_up_max", "1 to 100"),
            ("GALLEY__CRON__CATCH_UP_WINDOW_MS", "9", "cron.catch_up_window_ms", "10000 to 604800000"),
            ("GALLEY__CHANNELS__MAX_CHANNELS", "0", "channels.max_channels", "1 to 1000000"),
            ("GALLEY__CHANNELS__PLAIN", "a b", "channels.plain", "^[A-Za-z0-9]"),
            ("GALLEY__CHANNELS__MAX_READERS", "0", "channels.max_readers", "1 to 1000000"),
            ("GALLEY__CHANNELS__RING_BYTES", "67108865", "channels.ring_bytes", "0 to 67108864"),
            ("GALLEY__CHANNELS__RINGS_BYTES", "1", "channels.rings_bytes", "1048576 to 17179869184"),
            ("GALLEY__CHANNELS__STALL_MS", "5", "channels.stall_ms", "1000 to 600000"),
            ("GALLEY__CHANNELS__SWEEP_MS", "99", "channels.sweep_ms", "100 to 3600000"),
            ("GALLEY__CHANNELS__PROBE_MS", "99", "channels.probe_ms", "100 to 600000"),
            ("GALLEY__CHANNELS__HISTORY_MAX_AGE_MS", "5", "channels.history_max_age_ms", "0 (no limit) or 1000"),
            ("GALLEY__CHANNELS__HISTORY_MAX_BYTES", "5", "channels.history_max_bytes", "0 (no limit) or 65536"),
            ("GALLEY__CHANNELS__CAP_MESSAGES", "0", "channels.cap_messages", "1 to 100000000"),
            ("GALLEY__CHANNELS__CAP_BYTES", "5", "channels.cap_bytes", "65536 to 1099511627776"),
            ("GALLEY__MAINTENANCE__CHANNELS_MS", "5", "maintenance.channels_ms", "50 to 600000"),
            ("GALLEY__GATEWAY__ALLOWED_ORIGINS", "*", "gateway.allowed_origins", "https://app.example.com"),
            ("GALLEY__BRIDGE__LIST", "galley:x", "bridge.list", "does not start with"),
        ] {
            let error = with(name, value).expect_err(name).to_string();
            assert!(error.contains(key) && error.contains(value) && error.contains(allowed), "{name}: {error}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_and_a_key_that_does_not_exist_are_errors() {
        for value in ["many", "true", "2.6", "-1", "", "1e3"] {
            let error = with("GALLEY__QUEUE_WORKER__CONCURRENCY", value).expect_err("not a whole number").to_string();
            assert!(error.contains("queue_worker.concurrency") && error.contains(&format!("{value:?}")), "{error}");
        }
        let error = with("GALLEY__GATEWAY__LISTN", "x").expect_err("a typo").to_string();
        assert!(error.contains("listn"), "{error}");
        let error = Settings::from_sources(Some("/no/such.toml"), HashMap::new()).expect_err("no file").to_string();
        assert!(error.contains("/no/such.toml"), "{error}");
    }

    #[test]
    fn a_password_is_not_shown() {
        let settings = with("GALLEY__REDIS__URL", "redis://user:secret@host:6379/5").expect("allowed");
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(format!("{settings:?}").contains("host:6379/5"));
        let settings = with("GALLEY__REDIS__URL", "redis+unix:///run/r.sock?db=5&pass=secret").expect("allowed");
        assert!(!format!("{settings:?}").contains("secret"));
        let error = with("GALLEY__REDIS__URL", "rediss://user:secret@host").expect_err("no TLS").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
