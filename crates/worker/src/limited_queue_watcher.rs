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
use store::{StoreResult, connection::dedicated::Dedicated, next_delay, note_interruption, reconnect_delays};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{wakeup::Doorbell, worker::Shared};

/// Rings when there is a job on one of the streams that nobody has taken. It keeps its connection from one time to the
/// next, and stops when it is dropped.
pub(crate) struct Bell {
    streams: Vec<(QueueName, Priority)>,
    armed: Arc<Armed>,
    _task: AbortOnDropHandle<()>,
}

/// A bell that rang is silent until somebody waits again.
#[derive(Default)]
struct Armed {
    has_rung: AtomicBool,
    again: Notify,
}

impl Bell {
    /// A bell for these streams.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        doorbell: &Arc<Doorbell>,
        streams: Vec<(QueueName, Priority)>,
        block: Duration,
    ) -> Self {
        let armed: Arc<Armed> = Arc::default();
        let run = run(shared.clone(), doorbell.clone(), streams.clone(), armed.clone(), block);
        Self { streams, armed, _task: AbortOnDropHandle::new(tokio::spawn(run)) }
    }

    /// Whether it is one for these streams, in this order.
    pub(crate) fn is_for(&self, streams: &[(QueueName, Priority)]) -> bool {
        self.streams == streams
    }

    /// Makes it ring once more.
    pub(crate) fn arm(&self) {
        if self.armed.has_rung.swap(false, SeqCst) {
            self.armed.again.notify_one();
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    doorbell: Arc<Doorbell>,
    streams: Vec<(QueueName, Priority)>,
    armed: Arc<Armed>,
    block: Duration,
) {
    let (mut delays, mut connection) = (reconnect_delays(), None);
    loop {
        match wait(&shared, &mut connection, &streams, block).await {
            Ok(()) => {
                delays = reconnect_delays();
                armed.has_rung.store(true, SeqCst);
                doorbell.ring(&shared).await;
                armed.again.notified().await;
            }
            Err(error) => {
                connection = None;
                note_interruption("waiting for limited queues", &error);
                tokio::time::sleep(next_delay(&mut delays)).await;
            }
        }
    }
}

async fn wait(
    shared: &Shared,
    connection: &mut Option<Dedicated>,
    streams: &[(QueueName, Priority)],
    block: Duration,
) -> StoreResult<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(shared.jobs.redis().dedicated(block).await?),
    };
    while !shared.jobs.has_undelivered(connection, streams, block).await? {}
    Ok(())
}
