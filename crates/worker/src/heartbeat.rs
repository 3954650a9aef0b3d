//! Being known: the process reports what it does, and hears what is asked of it.
//!
//! Quiet means that no new jobs are claimed while those that run go on, leases and all. It is asked for over HTTP, or
//! with SIGTSTP, and ended the same way or with SIGCONT; the last word counts.

use std::{sync::Arc, time::Duration};

use common::{name::QueueName, time};
use nix::sys::signal::Signal;
use store::{
    StoreResult, local_now,
    workers::{Directive, IssuedDirective, WorkerKey, WorkerRecord, WorkerState},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{shared::WorkerShared, wakeup::Wakeup};

/// A report counts for so many beats, but never less than a second.
const TTL_BEATS: u32 = 3;
const MIN_TTL: Duration = Duration::from_secs(1);
/// Jobs in a report: those that run for longest.
const MAX_REPORTED_JOBS: usize = 50;

/// Reports until `end` is cancelled, which comes after the last attempt. Cancels `stop` when it is asked to.
pub(crate) async fn run(
    shared: Arc<WorkerShared>,
    doorbell: Arc<Wakeup>,
    stop: CancellationToken,
    end: CancellationToken,
) {
    let beat = shared.settings.queue_worker.heartbeat_interval;
    let started_at = time::format(local_now());
    let (mut known, mut told_of_the_stop) = (None, false);
    loop {
        told_of_the_stop |= stop.is_cancelled();
        match send_heartbeat(&shared, &started_at, told_of_the_stop).await {
            Ok(order) if order != known => {
                known = order;
                if let Some(order) = order {
                    apply_directive(&shared, &doorbell, order, &stop).await;
                    // What has become of it is news too
                    continue;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "not reported; tried again with the next beat"),
        }
        tokio::select! {
            () = end.cancelled() => break,
            () = stop.cancelled(), if !told_of_the_stop => {}
            () = shared.heartbeat_state.report_now.notified() => {}
            () = tokio::time::sleep(beat) => {}
        }
    }
    if let Err(error) = shared.workers.remove_worker(&shared.worker_key()).await {
        tracing::debug!(%error, "not taken off the list of workers; it drops off by itself");
    }
}

async fn send_heartbeat(shared: &WorkerShared, started_at: &str, stops: bool) -> StoreResult<Option<IssuedDirective>> {
    let worker = &shared.settings.queue_worker;
    let state = match (stops, shared.heartbeat_state.is_quiet()) {
        (true, _) => WorkerState::Terminating,
        (false, true) => WorkerState::Quiet,
        (false, false) => WorkerState::Running,
    };
    let record = WorkerRecord {
        name: worker.name.to_string(),
        hostname: Some(common::settings::hostname()),
        pid: Some(std::process::id()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        state,
        queues: worker.queues.iter().map(QueueName::to_string).collect(),
        concurrency: Some(worker.concurrency),
        active_jobs: shared.in_flight.len(),
        jobs: shared.in_flight.longest_running(MAX_REPORTED_JOBS),
        started_at: Some(started_at.to_owned()),
        last_seen_at: time::format(local_now()),
    };
    let ttl = (worker.heartbeat_interval * TTL_BEATS).max(MIN_TTL);
    shared.workers.report_worker(&shared.worker_key(), &record, ttl, None).await
}

async fn apply_directive(shared: &WorkerShared, doorbell: &Wakeup, order: IssuedDirective, stop: &CancellationToken) {
    match order.directive {
        Directive::Running => set_quiet(shared, doorbell, false, "a directive").await,
        Directive::Quiet => set_quiet(shared, doorbell, true, "a directive").await,
        Directive::Terminate => {
            tracing::info!("stopping by a directive");
            stop.cancel();
        }
    }
}

async fn set_quiet(shared: &WorkerShared, doorbell: &Wakeup, is_quiet: bool, by: &str) {
    let has_changed = shared.heartbeat_state.set_quiet(is_quiet);
    if has_changed {
        let says = if is_quiet { "quiet: no new jobs are claimed" } else { "jobs are claimed again" };
        tracing::info!(by, "{says}");
        shared.heartbeat_state.report_now.notify_one();
        // Ends the blocked read: it would take one more job
        doorbell.wake();
    }
}

/// SIGTSTP and SIGCONT, until `stop` is cancelled.
pub(crate) async fn listen_for_signals(shared: Arc<WorkerShared>, doorbell: Arc<Wakeup>, stop: CancellationToken) {
    let kind = |signal: Signal| SignalKind::from_raw(signal as i32);
    let (Ok(mut pause), Ok(mut resume)) = (signal(kind(Signal::SIGTSTP)), signal(kind(Signal::SIGCONT))) else {
        tracing::warn!("SIGTSTP and SIGCONT cannot be listened to");
        return;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = pause.recv() => set_quiet(&shared, &doorbell, true, "SIGTSTP").await,
            _ = resume.recv() => set_quiet(&shared, &doorbell, false, "SIGCONT").await,
        }
    }
}

impl WorkerShared {
    /// The id of this process on the list of workers.
    pub(crate) fn worker_key(&self) -> WorkerKey {
        WorkerKey::for_consumer(&self.consumer)
    }
}
