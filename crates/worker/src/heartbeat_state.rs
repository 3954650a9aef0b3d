//! The heartbeat state that the rest of the process shares: whether the worker is quiet, and when to report early.

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Shared state of the heartbeat.
#[derive(Default)]
pub(crate) struct HeartbeatState {
    claiming: watch::Sender<Claiming>,
    /// Notified when something changed: the next heartbeat is due now.
    pub(crate) report_now: Notify,
}

#[derive(Default)]
struct Claiming {
    is_quiet: bool,
    is_under_way: bool,
}

impl HeartbeatState {
    /// Whether no new jobs come: none may be claimed, and the claim that began before that is over.
    pub(crate) fn is_quiet(&self) -> bool {
        let claiming = self.claiming.borrow();
        claiming.is_quiet && !claiming.is_under_way
    }

    /// Changes whether new jobs may be claimed; true if that is a change.
    pub(crate) fn set_quiet(&self, is_quiet: bool) -> bool {
        self.claiming.send_if_modified(|claiming| std::mem::replace(&mut claiming.is_quiet, is_quiet) != is_quiet)
    }

    /// Begins a claim; false if new jobs may not be claimed. Ask after [`Wakeup::take`](crate::wakeup::Wakeup::take): the
    /// wakeup follows the change.
    pub(crate) fn begin_claim(&self) -> bool {
        let mut is_quiet = false;
        self.claiming.send_if_modified(|claiming| {
            is_quiet = claiming.is_quiet;
            claiming.is_under_way |= !is_quiet;
            false
        });
        !is_quiet
    }

    /// Ends a claim whose answer came, or whose jobs were recovered.
    pub(crate) fn end_claim(&self) {
        let mut is_quiet_now = false;
        self.claiming.send_if_modified(|claiming| {
            is_quiet_now = std::mem::take(&mut claiming.is_under_way) && claiming.is_quiet;
            false
        });
        if is_quiet_now {
            self.report_now.notify_one();
        }
    }

    /// Waits until jobs may be claimed, or `stop` is cancelled.
    pub(crate) async fn wait_until_resumed(&self, stop: &CancellationToken) {
        let mut claiming = self.claiming.subscribe();
        tokio::select! {
            () = stop.cancelled() => {}
            _ = claiming.wait_for(|claiming| !claiming.is_quiet) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_quiet_when_the_claim_that_began_before_is_over() {
        let state = HeartbeatState::default();
        assert!(state.begin_claim());
        assert!(state.set_quiet(true) && !state.is_quiet(), "the claim may bring a job");
        assert!(!state.set_quiet(true), "no change");
        assert!(!state.begin_claim() && !state.is_quiet(), "the answer of the first one may still be lost");
        state.end_claim();
        assert!(state.is_quiet() && !state.begin_claim());
        assert!(state.is_quiet(), "a claim that was refused is none");
        assert!(state.set_quiet(false) && !state.is_quiet() && state.begin_claim());
    }

    #[tokio::test]
    async fn the_end_of_the_last_claim_is_reported_at_once() {
        let state = HeartbeatState::default();
        assert!(state.begin_claim());
        state.set_quiet(true);
        state.end_claim();
        state.report_now.notified().await;
    }
}
