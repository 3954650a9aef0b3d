//! One process: it hears its channels and shows whether it does; it knows the programs that subscriptions can name.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use anyhow::Context;
use common::{
    name::ChannelName,
    ops::{self, Readiness},
    redis::Redis,
    settings::Settings,
    telemetry,
};
use tokio_util::sync::CancellationToken;

use crate::{commands, follow};

/// Works until `stop` is cancelled. Redis may be away at the start and at any time.
pub(crate) async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let worker = &settings.pubsub_worker;
    let commands = Arc::new(commands::load(worker.commands.as_deref())?);
    let metrics = telemetry::start_metrics()?;
    let redis = Redis::new(&settings.redis)?;
    redis.check_at_start().await?;
    // Nothing to hear is heard perfectly
    let hearing = Arc::new(AtomicBool::new(worker.channels.is_empty()));
    let shown = hearing.clone();
    let readiness: Readiness = Arc::new(move || {
        let hears = shown.load(SeqCst);
        Box::pin(async move { if hears { Ok(()) } else { Err("not subscribed at the moment".to_owned()) } })
    });
    let (server, address) = ops::serve(worker.listen, readiness, metrics)
        .with_context(|| format!("pubsub_worker.listen: cannot listen on {}", worker.listen))?;
    let (ops, serving) = (server.handle(), tokio::spawn(server));
    let names: Vec<&str> = worker.channels.iter().map(ChannelName::as_str).collect();
    // Before it says that it runs: from then on SIGHUP is no longer its end
    let reloading = tokio::spawn(commands::on_signal(commands.clone(), stop.clone()));
    let number_of_commands = commands.now().len();
    tracing::info!(%address, channels = ?names, commands = number_of_commands, "pubsub-worker runs");
    follow::run(&redis, worker, &hearing, stop).await;
    reloading.await?;
    ops.stop(false).await;
    serving.await??;
    tracing::info!("pubsub-worker stopped");
    Ok(())
}
