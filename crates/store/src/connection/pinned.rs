//! One specific connection, with the epoch of the data that it was opened to: a server that restarted with less data is
//! another connection.

use futures_util::FutureExt;
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult, ScriptInvocation, Value};

use super::client::{HotConnection, Redis};
use crate::{command_times::RoundTrip, keys, script, slots};

/// One specific connection: it fails when that breaks, instead of reconnecting.
pub(crate) struct PinnedConnection(HotConnection);

impl PinnedConnection {
    /// No other connection of this process has or had this number.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }
}

impl Redis {
    /// The current connection with the epoch of its data, which is read once for each connection.
    pub(crate) async fn pinned_with_epoch(&self) -> RedisResult<(PinnedConnection, u64)> {
        let live = self.hot_connection().await?;
        let ask = || {
            let mut connection = live.connection.clone();
            let ask = async move { script::SETTLE_EPOCH.key(keys::EPOCH).invoke_async(&mut connection).await };
            ask.boxed().shared()
        };
        let asked = live.epoch().get_or_insert_with(ask).clone();
        let epoch = asked.await;
        self.judge(live.origin(), epoch.as_ref().map(|_| [].as_slice()));
        if epoch.is_err() {
            // A retry may succeed
            *live.epoch() = None;
        }
        Ok((PinnedConnection(live), epoch?))
    }

    /// Runs a script on a specific connection.
    pub(crate) async fn run_pinned<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
        PinnedConnection(live): PinnedConnection,
    ) -> RedisResult<T> {
        slots::check_call(call);
        let mut connection = live.connection.clone();
        let result = call.invoke_async(&mut connection).await;
        self.judge(live.origin(), result.as_ref().map(|_| [].as_slice()));
        result
    }

    /// Runs a command on a specific connection.
    pub(crate) async fn query_pinned<T: FromRedisValue>(
        &self,
        command: &Cmd,
        PinnedConnection(live): &PinnedConnection,
    ) -> RedisResult<T> {
        let trip = RoundTrip::of_command(command);
        let answer = live.connection.clone().send_packed_command(command).await;
        trip.end();
        self.judge(live.origin(), answer.as_ref().map(std::slice::from_ref));
        Ok(T::from_redis_value(answer?.extract_error()?)?)
    }

    /// Runs a pipeline on a specific connection. Its answers may be errors.
    pub(crate) async fn query_pinned_pipeline(
        &self,
        pipeline: &Pipeline,
        PinnedConnection(live): &PinnedConnection,
    ) -> RedisResult<Vec<Value>> {
        let trip = RoundTrip::of_pipeline(pipeline);
        let answers = live.connection.clone().send_packed_commands(pipeline, 0, pipeline.len()).await;
        trip.end();
        self.judge(live.origin(), answers.as_ref().map(Vec::as_slice));
        answers
    }
}
