//! One process: it hears its channels and shows whether it does.

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

use crate::follow;

/// Works until `stop` is cancelled. Redis may be away at the start and at any time.
pub(crate) async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics()?;
    let redis = Redis::new(&settings.redis)?;
    redis.check_at_start().await?;
    let worker = &settings.pubsub_worker;
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
    tracing::info!(%address, channels = ?names, "pubsub-worker runs");
    follow::run(&redis, worker, &hearing, stop).await;
    ops.stop(false).await;
    serving.await??;
    tracing::info!("pubsub-worker stopped");
    Ok(())
}
