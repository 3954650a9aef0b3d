//! Wake-up calls: what ends the claim loop's blocking read early, and what stops a running job.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use store::{
    connection::{notification::Notification, notifier::SubscriberEvent},
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::worker::WorkerShared;

/// Pause between two tries to end a read that has been announced but has not reached Redis yet.
const UNBLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Notifications that wait to be looked at.
const NOTIFICATION_BUFFER: usize = 1024;
/// Nobody is blocked.
const NO_CLIENT: i64 = 0;

#[derive(Default)]
pub(crate) struct Wakeup {
    is_pending: AtomicBool,
    blocked_client_id: AtomicI64,
    notify: Notify,
}

impl Wakeup {
    /// Whether it rang since the last answer.
    pub(crate) fn take_pending(&self) -> bool {
        self.is_pending.swap(false, SeqCst)
    }

    /// Awaits a blocking read that a ring will end; none when it rang already, and the read was not begun.
    pub(crate) async fn run_interruptible<T>(&self, client_id: i64, read: impl Future<Output = T>) -> Option<T> {
        self.blocked_client_id.store(client_id, SeqCst);
        // After announcing: either we see the ring here, or the ringer sees us
        let result = if self.is_pending.load(SeqCst) { None } else { Some(read.await) };
        self.blocked_client_id.store(NO_CLIENT, SeqCst);
        result
    }

    /// Waits until it rings, but no longer than that.
    pub(crate) async fn wait_timeout(&self, pause: Duration) {
        if !self.is_pending.load(SeqCst) {
            let _ = tokio::time::timeout(pause, self.notify.notified()).await;
        }
    }

    /// Rings: the read that is blocked now ends, or the next one is not begun.
    pub(crate) async fn wake(&self, shared: &WorkerShared) {
        self.is_pending.store(true, SeqCst);
        self.notify.notify_one();
        let mut redis = shared.jobs.redis().clone();
        while self.is_pending.load(SeqCst) {
            match self.blocked_client_id.load(SeqCst) {
                NO_CLIENT => return,
                client_id => {
                    if !matches!(redis.unblock(client_id).await, Ok(false)) {
                        return;
                    }
                }
            }
            tokio::time::sleep(UNBLOCK_RETRY_INTERVAL).await;
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
                        self.wake(&shared).await;
                    }
                    Some(Notification::DirectiveChanged(worker)) if worker == shared.worker_key() => {
                        shared.heartbeat_state.report_now.notify_one()
                    }
                    Some(Notification::JobCancelled(id)) => shared.in_flight.cancel_job(id),
                    _ => {}
                },
                // Calls may have been missed
                Some(SubscriberEvent::Subscribed(_)) => self.wake(&shared).await,
                Some(SubscriberEvent::ConnectionLost) => {}
                None => break,
            }
        }
        stop.cancelled().await;
        self.wake(&shared).await;
    }
}
