//! What the rest of the process has to know of the heartbeat: whether the worker is quiet, and when to report.

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What the rest of the process has to know of it.
#[derive(Default)]
pub(crate) struct HeartbeatState {
    quiet: watch::Sender<bool>,
    /// Something was asked, or has changed: the next report is due now.
    pub(crate) report_now: Notify,
}

impl HeartbeatState {
    /// Whether no new jobs may be claimed. To be asked after the doorbell was answered: it rings after this has changed.
    pub(crate) fn is_quiet(&self) -> bool {
        *self.quiet.borrow()
    }

    /// Changes whether new jobs may be claimed; true if it was different before.
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
