//! One process: its parts, and the order in which they stop.
//!
//! claim (takes places, then jobs) ─▶ attempt (runs a handler) ─▶ commit (records results, many at once).
//! Beside them: renew keeps leases, presence reports and hears directives, doorbell hears wake-up calls, rules are read again
//! on a signal, bridge feeds the queue of a list, and the upkeep that every process can do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use common::{
    health,
    settings::Settings,
    shutdown::{self, DrainOutcome, supervise},
    telemetry::{self, MetricsHandle},
};
use store::{
    Redis, Store, connection::notifier::Notifier, events::EventLog, jobs::Consumer, long_poll::LongPoll, maintenance,
    workers::Workers,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attempt::AttemptRunner,
    claim,
    handlers::Handlers,
    heartbeat,
    heartbeat_state::HeartbeatState,
    in_flight::InFlightJobs,
    lease_renewal, list_bridge, results,
    rules::{self, Dispatcher},
    shared::{RunMode, WorkerShared},
    slots::Slots,
    wakeup::Wakeup,
};

/// After the grace: time for handing jobs back and for the last results to be recorded.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker that is ready to run.
pub struct Worker {
    shared: Arc<WorkerShared>,
    dispatcher: Arc<Dispatcher>,
    redis: Redis,
    events: (CancellationToken, JoinHandle<()>),
    metrics: MetricsHandle,
}

impl Worker {
    /// Prepares everything. Redis may be away; a Redis that would lose jobs is refused.
    pub(crate) async fn build(settings: Settings, handlers: Handlers, until: RunMode) -> anyhow::Result<Self> {
        let rules = rules::load(settings.queue_worker.rules.as_deref(), &handlers)?;
        let dispatch = Arc::new(Dispatcher { handlers, rules });
        let metrics = telemetry::start_metrics()?;
        let redis = Redis::new(&settings.redis)?;
        redis.check_at_start().await?;
        let stop_events = CancellationToken::new();
        let (log, writer) = EventLog::start(&redis, settings.jobs.events_max, stop_events.clone());
        let notifier = Notifier::start(&redis, settings.channels.probe_interval, stop_events.clone());
        let jobs = Store::new(&redis, &notifier, &settings, log).jobs();
        let shared = WorkerShared {
            long_poll: LongPoll::start(&jobs, stop_events.clone()),
            jobs,
            workers: Workers::new(&redis),
            consumer: Consumer::new(settings.jobs.lease),
            in_flight: InFlightJobs::default(),
            heartbeat_state: HeartbeatState::default(),
            slots: Slots::new(settings.queue_worker.concurrency, &settings.queue_worker.queue_concurrency),
            run_mode: until,
            max_stop_grace_ms: AtomicU64::new(0),
            attempts: TaskTracker::new(),
            hard_shutdown: CancellationToken::new(),
            settings,
        };
        Ok(Self { shared: Arc::new(shared), dispatcher: dispatch, redis, events: (stop_events, writer), metrics })
    }

    /// Works until `stop` is cancelled, then finishes or hands back what it has.
    ///
    /// # Errors
    /// Health and metrics cannot be served where the settings say, or a part of the worker panicked.
    pub async fn run_until(self, stop: CancellationToken) -> anyhow::Result<()> {
        let shared = &self.shared;
        // Stopping by a directive must leave the next signal what it is: the first one
        let stop = stop.child_token();
        let worker = &shared.settings.queue_worker;
        let (server, address) = health::serve(worker.listen, self.redis.readiness(), self.metrics)
            .with_context(|| format!("queue_worker.listen: cannot listen on {}", worker.listen))?;
        let (health, serving) = (server.handle(), supervise("HTTP server", tokio::spawn(server), &stop));
        let queues: Vec<&str> = worker.queues.iter().map(common::name::QueueName::as_str).collect();
        tracing::info!(%address, name = %worker.name, ?queues, concurrency = worker.concurrency, "queue-worker runs");

        let (completions, finished) = mpsc::channel(worker.concurrency.max(256));
        let supervise = |part, task| supervise(part, task, &stop);
        let committing = supervise("results", tokio::spawn(results::run(shared.clone(), finished)));
        let keep = CancellationToken::new();
        let renewing = supervise("lease renewal", tokio::spawn(lease_renewal::run(shared.clone(), keep.clone())));
        let doorbell = Arc::new(Wakeup::default());
        let listening = tokio::spawn(doorbell.clone().listen(shared.clone(), stop.clone()));
        let hearing = tokio::spawn(heartbeat::listen_for_signals(shared.clone(), doorbell.clone(), stop.clone()));
        let reporting = heartbeat::run(shared.clone(), doorbell.clone(), stop.clone(), keep.clone());
        let reporting = supervise("heartbeat", tokio::spawn(reporting));
        let upkeep = maintenance::run(shared.jobs.clone(), shared.settings.maintenance.clone(), stop.clone());
        let upkeep = supervise("maintenance", tokio::spawn(upkeep));
        let bridging = tokio::spawn(list_bridge::run(shared.clone(), stop.clone()));
        let reloading = tokio::spawn(rules::reload_on_sighup(self.dispatcher.clone(), stop.clone()));
        let runner = AttemptRunner::new(shared.clone(), self.dispatcher.clone(), doorbell.clone(), completions);
        let claiming = supervise("claim", tokio::spawn(claim::run(shared.clone(), runner, doorbell, stop.clone())));

        stop.cancelled().await;
        // No new jobs; the runner goes with the claim loop, so its end of the channel closes when the attempts end
        claiming.await?;
        bridging.await?;
        finish_attempts(shared).await;
        if tokio::time::timeout(DRAIN_TIMEOUT, committing).await.is_err() {
            tracing::error!("results could not be recorded in time: the jobs will run again");
        }
        keep.cancel();
        renewing.await?;
        reporting.await?;
        hearing.await?;
        reloading.await?;
        listening.await?;
        upkeep.await?;
        let (stop_events, writer) = self.events;
        stop_events.cancel();
        writer.await?;
        health.stop(false).await;
        serving.await??;
        tracing::info!("queue-worker stopped");
        Ok(())
    }
}

async fn finish_attempts(shared: &WorkerShared) {
    let grace = shared.settings.queue_worker.shutdown_grace;
    if let DrainOutcome::TimedOut(running) = shutdown::drain(&shared.attempts, grace).await {
        tracing::warn!(running, "the grace is over, jobs are handed back");
        shared.hard_shutdown.cancel();
        let last_words = Duration::from_millis(shared.max_stop_grace_ms.load(Relaxed)) + DRAIN_TIMEOUT;
        if let DrainOutcome::TimedOut(running) = shutdown::drain(&shared.attempts, last_words).await {
            tracing::error!(running, "jobs could not be handed back in time: their leases will run out");
        }
    }
}
