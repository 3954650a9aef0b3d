//! Stopping in order: a signal becomes a token, and work in progress gets a limited time.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once.
///
/// # Errors
/// The process cannot receive the signals.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = token.clone();
    tokio::spawn(async move {
        let mut name = "";
        for _ in 0..2 {
            name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stop.is_cancelled() {
                break;
            }
            stop.cancel();
            tracing::info!(event = "process.stopping", signal = name, "stopping; a second signal stops at once");
        }
        tracing::warn!(event = "process.stopped_at_once", signal = name, "stopped at once by a second signal");
        std::process::exit(130);
    });
    Ok(token)
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

/// Waits until every tracked task has ended, but no longer than `limit`.
pub async fn drain(tasks: &TaskTracker, limit: Duration) -> DrainOutcome {
    tasks.close();
    match tokio::time::timeout(limit, tasks.wait()).await {
        Ok(()) => DrainOutcome::Complete,
        Err(_) => DrainOutcome::TimedOut(tasks.len()),
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
        let tasks = TaskTracker::new();
        tasks.spawn(tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(drain(&tasks, Duration::from_secs(2)).await, DrainOutcome::Complete);
        tasks.reopen();
        tasks.spawn(std::future::pending::<()>());
        assert_eq!(drain(&tasks, Duration::from_secs(2)).await, DrainOutcome::TimedOut(1));
    }
}
