//! Sends commands on the hot connection; those to a cluster to their nodes.

use futures_util::FutureExt;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value, aio::ConnectionLike};

use super::client::{Redis, cluster::ConnectionKind};
use crate::command_times::RoundTrip;

impl Redis {
    /// Sends a command to the server that this handle leads to.
    pub(super) async fn send_here(&self, cmd: &Cmd) -> RedisResult<Value> {
        let mut live = self.server_connection().await?;
        let trip = RoundTrip::of_command(cmd);
        let answer = live.connection.send_packed_command(cmd).await;
        trip.end();
        self.judge(live.origin(), answer.as_ref().map(std::slice::from_ref));
        answer
    }

    /// The same for a pipeline.
    pub(super) async fn send_all_here(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut live = self.server_connection().await?;
        let trip = RoundTrip::of_pipeline(pipeline);
        let answers = live.connection.send_packed_commands(pipeline, offset, count).await;
        trip.end();
        self.judge(live.origin(), answers.as_ref().map(Vec::as_slice));
        answers
    }

    /// Sends a command on a connection of the pool of its node.
    pub(super) fn send_pooled<'a>(&'a self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.cluster() {
            Some(cluster) => cluster.send(ConnectionKind::Pool, cmd).boxed(),
            None => self.send_here(cmd).boxed(),
        }
    }

    /// The same for a pipeline.
    pub(super) fn send_all_pooled<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.cluster() {
            Some(cluster) => cluster.send_all(ConnectionKind::Pool, (pipeline, offset, count)).boxed(),
            None => self.send_all_here(pipeline, offset, count).boxed(),
        }
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.cluster() {
            Some(cluster) => cluster.send(ConnectionKind::Hot, cmd).boxed(),
            None => self.send_here(cmd).boxed(),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.cluster() {
            Some(cluster) => cluster.send_all(ConnectionKind::Hot, (pipeline, offset, count)).boxed(),
            None => self.send_all_here(pipeline, offset, count).boxed(),
        }
    }

    fn get_db(&self) -> i64 {
        self.inner().address.info().redis_settings().db()
    }
}
