//! Waiting for jobs of queues with limits. A blocking claim would not ask their limits, so a plain read that takes nothing
//! waits for an entry instead, and rings: then the claim script decides.

use std::sync::Arc;

use common::{
    name::{Priority, QueueName},
    redis::{StoreResult, next_delay, note_interruption, reconnect_delays},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{doorbell::Doorbell, worker::Shared};

/// Rings when there is a job on one of the streams that nobody has taken; stops when it is dropped.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    doorbell: &Arc<Doorbell>,
    streams: Vec<(QueueName, Priority)>,
    block: std::time::Duration,
) -> AbortOnDropHandle<()> {
    let (shared, doorbell) = (shared.clone(), doorbell.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut delays = reconnect_delays();
        loop {
            match wait(&shared, &streams, block).await {
                Ok(()) => return doorbell.ring(&shared).await,
                Err(error) => {
                    note_interruption("waiting for limited queues", &error);
                    tokio::time::sleep(next_delay(&mut delays)).await;
                }
            }
        }
    }))
}

async fn wait(shared: &Shared, streams: &[(QueueName, Priority)], block: std::time::Duration) -> StoreResult<()> {
    let mut connection = shared.jobs.redis().dedicated(block).await?;
    loop {
        if shared.jobs.has_undelivered(&mut connection, streams, block).await? {
            return Ok(());
        }
    }
}
