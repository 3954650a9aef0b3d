//! Records successful results, many in one script call.
//!
//! While one batch is on its way to Redis, the next one collects. So batches are large under load and single when
//! idle, and no result waits for others. A batch whose answer is lost is sent again: the script recognizes its own
//! results. Jobs whose end needs more than a result are recorded one by one beside the batches, several at a time, so
//! that they delay no other.

use std::{collections::HashMap, sync::Arc};

use common::name::QueueName;
use futures_util::{StreamExt, future::join_all, stream};
use store::{
    StoreError, StoreResult,
    events::JobEvent,
    jobs::{Attempt, Completion, Fence, Settled},
    next_reconnect_delay, reconnect_delays,
};
use tokio::sync::mpsc;

use crate::{in_flight::QueueStream, shared::WorkerShared};

/// Maximum number of results in one script call.
const MAX_BATCH_RESULTS: usize = 128;
/// Target size of one script call, in bytes of results.
const TARGET_BATCH_BYTES: usize = 4 << 20;
/// Results that are recorded one by one at the same time.
const MAX_SINGLE_RESULTS: usize = 32;

/// Where attempts send their results. The channels close when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct CompletionSender {
    plain: mpsc::Sender<Completion>,
    single: mpsc::Sender<Completion>,
}

/// Where `run` receives them.
pub(crate) struct CompletionReceiver {
    plain: mpsc::Receiver<Completion>,
    single: mpsc::Receiver<Completion>,
}

/// A channel for results, with room for that many of each kind.
pub(crate) fn channel(capacity: usize) -> (CompletionSender, CompletionReceiver) {
    let (plain, plain_results) = mpsc::channel(capacity);
    let (single, single_results) = mpsc::channel(capacity);
    (CompletionSender { plain, single }, CompletionReceiver { plain: plain_results, single: single_results })
}

impl CompletionSender {
    /// Sends a result, and waits while its channel is full; false if nobody receives results any more.
    pub(crate) async fn send(&self, completion: Completion) -> bool {
        let is_single = completion.claimed.job.needs_individual_finish();
        let channel = if is_single { &self.single } else { &self.plain };
        channel.send(completion).await.is_ok()
    }
}

/// Records results until the last attempt has ended.
pub(crate) async fn run(shared: Arc<WorkerShared>, finished: CompletionReceiver) {
    let CompletionReceiver { plain, single } = finished;
    tokio::join!(record_batches(&shared, plain), record_singles(&shared, single));
}

async fn record_batches(shared: &WorkerShared, mut finished: mpsc::Receiver<Completion>) {
    let mut batch = Vec::with_capacity(MAX_BATCH_RESULTS);
    while finished.recv_many(&mut batch, MAX_BATCH_RESULTS).await > 0 {
        let mut streams: HashMap<QueueStream, Vec<Completion>> = HashMap::new();
        for completion in batch.drain(..) {
            let job = &completion.claimed.job;
            streams.entry((job.queue.clone(), job.priority)).or_default().push(completion);
        }
        join_all(streams.iter().map(|(stream, completions)| async move {
            for some in split_by_bytes(completions) {
                record_batch(shared, stream, some).await;
            }
        }))
        .await;
    }
}

async fn record_singles(shared: &WorkerShared, finished: mpsc::Receiver<Completion>) {
    let finished = stream::unfold(finished, |mut finished| async move { Some((finished.recv().await?, finished)) });
    finished.for_each_concurrent(MAX_SINGLE_RESULTS, |completion| record_single(shared, completion)).await;
}

async fn record_single(shared: &WorkerShared, completion: Completion) {
    let fence = Fence::for_worker(&shared.consumer);
    let attempt = Attempt::of(&completion.claimed, &fence);
    let settled = until_available(1, || async {
        shared.jobs.finish(attempt, &completion.finished, false).await.map(|settled| vec![settled])
    })
    .await;
    finish_completions(shared, &completion.claimed.job.queue, std::slice::from_ref(&completion), settled);
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
    let settled = until_available(completions.len(), || async {
        // At most every job in flight could be in this stream
        let in_flight = shared.in_flight.len();
        shared.jobs.complete_batch(queue, *priority, &shared.consumer, in_flight, completions).await
    })
    .await;
    finish_completions(shared, queue, completions, settled);
}

/// Repeats a call while Redis is unavailable. All results are stale if it fails otherwise.
async fn until_available<F>(results: usize, record: impl Fn() -> F) -> Vec<Settled>
where
    F: Future<Output = StoreResult<Vec<Settled>>>,
{
    let mut delays = reconnect_delays();
    loop {
        match record().await {
            Ok(settled) => return settled,
            Err(StoreError::Unavailable(error)) => {
                tracing::debug!(%error, results, "results not recorded yet");
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
            Err(error) => {
                tracing::error!(%error, results, "results not recorded: the jobs will run again");
                return vec![Settled::Stale; results];
            }
        }
    }
}

fn finish_completions(shared: &WorkerShared, queue: &QueueName, completions: &[Completion], settled: Vec<Settled>) {
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
