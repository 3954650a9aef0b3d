//! Asks the nodes of a cluster which of them has which slot: when one says that a slot moved, when one is lost, and now and
//! then. One task of the process asks, so there is one question at a time, and some time lies between two.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rand::seq::SliceRandom;
use redis::{Client, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::time::{sleep, timeout};

use super::{Cluster, NodeAddress, slot_map::ClusterView};
use crate::{
    connection::{error_class::connect_error, server_address::ServerAddress},
    next_reconnect_delay, reconnect_delays,
};

/// How many nodes are asked at once.
const MAX_ASKED: usize = 8;
/// How long the others may take when one has answered: one that was cut off may be the first.
const GRACE: Duration = Duration::from_millis(200);
/// The shortest and the longest pause between two questions.
const PAUSES: std::ops::Range<u64> = 50..250;
/// After how long the nodes are asked although nothing happened.
const IDLE_INTERVAL: Duration = Duration::from_mins(1);

/// What became of the last question.
#[derive(Debug, Clone, Default)]
pub(super) struct Refreshed {
    count: u64,
    /// Why there is no map, and until when nobody needs to ask again.
    failure: Option<(RedisError, Instant)>,
}

/// Asks whenever somebody demands it, as long as there is a handle.
pub(super) async fn run(cluster: Weak<Cluster>) {
    let mut delays = reconnect_delays();
    loop {
        {
            let Some(cluster) = cluster.upgrade() else { return };
            let asked = cluster.ask().await;
            let (pause, failure) = match asked {
                Ok(()) => {
                    delays = reconnect_delays();
                    (Duration::from_millis(rand::random_range(PAUSES)), None)
                }
                Err(error) => {
                    tracing::debug!(%error, "no node of the cluster says who has which slot");
                    let pause = next_reconnect_delay(&mut delays);
                    (pause, Some((error, Instant::now() + pause)))
                }
            };
            cluster.refreshed.send_modify(|last| {
                *last = Refreshed { count: last.count + 1, failure };
            });
            drop(cluster);
            sleep(pause).await;
        }
        // The handle may go while nobody demands anything
        let asleep = Instant::now();
        let idle = IDLE_INTERVAL.mul_f64(rand::random_range(0.5..1.5));
        while asleep.elapsed() < idle {
            let Some(cluster) = cluster.upgrade() else { return };
            if timeout(Duration::from_secs(1), cluster.demand.notified()).await.is_ok() {
                break;
            }
        }
    }
}

impl Cluster {
    /// Waits for the next map; fails at once while there was none a moment ago.
    pub(super) async fn refreshed(&self) -> RedisResult<()> {
        let mut results = self.refreshed.subscribe();
        {
            let last = results.borrow_and_update();
            if let Some((error, until)) = &last.failure
                && Instant::now() < *until
            {
                return Err(error.clone());
            }
        }
        self.demand_refresh();
        let gone = |_| RedisError::from((ErrorKind::Io, "the client of the cluster ended"));
        results.changed().await.map_err(gone)?;
        let last = results.borrow();
        last.failure.as_ref().map_or(Ok(()), |(error, _)| Err(error.clone()))
    }

    async fn ask(self: &Arc<Self>) -> RedisResult<()> {
        let known = self.map();
        let mut asked: Vec<NodeAddress> =
            known.nodes().chain(&self.seeds).cloned().collect::<BTreeSet<_>>().into_iter().collect();
        asked.shuffle(&mut rand::rng());
        asked.truncate(MAX_ASKED);
        let mut answers = asked.iter().map(|address| self.view_of(address)).collect::<FuturesUnordered<_>>();
        let (mut best, mut failure): (Option<ClusterView>, _) = (None, None);
        let mut grace = pin!(sleep(Duration::MAX));
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = &mut grace => None,
            };
            match answer {
                Some(Ok(view)) => {
                    if best.is_none() {
                        grace.as_mut().reset(tokio::time::Instant::now() + GRACE);
                    }
                    // Of equals the one that changes nothing: nodes that do not say their address are where they were asked,
                    // which may have several names
                    let rank = |view: &ClusterView| (view.rank(), view.map == known);
                    best = best.filter(|best| rank(best) >= rank(&view)).or(Some(view));
                }
                Some(Err(error)) => failure = Some(error),
                None => break,
            }
        }
        let Some(best) = best else {
            return Err(failure.unwrap_or_else(|| RedisError::from((ErrorKind::Io, "no node of the cluster is known"))));
        };
        if best.map.primaries().is_empty() {
            return Err(RedisError::from((ErrorKind::Io, "no node of the cluster has a slot")));
        }
        if best.map != known {
            let primaries = best.map.primaries().len();
            tracing::info!(event = "redis.cluster_changed", primaries, "the cluster has shared out its slots anew");
            self.replace_map(best.map);
        }
        Ok(())
    }

    async fn view_of(self: &Arc<Self>, address: &NodeAddress) -> RedisResult<ClusterView> {
        let mut connection = self.connection_for_question(address).await?;
        let mut questions = redis::pipe();
        questions.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let answers = connection.send_packed_commands(&questions, 0, 2).await?;
        ClusterView::parse(answers, address)
    }

    /// The connection that there is, or one for this question.
    pub(in crate::connection) async fn connection_for_question(
        self: &Arc<Self>,
        address: &NodeAddress,
    ) -> RedisResult<MultiplexedConnection> {
        let known = self.topology().nodes.get(address).cloned();
        if let Some(live) = known.and_then(|node| node.current_connection()) {
            return Ok(live.connection);
        }
        let read = || -> anyhow::Result<(Client, redis::AsyncConnectionConfig)> {
            let server = ServerAddress::new(&self.settings, Some(address))?;
            let config = server.config(&self.settings, self.settings.response_timeout);
            Ok((server.client(), config))
        };
        let (client, config) =
            read().map_err(|error| RedisError::from((ErrorKind::Io, "no client", format!("{error:#}"))))?;
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(connect_error)
    }
}
