//! Sends heartbeats: reports this process to Redis and receives directives in the answer.
//!
//! A quiet worker claims no new jobs but finishes the running ones and renews their leases. A directive over HTTP or
//! SIGTSTP makes a worker quiet; a directive or SIGCONT ends that. The latest request wins.

use std::{sync::Arc, time::Duration};

use common::{name::QueueName, time};
use nix::sys::signal::Signal;
use store::{
    StoreResult,
    workers::{Directive, IssuedDirective, WorkerAction, WorkerKey, WorkerRecord, WorkerState},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{shared::WorkerShared, wakeup::Wakeup};

/// A heartbeat expires after this many intervals, but not sooner than [`MIN_TTL`].
const TTL_BEATS: u32 = 3;
const MIN_TTL: Duration = Duration::from_secs(1);
/// Maximum number of jobs in a heartbeat: the longest running ones.
const MAX_REPORTED_JOBS: usize = 50;

/// Sends heartbeats until `end` is cancelled, after the last attempt. A terminate directive cancels `stop`.
pub(crate) async fn run(
    shared: Arc<WorkerShared>,
    wakeup: Arc<Wakeup>,
    stop: CancellationToken,
    end: CancellationToken,
) {
    let interval = shared.settings.queue_worker.heartbeat_interval;
    let started_at = time::format(shared.jobs.estimated_now());
    let (mut applied, mut stop_reported) = (None, false);
    loop {
        stop_reported |= stop.is_cancelled();
        match send_heartbeat(&shared, &started_at, stop_reported).await {
            Ok(directive) if directive != applied => {
                applied = directive;
                if let Some(directive) = directive {
                    apply_directive(&shared, &wakeup, directive, &stop);
                    // Report the new state at once
                    continue;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "heartbeat not sent; retried after the next interval"),
        }
        tokio::select! {
            () = end.cancelled() => break,
            () = stop.cancelled(), if !stop_reported => {}
            () = shared.heartbeat_state.report_now.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
    if let Err(error) = shared.workers.remove_worker(&shared.worker_key()).await {
        tracing::debug!(%error, "worker not removed from the list; its entry expires");
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
        last_seen_at: time::format(shared.jobs.estimated_now()),
    };
    let ttl = (worker.heartbeat_interval * TTL_BEATS).max(MIN_TTL);
    shared.workers.report_worker(&shared.worker_key(), &record, ttl, None, WorkerAction::Heartbeat).await
}

fn apply_directive(shared: &WorkerShared, wakeup: &Wakeup, issued: IssuedDirective, stop: &CancellationToken) {
    match issued.directive {
        Directive::Running => set_quiet(shared, wakeup, false, "a directive"),
        Directive::Quiet => set_quiet(shared, wakeup, true, "a directive"),
        Directive::Terminate => {
            tracing::info!(event = "worker.terminate_directive", "stopping by a directive");
            stop.cancel();
        }
    }
}

fn set_quiet(shared: &WorkerShared, wakeup: &Wakeup, is_quiet: bool, by: &str) {
    let has_changed = shared.heartbeat_state.set_quiet(is_quiet);
    if has_changed {
        if is_quiet {
            tracing::info!(event = "worker.quiet", by, "quiet: no new jobs are claimed");
        } else {
            tracing::info!(event = "worker.running", by, "jobs are claimed again");
        }
        shared.heartbeat_state.report_now.notify_one();
        // Ends the blocked read, which would claim one more job
        wakeup.wake();
    }
}

/// Handles SIGTSTP and SIGCONT until `stop` is cancelled. From this call on, before the future is polled, SIGTSTP no longer
/// stops the process.
pub(crate) fn listen_for_signals(
    shared: Arc<WorkerShared>,
    wakeup: Arc<Wakeup>,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let kind = |signal: Signal| SignalKind::from_raw(signal as i32);
    let signals = (signal(kind(Signal::SIGTSTP)), signal(kind(Signal::SIGCONT)));
    async move {
        let (Ok(mut pause), Ok(mut resume)) = signals else {
            tracing::warn!("SIGTSTP and SIGCONT cannot be handled");
            return;
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = pause.recv() => set_quiet(&shared, &wakeup, true, "SIGTSTP"),
                _ = resume.recv() => set_quiet(&shared, &wakeup, false, "SIGCONT"),
            }
        }
    }
}

impl WorkerShared {
    /// The id of this process in the list of workers.
    pub(crate) fn worker_key(&self) -> WorkerKey {
        WorkerKey::for_consumer(&self.consumer)
    }
}
