//! Keeping leases: only jobs older than a third of their lease are renewed, so short jobs never pay for it.

use std::{sync::Arc, time::Duration};

use store::StoreResult;
use tokio_util::sync::CancellationToken;

use crate::{
    in_flight::{Renewal, Stream},
    worker::Shared,
};

/// Entries in one script call.
const BATCH: usize = 100;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Renews until `stop` is cancelled, which comes after the last attempt.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let lease = shared.consumer.lease();
    loop {
        let pause = (shared.in_flight.shortest_lease(lease) / 6).max(SHORTEST_PAUSE);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = shared.in_flight.own_lease.notified() => {}
        }
        for (stream, renewals) in shared.in_flight.to_renew(lease) {
            for some in renewals.chunks(BATCH) {
                if let Err(error) = renew(&shared, &stream, some).await {
                    // Tried again after the next pause, a sixth of the lease away
                    tracing::debug!(%error, jobs = some.len(), "leases not renewed");
                }
            }
        }
    }
}

async fn renew(shared: &Shared, stream: &Stream, renewals: &[Renewal]) -> StoreResult<()> {
    let worker = &shared.settings.queue_worker.name;
    let lost = shared.jobs.renew(&stream.0, stream.1, &shared.consumer, worker, renewals).await?;
    shared.in_flight.renewed(stream, renewals);
    for entry in lost {
        shared.in_flight.lost(stream, entry);
    }
    Ok(())
}
