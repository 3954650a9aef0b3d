//! The heartbeat state that the rest of the process shares: whether the worker is quiet, and when to report early.

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Shared state of the heartbeat.
#[derive(Default)]
pub(crate) struct HeartbeatState {
    quiet: watch::Sender<bool>,
    /// Notified when something changed: the next heartbeat is due now.
    pub(crate) report_now: Notify,
}

impl HeartbeatState {
    /// Whether new jobs may not be claimed. Check it after [`Wakeup::take`](crate::wakeup::Wakeup::take): the wakeup
    /// follows the change.
    pub(crate) fn is_quiet(&self) -> bool {
        *self.quiet.borrow()
    }

    /// Changes whether the worker is quiet; true if that is a change.
    pub(crate) fn set_quiet(&self, is_quiet: bool) -> bool {
        self.quiet.send_if_modified(|quiet| std::mem::replace(quiet, is_quiet) != is_quiet)
    }

    /// Waits until jobs may be claimed, or `stop` is cancelled.
    pub(crate) async fn wait_until_resumed(&self, stop: &CancellationToken) {
        let mut quiet = self.quiet.subscribe();
        tokio::select! {
            () = stop.cancelled() => {}
            _ = quiet.wait_for(|quiet| !quiet) => {}
        }
    }
}
