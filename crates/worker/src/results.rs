//! Records successful results, many in one script call.
//!
//! While a batch is on its way to Redis, the next one collects; when it is large enough, it follows without waiting for the
//! answer. So batches are large under load and single when idle. A batch whose answer is lost is sent again: the script recognizes its own
//! results. What follows from the end of jobs (the next job of a key, a workflow) happens beside the batches, so that it
//! delays no result.
//!
//! A result is kept and sent until it is recorded, or until Redis says that the attempt is not the current one: what
//! refuses it now may pass. Meanwhile its lease is renewed, so that the job does not run again. One that is refused for a
//! reason of its own does not hold up the others.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use common::name::QueueName;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use store::{
    StoreError, StoreResult,
    events::JobEvent,
    jobs::{AttemptMetrics, Completion, FollowUps, Settled, record_settlement},
    next_reconnect_delay, reconnect_delays,
    statistics::AttemptEnd,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{in_flight::QueueStream, shared::WorkerShared};

/// Maximum number of results in one script call.
const MAX_BATCH_RESULTS: usize = 128;
/// Maximum number of batches on their way to Redis: while it works on one, the next one is made.
const MAX_BATCHES_IN_FLIGHT: usize = 2;
/// Minimum number of results for a second batch on its way: many small calls cost Redis more than few large ones.
const MIN_BATCH_BESIDE_ANOTHER: usize = 32;
/// Target size of one script call, in bytes of results.
const TARGET_BATCH_BYTES: usize = 4 << 20;
/// Maximum number of batches whose follow-ups run: with more, no other results are accepted.
const MAX_FOLLOW_UPS: usize = 8;
/// Maximum number of refused results: with more, no other results are accepted, and so no jobs are claimed.
const MAX_REFUSED_RESULTS: usize = 1024;
/// Pause before a refused result is sent again.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where attempts send their results. The channel closes when the last clone is dropped.
pub(crate) type CompletionSender = mpsc::Sender<Completion>;

/// Records results until the last attempt has ended and what follows from its end is done.
pub(crate) async fn run(shared: Arc<WorkerShared>, mut finished: mpsc::Receiver<Completion>) {
    let mut batch = Vec::with_capacity(MAX_BATCH_RESULTS);
    let (mut recording, mut refused, mut follow_ups) =
        (FuturesUnordered::new(), FuturesUnordered::new(), JoinSet::new());
    let mut is_open = true;
    while is_open || !recording.is_empty() || !refused.is_empty() || !follow_ups.is_empty() {
        let accepts = is_open && refused.len() < MAX_REFUSED_RESULTS && follow_ups.len() < MAX_FOLLOW_UPS;
        let room = MAX_BATCH_RESULTS - batch.len();
        tokio::select! {
            count = finished.recv_many(&mut batch, room), if accepts && room > 0 => is_open = count > 0,
            Some(RecordedResults { refused: some, follow_ups: lists }) = recording.next() => {
                for list in lists {
                    let jobs = shared.jobs.clone();
                    follow_ups.spawn(async move { jobs.run_follow_ups(list).await });
                }
                refused.extend(some.into_iter().map(|completion| record_single(&shared, completion)));
            }
            Some(()) = refused.next() => {}
            Some(_) = follow_ups.join_next() => {}
        }
        // Alone a batch need not be large: then nothing is gained by waiting
        let is_large_enough = recording.is_empty() || batch.len() >= MIN_BATCH_BESIDE_ANOTHER;
        if !batch.is_empty() && recording.len() < MAX_BATCHES_IN_FLIGHT && is_large_enough {
            recording
                .push(record_streams(&shared, std::mem::replace(&mut batch, Vec::with_capacity(MAX_BATCH_RESULTS))));
        }
    }
}

/// What became of results.
#[derive(Default)]
struct RecordedResults {
    /// Redis refuses the parts that they are in.
    refused: Vec<Completion>,
    follow_ups: Vec<FollowUps>,
}

/// Records results stream by stream.
async fn record_streams(shared: &WorkerShared, completions: Vec<Completion>) -> RecordedResults {
    let mut streams: HashMap<QueueStream, Vec<Completion>> = HashMap::new();
    for completion in completions {
        let job = &completion.claimed.job;
        streams.entry((job.queue.clone(), job.priority)).or_default().push(completion);
    }
    let recorded = streams.into_iter().map(|(stream, completions)| record_stream(shared, stream, completions));
    let mut all = RecordedResults::default();
    for recorded in join_all(recorded).await {
        all.refused.extend(recorded.refused);
        all.follow_ups.extend(recorded.follow_ups);
    }
    all
}

async fn record_stream(shared: &WorkerShared, stream: QueueStream, completions: Vec<Completion>) -> RecordedResults {
    let (mut is_refused, mut follow_ups) = (Vec::with_capacity(completions.len()), Vec::new());
    for some in split_by_bytes(&completions) {
        let recorded = record_batch(shared, &stream, some).await;
        is_refused.resize(is_refused.len() + some.len(), recorded.is_err());
        follow_ups.extend(recorded.ok().filter(|follow_ups| !follow_ups.is_empty()));
    }
    let marked = completions.into_iter().zip(is_refused);
    let refused = marked.filter(|(_, is_refused)| *is_refused).map(|(completion, _)| completion).collect();
    RecordedResults { refused, follow_ups }
}

/// Records one result, however often Redis refuses it.
async fn record_single(shared: &WorkerShared, completion: Completion) {
    let job = &completion.claimed.job;
    let stream = (job.queue.clone(), job.priority);
    let mut is_logged = false;
    let follow_ups = loop {
        match record_batch(shared, &stream, std::slice::from_ref(&completion)).await {
            Ok(follow_ups) => break follow_ups,
            Err(error) if !std::mem::replace(&mut is_logged, true) => {
                let (id, queue) = (job.id, &job.queue);
                job.work_scope().within(|| {
                    tracing::error!(event = "result.refused", %id, %queue, %error, "result refused, it is sent again");
                });
            }
            Err(_) => {}
        }
        tokio::time::sleep(REFUSED_RETRY_DELAY).await;
    };
    shared.jobs.run_follow_ups(follow_ups).await;
}

/// Splits into parts of about [`TARGET_BATCH_BYTES`], or of a single larger result.
fn split_by_bytes(completions: &[Completion]) -> Vec<&[Completion]> {
    let (mut parts, mut rest) = (Vec::new(), completions);
    let (mut taken, mut bytes) = (0, 0);
    while taken < rest.len() {
        bytes += rest[taken].finished.size();
        taken += 1;
        if bytes >= TARGET_BATCH_BYTES || taken == rest.len() {
            let (part, others) = rest.split_at(taken);
            parts.push(part);
            (rest, taken, bytes) = (others, 0, 0);
        }
    }
    parts
}

/// Records results of one stream; waits while Redis is unavailable.
async fn record_batch(
    shared: &WorkerShared,
    stream: &QueueStream,
    completions: &[Completion],
) -> StoreResult<FollowUps> {
    let (queue, priority) = stream;
    let began = Instant::now();
    let (settled, follow_ups) = until_available(completions.len(), || {
        shared.jobs.complete_batch(queue, *priority, &shared.consumer, completions)
    })
    .await?;
    record_settlement(queue, &completions.iter().map(|completion| &*completion.claimed), "completed", began.elapsed());
    finish_completions(shared, queue, completions, settled);
    Ok(follow_ups)
}

/// Repeats a call while Redis is unavailable.
async fn until_available<T, F>(results: usize, record: impl Fn() -> F) -> StoreResult<T>
where
    F: Future<Output = StoreResult<T>>,
{
    let mut delays = reconnect_delays();
    loop {
        match record().await {
            Ok(settled) => return Ok(settled),
            Err(StoreError::Unavailable(error)) => {
                tracing::debug!(%error, results, "results not recorded yet");
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn finish_completions(shared: &WorkerShared, queue: &QueueName, completions: &[Completion], settled: Vec<Settled>) {
    let duration = |completion: &Completion| completion.ended_at - completion.claimed.started_at;
    shared.attempt_times.observe(completions.iter().map(duration));
    // One look-up of each metric for the whole batch
    let (mut completed, mut stale) = (AttemptMetrics::new(queue, "completed"), AttemptMetrics::new(queue, "stale"));
    let (tally, mut bytes) = (shared.jobs.queue_tally(queue), 0);
    for (completion, settled) in completions.iter().zip(settled) {
        let is_completed = finish_completion(shared, completion, settled);
        if is_completed {
            tally.count_attempt(AttemptEnd::Completed, completion.claimed.waited_ms(), duration(completion));
        }
        let metrics = if is_completed { &mut completed } else { &mut stale };
        metrics.count(&completion.claimed, completion.ended_at);
        bytes += if is_completed { completion.finished.size() } else { 0 };
    }
    completed.add_result_bytes(bytes);
}

/// Removes a job and logs and counts its end; false if it was too late to record it.
fn finish_completion(shared: &WorkerShared, completion: &Completion, settled: Settled) -> bool {
    let claimed = &completion.claimed;
    let job = &claimed.job;
    shared.in_flight.remove(&job.queue, job.priority, claimed.entry);
    if settled == Settled::Stale {
        let (id, queue) = (job.id, &job.queue);
        job.work_scope().within(|| {
            tracing::warn!(event = "result.stale", %id, %queue, "a result came too late: another worker has the job");
        });
        return false;
    }
    shared.jobs.record_event(JobEvent::completed(job, claimed.started_at, completion.ended_at));
    true
}
