//! Wakeups: they end the claim loop's blocking read early and stop a running job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::name::QueueName;
use store::{
    connection::{notification::Notification, notifier::SubscriberEvent},
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{queue_states::ChangedQueues, shared::WorkerShared};

/// Maximum number of unread notifications.
const NOTIFICATION_BUFFER: usize = 1024;

/// Interrupts the claim loop while it waits.
#[derive(Default)]
pub(crate) struct Wakeup {
    pending: Mutex<ChangedQueues>,
    notify: Notify,
}

impl Wakeup {
    fn pending(&self) -> MutexGuard<'_, ChangedQueues> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts the current wait, or the next one: any queue may have changed.
    pub(crate) fn wake(&self) {
        *self.pending() = ChangedQueues::All;
        self.notify.notify_one();
    }

    /// The same when it is known which queue changed.
    pub(crate) fn wake_for(&self, queue: &QueueName) {
        self.pending().add(Some(queue));
        self.notify.notify_one();
    }

    /// The same when no queue changed.
    pub(crate) fn interrupt(&self) {
        self.pending().add(None);
        self.notify.notify_one();
    }

    /// Returns what the pending wakeups are about, and clears them.
    pub(crate) fn take(&self) -> ChangedQueues {
        std::mem::take(&mut self.pending())
    }

    /// Waits for a wakeup; returns at once if one came since [`Wakeup::take`].
    pub(crate) async fn woken(&self) {
        while *self.pending() == ChangedQueues::NoWakeup {
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
                        self.wake_for(&queue);
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
