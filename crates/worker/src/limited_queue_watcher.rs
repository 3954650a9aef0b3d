//! Waiting for jobs of queues with limits. A blocking claim would not ask their limits, so a plain read that takes nothing
//! waits for an entry instead, and rings: then the claim script decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use common::name::{Priority, QueueName};
use store::{StoreResult, connection::dedicated::Dedicated, log_interruption, next_reconnect_delay, reconnect_delays};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{wakeup::Wakeup, worker::WorkerShared};

/// Rings when there is a job on one of the streams that nobody has taken. It keeps its connection from one time to the
/// next, and stops when it is dropped.
pub(crate) struct LimitedQueueWatcher {
    streams: Vec<(QueueName, Priority)>,
    rearm_state: Arc<RearmState>,
    _task: AbortOnDropHandle<()>,
}

/// A bell that rang is silent until somebody waits again.
#[derive(Default)]
struct RearmState {
    has_fired: AtomicBool,
    rearmed: Notify,
}

impl LimitedQueueWatcher {
    /// A bell for these streams.
    pub(crate) fn new(
        shared: &Arc<WorkerShared>,
        doorbell: &Arc<Wakeup>,
        streams: Vec<(QueueName, Priority)>,
        block: Duration,
    ) -> Self {
        let rearm_state: Arc<RearmState> = Arc::default();
        let run = run(shared.clone(), doorbell.clone(), streams.clone(), rearm_state.clone(), block);
        Self { streams, rearm_state, _task: AbortOnDropHandle::new(tokio::spawn(run)) }
    }

    /// Whether it is one for these streams, in this order.
    pub(crate) fn is_watching(&self, streams: &[(QueueName, Priority)]) -> bool {
        self.streams == streams
    }

    /// Makes it ring once more.
    pub(crate) fn rearm(&self) {
        if self.rearm_state.has_fired.swap(false, SeqCst) {
            self.rearm_state.rearmed.notify_one();
        }
    }
}

async fn run(
    shared: Arc<WorkerShared>,
    doorbell: Arc<Wakeup>,
    streams: Vec<(QueueName, Priority)>,
    armed: Arc<RearmState>,
    block: Duration,
) {
    let (mut delays, mut connection) = (reconnect_delays(), None);
    loop {
        match wait_for_entry(&shared, &mut connection, &streams, block).await {
            Ok(()) => {
                delays = reconnect_delays();
                armed.has_fired.store(true, SeqCst);
                doorbell.wake(&shared).await;
                armed.rearmed.notified().await;
            }
            Err(error) => {
                connection = None;
                log_interruption("waiting for limited queues", &error);
                tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
            }
        }
    }
}

async fn wait_for_entry(
    shared: &WorkerShared,
    connection: &mut Option<Dedicated>,
    streams: &[(QueueName, Priority)],
    block: Duration,
) -> StoreResult<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(shared.jobs.redis().dedicated(block).await?),
    };
    while !shared.jobs.wait_for_undelivered(connection, streams, block).await? {}
    Ok(())
}
