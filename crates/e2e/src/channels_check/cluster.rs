//! The processes of a run: what is where, for those who only use it, and what can be broken, for those who break it.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::{
    reader_check::{CheckedHistory, CheckedPosition},
    stream_event::parse_tag,
    worker_sockets::WorkerSockets,
};
use testkit::{
    PATIENCE, RedisDeployment, RedisKind, RedisPersistence, RedisServer, ServiceProcess, http::HttpConnection,
};

/// Messages on a page of a history: as many as there may be.
const PAGE_SIZE: u32 = 1000;

/// A gateway that keeps everything, and says often that it is there.
const GATEWAY_VARIABLES: [(&str, &str); 3] = [
    ("GALLEY__CHANNELS__HISTORY_MAX", "10000000"),
    ("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "1000"),
    ("GALLEY__SUBSCRIPTIONS__ALLOW_PRIVATE", "true"),
];

/// A worker that delivers to this machine, and soon gives back what it has when it is told to stop.
const WORKER_VARIABLES: [(&str, &str); 2] =
    [("GALLEY__SUBSCRIPTIONS__ALLOW_PRIVATE", "true"), ("GALLEY__PUBSUB_WORKER__SHUTDOWN_GRACE_MS", "200")];

/// Where gateways are at the moment.
pub(super) struct GatewayPool(RwLock<Vec<Option<SocketAddr>>>);

/// The processes themselves.
pub(super) struct CheckCluster {
    pub(super) gateway_pool: Arc<GatewayPool>,
    pub(super) worker_sockets: Arc<WorkerSockets>,
    gateways: Vec<Option<ServiceProcess>>,
    workers: Vec<Option<ServiceProcess>>,
    // Dropped last: the others outlive nothing they need
    pub(super) redis: RedisDeployment,
}

impl CheckCluster {
    /// All that is acknowledged survives a kill of Redis.
    pub(super) async fn start(redis: RedisKind, gateways: u32, workers: u32) -> Self {
        let redis = RedisDeployment::start(redis, || RedisServer::start_with(RedisPersistence::Always)).await;
        let addresses = (0..gateways).map(|_| None).collect();
        let gateways = (0..gateways).map(|_| None).collect();
        let workers = (0..workers).map(|_| None).collect();
        let stage = Arc::new(GatewayPool(RwLock::new(addresses)));
        let mut cast = Self { gateway_pool: stage, worker_sockets: Arc::default(), gateways, workers, redis };
        for index in 0..cast.gateways.len() {
            cast.start_gateway(index).await;
        }
        for index in 0..cast.workers.len() {
            cast.start_worker(index).await;
        }
        cast
    }

    pub(super) fn gateway_count(&self) -> usize {
        self.gateways.len()
    }

    /// Takes a gateway away, to be ended somehow.
    pub(super) fn take_gateway(&mut self, index: usize) -> Option<ServiceProcess> {
        self.gateway_pool.set(index, None);
        self.gateways[index].take()
    }

    pub(super) async fn start_gateway(&mut self, index: usize) {
        let variables = [&PATIENCE[..], &GATEWAY_VARIABLES].concat();
        let gateway = ServiceProcess::start_with_redis_url("gateway", &self.redis.url(), &variables).await;
        gateway.wait_until_ready().await;
        self.gateway_pool.set(index, Some(gateway.address()));
        self.gateways[index] = Some(gateway);
    }

    pub(super) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Takes a worker away, to be ended somehow.
    pub(super) fn take_worker(&mut self, index: usize) -> Option<ServiceProcess> {
        self.workers[index].take()
    }

    /// Starts a worker under the name that it has each time.
    pub(super) async fn start_worker(&mut self, index: usize) {
        let name = format!("w{}", index + 1);
        let variables = [&PATIENCE[..], &WORKER_VARIABLES, &[("GALLEY__PUBSUB_WORKER__NAME", &name)]].concat();
        let worker = ServiceProcess::spawn_with_redis_url("pubsub-worker", &self.redis.url(), &variables);
        // It delivers before anybody else knows that it listens
        self.worker_sockets.set_worker_process(worker.process_id(), index);
        self.workers[index] = Some(worker.wait_until_listening().await);
    }
}

impl GatewayPool {
    fn set(&self, index: usize, address: Option<SocketAddr>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner)[index] = address;
    }

    /// One of the gateways that are there, if possible not the one that somebody just had.
    pub(super) fn pick(&self, number: usize, not: Option<SocketAddr>) -> Option<SocketAddr> {
        let addresses = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let there: Vec<SocketAddr> = addresses.iter().flatten().copied().collect();
        let others: Vec<SocketAddr> = there.iter().copied().filter(|address| Some(*address) != not).collect();
        let choice = if others.is_empty() { there } else { others };
        choice.get(number.checked_rem(choice.len())?).copied()
    }

    /// The whole history of a channel, page by page.
    pub(super) async fn history(&self, channel: &str) -> anyhow::Result<CheckedHistory> {
        #[derive(Deserialize)]
        struct CheckedHistoryPage {
            items: Vec<CheckedHistoryMessage>,
            next: Option<String>,
            gap: Option<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct CheckedHistoryMessage {
            id: String,
            data: String,
        }
        let mut connection = HttpConnection::open(self.pick(0, None).context("no gateway")?).await?;
        let (mut history, mut after) = (CheckedHistory::new(), "0-0".to_owned());
        loop {
            let path = format!("/v1/channels/{channel}/messages?limit={PAGE_SIZE}&after={after}");
            let page: CheckedHistoryPage = serde_json::from_str(&connection.get(&path).await?)?;
            ensure!(page.gap.is_none(), "it has a gap behind {after}");
            for kept in &page.items {
                history.push((kept.id.parse::<CheckedPosition>()?, parse_tag(channel, &kept.data)?));
            }
            let Some(next) = page.next else { return Ok(history) };
            after = next;
        }
    }
}
