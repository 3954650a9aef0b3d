//! Sends commands on the hot connection; those to a cluster to their nodes.

use futures_util::FutureExt;
use redis::{
    Cmd, Pipeline, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::client::{Origin, Redis, cluster::ConnectionKind};
use crate::command_times::RoundTrip;

impl Redis {
    /// Sends a command to the server that this handle leads to.
    pub(super) async fn send_here(&self, cmd: &Cmd) -> RedisResult<Value> {
        let mut live = self.server_connection().await?;
        let origin = live.origin();
        self.send_on(&mut live.connection, origin, cmd).await
    }

    /// The same for a pipeline.
    pub(super) async fn send_all_here(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut live = self.server_connection().await?;
        let origin = live.origin();
        self.send_all_on(&mut live.connection, origin, (pipeline, offset, count)).await
    }

    /// Sends a command on that connection, and judges the server by the answer.
    pub(super) async fn send_on(
        &self,
        connection: &mut MultiplexedConnection,
        origin: Origin,
        cmd: &Cmd,
    ) -> RedisResult<Value> {
        let trip = RoundTrip::of_command(cmd);
        let answer = connection.send_packed_command(cmd).await;
        trip.end();
        self.judge(origin, answer.as_ref().map(std::slice::from_ref));
        self.count_writes([cmd], &answer);
        answer
    }

    /// The same for a pipeline.
    pub(super) async fn send_all_on(
        &self,
        connection: &mut MultiplexedConnection,
        origin: Origin,
        (pipeline, offset, count): (&Pipeline, usize, usize),
    ) -> RedisResult<Vec<Value>> {
        let trip = RoundTrip::of_pipeline(pipeline);
        let answers = connection.send_packed_commands(pipeline, offset, count).await;
        trip.end();
        self.judge(origin, answers.as_ref().map(Vec::as_slice));
        self.count_writes(pipeline.cmd_iter(), &answers);
        answers
    }

    /// Sends a command; to a node of a cluster on a connection of its pool.
    pub(super) fn send_pooled<'a>(&'a self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.send_by(ConnectionKind::Pool, cmd)
    }

    /// The same for a pipeline.
    pub(super) fn send_all_pooled<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.send_all_by(ConnectionKind::Pool, pipeline, offset, count)
    }

    /// Sends a command to its server; to a node of a cluster on a connection of that kind.
    fn send_by<'a>(&'a self, kind: ConnectionKind, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.cluster() {
            Some(cluster) => cluster.send(kind, cmd).boxed(),
            None => self.send_here(cmd).boxed(),
        }
    }

    /// The same for a pipeline.
    fn send_all_by<'a>(
        &'a self,
        kind: ConnectionKind,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.cluster() {
            Some(cluster) => cluster.send_all(kind, (pipeline, offset, count)).boxed(),
            None => self.send_all_here(pipeline, offset, count).boxed(),
        }
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.send_by(ConnectionKind::Hot, cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.send_all_by(ConnectionKind::Hot, pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.inner().address.info().redis_settings().db()
    }
}
