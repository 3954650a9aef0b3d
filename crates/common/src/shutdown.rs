//! Stopping in order: a signal becomes a token, and work in progress gets a limited time.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Signals this soon after the first are the same request: a supervisor and the process group may each send one.
const SAME_REQUEST: Duration = Duration::from_secs(1);
/// How long a process may take to release its work after the request not to wait any longer.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the signals of a process ask for.
#[derive(Debug, Clone, Default)]
pub struct StopSignals {
    /// Stop: work in progress may still finish.
    pub stop: CancellationToken,
    /// Stop without waiting: release work in progress now.
    pub end_grace: CancellationToken,
}

impl StopSignals {
    /// Follows SIGTERM and SIGINT. The first cancels `stop`; one that comes more than a second later cancels `end_grace`
    /// too. The third such signal ends the process at once, and so does the time that releasing may take.
    ///
    /// # Errors
    /// The process cannot receive the signals.
    pub fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        let mut received = ReceivedSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let follower = signals.clone();
        tokio::spawn(async move {
            let name = received.next().await;
            tracing::info!(event = "process.stopping", signal = name, "stopping; a later signal ends the grace");
            follower.stop.cancel();
            let name = received.next_request().await;
            tracing::warn!(
                event = "process.grace_ended",
                signal = name,
                "a second signal: work in progress is released"
            );
            follower.end_grace.cancel();
            let name = tokio::time::timeout(RELEASE_TIMEOUT, received.next_request()).await.unwrap_or("none");
            tracing::warn!(event = "process.stopped_at_once", signal = name, "stopped at once");
            std::process::exit(130);
        });
        Ok(signals)
    }

    /// A child of `stop` in place of it: cancelling it does not count as a signal.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), end_grace: self.end_grace.clone() }
    }
}

struct ReceivedSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ReceivedSignals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The next signal that does not belong to the request before.
    async fn next_request(&mut self) -> &'static str {
        let since = Instant::now();
        loop {
            let name = self.next().await;
            if since.elapsed() >= SAME_REQUEST {
                return name;
            }
            tracing::debug!(signal = name, "a repeated signal");
        }
    }
}

/// Watches a task that the process needs: if it ends before `stop` is cancelled, this cancels `stop`. The returned
/// handle has the result of the task, or its panic.
#[must_use = "how it ended is in the handle"]
pub fn supervise<T: Send + 'static>(
    part: &'static str,
    task: JoinHandle<T>,
    stop: &CancellationToken,
) -> JoinHandle<T> {
    let stop = stop.clone();
    tokio::spawn(async move {
        let ended = task.await;
        if !stop.is_cancelled() {
            tracing::error!(event = "process.part_ended", part, "a part ended that must not: the process stops");
            stop.cancel();
        }
        match ended {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down, and this task with it
                Err(_) => std::future::pending().await,
            },
        }
    })
}

/// Whether work in progress ended in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOutcome {
    /// Everything ended.
    Complete,
    /// The limit passed with this many tasks still running.
    TimedOut(usize),
}

/// Waits until every tracked task has ended, but no longer than `limit` or until `end` is cancelled.
pub async fn drain(tasks: &TaskTracker, limit: Duration, end: &CancellationToken) -> DrainOutcome {
    tasks.close();
    match tokio::time::timeout(limit, end.run_until_cancelled(tasks.wait())).await {
        Ok(Some(())) => DrainOutcome::Complete,
        Ok(None) | Err(_) => DrainOutcome::TimedOut(tasks.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_too_soon_ends_the_process_and_says_how() {
        let stop = CancellationToken::new();
        let part = supervise("a part", tokio::spawn(async { panic!("broken") }), &stop);
        stop.cancelled().await;
        let error: tokio::task::JoinError = tokio::time::timeout(Duration::from_secs(20), part)
            .await
            .expect("it ends")
            .map(|(): ()| ())
            .expect_err("it panicked");
        assert!(error.is_panic());
        let part = supervise("a part", tokio::spawn(async { 7 }), &stop);
        assert_eq!(part.await.expect("it ended"), 7, "after the stop it may");
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_tasks_and_gives_up_at_the_limit() {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(drain(&tasks, Duration::from_secs(2), &end).await, DrainOutcome::Complete);
        tasks.reopen();
        tasks.spawn(std::future::pending::<()>());
        assert_eq!(drain(&tasks, Duration::from_secs(2), &end).await, DrainOutcome::TimedOut(1));
        end.cancel();
        assert_eq!(drain(&tasks, Duration::MAX, &end).await, DrainOutcome::TimedOut(1));
    }
}
