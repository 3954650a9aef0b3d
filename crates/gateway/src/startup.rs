//! Builds the service and runs it until a signal stops it.

use std::{net::SocketAddr, sync::Arc};

use actix_server::ServerBuilder;
use actix_web::{
    App,
    dev::{RequestHead, Server},
    middleware, web,
};
use anyhow::Context;
use common::{
    cli,
    health::{self, HealthPart, PartState, ServiceHealth},
    http_server::{ConnectionLimits, HttpListener, follow_exchange},
    prometheus,
    settings::Settings,
    shutdown::{StopSignals, supervise},
    tls::ServerCertificate,
};
use store::{
    Redis, Store,
    channels::{ChannelHub, ChannelPresence, Channels},
    connection::{
        confirmation::Confirmer,
        health::{ServiceWork, WorkCheck},
        notifier::Notifier,
    },
    events::{EventHub, EventLog},
    log_level,
    long_poll::LongPoll,
    maintenance,
    process_reports::ProcessReporter,
    subscriptions::Subscriptions,
    workers::Workers,
    workflows::Workflows,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    answer_budget::AnswerBudget,
    auth::{self, Auth},
    body_budget::BodyBudget,
    confirmation, context,
    dashboard::live::known::DashboardState,
    job_waiters::JobWaiters,
    message_socket::SharedOutbound,
    process_facts::ProcessFacts,
    request_check, routes,
    services::Services,
    site_check::SiteCheck,
    stream_limit::StreamLimiter,
    wake_relay,
};

/// A service that is bound to its address and does not run yet.
pub(crate) struct GatewayServer {
    server: Server,
    address: SocketAddr,
    services: Services,
    certificate: Option<ServerCertificate>,
    streams: (CancellationToken, [JoinHandle<()>; 3]),
    events: (CancellationToken, JoinHandle<()>),
}

impl GatewayServer {
    /// Binds the address and prepares everything. Redis may be away, but a Redis that would lose jobs is refused.
    pub(crate) async fn build(settings: Settings) -> anyhow::Result<Self> {
        auth::check_listen_address(&settings.gateway, &settings.auth)?;
        let metrics = prometheus::start("gateway", &settings.metrics)?;
        let redis = Redis::from_settings(&settings)?;
        redis.check_at_start(&Confirmer::needed_calls(&settings.durability)).await?;
        let confirmer = Confirmer::new(&redis, &settings.durability);
        confirmer.check_at_start().await?;
        let [stop_events, stopping, stop_streams] = std::array::from_fn(|_| CancellationToken::new());
        let (log, writer) = EventLog::start(&redis, &settings, stop_events.clone());
        let (hub, following) = EventHub::start(&redis, settings.gateway.max_event_streams, stop_streams.clone());
        let notifier = Notifier::start(&redis, settings.channels.probe_interval, stop_streams.clone());
        let jobs = Store::new(&redis, &notifier, &settings, log).jobs();
        let channels = Channels::new(&redis, &settings.channels);
        let (channel_hub, hearing) = ChannelHub::start(&channels, &notifier, stop_streams.clone());
        let (presence, watching) = ChannelPresence::start(&channels, &notifier, stop_streams.clone());
        let auth = Auth::start(&settings, &redis, &notifier, stopping.clone())?;
        let health = health_of(&redis, &notifier, auth.shows_health());
        let services = Services {
            reporter: ProcessReporter::new("gateway", &redis, &health),
            health,
            auth,
            events: hub,
            channels,
            channel_hub,
            presence,
            workflows: Workflows::new(&jobs),
            workers: Workers::new(&redis),
            pull_workers: Arc::default(),
            subscriptions: Subscriptions::new(&jobs),
            long_poll: LongPoll::start(&jobs, stopping.clone()),
            jobs,
            job_waiters: JobWaiters::start(&notifier, settings.gateway.max_waiters, stopping.clone()),
            redis: redis.clone(),
            confirmer,
            bodies: Arc::new(BodyBudget::new(settings.gateway.bodies_max_bytes)),
            answers: Arc::new(AnswerBudget::new(settings.gateway.answers_max_bytes)),
            streams: StreamLimiter::new(settings.gateway.max_streams_per_client),
            facts: ProcessFacts::new(),
            totals: Arc::default(),
            dashboard: DashboardState::new(),
            sockets: SharedOutbound::new(settings.gateway.answers_max_bytes),
            settings: Arc::new(settings.clone()),
            stopping,
        };
        let (listener, certificate) = bind(&settings)?;
        let address = listener.address();
        let server = serve(listener, &settings, &services, metrics)?;
        let (streams, events) = ((stop_streams, [following, hearing, watching]), (stop_events, writer));
        Ok(Self { server, address, services, certificate, streams, events })
    }

    /// Serves until a signal to stop, then finishes the requests in progress.
    pub(crate) async fn run_until(self, StopSignals { stop, end_grace }: StopSignals) -> anyhow::Result<()> {
        let redis = &self.services.settings.redis.url;
        let is_tls = self.certificate.is_some();
        tracing::info!(event = "gateway.listening", address = %self.address, ?redis, is_tls, "gateway listens");
        let (jobs, settings) = (self.services.jobs.clone(), self.services.settings.maintenance.clone());
        let maintaining = supervise("maintenance", tokio::spawn(maintenance::run(jobs, settings, stop.clone())), &stop);
        if let Some(certificate) = self.certificate {
            tokio::spawn(certificate.keep_current(stop.clone()));
        }
        let handle = self.server.handle();
        let serving = supervise("HTTP server", tokio::spawn(self.server), &stop);
        let (stop_streams, hubs) = self.streams;
        let hubs = hubs.map(|hub| supervise("stream hub", hub, &stop));
        let (stop_events, writer) = self.events;
        let writer = supervise("event log", writer, &stop);
        let (redis, notifier) = (self.services.redis.clone(), self.services.jobs.store().notifier().clone());
        tokio::spawn(log_level::follow(redis, notifier.clone(), stop.clone()));
        tokio::spawn(self.services.reporter.clone().answer_questions(notifier, stop.clone()));
        self.services.health.set_started();
        stop.cancelled().await;
        // First, so that requests that wait for a job get their answers
        self.services.stopping.cancel();
        // Streams never end by themselves and would delay the graceful stop
        stop_streams.cancel();
        if end_grace.run_until_cancelled(handle.stop(true)).await.is_none() {
            handle.stop(false).await;
        }
        for hub in hubs {
            hub.await?;
        }
        serving.await??;
        maintaining.await?;
        // The last to stop, because everything above may still write events
        stop_events.cancel();
        writer.await?;
        tracing::info!(event = "gateway.stopped", "gateway stopped");
        Ok(())
    }
}

/// Serves every route on the threads of the server.
fn serve(
    listener: HttpListener,
    settings: &Settings,
    services: &Services,
    metrics: prometheus::MetricsHandle,
) -> anyhow::Result<Server> {
    let (early, site) = (services.settings.clone(), SiteCheck::new(&settings.gateway));
    let refuse_early = move |head: &RequestHead| context::refuse_early(head, &early.gateway);
    let shared = services.clone();
    let app = move || {
        // Each thread of the server builds its application
        if !shared.confirmer.is_on() {
            shared.redis.use_thread_connection();
        }
        wake_relay::start();
        App::new()
            .app_data(web::Data::new(shared.clone()))
            .app_data(site.clone())
            .configure(|config| health::routes(config, &shared.health, &metrics))
            .configure(|config| routes::configure(config, &shared.settings.gateway.allowed_origins))
            .wrap(middleware::Condition::new(
                shared.confirmer.is_on(),
                middleware::from_fn(confirmation::confirm_writes),
            ))
            .wrap(middleware::from_fn(request_check::request_check))
            .wrap(middleware::from_fn(context::request_middleware))
            .wrap(middleware::from_fn(follow_exchange))
    };
    Ok(listener.serve(ServerBuilder::new(), connection_limits(settings), refuse_early, app)?)
}

fn connection_limits(settings: &Settings) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: settings.gateway.max_connections,
        max_per_address: settings.gateway.max_connections_per_address,
        head_timeout: settings.gateway.head_timeout,
        stall_timeout: settings.channels.stall_timeout,
        shutdown_grace: settings.gateway.shutdown_grace,
    }
}

/// Binds the address, with TLS if there is a certificate.
fn bind(settings: &Settings) -> anyhow::Result<(HttpListener, Option<ServerCertificate>)> {
    cli::allow_many_connections();
    let listen = settings.gateway.listen;
    let listener = HttpListener::bind(listen).with_context(|| format!("gateway.listen: cannot listen on {listen}"))?;
    let certificate = load_certificate(settings)?;
    let tls = certificate.as_ref().map(ServerCertificate::server_config).transpose()?;
    Ok((listener.with_tls(tls), certificate))
}

fn load_certificate(settings: &Settings) -> anyhow::Result<Option<ServerCertificate>> {
    let files = (settings.gateway.tls_cert_file.clone(), settings.gateway.tls_key_file.clone());
    let (Some(cert_file), Some(key_file)) = files else { return Ok(None) };
    let certificate = ServerCertificate::load(cert_file, key_file, settings.reload.interval);
    Ok(Some(certificate.context("gateway.tls_cert_file and gateway.tls_key_file cannot be used")?))
}

/// The gateway has two parts. Without channels it serves jobs; without Redis it serves nothing. The reasons are shown only
/// if the settings say so.
fn health_of(redis: &Redis, notifier: &Notifier, shows_reasons: bool) -> ServiceHealth {
    let (work, notifier) = (WorkCheck::new(redis, ServiceWork::Enqueue), notifier.clone());
    let health = ServiceHealth::new(Arc::new(move || {
        let (work, notifier) = (work.clone(), notifier.clone());
        Box::pin(async move {
            let jobs = HealthPart { name: "jobs", state: work.run().await };
            let trouble = notifier.problem().map(|trouble| format!("channels are not heard: {trouble}"));
            vec![jobs, HealthPart { name: "channels", state: PartState::degraded_by(trouble) }]
        })
    }));
    if shows_reasons { health } else { health.with_hidden_reasons("see /ojs/v1/health with a key") }
}
