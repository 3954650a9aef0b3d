//! Settings: the defaults, then the file named by `GALLEY_CONFIG`, then `GALLEY__SECTION__KEY`.
//!
//! Each setting is declared once, by an entry of `section!` in `services`, `jobs`, `channels` or `process`. The
//! checks, `config/default.toml` and `docs/reference/settings.md` follow from the entry. A value that is not allowed is
//! an error that names the key, the value and what is allowed. A key that does not exist is an error too. Secrets can be
//! in files of their own, and no error shows them.

mod auth;
mod channels;
mod declare;
mod error;
mod inspect;
mod jobs;
mod kinds;
mod otel;
mod process;
mod redis;
mod render;
mod schema;
mod secret_file;
#[cfg(test)]
mod secret_tests;
mod services;
#[cfg(test)]
mod tests;
mod tokens;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use config::{Config, ConfigBuilder, Environment, File, FileFormat, Source, builder::DefaultState};

pub use auth::{AuthMode, AuthSettings};
pub use channels::{BacklogCap, ChannelSettings, MAX_WATCHED_QUEUES, Retention, RetentionRules, SubscriptionSettings};
pub use error::SettingError;
pub use inspect::{SettingSource, SettingValue, values_with_sources};
pub use jobs::{
    BridgeSettings, CronSettings, JobSettings, MAX_WORKFLOW_JOBS, MIN_LEASE_MS, OnExhaustion, QueueLimits,
    WorkflowSettings,
};
pub use process::{
    EncryptionSettings, LogFormat, LogSettings, MaintenanceSettings, MetricsSettings, ReloadSettings,
    StatisticsSettings, TelemetrySettings,
};
pub use redis::{DurabilitySettings, RedisSettings, RedisUrl, SentinelUrls};
pub use render::{default_toml, reference};
pub use schema::json_schema;
pub use services::{DashboardSettings, GatewaySettings, PubsubWorkerSettings, QueueWorkerSettings};
pub use tokens::{JwtSettings, KeyLimitSettings, MIN_TOKEN_SECRET_BYTES, TokenSettings, TokenTables};

use crate::{config_file, name::QueueName};
use declare::Section;

const YEAR_MS: u64 = 365 * 86_400_000;

/// Checked settings, one struct for each section.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each section is described where it is declared")]
pub struct Settings {
    pub redis: RedisSettings,
    pub durability: DurabilitySettings,
    pub encryption: EncryptionSettings,
    pub reload: ReloadSettings,
    pub gateway: GatewaySettings,
    pub dashboard: DashboardSettings,
    pub auth: AuthSettings,
    pub queue_worker: QueueWorkerSettings,
    pub pubsub_worker: PubsubWorkerSettings,
    pub jobs: JobSettings,
    pub workflows: WorkflowSettings,
    /// Limits of single queues.
    pub queues: BTreeMap<QueueName, QueueLimits>,
    pub cron: CronSettings,
    /// Absent if no list is bridged.
    pub bridge: Option<BridgeSettings>,
    pub channels: ChannelSettings,
    pub subscriptions: SubscriptionSettings,
    pub maintenance: MaintenanceSettings,
    pub statistics: StatisticsSettings,
    pub metrics: MetricsSettings,
    pub telemetry: TelemetrySettings,
    pub log: LogSettings,
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// A file that cannot be read, a key that does not exist or a value that is not allowed.
    pub fn load() -> Result<Self, SettingError> {
        let mut settings = Self::from_sources(std::env::var("GALLEY_CONFIG").ok().as_deref(), environment())?;
        settings.telemetry.complete(|name| std::env::var(name).ok())?;
        Ok(settings)
    }

    /// Reads settings from a file, if one is named, and variables.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_sources(file: Option<&str>, variables: HashMap<String, String>) -> Result<Self, SettingError> {
        Self::from_config(sources(file, variables)?)
    }

    fn from_config(sources: ConfigBuilder<DefaultState>) -> Result<Self, SettingError> {
        let mut root = Section::new("", sources.build()?.collect()?);
        let settings = Self {
            redis: root.section("redis", RedisSettings::read)?,
            durability: root.section("durability", DurabilitySettings::read)?,
            encryption: root.section("encryption", EncryptionSettings::read)?,
            reload: root.section("reload", ReloadSettings::read)?,
            gateway: root.section("gateway", GatewaySettings::read)?,
            dashboard: root.section("dashboard", DashboardSettings::read)?,
            auth: root.section("auth", AuthSettings::read)?,
            queue_worker: root.section("queue_worker", QueueWorkerSettings::read)?,
            pubsub_worker: root.section("pubsub_worker", PubsubWorkerSettings::read)?,
            jobs: root.section("jobs", JobSettings::read)?,
            workflows: root.section("workflows", WorkflowSettings::read)?,
            queues: jobs::read_queues(&mut root)?,
            cron: root.section("cron", CronSettings::read)?,
            bridge: Some(root.section("bridge", BridgeSettings::read)?).filter(|bridge| !bridge.list.is_empty()),
            channels: root.section("channels", ChannelSettings::read)?,
            subscriptions: root.section("subscriptions", SubscriptionSettings::read)?,
            maintenance: root.section("maintenance", MaintenanceSettings::read)?,
            statistics: root.section("statistics", StatisticsSettings::read)?,
            metrics: root.section("metrics", MetricsSettings::read)?,
            telemetry: root.section("telemetry", TelemetrySettings::read)?,
            log: root.section("log", LogSettings::read)?,
        };
        root.finish()?;
        settings.redis.check()?;
        settings.gateway.check()?;
        settings.auth.tables.check()?;
        settings.telemetry.check()?;
        Ok(settings)
    }

    /// The settings of a queue, or of the queue of a partition, if it has any.
    #[must_use]
    pub fn queue(&self, queue: &QueueName) -> Option<&QueueLimits> {
        self.queues.get(&*queue.base())
    }

    /// The depth limit of a queue, if it has one.
    #[must_use]
    pub fn max_depth(&self, queue: &QueueName) -> Option<u64> {
        self.queue(queue).and_then(|limits| limits.max_depth)
    }
}

/// The variables of this process that are settings.
#[must_use]
pub fn environment() -> HashMap<String, String> {
    // Variables of other programs may hold any bytes. Ours are text; a value that is not is refused by its check
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("GALLEY__"))?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    variables.collect()
}

/// The file, if one is named, and then the variables.
fn sources(
    file: Option<&str>,
    variables: HashMap<String, String>,
) -> Result<ConfigBuilder<DefaultState>, SettingError> {
    let mut sources = Config::builder();
    if let Some(path) = file {
        // First, because the errors of `config` quote the file
        config_file::load::<toml::Table, ()>(Path::new(path), "settings", |_, _| ()).map_err(SettingError::Text)?;
        sources = sources.add_source(File::new(path, FileFormat::Toml));
    }
    let environment = Environment::with_prefix("GALLEY").prefix_separator("__").separator("__").source(Some(variables));
    Ok(sources.add_source(environment))
}

/// The name of this machine.
#[must_use]
pub fn hostname() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    host.to_string_lossy().chars().filter(char::is_ascii_graphic).take(100).collect()
}
