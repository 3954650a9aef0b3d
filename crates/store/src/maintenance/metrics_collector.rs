//! Reads for the metrics what no process knows by itself: how much waits in queues and subscriptions, and the state of Redis.
//! Only the leader does, so that it costs Redis the same however many processes there are.
//!
//! An idle queue costs next to nothing: the sums that processes send for the history tell in which queues something happens.
//! These are measured, those that have jobs, and a few others in turn.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::leader_samples::{LeaderSamples, LeaderView, QueueView};
use crate::{
    StoreResult, channels::Backlog, connection::server_state::ServerState, jobs::Jobs, log_interruption,
    statistics::BusyQueues, subscriptions::Subscriptions,
};
use common::{name::QueueName, rotation::Rotation};
use model::subscription::{DeliveryMode, Subscription};

/// Queues that are measured in one round, apart from the first one.
const MAX_MEASURED: usize = 200;
/// Idle queues among them.
const IDLE_MEASURED: usize = 2;
/// Channels of a broadcast whose lag is read.
const MAX_BROADCAST_CHANNELS: usize = 20;

/// What the parts of maintenance find on their rounds anyway, so that the metrics need not ask Redis for it.
#[derive(Debug, Default)]
pub(super) struct LeaderFindings {
    pub(super) busy: BusyQueues,
    backlogs: Mutex<HashMap<String, Backlog>>,
}

impl LeaderFindings {
    /// The backlogs of shared subscriptions, from a look at all channels.
    pub(super) fn set_backlogs(&self, backlogs: HashMap<String, Backlog>) {
        *self.lock() = backlogs;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Backlog>> {
        self.backlogs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads once per interval until it is dropped. An error must not end the rest of maintenance.
pub(super) async fn run(jobs: &Jobs, findings: &LeaderFindings, every: Duration) -> Infallible {
    let mut collector = MetricsCollector::new(jobs, findings);
    let samples = LeaderSamples::start();
    let mut round = tokio::time::interval(every);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        match collector.collect().await {
            Ok(view) => samples.set(view),
            Err(error) => log_interruption("metrics of the leader", &error),
        }
    }
}

struct MetricsCollector<'a> {
    jobs: &'a Jobs,
    findings: &'a LeaderFindings,
    queues: BTreeMap<QueueName, QueueView>,
    /// Those with jobs, and idle ones.
    rotations: [Rotation; 2],
    broadcasts: HashMap<String, u64>,
    next_broadcast: usize,
    is_first: bool,
}

impl<'a> MetricsCollector<'a> {
    fn new(jobs: &'a Jobs, findings: &'a LeaderFindings) -> Self {
        let (queues, broadcasts, rotations) = (BTreeMap::new(), HashMap::new(), Default::default());
        Self { jobs, findings, queues, rotations, broadcasts, next_broadcast: 0, is_first: true }
    }

    async fn collect(&mut self) -> StoreResult<LeaderView> {
        let chosen = self.choose_queues().await?;
        self.measure(&chosen).await?;
        self.is_first = false;
        let subscriptions = self.read_backlogs().await?;
        let server = ServerState::read(&self.jobs.store().redis).await?;
        let at = self.jobs.estimated_now();
        Ok(LeaderView { queues: self.queues.clone(), subscriptions, server: Some(server), at })
    }

    /// The queues to measure now.
    async fn choose_queues(&mut self) -> StoreResult<Vec<QueueName>> {
        self.findings.busy.read(self.jobs).await?;
        let busy = self.findings.busy.take();
        let all = self.jobs.list_queues().await?;
        if self.is_first {
            return Ok(all);
        }
        let mut before = std::mem::take(&mut self.queues);
        let (mut chosen, mut with_jobs, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        for queue in all {
            // A new queue is empty until something happens there
            let view = before.remove(&queue).unwrap_or_default();
            let change = busy.get(&queue).copied().unwrap_or_default();
            let list = match (change.net != 0 || change.has_failed, view.has_jobs()) {
                // As many jobs ended as came: it is as empty as it was
                (false, false) => &mut idle,
                (false, true) => &mut with_jobs,
                (true, _) => &mut chosen,
            };
            list.push(queue.clone());
            self.queues.insert(queue, view);
        }
        chosen.truncate(MAX_MEASURED);
        let [of_jobs, of_idle] = &mut self.rotations;
        chosen.extend(of_jobs.next(&with_jobs, MAX_MEASURED - chosen.len()));
        chosen.extend(of_idle.next(&idle, IDLE_MEASURED));
        Ok(chosen)
    }

    async fn measure(&mut self, queues: &[QueueName]) -> StoreResult<()> {
        let measured = self.jobs.queue_overviews(queues).await?;
        for (queue, (stats, control)) in queues.iter().zip(measured) {
            let oldest_at = if stats.available > 0 { self.jobs.oldest_waiting_at(queue).await? } else { None };
            self.queues.insert(queue.clone(), QueueView { stats, is_paused: control.is_paused, oldest_at });
        }
        Ok(())
    }

    /// The backlog of each subscription: those of shared ones as the last look at channels found them, those of broadcasts
    /// in turn.
    async fn read_backlogs(&mut self) -> StoreResult<BTreeMap<String, Backlog>> {
        let subscriptions = Subscriptions::new(self.jobs);
        let listed = subscriptions.list().await?.subscriptions;
        let is_broadcast = |subscription: &Subscription| subscription.mode == DeliveryMode::Broadcast;
        let broadcasts: Vec<&Subscription> =
            listed.iter().map(|(one, _)| one).filter(|one| is_broadcast(one)).collect();
        if let Some(turn) = broadcasts.get(self.next_broadcast.checked_rem(broadcasts.len()).unwrap_or(0)) {
            self.next_broadcast = self.next_broadcast.wrapping_add(1);
            let mut channels = subscriptions.matching_channels(turn).await?;
            channels.truncate(MAX_BROADCAST_CHANNELS);
            let lags = subscriptions.broadcast_lag(turn, &channels.iter().collect::<Vec<_>>()).await?;
            let lag = lags.iter().map(|worker| worker.lag).max().unwrap_or(0);
            self.broadcasts.insert(turn.name.to_string(), lag);
        }
        self.broadcasts.retain(|name, _| broadcasts.iter().any(|broadcast| broadcast.name.as_str() == name));
        let shared = self.findings.lock();
        let backlogs = listed.iter().map(|(subscription, _)| {
            let name = subscription.name.as_str();
            let backlog = match self.broadcasts.get(name) {
                Some(lag) => Backlog { lag: *lag, ..Backlog::default() },
                None => shared.get(name).copied().unwrap_or_default(),
            };
            (name.to_owned(), backlog)
        });
        Ok(backlogs.collect())
    }
}
