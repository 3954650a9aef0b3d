//! Turns the elements of a Redis list into jobs, in a worker that serves the list's queue.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::text::printable;
use serde_json::value::RawValue;
use store::{
    StoreResult,
    list_bridge::{ListBridge, argument_to_element},
    log_interruption, next_reconnect_delay, reconnect_delays,
};
use tokio_util::sync::CancellationToken;

use crate::shared::WorkerShared;

/// Longest blocking move. It ends regularly so that a dead connection is noticed.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// How often to recover elements that a dead worker left in transit.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// Forwards elements until `stop` is cancelled.
pub(crate) async fn run(shared: Arc<WorkerShared>, stop: CancellationToken) {
    let Some(settings) = shared.settings.bridge.clone() else { return };
    if !shared.settings.queue_worker.queues.contains(&settings.queue) {
        return;
    }
    let bridge = ListBridge::new(&shared.jobs, &settings);
    let mut delays = reconnect_delays();
    while !stop.is_cancelled() {
        match feed(&shared, &bridge, &stop, &mut delays).await {
            Ok(()) => return,
            Err(error) => {
                log_interruption("list bridge", &error);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        }
    }
}

async fn feed(
    shared: &WorkerShared,
    bridge: &ListBridge,
    stop: &CancellationToken,
    delays: &mut store::ReconnectDelays,
) -> StoreResult<()> {
    let mut connection = shared.jobs.redis().open_dedicated(MAX_BLOCK).await?;
    let ender = connection.ender();
    let mut recovered_at: Option<Instant> = None;
    loop {
        // Another worker may die with elements in transit at any time
        if recovered_at.is_none_or(|at| at.elapsed() >= RECOVERY_INTERVAL) {
            let recovered = bridge.recover().await?;
            if recovered > 0 {
                tracing::info!(recovered, "recovered elements in transit from the list");
            }
            *delays = reconnect_delays();
            recovered_at = Some(Instant::now());
        }
        let forward = bridge.forward(&mut connection, MAX_BLOCK);
        // Stopping ends the move on the server; its answer may still hold an element
        let (forwarded, _) = shared.jobs.redis().interruptible(ender.clone(), forward, stop.cancelled()).await;
        forwarded?;
        if stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// The list element that a job argument was made from, as printable text.
#[must_use]
pub fn list_element(argument: &RawValue) -> String {
    printable(&argument_to_element(argument.get()))
}
