//! A Redis on a watched disk: power failures, and a disk that is full.

use crate::{RedisServer, WatchedDisk};

impl RedisServer {
    /// Kills it and takes away what it had not synced, as a power failure does; how many bytes these were.
    ///
    /// # Panics
    /// It is not running, or not on a watched disk.
    pub fn kill_and_lose_unsynced(&mut self) -> u64 {
        self.kill();
        let synced = self.disk().synced_bytes();
        let parts = std::fs::read_dir(self.folder.path().join("appendonlydir")).expect("an append-only file");
        let mut growing =
            parts.flatten().map(|part| part.path()).filter(|path| path.to_string_lossy().ends_with(".incr.aof"));
        let path = growing.next().expect("a part that grows");
        assert!(growing.next().is_none(), "it was rewritten, which nobody expects of so little");
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file of ours");
        let length = file.metadata().expect("a file of ours").len();
        file.set_len(synced.min(length)).expect("a file of ours");
        length.saturating_sub(synced)
    }

    /// Whether it has ended by itself.
    ///
    /// # Panics
    /// It was killed.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().expect("redis runs").has_ended()
    }

    /// Its disk.
    ///
    /// # Panics
    /// It was not started on a watched disk.
    #[must_use]
    pub fn disk(&self) -> &WatchedDisk {
        self.disk.as_ref().expect("a watched disk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RedisPersistence, redis};

    async fn set(redis: &RedisServer, key: &str) {
        redis::cmd("SET").arg(key).arg(1).exec_async(&mut redis.connection().await).await.expect("redis runs");
    }

    async fn count(redis: &RedisServer) -> u64 {
        redis::cmd("DBSIZE").query_async(&mut redis.connection().await).await.expect("redis runs")
    }

    #[tokio::test]
    async fn a_power_failure_takes_what_was_not_synced_and_leaves_the_rest() {
        let mut redis = RedisServer::start_on_watched_disk(RedisPersistence::Always);
        set(&redis, "synced").await;
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("appendfsync").arg("no");
        command.exec_async(&mut redis.connection().await).await.expect("redis runs");
        set(&redis, "not synced").await;
        assert!(redis.kill_and_lose_unsynced() > 0);
        redis.restart();
        assert_eq!(count(&redis).await, 1);
        // And with this setting, all is synced before it is acknowledged
        set(&redis, "later").await;
        redis.kill_and_lose_unsynced();
        redis.restart();
        assert_eq!(count(&redis).await, 2);
    }

    #[tokio::test]
    async fn a_redis_whose_disk_is_full_ends_rather_than_acknowledge() {
        let mut redis = RedisServer::start_on_watched_disk(RedisPersistence::Always);
        set(&redis, "before").await;
        redis.disk().set_full(true);
        let mut connection = redis.connection().await;
        redis::cmd("SET").arg("meanwhile").arg(1).exec_async(&mut connection).await.expect_err("it cannot be kept");
        while !redis.has_ended() {
            tokio::task::yield_now().await;
        }
        redis.disk().set_full(false);
        redis.restart();
        assert_eq!(count(&redis).await, 1);
    }
}
