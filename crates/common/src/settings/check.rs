//! From what was written to what may be used.

use std::{collections::BTreeMap, fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use url::Url;

use crate::{
    name::{QueueName, WorkerId},
    rate::Rate,
};

use super::{
    BridgeSettings, CronSettings, GatewaySettings, JobSettings, LogFormat, LogSettings, MAX_WATCHED_QUEUES,
    MAX_WORKFLOW_JOBS, MaintenanceSettings, PubsubWorkerSettings, QueueLimits, QueueWorkerSettings, RedisSettings,
    RedisUrl, Settings, SubscriptionSettings, TelemetrySettings, WorkflowSettings,
    channels::check_channels,
    raw::{self, NameList, RawSettings, WholeNumber},
};

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// A value that is not allowed.
    #[error("setting {key} must be {allowed}, got {got}")]
    Value {
        /// The key, as `section.key`.
        key: String,
        /// What is allowed.
        allowed: String,
        /// What was there.
        got: String,
    },
    /// A file that cannot be read, a wrong type or an unknown key.
    #[error("settings cannot be read: {0}")]
    Source(#[from] config::ConfigError),
}

pub(super) fn invalid_value(key: &str, allowed: impl Display, got: impl Display) -> SettingError {
    SettingError::Value { key: key.to_owned(), allowed: allowed.to_string(), got: got.to_string() }
}

pub(super) fn check_number<T: TryFrom<u64>>(
    key: &str,
    WholeNumber(value): WholeNumber,
    least: u64,
    most: u64,
) -> Result<T, SettingError> {
    let refused = || invalid_value(key, format_args!("{least} to {most}"), value);
    if (least..=most).contains(&value) { T::try_from(value).map_err(|_| refused()) } else { Err(refused()) }
}

pub(super) fn check_millis(key: &str, value: WholeNumber, least: u64, most: u64) -> Result<Duration, SettingError> {
    check_number(key, value, least, most).map(Duration::from_millis)
}

fn parse_value<T: FromStr>(key: &str, value: &str, allowed: &str) -> Result<T, SettingError> {
    value.parse().map_err(|_| invalid_value(key, allowed, format_args!("{value:?}")))
}

pub(super) fn parse_names<T: FromStr<Err: Display>>(key: &str, list: &NameList) -> Result<Vec<T>, SettingError> {
    list.names()
        .into_iter()
        .map(|value| {
            value.parse().map_err(|error: T::Err| {
                invalid_value(key, format_args!("a list of names: {error}"), format_args!("{value:?}"))
            })
        })
        .collect()
}

/// The name of this machine.
#[must_use]
pub fn hostname() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().chars().filter(char::is_ascii_graphic).take(100).collect()
}

fn check_worker_name(given: String) -> Result<WorkerId, SettingError> {
    let name = if given.is_empty() { format!("{}-{}", hostname(), std::process::id()) } else { given };
    parse_value("queue_worker.name", &name, "1 to 128 printable ASCII characters without spaces")
}

/// A worker that comes back under the same name goes on where it was, so there is nothing in it that changes.
fn check_instance_name(given: String) -> Result<WorkerId, SettingError> {
    let name = if given.is_empty() { hostname() } else { given };
    parse_value("pubsub_worker.name", &name, "1 to 128 printable ASCII characters without spaces")
}

/// A path, unless it is empty.
fn optional_path(given: String) -> Option<PathBuf> {
    Some(given).filter(|path| !path.is_empty()).map(PathBuf::from)
}

const ADDRESS: &str = "an address and port such as 127.0.0.1:8080";

impl TryFrom<RawSettings> for Settings {
    type Error = SettingError;

    fn try_from(raw: RawSettings) -> Result<Self, SettingError> {
        Ok(Self {
            redis: check_redis(raw.redis)?,
            gateway: check_gateway(&raw.gateway)?,
            queue_worker: QueueWorkerSettings {
                listen: parse_value("queue_worker.listen", &raw.queue_worker.listen, ADDRESS)?,
                queues: parse_names("queue_worker.queues", &raw.queue_worker.queues)?,
                weights: check_per_queue("queue_worker.weights", raw.queue_worker.weights, 1000)?,
                queue_concurrency: check_per_queue(
                    "queue_worker.queue_concurrency",
                    raw.queue_worker.queue_concurrency,
                    10_000,
                )?,
                rules: optional_path(raw.queue_worker.rules),
                demo_handlers: raw.queue_worker.demo_handlers,
                name: check_worker_name(raw.queue_worker.name)?,
                concurrency: check_number("queue_worker.concurrency", raw.queue_worker.concurrency, 1, 10_000)?,
                shutdown_grace: check_millis(
                    "queue_worker.shutdown_grace_ms",
                    raw.queue_worker.shutdown_grace_ms,
                    0,
                    3_600_000,
                )?,
                stop_grace: check_millis("queue_worker.stop_grace_ms", raw.queue_worker.stop_grace_ms, 0, 60_000)?,
                heartbeat_interval: check_millis("queue_worker.beat_ms", raw.queue_worker.beat_ms, 100, 600_000)?,
            },
            pubsub_worker: PubsubWorkerSettings {
                listen: parse_value("pubsub_worker.listen", &raw.pubsub_worker.listen, ADDRESS)?,
                channels: parse_names("pubsub_worker.channels", &raw.pubsub_worker.channels)?,
                subscriptions: raw.pubsub_worker.subscriptions,
                name: check_instance_name(raw.pubsub_worker.name)?,
                shutdown_grace: check_millis(
                    "pubsub_worker.shutdown_grace_ms",
                    raw.pubsub_worker.shutdown_grace_ms,
                    0,
                    3_600_000,
                )?,
                commands: optional_path(raw.pubsub_worker.commands),
                buffer_messages: check_number(
                    "pubsub_worker.buffer_messages",
                    raw.pubsub_worker.buffer_messages,
                    1,
                    1_000_000,
                )?,
            },
            jobs: check_jobs(&raw.jobs)?,
            workflows: check_workflows(&raw.workflows)?,
            queues: raw.queues.into_iter().map(check_queue).collect::<Result<_, _>>()?,
            cron: check_cron(&raw.cron)?,
            bridge: check_bridge(raw.bridge)?,
            channels: check_channels(raw.channels)?,
            subscriptions: check_subscriptions(&raw.subscriptions)?,
            maintenance: MaintenanceSettings {
                leader_lease: check_millis(
                    "maintenance.leader_lease_ms",
                    raw.maintenance.leader_lease_ms,
                    500,
                    600_000,
                )?,
                sweep_interval: check_millis("maintenance.sweep_ms", raw.maintenance.sweep_ms, 50, 600_000)?,
                trim_interval: check_millis("maintenance.channels_ms", raw.maintenance.channels_ms, 50, 600_000)?,
            },
            telemetry: check_telemetry(raw.telemetry)?,
            log: check_log(raw.log)?,
        })
    }
}

pub(super) const YEAR_MS: u64 = 365 * 86_400_000;

fn check_redis(raw: raw::RawRedis) -> Result<RedisSettings, SettingError> {
    let url = RedisUrl(raw.url);
    if !is_redis_url(url.expose()) {
        let allowed = "redis://[user:password@]host[:port]/db or redis+unix:///path?db=N";
        return Err(invalid_value("redis.url", allowed, format_args!("{url:?}")));
    }
    Ok(RedisSettings {
        url,
        connect_timeout: check_millis("redis.connect_timeout_ms", raw.connect_timeout_ms, 10, 60_000)?,
        response_timeout: check_millis("redis.response_timeout_ms", raw.response_timeout_ms, 50, 60_000)?,
        pool_size: check_number("redis.pool_size", raw.pool_size, 1, 1000)?,
    })
}

/// Whether the client will take it: the store parses it again, this one knows the setting's name.
fn is_redis_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let database = url.path().trim_start_matches('/');
    match url.scheme() {
        "redis" => url.has_host() && (database.is_empty() || database.parse::<u32>().is_ok()),
        "redis+unix" | "unix" => !database.is_empty(),
        _ => false,
    }
}

fn check_gateway(raw: &raw::RawGateway) -> Result<GatewaySettings, SettingError> {
    Ok(GatewaySettings {
        listen: parse_value("gateway.listen", &raw.listen, ADDRESS)?,
        body_limit_bytes: check_number("gateway.body_limit_bytes", raw.body_limit_bytes, 1024, 64 << 20)?,
        json_depth_limit: check_number("gateway.json_depth_limit", raw.json_depth_limit, 8, 1000)?,
        head_timeout: check_millis("gateway.head_timeout_ms", raw.head_timeout_ms, 1000, 600_000)?,
        body_timeout: check_millis("gateway.body_timeout_ms", raw.body_timeout_ms, 100, 600_000)?,
        shutdown_grace: check_millis("gateway.shutdown_grace_ms", raw.shutdown_grace_ms, 1000, 600_000)?,
        max_wait: check_millis("gateway.max_wait_ms", raw.max_wait_ms, 0, 600_000)?,
        max_waiters: check_number("gateway.max_waiters", raw.max_waiters, 0, 1_000_000)?,
        idempotency_ttl: check_millis("gateway.idempotency_ttl_ms", raw.idempotency_ttl_ms, 60_000, YEAR_MS)?,
        batch_max_jobs: check_number("gateway.batch_max_jobs", raw.batch_max_jobs, 1, 10_000)?,
        batch_limit_bytes: check_number("gateway.batch_limit_bytes", raw.batch_limit_bytes, 1024, 256 << 20)?,
        test_directives: raw.test_directives,
        max_event_streams: check_number("gateway.max_event_streams", raw.max_event_streams, 1, 100_000)?,
        event_keep_alive: check_millis("gateway.event_keep_alive_ms", raw.event_keep_alive_ms, 100, 600_000)?,
        allowed_origins: parse_names("gateway.allowed_origins", &raw.allowed_origins)?,
    })
}

fn check_jobs(raw: &raw::RawJobs) -> Result<JobSettings, SettingError> {
    Ok(JobSettings {
        lease: check_millis("jobs.lease_ms", raw.lease_ms, 100, 86_400_000)?,
        pull_lease: check_millis("jobs.pull_lease_ms", raw.pull_lease_ms, 100, 604_800_000)?,
        crash_budget: check_number("jobs.crash_budget", raw.crash_budget, 0, 1000)?,
        result_ttl: check_millis("jobs.result_ttl_ms", raw.result_ttl_ms, 1000, YEAR_MS)?,
        dead_letter_ttl: check_millis("jobs.dead_letter_ttl_ms", raw.dead_letter_ttl_ms, 1000, YEAR_MS)?,
        dead_letter_max: check_number("jobs.dead_letter_max", raw.dead_letter_max, 1, 10_000_000)?,
        result_limit_bytes: check_number("jobs.result_limit_bytes", raw.result_limit_bytes, 1024, 64 << 20)?,
        max_queues: check_number("jobs.max_queues", raw.max_queues, 1, 65_536)?,
        events_max: check_number("jobs.events_max", raw.events_max, 100, 10_000_000)?,
        started_events: raw.started_events,
        max_pull_workers: check_number("jobs.max_pull_workers", raw.max_pull_workers, 1, 1_000_000)?,
    })
}

fn check_subscriptions(raw: &raw::RawSubscriptions) -> Result<SubscriptionSettings, SettingError> {
    Ok(SubscriptionSettings {
        max: check_number("subscriptions.max", raw.max, 1, MAX_WATCHED_QUEUES as u64)?,
        disable_after: check_millis("subscriptions.disable_after_ms", raw.disable_after_ms, 60_000, YEAR_MS)?,
        checkpoint_ttl: check_millis("subscriptions.checkpoint_ttl_ms", raw.checkpoint_ttl_ms, 60_000, YEAR_MS)?,
        allow_private: raw.allow_private,
    })
}

fn check_workflows(raw: &raw::RawWorkflows) -> Result<WorkflowSettings, SettingError> {
    let limit = check_number("workflows.results_limit_bytes", raw.results_limit_bytes, 65_536, 64 << 20)?;
    Ok(WorkflowSettings {
        max_jobs: check_number("workflows.max_jobs", raw.max_jobs, 1, MAX_WORKFLOW_JOBS)?,
        results_limit_bytes: limit,
        check_interval: check_millis("workflows.check_ms", raw.check_ms, 100, 3_600_000)?,
    })
}

fn check_queue((name, raw): (String, raw::RawQueue)) -> Result<(QueueName, QueueLimits), SettingError> {
    let queue = parse_value("queues", &name, "a table of queue names (^[a-z0-9][a-z0-9.-]*$)")?;
    let key = |limit: &str| format!("queues.{name}.{limit}");
    let max_depth = raw.max_depth.map(|depth| check_number(&key("max_depth"), depth, 1, 1_000_000_000)).transpose()?;
    let concurrency = raw.concurrency.map(|most| check_number(&key("concurrency"), most, 0, 1_000_000)).transpose()?;
    let limit = raw.rate_limit.map(|limit| check_number(&key("rate_limit"), limit, 1, 1_000_000)).transpose()?;
    let period_ms =
        raw.rate_period_ms.map_or(Ok(1000), |ms| check_number(&key("rate_period_ms"), ms, 1, 86_400_000))?;
    let rate = limit.map(|limit| Rate { limit, period_ms });
    Ok((queue, QueueLimits { max_depth, concurrency, rate }))
}

/// Numbers from 1 to `most` of single queues.
fn check_per_queue<T: TryFrom<u64>>(
    key: &str,
    written: BTreeMap<String, WholeNumber>,
    most: u64,
) -> Result<BTreeMap<QueueName, T>, SettingError> {
    let of_queue = |(name, value): (String, WholeNumber)| {
        let queue = parse_value(key, &name, "a table of queue names (^[a-z0-9][a-z0-9.-]*$)")?;
        Ok((queue, check_number(&format!("{key}.{name}"), value, 1, most)?))
    };
    written.into_iter().map(of_queue).collect()
}

fn check_cron(raw: &raw::RawCron) -> Result<CronSettings, SettingError> {
    Ok(CronSettings {
        max_entries: check_number("cron.max_entries", raw.max_entries, 1, 100_000)?,
        catch_up_max: check_number("cron.catch_up_max", raw.catch_up_max, 1, 100)?,
        catch_up_window: check_millis("cron.catch_up_window_ms", raw.catch_up_window_ms, 10_000, 604_800_000)?,
    })
}

fn check_bridge(raw: raw::RawBridge) -> Result<Option<BridgeSettings>, SettingError> {
    if raw.list.is_empty() {
        return Ok(None);
    }
    if raw.list.starts_with("galley:") || raw.list.len() > 512 || raw.list.chars().any(char::is_control) {
        let allowed = "a Redis key of at most 512 bytes that does not start with \"galley:\"";
        return Err(invalid_value("bridge.list", allowed, format_args!("{:?}", raw.list)));
    }
    Ok(Some(BridgeSettings {
        list: raw.list,
        queue: parse_value("bridge.queue", &raw.queue, "a queue name (^[a-z0-9][a-z0-9.-]*$)")?,
        job_type: parse_value("bridge.job_type", &raw.job_type, "a job type such as demo.task")?,
    }))
}

fn check_telemetry(raw: raw::RawTelemetry) -> Result<TelemetrySettings, SettingError> {
    let endpoint = Some(raw.otlp_endpoint).filter(|endpoint| !endpoint.is_empty());
    match endpoint {
        Some(url) if !url.starts_with("http://") => {
            let allowed = "empty, http://host:4317 (gRPC) or http://host:4318/v1/traces (HTTP)";
            Err(invalid_value("telemetry.otlp_endpoint", allowed, format_args!("{url:?}")))
        }
        otlp_endpoint => Ok(TelemetrySettings { otlp_endpoint }),
    }
}

fn check_log(raw: raw::RawLog) -> Result<LogSettings, SettingError> {
    let format = match raw.format.as_str() {
        "auto" => LogFormat::Auto,
        "pretty" => LogFormat::Pretty,
        "json" => LogFormat::Json,
        other => return Err(invalid_value("log.format", "pretty, json or auto", format_args!("{other:?}"))),
    };
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&raw.level) {
        let allowed = format!("a filter such as info or warn,worker=debug ({error})");
        return Err(invalid_value("log.level", allowed, format_args!("{:?}", raw.level)));
    }
    Ok(LogSettings { format, level: raw.level })
}
