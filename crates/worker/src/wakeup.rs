//! Wakeups: they end the claim loop's blocking read early and stop a running job.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{id::JobId, name::QueueName};
use store::connection::{hint_pace::PacedHints, notification::Notification, notifier::SubscriberEvent};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{queue_states::ChangedQueues, shared::WorkerShared};

/// Maximum number of unread notifications.
const NOTIFICATION_BUFFER: usize = 1024;

/// How often notifications may cause a look at Redis.
const HINT_INTERVAL: Duration = Duration::from_millis(50);
const HINT_BURST: u32 = 20;

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// A queue of this process.
    Queue(QueueName),
    /// Its directive.
    Directive,
    /// A job that it runs.
    Job(JobId),
}

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
        topics.add(shared.jobs.redis().topics().notifications());
        let mut hints = PacedHints::new(HINT_BURST, HINT_INTERVAL);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                ready = hints.ready(usize::MAX) => {
                    for hint in ready {
                        self.look_into(&shared, &hint);
                    }
                    continue;
                }
                event = notifications.recv() => event,
            };
            match event {
                Some(SubscriberEvent::Message { payload, .. }) => match Notification::decode(&payload) {
                    Some(Notification::StreamCreated(queue))
                        if shared.settings.queue_worker.queues.contains(&*queue.base()) =>
                    {
                        hints.add(Hint::Queue(queue));
                    }
                    Some(Notification::DirectiveChanged(worker)) if worker == shared.worker_key() => {
                        hints.add(Hint::Directive);
                    }
                    Some(Notification::JobCancelled(id)) if shared.in_flight.contains_job(id) => {
                        hints.add(Hint::Job(id));
                    }
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

    /// Looks: a notification may be false.
    fn look_into(&self, shared: &WorkerShared, hint: &Hint) {
        match hint {
            Hint::Queue(queue) => self.wake_for(queue),
            Hint::Directive => shared.heartbeat_state.report_now.notify_one(),
            Hint::Job(id) => shared.in_flight.check_job(*id),
        }
    }
}
