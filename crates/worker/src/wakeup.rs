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
    connection::{
        notification::Wake,
        notifier::{Heard, subscribe},
    },
    keys,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::worker::Shared;

/// Pause between two tries to end a read that has been announced but has not reached Redis yet.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// Nobody is blocked.
const NOBODY: i64 = 0;

#[derive(Default)]
pub(crate) struct Doorbell {
    rung: AtomicBool,
    blocked: AtomicI64,
    noticed: Notify,
}

impl Doorbell {
    /// Whether it rang since the last answer.
    pub(crate) fn answer(&self) -> bool {
        self.rung.swap(false, SeqCst)
    }

    /// Awaits a blocking read that a ring will end; none when it rang already, and the read was not begun.
    pub(crate) async fn while_blocked<T>(&self, client_id: i64, read: impl Future<Output = T>) -> Option<T> {
        self.blocked.store(client_id, SeqCst);
        // After announcing: either we see the ring here, or the ringer sees us
        let result = if self.rung.load(SeqCst) { None } else { Some(read.await) };
        self.blocked.store(NOBODY, SeqCst);
        result
    }

    /// Waits until it rings, but no longer than that.
    pub(crate) async fn or_after(&self, pause: Duration) {
        if !self.rung.load(SeqCst) {
            let _ = tokio::time::timeout(pause, self.noticed.notified()).await;
        }
    }

    /// Rings: the read that is blocked now ends, or the next one is not begun.
    pub(crate) async fn ring(&self, shared: &Shared) {
        self.rung.store(true, SeqCst);
        self.noticed.notify_one();
        let mut redis = shared.jobs.redis().clone();
        while self.rung.load(SeqCst) {
            match self.blocked.load(SeqCst) {
                NOBODY => return,
                client_id => {
                    if !matches!(redis.unblock(client_id).await, Ok(false)) {
                        return;
                    }
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Hears wake-up calls until `stop` is cancelled, which rings a last time.
    pub(crate) async fn listen(self: Arc<Self>, shared: Arc<Shared>, stop: CancellationToken) {
        let mut calls = subscribe(shared.jobs.redis(), vec![keys::WAKE.to_owned()], 1024, stop.clone());
        loop {
            let heard = tokio::select! {
                () = stop.cancelled() => break,
                heard = calls.recv() => heard,
            };
            match heard {
                Some(Heard::Message { payload, .. }) => match Wake::decode(&payload) {
                    Some(Wake::Stream(queue)) if shared.settings.queue_worker.queues.contains(&queue) => {
                        self.ring(&shared).await;
                    }
                    Some(Wake::Directive(worker)) if worker == shared.key() => shared.presence.news.notify_one(),
                    Some(Wake::Cancelled(id)) => shared.in_flight.cancelled(id),
                    _ => {}
                },
                // Calls may have been missed
                Some(Heard::Subscribed(_)) => self.ring(&shared).await,
                Some(Heard::Lost) => {}
                None => break,
            }
        }
        stop.cancelled().await;
        self.ring(&shared).await;
    }
}
