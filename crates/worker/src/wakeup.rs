//! Wake-up calls: what ends the claim loop's blocking read early, and what stops a running job.

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

/// Notifications that wait to be looked at.
const NOTIFICATION_BUFFER: usize = 1024;

/// Interrupts the claim loop while it waits.
#[derive(Default)]
pub(crate) struct Wakeup {
    is_pending: AtomicBool,
    notify: Notify,
}

impl Wakeup {
    /// Interrupts the wait of now, or the next one.
    pub(crate) fn wake(&self) {
        self.is_pending.store(true, SeqCst);
        self.notify.notify_one();
    }

    /// Whether it was woken since this was asked.
    pub(crate) fn take(&self) -> bool {
        self.is_pending.swap(false, SeqCst)
    }

    /// Waits until it is woken; at once if that happened since [`Wakeup::take`].
    pub(crate) async fn woken(&self) {
        while !self.is_pending.load(SeqCst) {
            self.notify.notified().await;
        }
    }

    /// Hears wake-up calls until `stop` is cancelled, which rings a last time.
    pub(crate) async fn listen(self: Arc<Self>, shared: Arc<WorkerShared>, stop: CancellationToken) {
        let (topics, mut calls) = shared.jobs.store().notifier().subscribe(NOTIFICATION_BUFFER);
        topics.add(keys::NOTIFICATIONS.to_owned());
        loop {
            let heard = tokio::select! {
                () = stop.cancelled() => break,
                heard = calls.recv() => heard,
            };
            match heard {
                Some(SubscriberEvent::Message { payload, .. }) => match Notification::decode(&payload) {
                    Some(Notification::StreamCreated(queue))
                        if shared.settings.queue_worker.queues.contains(&queue) =>
                    {
                        self.wake();
                    }
                    Some(Notification::DirectiveChanged(worker)) if worker == shared.worker_key() => {
                        shared.heartbeat_state.report_now.notify_one();
                    }
                    Some(Notification::JobCancelled(id)) => shared.in_flight.cancel_job(id),
                    _ => {}
                },
                // Calls may have been missed
                Some(SubscriberEvent::Subscribed(_)) => self.wake(),
                Some(SubscriberEvent::ConnectionLost) => {}
                None => break,
            }
        }
        stop.cancelled().await;
        self.wake();
    }
}
