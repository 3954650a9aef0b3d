//! One process: logs its channels, delivers the messages of subscriptions, and reports whether both work.

use std::sync::Arc;

use anyhow::Context;
use common::{
    health::{self, HealthPart, PartState, ServiceHealth},
    name::{ChannelName, WorkerId},
    prometheus,
    reloadable::Reloadable,
    settings::Settings,
    shutdown::{StopSignals, supervise},
    time::Millis,
};
use delivery::{command::Commands, http::Network};
use store::{
    Redis, Store,
    connection::{
        health::{ServiceWork, WorkCheck},
        notifier::Notifier,
    },
    events::EventLog,
    jobs::Jobs,
    log_level,
    long_poll::LongPoll,
    maintenance, next_reconnect_delay,
    process_reports::ProcessReporter,
    reconnect_delays,
    subscriptions::Subscriptions,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    channel_logger::{ChannelLogger, ChannelLoggerHealth},
    commands,
    subscriptions::{self, MAX_CONCURRENT_REDIS_READS, MEMORY_BUDGET_KIB, MessageNotifier, PubsubProcess},
    targets::DeliveryContext,
};

/// Runs until a signal to stop. Redis may be unavailable at the start and at any time.
pub(crate) async fn run(settings: Settings, signals: StopSignals) -> anyhow::Result<()> {
    let stop = signals.stop.clone();
    let worker = &settings.pubsub_worker;
    let commands = Arc::new(commands::load(worker.commands.as_deref())?);
    let metrics = prometheus::start("pubsub-worker", &settings.metrics)?;
    let redis = Redis::from_settings(&settings)?;
    redis
        .check_at_start(&worker.channels.iter().map(|channel| format!("SUBSCRIBE {channel}")).collect::<Vec<_>>())
        .await?;
    let events = CancellationToken::new();
    let notifier = Notifier::start(&redis, settings.channels.probe_interval, events.clone());
    let channel_logger = ChannelLogger::start(&notifier, &settings);
    // Without channels there is nothing that could fail
    let logger_health = channel_logger.as_ref().map(ChannelLogger::health);
    let health = health_of(&redis, &notifier, logger_health);
    let (server, address) = health::serve(worker.listen, health.clone(), metrics)
        .with_context(|| format!("pubsub_worker.listen: cannot listen on {}", worker.listen))?;
    let (health_server, serving) = (server.handle(), supervise("HTTP server", tokio::spawn(server), &stop));
    let names: Vec<&str> = worker.channels.iter().map(ChannelName::as_str).collect();
    // Before the log line: from then on SIGHUP must not end the process
    let reloading = tokio::spawn(commands::reload_on_sighup(commands.clone(), stop.clone()));
    let (log, writing) = EventLog::start(&redis, &settings, events.clone());
    let jobs = Store::new(&redis, &notifier, &settings, log).jobs();
    let maintaining = maintenance::run(jobs.clone(), settings.maintenance.clone(), stop.clone());
    let maintaining = supervise("maintenance", tokio::spawn(maintaining), &stop);
    let name = &worker.name;
    tracing::info!(event = "pubsub_worker.listening", %address, %name, channels = ?names, commands = commands.current().len(), "pubsub-worker runs");
    let delivering = deliver_subscriptions(&settings, jobs, commands, signals);
    tokio::spawn(log_level::follow(redis.clone(), notifier.clone(), stop.clone()));
    let reporter = ProcessReporter::new("pubsub-worker", &redis, &health);
    tokio::spawn(reporter.answer_questions(notifier.clone(), stop.clone()));
    health.set_started();
    tokio::join!(delivering, async {
        match channel_logger {
            Some(channel_logger) => channel_logger.run(stop.clone()).await,
            None => stop.cancelled().await,
        }
    });
    reloading.await?;
    maintaining.await?;
    events.cancel();
    writing.await?;
    health_server.stop(false).await;
    serving.await??;
    tracing::info!(event = "pubsub_worker.stopped", "pubsub-worker stopped");
    Ok(())
}

/// Ready while it can deliver, and its channels, if it logs any, are received.
fn health_of(redis: &Redis, notifier: &Notifier, logger: Option<ChannelLoggerHealth>) -> ServiceHealth {
    let (work, notifier) = (WorkCheck::new(redis, ServiceWork::Claim), notifier.clone());
    ServiceHealth::new(Arc::new(move || {
        let (work, notifier, logger) = (work.clone(), notifier.clone(), logger.clone());
        Box::pin(async move {
            let deliveries = HealthPart { name: "subscriptions", state: work.run().await };
            // Without them, workers look at channels regularly
            let trouble = notifier.problem().map(|trouble| format!("notifications are not heard: {trouble}"));
            let notifications = HealthPart { name: "notifications", state: PartState::degraded_by(trouble) };
            let channels = logger.map(|logger| {
                let trouble = logger.problem().map(|trouble| format!("channels are not heard: {trouble}"));
                HealthPart { name: "channels", state: trouble.map_or(PartState::Working, PartState::Failed) }
            });
            [Some(deliveries), channels, Some(notifications)].into_iter().flatten().collect()
        })
    }))
}

/// Delivers subscriptions until `stop` is cancelled, if the settings ask for it.
async fn deliver_subscriptions(
    settings: &Settings,
    jobs: Jobs,
    commands: Arc<Reloadable<Commands>>,
    signals: StopSignals,
) {
    let stop = signals.stop.clone();
    let worker = &settings.pubsub_worker;
    if !worker.subscriptions {
        return stop.cancelled().await;
    }
    let Some(started_at) = wait_for_server_time(&jobs, &stop).await else { return };
    // The long poll continues until the last delivery has ended
    let after_last_delivery = CancellationToken::new();
    let _end = after_last_delivery.clone().drop_guard();
    let store = Subscriptions::new(&jobs);
    let process = PubsubProcess {
        notifier: MessageNotifier::start(jobs.store().notifier(), store.channels().clone()),
        store,
        long_poll: LongPoll::start(&jobs, after_last_delivery),
        logs_error_texts: settings.log.error_texts,
        instance: worker.name.clone(),
        consumer: unique_consumer_name(&worker.name),
        delivery_context: DeliveryContext {
            jobs: jobs.clone(),
            commands,
            network: Network::system().map_err(|error| error.to_string()),
            allow_private: settings.subscriptions.allow_private,
        },
        started_at,
        crash_budget: settings.jobs.crash_budget,
        hard_shutdown: CancellationToken::new(),
        redis_read_permits: Semaphore::new(MAX_CONCURRENT_REDIS_READS),
        memory_budget: Arc::new(Semaphore::new(MEMORY_BUDGET_KIB)),
        jobs,
    };
    subscriptions::run(Arc::new(process), worker.shutdown_grace, signals).await;
}

/// The time by Redis's clock; none if the worker stops first.
async fn wait_for_server_time(jobs: &Jobs, stop: &CancellationToken) -> Option<Millis> {
    let mut delays = reconnect_delays();
    loop {
        match jobs.now().await {
            Ok(now) => return Some(now),
            Err(_) => stop.run_until_cancelled(tokio::time::sleep(next_reconnect_delay(&mut delays))).await?,
        }
    }
}

/// The name of this process among the consumers of a subscription.
fn unique_consumer_name(name: &WorkerId) -> WorkerId {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let short: String = name.as_str().chars().take(100).collect();
    // A shortened name is still valid
    format!("{short}-{}", &random[..16]).parse().unwrap_or_else(|_| name.clone())
}
