//! Stopping in order: a signal becomes a token, and work in progress gets a limited time.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Signals this soon after the first are the same request: a supervisor and the process group may each send one.
const SAME_REQUEST: Duration = Duration::from_secs(1);
/// Maximum number of signals that were not looked at.
const SIGNAL_BUFFER: usize = 16;

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
    /// too: the process releases its work, which may take as long as programs need to stop, and then ends. The third such
    /// signal ends it at once.
    ///
    /// # Errors
    /// The process cannot receive the signals.
    pub fn listen() -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (sender, received) = mpsc::channel(SIGNAL_BUFFER);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                // A full buffer has enough of them
                let _ = sender.try_send(name);
            }
        });
        let signals = Self::default();
        let follower = signals.clone();
        tokio::spawn(async move {
            if let Some(name) = follower.follow(ReceivedSignals(received)).await {
                tracing::warn!(event = "process.stopped_at_once", signal = name, "stopped at once");
                std::process::exit(130);
            }
        });
        Ok(signals)
    }

    /// Passes on what the signals ask for. Returns the one that asks to stop at once.
    async fn follow(&self, mut received: ReceivedSignals) -> Option<&'static str> {
        let name = received.next().await?;
        tracing::info!(event = "process.stopping", signal = name, "stopping; a later signal ends the grace");
        self.stop.cancel();
        let name = received.next_request().await?;
        tracing::warn!(event = "process.grace_ended", signal = name, "a second signal: work in progress is released");
        self.end_grace.cancel();
        received.next_request().await
    }

    /// A child of `stop` in place of it: cancelling it does not count as a signal.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), end_grace: self.end_grace.clone() }
    }
}

struct ReceivedSignals(mpsc::Receiver<&'static str>);

impl ReceivedSignals {
    /// None if nothing can come any more.
    async fn next(&mut self) -> Option<&'static str> {
        self.0.recv().await
    }

    /// The next signal that does not belong to the request before.
    async fn next_request(&mut self) -> Option<&'static str> {
        let since = Instant::now();
        loop {
            let name = self.next().await?;
            if since.elapsed() >= SAME_REQUEST {
                return Some(name);
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

    #[tokio::test(start_paused = true)]
    async fn after_the_second_signal_only_a_third_one_ends_the_process_however_long_releasing_takes() {
        let (sender, received) = mpsc::channel(SIGNAL_BUFFER);
        let signals = StopSignals::default();
        let mut following = Box::pin(signals.follow(ReceivedSignals(received)));
        let expected = [(true, false), (true, false), (true, true), (true, true)];
        let pauses = [Duration::ZERO, SAME_REQUEST / 2, SAME_REQUEST, SAME_REQUEST / 2];
        for ((stop, end_grace), pause) in expected.into_iter().zip(pauses) {
            tokio::time::advance(pause).await;
            sender.try_send("SIGTERM").expect("room");
            assert!(tokio::time::timeout(Duration::from_millis(1), &mut following).await.is_err());
            assert_eq!((signals.stop.is_cancelled(), signals.end_grace.is_cancelled()), (stop, end_grace));
        }
        let releasing = tokio::time::timeout(Duration::from_hours(1), &mut following).await;
        assert!(releasing.is_err(), "programs may take long to stop");
        sender.try_send("SIGINT").expect("room");
        assert_eq!(following.await, Some("SIGINT"));
    }

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
