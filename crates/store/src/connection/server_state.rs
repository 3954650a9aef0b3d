//! How Redis is, for metrics: what it allows to be asked.

use std::collections::HashMap;

use redis::InfoDict;

use super::server::{ServerDurability, ask_info, durability_of};
use crate::{Redis, StoreResult};

/// The state of the server. What it does not say is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerState {
    pub(crate) durability: ServerDurability,
    /// Whether the last attempt to save a snapshot worked, and to write or rewrite the append-only file.
    pub(crate) can_save_rdb: Option<bool>,
    pub(crate) can_save_aof: Option<bool>,
    pub(crate) clients: Option<u32>,
    pub(crate) max_clients: Option<u32>,
}

impl ServerState {
    pub(crate) async fn read(redis: &Redis) -> StoreResult<Self> {
        let state_of = |mut redis: Redis| async move {
            let info = ask_info(&mut redis, "default").await?.unwrap_or_else(|| InfoDict::new(""));
            // A managed service may forbid it
            let config: HashMap<String, String> =
                redis::cmd("CONFIG").arg("GET").arg("appendfsync").query_async(&mut redis).await.unwrap_or_default();
            Ok(Self::parse(&info, &config))
        };
        let states = redis.ask_each(state_of).await?;
        Ok(states
            .into_iter()
            .reduce(|one, other| one.worst(&other))
            .unwrap_or_else(|| Self::parse(&InfoDict::new(""), &HashMap::new())))
    }

    /// Of two nodes of a cluster what is worse.
    fn worst(&self, other: &Self) -> Self {
        let use_of =
            |state: &Self| state.clients.unwrap_or(0).saturating_mul(1000) / state.max_clients.unwrap_or(1).max(1);
        let both = |one: Option<bool>, other: Option<bool>| one.zip(other).map(|(one, other)| one && other);
        let fuller = if use_of(self) >= use_of(other) { self } else { other };
        Self {
            durability: std::cmp::min_by_key(self.durability, other.durability, |durability| durability.level()),
            can_save_rdb: both(self.can_save_rdb, other.can_save_rdb),
            can_save_aof: both(self.can_save_aof, other.can_save_aof),
            clients: fuller.clients,
            max_clients: fuller.max_clients,
        }
    }

    fn parse(info: &InfoDict, config: &HashMap<String, String>) -> Self {
        let is_ok = |field: &str| info.get::<String>(field).map(|status| status == "ok");
        let (written, rewritten) = (is_ok("aof_last_write_status"), is_ok("aof_last_bgrewrite_status"));
        Self {
            durability: durability_of(info, config),
            can_save_rdb: is_ok("rdb_last_bgsave_status"),
            can_save_aof: written.map(|written| written && rewritten.unwrap_or(true)),
            clients: info.get("connected_clients"),
            max_clients: info.get("maxclients"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_does_not_say_is_unknown() {
        let nothing = ServerState::parse(&InfoDict::new(""), &HashMap::new());
        assert_eq!((nothing.durability, nothing.can_save_rdb), (ServerDurability::Unknown, None));
        let info = "aof_enabled:1\r\nrdb_last_bgsave_status:err\r\naof_last_write_status:ok\r\n\
                    aof_last_bgrewrite_status:err\r\nconnected_clients:7\r\nmaxclients:10000\r\n";
        let config = HashMap::from([("appendfsync".to_owned(), "always".to_owned())]);
        let state = ServerState::parse(&InfoDict::new(info), &config);
        assert_eq!((state.durability.level(), state.clients, state.max_clients), (Some(2), Some(7), Some(10_000)));
        assert_eq!((state.can_save_rdb, state.can_save_aof), (Some(false), Some(false)));
    }
}
