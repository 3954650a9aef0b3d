//! One worker process: its parts, and the order in which they stop.
//!
//! claim (permits, then jobs) ─▶ attempt (runs a handler) ─▶ results (records successes, many at once).
//!
//! Beside them: `lease_renewal` renews leases, `heartbeat` reports and receives directives, `wakeup` receives
//! notifications, `rules` are reloaded on SIGHUP, `list_bridge` feeds a queue from a list, and `maintenance` runs here
//! as in every process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use common::{
    health::{self, HealthPart, PartState, ServiceHealth},
    prometheus::{self, MetricsHandle},
    settings::Settings,
    shutdown::{self, DrainOutcome, StopSignals, supervise},
};
use store::{
    Redis, Store,
    connection::{
        health::{ServiceWork, WorkCheck},
        notifier::Notifier,
        server::NEEDED_FOR_BRIDGE,
    },
    events::EventLog,
    jobs::Consumer,
    log_level,
    long_poll::LongPoll,
    maintenance,
    process_reports::ProcessReporter,
    workers::Workers,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attempt::AttemptRunner,
    attempt_times::AttemptTimes,
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

/// After the shutdown grace: time to release jobs and to record the last results.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker that is ready to run.
pub struct Worker {
    shared: Arc<WorkerShared>,
    dispatcher: Arc<Dispatcher>,
    health: ServiceHealth,
    events: (CancellationToken, JoinHandle<()>),
    metrics: MetricsHandle,
}

impl Worker {
    /// Connects all parts. Redis may be unavailable; a Redis server that is configured to lose jobs is refused.
    pub(crate) async fn build(settings: Settings, handlers: Handlers, until: RunMode) -> anyhow::Result<Self> {
        let rules = rules::load(settings.queue_worker.rules.as_deref(), &handlers)?;
        let dispatch = Arc::new(Dispatcher { handlers, rules });
        let metrics = prometheus::start("queue-worker", &settings.metrics)?;
        let redis = Redis::from_settings(&settings)?;
        redis.check_at_start(&calls_of_bridge(&settings)).await?;
        // Redis may be away: then it is read later
        let _ = maintenance::read_memory(&redis).await;
        let stop_events = CancellationToken::new();
        let (log, writer) = EventLog::start(&redis, &settings, stop_events.clone());
        let notifier = Notifier::start(&redis, settings.channels.probe_interval, stop_events.clone());
        let health = health_of(&redis, &notifier);
        let jobs = Store::new(&redis, &notifier, &settings, log).jobs();
        let shared = WorkerShared {
            long_poll: LongPoll::start(&jobs, stop_events.clone()),
            jobs,
            workers: Workers::new(&redis),
            consumer: Consumer::new(settings.jobs.lease),
            in_flight: InFlightJobs::default(),
            heartbeat_state: HeartbeatState::default(),
            slots: Slots::new(settings.queue_worker.concurrency, &settings.queue_worker.queue_concurrency),
            attempt_times: AttemptTimes::new(),
            run_mode: until,
            max_stop_grace_ms: AtomicU64::new(0),
            attempts: TaskTracker::new(),
            finishing: CancellationToken::new(),
            hard_shutdown: CancellationToken::new(),
            settings,
        };
        Ok(Self { shared: Arc::new(shared), dispatcher: dispatch, health, events: (stop_events, writer), metrics })
    }

    /// Runs until a signal to stop, then finishes or releases its jobs.
    ///
    /// # Errors
    /// The address for health and metrics cannot be bound, or a part of the worker panicked.
    pub async fn run_until(self, signals: StopSignals) -> anyhow::Result<()> {
        let shared = &self.shared;
        // A directive cancels only this token, so the next signal still counts as the first one
        let StopSignals { stop, end_grace } = signals.child();
        let worker = &shared.settings.queue_worker;
        // Before the log line: from then on these signals must not end or stop the process
        let wakeup = Arc::new(Wakeup::default());
        let receiving_signals = heartbeat::listen_for_signals(shared.clone(), wakeup.clone(), stop.clone());
        let reloading = rules::reload_on_sighup(self.dispatcher.clone(), stop.clone());
        let (server, address) = health::serve(worker.listen, self.health.clone(), self.metrics)
            .with_context(|| format!("queue_worker.listen: cannot listen on {}", worker.listen))?;
        let (health, serving) = (server.handle(), supervise("HTTP server", tokio::spawn(server), &stop));
        let queues: Vec<&str> = worker.queues.iter().map(common::name::QueueName::as_str).collect();
        let (name, concurrency) = (&worker.name, worker.concurrency);
        let event = "queue_worker.listening";
        tracing::info!(event, %address, %name, ?queues, concurrency, "queue-worker runs");

        let (completions, finished) = mpsc::channel(worker.concurrency.max(256));
        let supervise = |part, task| supervise(part, task, &stop);
        let committing = supervise("results", tokio::spawn(results::run(shared.clone(), finished)));
        let stop_renewing = CancellationToken::new();
        let renewing =
            supervise("lease renewal", tokio::spawn(lease_renewal::run(shared.clone(), stop_renewing.clone())));
        let listening = tokio::spawn(wakeup.clone().listen(shared.clone(), stop.clone()));
        let receiving_signals = tokio::spawn(receiving_signals);
        let reporting = heartbeat::run(shared.clone(), wakeup.clone(), stop.clone(), stop_renewing.clone());
        let reporting = supervise("heartbeat", tokio::spawn(reporting));
        let maintaining = maintenance::run(shared.jobs.clone(), shared.settings.maintenance.clone(), stop.clone());
        let maintaining = supervise("maintenance", tokio::spawn(maintaining));
        let bridging = tokio::spawn(list_bridge::run(shared.clone(), stop.clone()));
        let reloading = tokio::spawn(reloading);
        let runner = AttemptRunner::new(shared.clone(), self.dispatcher.clone(), wakeup.clone(), completions);
        let claiming = supervise("claim", tokio::spawn(claim::run(shared.clone(), runner, wakeup, stop.clone())));

        let (redis, notifier) = (shared.jobs.redis().clone(), shared.jobs.store().notifier().clone());
        let reporter = ProcessReporter::new("queue-worker", &redis, &self.health);
        tokio::spawn(reporter.answer_questions(notifier.clone(), stop.clone()));
        tokio::spawn(log_level::follow(redis, notifier, stop.clone()));
        self.health.set_started();

        stop.cancelled().await;
        // No new jobs. The claim loop drops the runner, so the channel closes when the last attempt ends
        claiming.await?;
        bridging.await?;
        shared.finishing.cancel();
        finish_attempts(shared, &end_grace).await;
        if tokio::time::timeout(DRAIN_TIMEOUT, committing).await.is_err() {
            tracing::error!("results could not be recorded in time: the jobs will run again");
        }
        stop_renewing.cancel();
        renewing.await?;
        reporting.await?;
        receiving_signals.await?;
        reloading.await?;
        listening.await?;
        maintaining.await?;
        let (stop_events, writer) = self.events;
        stop_events.cancel();
        writer.await?;
        health.stop(false).await;
        serving.await??;
        tracing::info!(event = "queue_worker.stopped", "queue-worker stopped");
        Ok(())
    }
}

/// Without notifications a worker learns of directives and of jobs of limited queues later.
fn health_of(redis: &Redis, notifier: &Notifier) -> ServiceHealth {
    let (work, notifier) = (WorkCheck::new(redis, ServiceWork::Claim), notifier.clone());
    ServiceHealth::new(Arc::new(move || {
        let (work, notifier) = (work.clone(), notifier.clone());
        Box::pin(async move {
            let trouble = notifier.problem().map(|trouble| format!("notifications are not heard: {trouble}"));
            vec![
                HealthPart { name: "jobs", state: work.run().await },
                HealthPart { name: "notifications", state: PartState::degraded_by(trouble) },
            ]
        })
    }))
}

/// What the list bridge needs to be allowed, if this worker runs it.
fn calls_of_bridge(settings: &Settings) -> Vec<String> {
    let bridge = settings.bridge.iter().filter(|bridge| settings.queue_worker.queues.contains(&bridge.queue));
    let commands = || NEEDED_FOR_BRIDGE.map(str::to_owned);
    bridge.flat_map(|bridge| commands().into_iter().chain([format!("LRANGE {} 0 0", bridge.list)])).collect()
}

async fn finish_attempts(shared: &WorkerShared, end_grace: &CancellationToken) {
    let grace = shared.settings.queue_worker.shutdown_grace;
    if let DrainOutcome::TimedOut(running) = shutdown::drain(&shared.attempts, grace, end_grace).await {
        tracing::warn!(running, "the shutdown grace is over, releasing jobs");
        shared.hard_shutdown.cancel();
        let release_timeout = Duration::from_millis(shared.max_stop_grace_ms.load(Relaxed)) + DRAIN_TIMEOUT;
        if let DrainOutcome::TimedOut(running) =
            shutdown::drain(&shared.attempts, release_timeout, &CancellationToken::new()).await
        {
            tracing::error!(running, "jobs could not be released in time: their leases will expire");
        }
    }
}
