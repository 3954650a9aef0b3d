//! Judges every answer of Redis, on whichever connection it came. A broken connection is dropped. A server that takes no
//! writes is left with every connection to it: after a failover the old primary still answers.

use std::{sync::PoisonError, time::Instant};

use redis::{ErrorKind, RedisError, Value};
use tokio::sync::watch;

use super::{
    client::{Origin, Redis, cluster::Redirect, drop_connection},
    error_class::{ErrorClass, is_about_slot, wrong_server_error},
};

impl Redis {
    /// Judges an answer: drops a broken connection, and every connection to a server that takes no writes.
    pub(super) fn judge(&self, origin: Origin, answer: Result<&[Value], &RedisError>) {
        let (error, class) = match answer {
            Ok(values) => match wrong_server_error(values) {
                Some(error) => (error, ErrorClass::WrongServer),
                None => return,
            },
            // What cannot be parsed on the connection itself breaks it
            Err(error) if error.kind() == ErrorKind::Parse => (error.clone(), ErrorClass::Broken),
            Err(error) => (error.clone(), ErrorClass::of(error)),
        };
        if let Some((address, cluster)) = self.node_of_cluster() {
            let redirect = Redirect::of_error(&error, address);
            if let (Some(redirect), Some(cluster)) = (&redirect, &cluster) {
                cluster.note(redirect);
            } else if let Some(cluster) = cluster.filter(|_| class >= ErrorClass::WrongServer) {
                cluster.demand_refresh();
            }
            if is_about_slot(&error) {
                return;
            }
        }
        metrics::counter!("galley_redis_errors_total", "kind" => class.as_str()).increment(1);
        match (class, origin) {
            (ErrorClass::Broken, Origin::Shared(generation, _))
                if drop_connection(&self.inner().hot_connection, generation) =>
            {
                tracing::warn!(event = "redis.disconnected", %error, generation, "the connection to redis broke");
            }
            (ErrorClass::WrongServer, Origin::Shared(_, opened_at) | Origin::Other(opened_at)) => {
                self.leave_server(opened_at, error);
            }
            _ => {}
        }
    }

    /// Leaves a server that takes no writes, unless that happened since `opened_at`: many callers may report the same.
    fn leave_server(&self, opened_at: Instant, error: RedisError) {
        let is_first = self.inner().server_left.send_if_modified(|left_at| {
            let is_first = left_at.is_none_or(|left_at| left_at < opened_at);
            if is_first {
                *left_at = Some(Instant::now());
            }
            is_first
        });
        if !is_first {
            return;
        }
        let event = "redis.disconnected";
        tracing::warn!(event, %error, "redis takes no writes here: connecting again, until a server takes them");
        let mut connecting = self.connect_state();
        // The line above has said it: a failure to connect is not logged again
        connecting.last_failure = Some((error, Instant::now()));
        *self.inner().hot_connection.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a server was left since a connection was opened.
    pub(super) fn left_server_since(&self, opened_at: Instant) -> bool {
        self.inner().server_left.borrow().is_some_and(|left_at| left_at >= opened_at)
    }

    /// Changes when a server was left.
    pub(super) fn server_left(&self) -> watch::Receiver<Option<Instant>> {
        self.inner().server_left.subscribe()
    }
}
