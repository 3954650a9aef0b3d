//! Requirements on the server, and the durability that it offers.
//!
//! Ready means that a write works. What a server does not allow to be asked is unknown, and no reason to refuse it. What
//! can never work stops a process at start.

use std::collections::HashMap;

use redis::{FromRedisValue, InfoDict, aio::ConnectionLike};

pub use super::access::NEEDED_FOR_BRIDGE;
use super::{
    dial::check_write,
    error_class::{ErrorClass, is_about_slot},
};
use crate::{Redis, StoreError, StoreResult};

/// The oldest Redis with everything that Galley uses: script flags, `XADD` with a partial id.
const MIN_VERSION: (u32, u32) = (7, 0);

/// The server's version and durability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its version.
    pub version: String,
    /// What an acknowledged write survives.
    pub durability: ServerDurability,
}

/// What an acknowledged write survives, by the server's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerDurability {
    /// Nothing: there is no append-only file.
    Memory,
    /// The append-only file is synced every second: a crash can lose about two seconds.
    EverySecond,
    /// The write is on disk before it is acknowledged.
    Always,
    /// The server does not allow the question.
    Unknown,
}

impl ServerDurability {
    /// The name in `/ojs/v1/health`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EverySecond => "everysec",
            Self::Always => "always",
            Self::Unknown => "unknown",
        }
    }

    /// The number in metrics: more is better.
    pub(crate) fn level(self) -> Option<u8> {
        match self {
            Self::Memory => Some(0),
            Self::EverySecond => Some(1),
            Self::Always => Some(2),
            Self::Unknown => None,
        }
    }
}

/// Why Galley does not run on this server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServerError {
    /// It must be changed first, or another one used.
    #[error("the server of redis.url cannot be used: {0}")]
    Unsuitable(String),
    /// The question failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Redis {
    /// Sends PING.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn ping(&self) -> StoreResult<()> {
        Ok(redis::cmd("PING").exec_async(&mut self.clone()).await?)
    }

    /// When the server started, of a cluster the last node, in milliseconds before now, rounded up to whole seconds; none if it does not say.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn uptime_ms(&self) -> StoreResult<Option<i64>> {
        let uptime_of = |mut server: Self| async move {
            let info = ask_info(&mut server, "server").await?;
            Ok(info.and_then(|info| info.get::<i64>("uptime_in_seconds")).map(|seconds| (seconds + 1) * 1000))
        };
        Ok(self.ask_each(uptime_of).await?.into_iter().flatten().min())
    }

    /// Checks that a write works, and the server's role, version, eviction policy and durability, as far as it says.
    ///
    /// # Errors
    /// It takes no writes, is too old, may evict jobs, or acknowledges writes that an fsync setting can lose.
    pub async fn check_server(&self) -> Result<ServerInfo, ServerError> {
        let server = match self.cluster() {
            None => check_server_on(&mut self.clone(), false).await?,
            Some(_) => self.check_nodes().await?,
        };
        self.sealer().check_keys(&mut self.clone()).await?;
        Ok(server)
    }
}

pub(super) const CLUSTER: &str = "it has `cluster-enabled yes`: set redis.url to redis+cluster://host:port,host:port";
pub(super) const NO_CLUSTER: &str = "it has no `cluster-enabled yes`: set redis.url to redis://";
const REPLICA: &str = "it is a replica and takes no writes: set redis.url to its primary";

pub(super) async fn ask_version(connection: &mut impl ConnectionLike, is_node: bool) -> Result<String, ServerError> {
    let hello: HashMap<String, redis::Value> =
        redis::cmd("HELLO").query_async(connection).await.map_err(StoreError::from)?;
    check_hello(&hello, is_node).map_err(ServerError::Unsuitable)
}

pub(super) async fn check_server_on(
    connection: &mut impl ConnectionLike,
    is_node: bool,
) -> Result<ServerInfo, ServerError> {
    let version = ask_version(connection, is_node).await?;
    match check_write(connection).await {
        Err(error) if is_node && is_about_slot(&error) => {}
        checked => checked.map_err(StoreError::from)?,
    }
    let info = ask_info(connection, "default").await?;
    // A managed service may forbid CONFIG; INFO has the eviction policy
    let config: HashMap<String, String> =
        redis::cmd("CONFIG").arg("GET").arg("*append*").query_async(connection).await.unwrap_or_default();
    let info = info.unwrap_or_else(|| InfoDict::new(""));
    check_info(version, &info, &config).map_err(ServerError::Unsuitable)
}

/// A section of INFO; none if the server does not allow the question.
pub(super) async fn ask_info(connection: &mut impl ConnectionLike, section: &str) -> StoreResult<Option<InfoDict>> {
    match redis::cmd("INFO").arg(section).query_async(connection).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if ErrorClass::of(&error) == ErrorClass::Refused => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The version, from the answer to HELLO, which every user may send.
pub(super) fn check_hello(hello: &HashMap<String, redis::Value>, is_node: bool) -> Result<String, String> {
    let text = |name: &str| {
        let value = hello.get(name).cloned().unwrap_or_default();
        String::from_redis_value(value).unwrap_or_default()
    };
    match (text("mode").as_str(), text("role").as_str()) {
        ("cluster", _) if !is_node => Err(CLUSTER.to_owned()),
        ("standalone", _) if is_node => Err(NO_CLUSTER.to_owned()),
        ("sentinel", _) => Err(String::from("it is a sentinel: set redis.url to redis+sentinel://host:port/name/db")),
        (_, "replica" | "slave") => Err(REPLICA.to_owned()),
        _ => Ok(text("version")),
    }
}

pub(super) fn check_info(
    version: String,
    info: &InfoDict,
    config: &HashMap<String, String>,
) -> Result<ServerInfo, String> {
    // Valkey counts its own versions; what it offers of Redis is in INFO
    let version: String = info.get("redis_version").unwrap_or(version);
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < MIN_VERSION {
        return Err(format!("version 7.0 or newer is needed, this is {version}: set redis.url to another server"));
    }
    let policy: String = info.get("maxmemory_policy").unwrap_or_default();
    if !policy.is_empty() && policy != "noeviction" {
        return Err(format!(
            "maxmemory-policy must be noeviction, it is {policy}: redis would throw jobs away; set it in redis.conf"
        ));
    }
    let setting = |name: &str| config.get(name).map(String::as_str);
    if setting("appendfsync") == Some("always") && setting("no-appendfsync-on-rewrite") == Some("yes") {
        return Err(String::from(
            "appendfsync is always but no-appendfsync-on-rewrite is yes: acknowledged writes could be lost during a rewrite",
        ));
    }
    Ok(ServerInfo { version, durability: durability_of(info, config) })
}

/// What an acknowledged write survives, by the server's settings, as far as they are known.
pub(super) fn durability_of(info: &InfoDict, config: &HashMap<String, String>) -> ServerDurability {
    match (info.get::<u8>("aof_enabled"), config.get("appendfsync").map(String::as_str)) {
        (Some(0), _) => ServerDurability::Memory,
        (Some(_), Some("always")) => ServerDurability::Always,
        (Some(_), Some("everysec")) => ServerDurability::EverySecond,
        (Some(_), Some(_)) => ServerDurability::Memory,
        _ => ServerDurability::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_texts(info: &str, config: &[(&str, &str)]) -> Result<ServerInfo, String> {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        check_info("7.0.15".to_owned(), &InfoDict::new(info), &config)
    }

    #[test]
    fn a_server_that_could_lose_jobs_is_refused() {
        for (info, config, reason) in [
            ("redis_version:6.2.1\r\n", &[][..], "7.0 or newer"),
            ("redis_version:7.0.15\r\nmaxmemory_policy:allkeys-lru\r\n", &[], "noeviction"),
            (
                "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n",
                &[("appendfsync", "always"), ("no-appendfsync-on-rewrite", "yes")],
                "no-appendfsync-on-rewrite",
            ),
        ] {
            let error = check_texts(info, config).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn durability_is_what_the_server_says() {
        let info = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";
        let of = |config: &[(&str, &str)]| check_texts(info, config).expect("fit").durability;
        assert_eq!(of(&[("appendfsync", "everysec")]), ServerDurability::EverySecond);
        assert_eq!(of(&[("appendfsync", "always")]), ServerDurability::Always);
        assert_eq!(of(&[]), ServerDurability::Unknown);
        let unknown = check_texts("", &[]).expect("fit");
        assert_eq!((unknown.version.as_str(), unknown.durability), ("7.0.15", ServerDurability::Unknown));
        let memory = check_texts("redis_version:9.1.2\r\naof_enabled:0\r\n", &[]).expect("fit").durability;
        assert_eq!(memory, ServerDurability::Memory);
    }
}
