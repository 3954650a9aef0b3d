//! Renews leases. A job is first renewed after a third of its lease, so short jobs need no renewal.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use common::{id::EntryId, name::QueueName};
use store::StoreResult;
use tokio_util::sync::CancellationToken;

use crate::{
    in_flight::{InFlightJobs, QueueStream, Renewal},
    shared::WorkerShared,
};

/// Maximum number of entries in one script call.
const MAX_BATCH_ENTRIES: usize = 100;
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// Renews leases until `stop` is cancelled, after the last attempt.
pub(crate) async fn run(shared: Arc<WorkerShared>, stop: CancellationToken) {
    let lease = shared.consumer.lease();
    loop {
        let pause = renewal_pause(&shared.in_flight, lease);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = shared.in_flight.renewal_needed.notified() => {}
        }
        let grace = Duration::from_millis(shared.max_stop_grace_ms.load(Relaxed));
        let limit = |queue: &QueueName, asked| shared.jobs.attempt_timeout_of(queue, asked) + grace;
        for (stream, renewals) in shared.in_flight.due_for_renewal(lease, limit) {
            for batch in renewals.chunks(MAX_BATCH_ENTRIES) {
                if let Err(error) = renew(&shared, &stream, batch).await {
                    // Retried after the next pause, a sixth of the lease
                    tracing::debug!(%error, jobs = batch.len(), "leases not renewed");
                }
            }
        }
    }
}

async fn renew(shared: &WorkerShared, stream: &QueueStream, renewals: &[Renewal]) -> StoreResult<()> {
    let worker = &shared.settings.queue_worker.name;
    let lost = shared.jobs.renew_leases(&stream.0, stream.1, &shared.consumer, worker, renewals).await?;
    note_renewed(&shared.in_flight, stream, renewals, &lost);
    Ok(())
}

/// How long until the next look at what must be renewed.
pub(crate) fn renewal_pause(in_flight: &InFlightJobs, lease: Duration) -> Duration {
    (in_flight.shortest_lease(lease) / 6).max(MIN_PAUSE)
}

/// Notes the answer to a renewal: attempts whose entry is lost stop.
pub(crate) fn note_renewed(in_flight: &InFlightJobs, stream: &QueueStream, renewals: &[Renewal], lost: &[EntryId]) {
    in_flight.mark_renewed(stream, renewals);
    for entry in lost {
        in_flight.cancel_entry(stream, *entry);
    }
}
