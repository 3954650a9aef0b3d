//! One specific connection, with the epoch of the data that it was opened to: a server that restarted with less data is
//! another connection.

use futures_util::FutureExt;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, ScriptInvocation, Value};

use super::{
    client::{HotConnection, Redis},
    error_class::is_about_slot,
};
use crate::{command_times::RoundTrip, keys, script, slots};

/// One specific connection: it fails when that breaks, instead of reconnecting.
pub(crate) struct PinnedConnection {
    live: HotConnection,
    /// The node to which it leads, if that is one of a cluster.
    node: Option<Redis>,
}

impl PinnedConnection {
    /// No other connection of this process has or had this number.
    pub(crate) fn id(&self) -> u64 {
        self.live.id
    }

    /// Judges an answer that came on it.
    fn judge(&self, redis: &Redis, answer: Result<&[Value], &RedisError>) {
        self.server(redis).judge(self.live.origin(), answer);
    }

    /// The handle to the server to which it leads.
    fn server<'a>(&'a self, redis: &'a Redis) -> &'a Redis {
        self.node.as_ref().unwrap_or(redis)
    }
}

impl Redis {
    /// The current connection to the server with a key, with the epoch of the data there, which is read once for each
    /// connection. In a cluster each slot has an epoch of its own: it says what the node of that slot has lost.
    pub(crate) async fn pinned_with_epoch(&self, key: &str) -> RedisResult<(PinnedConnection, u64)> {
        let Some(cluster) = self.cluster() else {
            let (connection, epoch) = self.pin(None, keys::EPOCH).await?;
            return Ok((connection, epoch?));
        };
        let slot = slots::slot_of(key.as_bytes());
        let epoch_key = keys::epoch_of_slot(slot);
        match self.pin(Some(cluster.owner(slot).await?), &epoch_key).await? {
            (_, Err(error)) if is_about_slot(&error) => {}
            (connection, epoch) => return Ok((connection, epoch?)),
        }
        // The slot has moved, or is being moved. This follows it, and the map is right then
        let followed = script::SETTLE_EPOCH.key(&epoch_key).invoke_async(&mut self.clone()).await?;
        Ok(match self.pin(Some(cluster.owner(slot).await?), &epoch_key).await? {
            (connection, Err(error)) if is_about_slot(&error) => (connection, followed),
            (connection, epoch) => (connection, epoch?),
        })
    }

    /// The current connection to a node or to the one server, with the epoch there.
    async fn pin(&self, node: Option<Self>, epoch_key: &str) -> RedisResult<(PinnedConnection, RedisResult<u64>)> {
        let live = node.as_ref().unwrap_or(self).server_connection().await?;
        let ask = || {
            let (mut connection, call) = (live.connection.clone(), script::SETTLE_EPOCH.key(epoch_key));
            async move { call.invoke_async(&mut connection).await }.boxed().shared()
        };
        let known = live.epochs().get(epoch_key).cloned();
        let asked = known.unwrap_or_else(|| live.epochs().entry(epoch_key.to_owned()).or_insert_with(ask).clone());
        let epoch = asked.await;
        let connection = PinnedConnection { live, node };
        connection.judge(self, epoch.as_ref().map(|_| [].as_slice()));
        if epoch.is_err() {
            // A retry may succeed
            connection.live.epochs().remove(epoch_key);
        }
        Ok((connection, epoch))
    }

    /// Runs a script on a specific connection.
    pub(crate) async fn run_pinned<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
        pinned: PinnedConnection,
    ) -> RedisResult<T> {
        slots::check_call(call);
        let mut connection = pinned.live.connection.clone();
        let result = call.invoke_async(&mut connection).await;
        pinned.judge(self, result.as_ref().map(|_| [].as_slice()));
        if result.is_ok() {
            pinned.server(self).count_write();
        }
        match result {
            // It was not executed: the slot has moved, with its data
            Err(error) if pinned.node.is_some() && is_about_slot(&error) => call.invoke_async(&mut self.clone()).await,
            result => result,
        }
    }

    /// Runs a command on a specific connection.
    pub(crate) async fn query_pinned<T: FromRedisValue>(
        &self,
        command: &Cmd,
        pinned: &PinnedConnection,
    ) -> RedisResult<T> {
        let trip = RoundTrip::of_command(command);
        let answer = pinned.live.connection.clone().send_packed_command(command).await;
        trip.end();
        pinned.judge(self, answer.as_ref().map(std::slice::from_ref));
        pinned.server(self).count_writes([command], &answer);
        Ok(T::from_redis_value(answer?.extract_error()?)?)
    }

    /// Runs a pipeline on a specific connection. Its answers may be errors.
    pub(crate) async fn query_pinned_pipeline(
        &self,
        pipeline: &Pipeline,
        pinned: &PinnedConnection,
    ) -> RedisResult<Vec<Value>> {
        let trip = RoundTrip::of_pipeline(pipeline);
        let answers = pinned.live.connection.clone().send_packed_commands(pipeline, 0, pipeline.len()).await;
        trip.end();
        pinned.judge(self, answers.as_ref().map(Vec::as_slice));
        pinned.server(self).count_writes(pipeline.cmd_iter(), &answers);
        answers
    }
}
