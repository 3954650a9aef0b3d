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
    channels::channels,
    raw::{self, List, Raw, Whole},
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

pub(super) fn refused(key: &str, allowed: impl Display, got: impl Display) -> SettingError {
    SettingError::Value { key: key.to_owned(), allowed: allowed.to_string(), got: got.to_string() }
}

pub(super) fn number<T: TryFrom<u64>>(
    key: &str,
    Whole(value): Whole,
    least: u64,
    most: u64,
) -> Result<T, SettingError> {
    let refused = || refused(key, format_args!("{least} to {most}"), value);
    if (least..=most).contains(&value) { T::try_from(value).map_err(|_| refused()) } else { Err(refused()) }
}

pub(super) fn millis(key: &str, value: Whole, least: u64, most: u64) -> Result<Duration, SettingError> {
    number(key, value, least, most).map(Duration::from_millis)
}

fn parsed<T: FromStr>(key: &str, value: &str, allowed: &str) -> Result<T, SettingError> {
    value.parse().map_err(|_| refused(key, allowed, format_args!("{value:?}")))
}

pub(super) fn names<T: FromStr<Err: Display>>(key: &str, list: &List) -> Result<Vec<T>, SettingError> {
    list.names()
        .into_iter()
        .map(|value| {
            value.parse().map_err(|error: T::Err| {
                refused(key, format_args!("a list of names: {error}"), format_args!("{value:?}"))
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

fn worker_name(given: String) -> Result<WorkerId, SettingError> {
    let name = if given.is_empty() { format!("{}-{}", hostname(), std::process::id()) } else { given };
    parsed("queue_worker.name", &name, "1 to 128 printable ASCII characters without spaces")
}

/// A worker that comes back under the same name goes on where it was, so there is nothing in it that changes.
fn instance_name(given: String) -> Result<WorkerId, SettingError> {
    let name = if given.is_empty() { hostname() } else { given };
    parsed("pubsub_worker.name", &name, "1 to 128 printable ASCII characters without spaces")
}

/// A path, unless it is empty.
fn path(given: String) -> Option<PathBuf> {
    Some(given).filter(|path| !path.is_empty()).map(PathBuf::from)
}

const ADDRESS: &str = "an address and port such as 127.0.0.1:8080";

impl TryFrom<Raw> for Settings {
    type Error = SettingError;

    fn try_from(raw: Raw) -> Result<Self, SettingError> {
        Ok(Self {
            redis: redis(raw.redis)?,
            gateway: gateway(&raw.gateway)?,
            queue_worker: QueueWorkerSettings {
                listen: parsed("queue_worker.listen", &raw.queue_worker.listen, ADDRESS)?,
                queues: names("queue_worker.queues", &raw.queue_worker.queues)?,
                weights: of_queues("queue_worker.weights", raw.queue_worker.weights, 1000)?,
                queue_concurrency: of_queues(
                    "queue_worker.queue_concurrency",
                    raw.queue_worker.queue_concurrency,
                    10_000,
                )?,
                rules: path(raw.queue_worker.rules),
                demo_handlers: raw.queue_worker.demo_handlers,
                name: worker_name(raw.queue_worker.name)?,
                concurrency: number("queue_worker.concurrency", raw.queue_worker.concurrency, 1, 10_000)?,
                shutdown_grace: millis(
                    "queue_worker.shutdown_grace_ms",
                    raw.queue_worker.shutdown_grace_ms,
                    0,
                    3_600_000,
                )?,
                stop_grace: millis("queue_worker.stop_grace_ms", raw.queue_worker.stop_grace_ms, 0, 60_000)?,
                beat: millis("queue_worker.beat_ms", raw.queue_worker.beat_ms, 100, 600_000)?,
            },
            pubsub_worker: PubsubWorkerSettings {
                listen: parsed("pubsub_worker.listen", &raw.pubsub_worker.listen, ADDRESS)?,
                channels: names("pubsub_worker.channels", &raw.pubsub_worker.channels)?,
                subscriptions: raw.pubsub_worker.subscriptions,
                name: instance_name(raw.pubsub_worker.name)?,
                shutdown_grace: millis(
                    "pubsub_worker.shutdown_grace_ms",
                    raw.pubsub_worker.shutdown_grace_ms,
                    0,
                    3_600_000,
                )?,
                commands: path(raw.pubsub_worker.commands),
                buffer_messages: number(
                    "pubsub_worker.buffer_messages",
                    raw.pubsub_worker.buffer_messages,
                    1,
                    1_000_000,
                )?,
            },
            jobs: jobs(&raw.jobs)?,
            workflows: workflows(&raw.workflows)?,
            queues: raw.queues.into_iter().map(queue).collect::<Result<_, _>>()?,
            cron: cron(&raw.cron)?,
            bridge: bridge(raw.bridge)?,
            channels: channels(raw.channels)?,
            subscriptions: subscriptions(&raw.subscriptions)?,
            maintenance: MaintenanceSettings {
                office: millis("maintenance.office_ms", raw.maintenance.office_ms, 500, 600_000)?,
                sweep: millis("maintenance.sweep_ms", raw.maintenance.sweep_ms, 50, 600_000)?,
                channels: millis("maintenance.channels_ms", raw.maintenance.channels_ms, 50, 600_000)?,
            },
            telemetry: telemetry(raw.telemetry)?,
            log: log(raw.log)?,
        })
    }
}

pub(super) const YEAR_MS: u64 = 365 * 86_400_000;

fn redis(raw: raw::Redis) -> Result<RedisSettings, SettingError> {
    let url = RedisUrl(raw.url);
    if !is_redis_url(url.expose()) {
        let allowed = "redis://[user:password@]host[:port]/db or redis+unix:///path?db=N";
        return Err(refused("redis.url", allowed, format_args!("{url:?}")));
    }
    Ok(RedisSettings {
        url,
        connect_timeout: millis("redis.connect_timeout_ms", raw.connect_timeout_ms, 10, 60_000)?,
        response_timeout: millis("redis.response_timeout_ms", raw.response_timeout_ms, 50, 60_000)?,
        pool_size: number("redis.pool_size", raw.pool_size, 1, 1000)?,
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

fn gateway(raw: &raw::Gateway) -> Result<GatewaySettings, SettingError> {
    Ok(GatewaySettings {
        listen: parsed("gateway.listen", &raw.listen, ADDRESS)?,
        body_limit_bytes: number("gateway.body_limit_bytes", raw.body_limit_bytes, 1024, 64 << 20)?,
        json_depth_limit: number("gateway.json_depth_limit", raw.json_depth_limit, 8, 1000)?,
        head_timeout: millis("gateway.head_timeout_ms", raw.head_timeout_ms, 1000, 600_000)?,
        body_timeout: millis("gateway.body_timeout_ms", raw.body_timeout_ms, 100, 600_000)?,
        shutdown_grace: millis("gateway.shutdown_grace_ms", raw.shutdown_grace_ms, 1000, 600_000)?,
        max_wait: millis("gateway.max_wait_ms", raw.max_wait_ms, 0, 600_000)?,
        max_waiters: number("gateway.max_waiters", raw.max_waiters, 0, 1_000_000)?,
        idempotency_ttl: millis("gateway.idempotency_ttl_ms", raw.idempotency_ttl_ms, 60_000, YEAR_MS)?,
        batch_max_jobs: number("gateway.batch_max_jobs", raw.batch_max_jobs, 1, 10_000)?,
        batch_limit_bytes: number("gateway.batch_limit_bytes", raw.batch_limit_bytes, 1024, 256 << 20)?,
        test_directives: raw.test_directives,
        max_event_streams: number("gateway.max_event_streams", raw.max_event_streams, 1, 100_000)?,
        event_keep_alive: millis("gateway.event_keep_alive_ms", raw.event_keep_alive_ms, 100, 600_000)?,
        allowed_origins: names("gateway.allowed_origins", &raw.allowed_origins)?,
    })
}

fn jobs(raw: &raw::Jobs) -> Result<JobSettings, SettingError> {
    Ok(JobSettings {
        lease: millis("jobs.lease_ms", raw.lease_ms, 100, 86_400_000)?,
        pull_lease: millis("jobs.pull_lease_ms", raw.pull_lease_ms, 100, 604_800_000)?,
        crash_budget: number("jobs.crash_budget", raw.crash_budget, 0, 1000)?,
        result_ttl: millis("jobs.result_ttl_ms", raw.result_ttl_ms, 1000, YEAR_MS)?,
        dead_letter_ttl: millis("jobs.dead_letter_ttl_ms", raw.dead_letter_ttl_ms, 1000, YEAR_MS)?,
        dead_letter_max: number("jobs.dead_letter_max", raw.dead_letter_max, 1, 10_000_000)?,
        result_limit_bytes: number("jobs.result_limit_bytes", raw.result_limit_bytes, 1024, 64 << 20)?,
        max_queues: number("jobs.max_queues", raw.max_queues, 1, 65_536)?,
        events_max: number("jobs.events_max", raw.events_max, 100, 10_000_000)?,
        started_events: raw.started_events,
        max_pull_workers: number("jobs.max_pull_workers", raw.max_pull_workers, 1, 1_000_000)?,
    })
}

fn subscriptions(raw: &raw::Subscriptions) -> Result<SubscriptionSettings, SettingError> {
    Ok(SubscriptionSettings {
        max: number("subscriptions.max", raw.max, 1, MAX_WATCHED_QUEUES as u64)?,
        disable_after: millis("subscriptions.disable_after_ms", raw.disable_after_ms, 60_000, YEAR_MS)?,
        checkpoint_ttl: millis("subscriptions.checkpoint_ttl_ms", raw.checkpoint_ttl_ms, 60_000, YEAR_MS)?,
        allow_private: raw.allow_private,
    })
}

fn workflows(raw: &raw::Workflows) -> Result<WorkflowSettings, SettingError> {
    let limit = number("workflows.results_limit_bytes", raw.results_limit_bytes, 65_536, 64 << 20)?;
    Ok(WorkflowSettings {
        max_jobs: number("workflows.max_jobs", raw.max_jobs, 1, MAX_WORKFLOW_JOBS)?,
        results_limit_bytes: limit,
        check: millis("workflows.check_ms", raw.check_ms, 100, 3_600_000)?,
    })
}

fn queue((name, raw): (String, raw::Queue)) -> Result<(QueueName, QueueLimits), SettingError> {
    let queue = parsed("queues", &name, "a table of queue names (^[a-z0-9][a-z0-9.-]*$)")?;
    let key = |limit: &str| format!("queues.{name}.{limit}");
    let max_depth = raw.max_depth.map(|depth| number(&key("max_depth"), depth, 1, 1_000_000_000)).transpose()?;
    let concurrency = raw.concurrency.map(|most| number(&key("concurrency"), most, 0, 1_000_000)).transpose()?;
    let limit = raw.rate_limit.map(|limit| number(&key("rate_limit"), limit, 1, 1_000_000)).transpose()?;
    let period_ms = raw.rate_period_ms.map_or(Ok(1000), |ms| number(&key("rate_period_ms"), ms, 1, 86_400_000))?;
    let rate = limit.map(|limit| Rate { limit, period_ms });
    Ok((queue, QueueLimits { max_depth, concurrency, rate }))
}

/// Numbers from 1 to `most` of single queues.
fn of_queues<T: TryFrom<u64>>(
    key: &str,
    written: BTreeMap<String, Whole>,
    most: u64,
) -> Result<BTreeMap<QueueName, T>, SettingError> {
    let of_queue = |(name, value): (String, Whole)| {
        let queue = parsed(key, &name, "a table of queue names (^[a-z0-9][a-z0-9.-]*$)")?;
        Ok((queue, number(&format!("{key}.{name}"), value, 1, most)?))
    };
    written.into_iter().map(of_queue).collect()
}

fn cron(raw: &raw::Cron) -> Result<CronSettings, SettingError> {
    Ok(CronSettings {
        max_entries: number("cron.max_entries", raw.max_entries, 1, 100_000)?,
        catch_up_max: number("cron.catch_up_max", raw.catch_up_max, 1, 100)?,
        catch_up_window: millis("cron.catch_up_window_ms", raw.catch_up_window_ms, 10_000, 604_800_000)?,
    })
}

fn bridge(raw: raw::Bridge) -> Result<Option<BridgeSettings>, SettingError> {
    if raw.list.is_empty() {
        return Ok(None);
    }
    if raw.list.starts_with("galley:") || raw.list.len() > 512 || raw.list.chars().any(char::is_control) {
        let allowed = "a Redis key of at most 512 bytes that does not start with \"galley:\"";
        return Err(refused("bridge.list", allowed, format_args!("{:?}", raw.list)));
    }
    Ok(Some(BridgeSettings {
        list: raw.list,
        queue: parsed("bridge.queue", &raw.queue, "a queue name (^[a-z0-9][a-z0-9.-]*$)")?,
        job_type: parsed("bridge.job_type", &raw.job_type, "a job type such as demo.task")?,
    }))
}

fn telemetry(raw: raw::Telemetry) -> Result<TelemetrySettings, SettingError> {
    let endpoint = Some(raw.otlp_endpoint).filter(|endpoint| !endpoint.is_empty());
    match endpoint {
        Some(url) if !url.starts_with("http://") => {
            let allowed = "empty, http://host:4317 (gRPC) or http://host:4318/v1/traces (HTTP)";
            Err(refused("telemetry.otlp_endpoint", allowed, format_args!("{url:?}")))
        }
        otlp_endpoint => Ok(TelemetrySettings { otlp_endpoint }),
    }
}

fn log(raw: raw::Log) -> Result<LogSettings, SettingError> {
    let format = match raw.format.as_str() {
        "auto" => LogFormat::Auto,
        "pretty" => LogFormat::Pretty,
        "json" => LogFormat::Json,
        other => return Err(refused("log.format", "pretty, json or auto", format_args!("{other:?}"))),
    };
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&raw.level) {
        let allowed = format!("a filter such as info or warn,queue_worker=debug ({error})");
        return Err(refused("log.level", allowed, format_args!("{:?}", raw.level)));
    }
    Ok(LogSettings { format, level: raw.level })
}
