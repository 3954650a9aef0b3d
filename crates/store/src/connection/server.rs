//! Requirements on the server's configuration, and the durability that it offers.

use std::{collections::HashMap, sync::Arc};

use common::health::ReadinessCheck;

use redis::InfoDict;

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
}

/// Why Galley must not run on this server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServerError {
    /// Its settings would lose jobs.
    #[error("this redis is not fit for Galley: {0}")]
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

    /// Ready while Redis answers and meets the requirements.
    #[must_use]
    pub fn readiness(&self) -> ReadinessCheck {
        let redis = self.clone();
        Arc::new(move || {
            let redis = redis.clone();
            Box::pin(async move { redis.check_server().await.map(drop).map_err(|error| error.to_string()) })
        })
    }

    /// Checks the server when a process starts. An unavailable server may come later; one that would lose jobs is
    /// refused.
    ///
    /// # Errors
    /// The server does not meet the requirements.
    pub async fn check_at_start(&self) -> Result<(), ServerError> {
        match self.check_server().await {
            Ok(server) => {
                tracing::info!(version = server.version, durability = server.durability.as_str(), "redis found");
                Ok(())
            }
            Err(ServerError::Store(error)) => {
                tracing::warn!(%error, "starting without redis");
                Ok(())
            }
            Err(unfit @ ServerError::Unsuitable(_)) => Err(unfit),
        }
    }

    /// The server's uptime in milliseconds, rounded up to whole seconds.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn uptime_ms(&self) -> StoreResult<i64> {
        let info: InfoDict = redis::cmd("INFO").arg("server").query_async(&mut self.clone()).await?;
        Ok((info.get::<i64>("uptime_in_seconds").unwrap_or(0) + 1) * 1000)
    }

    /// Checks the server's version, eviction policy and durability.
    ///
    /// # Errors
    /// It is too old, may evict jobs, or acknowledges writes that an fsync setting can lose.
    pub async fn check_server(&self) -> Result<ServerInfo, ServerError> {
        let mut connection = self.pooled_connection().await?;
        let info: InfoDict = redis::cmd("INFO").query_async(&mut connection).await.map_err(StoreError::from)?;
        // A hosted Redis may forbid CONFIG; INFO has the eviction policy
        let config: HashMap<String, String> =
            redis::cmd("CONFIG").arg("GET").arg("*append*").query_async(&mut connection).await.unwrap_or_default();
        check_info(&info, &config).map_err(ServerError::Unsuitable)
    }
}

fn check_info(info: &InfoDict, config: &HashMap<String, String>) -> Result<ServerInfo, String> {
    let version: String = info.get("redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < MIN_VERSION {
        return Err(format!("version 7.0 or newer is needed, this is {version}"));
    }
    let policy: String = info.get("maxmemory_policy").unwrap_or_default();
    if !policy.is_empty() && policy != "noeviction" {
        return Err(format!("maxmemory-policy must be noeviction, it is {policy}: redis would throw jobs away"));
    }
    let setting = |name: &str| config.get(name).map(String::as_str);
    if setting("appendfsync") == Some("always") && setting("no-appendfsync-on-rewrite") == Some("yes") {
        return Err(String::from(
            "appendfsync is always but no-appendfsync-on-rewrite is yes: acknowledged writes could be lost during a rewrite",
        ));
    }
    let durability = match (info.get::<u8>("aof_enabled"), setting("appendfsync")) {
        (Some(0), _) => ServerDurability::Memory,
        (Some(_), Some("always")) => ServerDurability::Always,
        (Some(_), Some("everysec")) => ServerDurability::EverySecond,
        (Some(_), Some(_)) => ServerDurability::Memory,
        _ => ServerDurability::Unknown,
    };
    Ok(ServerInfo { version, durability })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_texts(info: &str, config: &[(&str, &str)]) -> Result<ServerInfo, String> {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        check_info(&InfoDict::new(info), &config)
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
        let memory = check_texts("redis_version:9.1.2\r\naof_enabled:0\r\n", &[]).expect("fit").durability;
        assert_eq!(memory, ServerDurability::Memory);
    }
}
