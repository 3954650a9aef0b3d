//! Wakeups: they end the claim loop's blocking read early and stop a running job.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use store::{
    connection::{notification::Notification, notifier::SubscriberEvent},
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::shared::WorkerShared;

/// Maximum number of unread notifications.
const NOTIFICATION_BUFFER: usize = 1024;

/// Interrupts the claim loop while it waits.
#[derive(Default)]
pub(crate) struct Wakeup {
    is_pending: AtomicBool,
    notify: Notify,
}

impl Wakeup {
    /// Interrupts the current wait, or the next one.
    pub(crate) fn wake(&self) {
        self.is_pending.store(true, SeqCst);
        self.notify.notify_one();
    }

    /// Returns whether a wakeup is pending, and clears it.
    pub(crate) fn take(&self) -> bool {
        self.is_pending.swap(false, SeqCst)
    }

    /// Waits for a wakeup; returns at once if one came since [`Wakeup::take`].
    pub(crate) async fn woken(&self) {
        while !self.is_pending.load(SeqCst) {
            self.notify.notified().await;
        }
    }

    /// Receives notifications until `stop` is cancelled; then wakes the loop a last time.
    pub(crate) async fn listen(self: Arc<Self>, shared: Arc<WorkerShared>, stop: CancellationToken) {
        let (topics, mut notifications) = shared.jobs.store().notifier().subscribe(NOTIFICATION_BUFFER);
        topics.add(keys::NOTIFICATIONS.to_owned());
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = notifications.recv() => event,
            };
            match event {
                Some(SubscriberEvent::Message { payload, .. }) => match Notification::decode(&payload) {
                    Some(Notification::StreamCreated(queue))
                        if shared.settings.queue_worker.queues.contains(&queue) =>
                    {
                        self.wake();
                    }
                    Some(Notification::DirectiveChanged(worker)) if worker == shared.worker_key() => {
                        shared.heartbeat_state.report_now.notify_one();
                    }
                    Some(Notification::JobCancelled(id)) => shared.in_flight.check_job(id),
                    _ => {}
                },
                // Notifications may have been missed
                Some(SubscriberEvent::Subscribed(_)) => self.wake(),
                Some(SubscriberEvent::ConnectionLost) => {}
                None => break,
            }
        }
        stop.cancelled().await;
        self.wake();
    }
}
