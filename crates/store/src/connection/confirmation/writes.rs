//! Counts what may have written to each node of a cluster: a confirmation asks those to which something may have been written
//! meanwhile.

use std::sync::atomic::Ordering;

use redis::{Arg, Cmd, RedisError};

use crate::connection::client::{Redis, cluster::Destination};

/// Commands that write nothing, of those that Galley sends: any other one may.
const READING: [&str; 43] = [
    "ACL",
    "ASKING",
    "CLIENT",
    "CLUSTER",
    "COMMAND",
    "CONFIG",
    "DBSIZE",
    "EXISTS",
    "GET",
    "HELLO",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HLEN",
    "HMGET",
    "INFO",
    "LLEN",
    "LRANGE",
    "MEMORY",
    "MGET",
    "PING",
    "PTTL",
    "PUBSUB",
    "ROLE",
    "SCAN",
    "SCARD",
    "SCRIPT",
    "SISMEMBER",
    "SMEMBERS",
    "STRLEN",
    "TIME",
    "TTL",
    "TYPE",
    "XINFO",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZSCORE",
];

impl Redis {
    /// Counts commands that were answered, if they went to a node of a cluster.
    pub(in crate::connection) fn count_writes<'a, T>(
        &self,
        commands: impl IntoIterator<Item = &'a Cmd>,
        answer: &Result<T, RedisError>,
    ) {
        let is_at_node = matches!(self.inner().destination, Destination::Node(..));
        if is_at_node && answer.is_ok() && commands.into_iter().any(may_write) {
            self.count_write();
        }
    }

    /// Counts a script that was run at a node.
    pub(in crate::connection) fn count_write(&self) {
        self.inner().writes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often something was answered by this node that may have written to it.
    pub(super) fn writes(&self) -> u64 {
        self.inner().writes.load(Ordering::Relaxed)
    }
}

fn may_write(command: &Cmd) -> bool {
    let Some(Arg::Simple(name)) = command.args_iter().next() else { return true };
    !READING.iter().any(|reading| name.eq_ignore_ascii_case(reading.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_read_may_write() {
        for name in ["SET", "EVALSHA", "XADD", "XREADGROUP", "FCALL", "EXEC", "GETDEL"] {
            assert!(may_write(&redis::cmd(name)), "{name}");
        }
        for name in ["TIME", "hmget", "ZRANGEBYSCORE"] {
            assert!(!may_write(&redis::cmd(name)), "{name}");
        }
        assert!(READING.is_sorted());
    }
}
