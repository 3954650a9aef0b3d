//! Records successful results, many in one script call.
//!
//! While one batch is on its way to Redis, the next one collects. So batches are large under load and single when
//! idle, and no result waits for others. A batch whose answer is lost is sent again: the script recognizes its own
//! results.

use std::{collections::HashMap, sync::Arc};

use store::{
    StoreError,
    events::JobEvent,
    jobs::{Completion, Settled},
    next_reconnect_delay, reconnect_delays,
};
use tokio::sync::mpsc;

use crate::{in_flight::QueueStream, shared::WorkerShared};

/// Maximum number of results in one script call.
const MAX_BATCH_RESULTS: usize = 128;
/// Target size of one script call, in bytes of results.
const TARGET_BATCH_BYTES: usize = 4 << 20;

/// Records results until the last attempt has ended.
pub(crate) async fn run(shared: Arc<WorkerShared>, mut finished: mpsc::Receiver<Completion>) {
    let mut batch = Vec::with_capacity(MAX_BATCH_RESULTS);
    while finished.recv_many(&mut batch, MAX_BATCH_RESULTS).await > 0 {
        let mut streams: HashMap<QueueStream, Vec<Completion>> = HashMap::new();
        for completion in batch.drain(..) {
            let job = &completion.claimed.job;
            streams.entry((job.queue.clone(), job.priority)).or_default().push(completion);
        }
        for (stream, completions) in streams {
            for some in split_by_bytes(&completions) {
                record_batch(&shared, &stream, some).await;
            }
        }
    }
}

/// Splits into parts of about [`TARGET_BATCH_BYTES`], or of a single larger result.
fn split_by_bytes(completions: &[Completion]) -> Vec<&[Completion]> {
    let (mut parts, mut rest) = (Vec::new(), completions);
    let (mut taken, mut bytes) = (0, 0);
    while taken < rest.len() {
        bytes += rest[taken].finished.json.len();
        taken += 1;
        if bytes >= TARGET_BATCH_BYTES || taken == rest.len() {
            let (part, others) = rest.split_at(taken);
            parts.push(part);
            (rest, taken, bytes) = (others, 0, 0);
        }
    }
    parts
}

async fn record_batch(shared: &WorkerShared, stream: &QueueStream, completions: &[Completion]) {
    let (queue, priority) = stream;
    let mut delays = reconnect_delays();
    let settled = loop {
        // At most every job in flight could be in this stream
        let in_flight = shared.in_flight.len();
        match shared.jobs.complete_batch(queue, *priority, &shared.consumer, in_flight, completions).await {
            Ok(settled) => break settled,
            Err(StoreError::Unavailable(error)) => {
                tracing::debug!(%error, results = completions.len(), "results not recorded yet");
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
            Err(error) => {
                tracing::error!(%error, results = completions.len(), "results not recorded: the jobs will run again");
                break vec![Settled::Stale; completions.len()];
            }
        }
    };
    // One look-up of each metric for the whole batch
    let seconds = metrics::histogram!("galley_attempt_seconds", "queue" => queue.to_string());
    let mut stale = 0;
    for (completion, settled) in completions.iter().zip(settled) {
        stale += u64::from(!finish_completion(shared, completion, settled));
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a run are far below 2^52")]
        seconds.record((completion.ended_at - completion.claimed.started_at).max(0) as f64 / 1000.0);
    }
    for (outcome, count) in [("completed", completions.len() as u64 - stale), ("stale", stale)] {
        if count > 0 {
            metrics::counter!("galley_attempts_total", "queue" => queue.to_string(), "outcome" => outcome)
                .increment(count);
        }
    }
}

/// Removes a job and logs and counts its end; false if it was too late to record it.
fn finish_completion(shared: &WorkerShared, completion: &Completion, settled: Settled) -> bool {
    let claimed = &completion.claimed;
    let job = &claimed.job;
    shared.in_flight.remove(&job.queue, job.priority, claimed.entry);
    if settled == Settled::Stale {
        let (id, queue) = (job.id, &job.queue);
        tracing::warn!(event = "result.stale", %id, %queue, "a result came too late: another worker has the job");
        return false;
    }
    shared.jobs.record_event(JobEvent::completed(job, claimed.started_at, completion.ended_at));
    true
}
