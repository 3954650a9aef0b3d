//! Acknowledges finished messages in batches and releases the unfinished ones.

use std::{collections::HashMap, sync::Arc, time::Instant};

use common::name::ChannelName;
use model::message::Position;
use store::{
    StoreError, StoreResult, log_interruption, next_reconnect_delay, reconnect_delays,
    subscriptions::MessageDisposition,
};
use tokio::sync::mpsc;

use super::in_flight::{InFlightMessages, MessageAddress};
use crate::subscriptions::runner::SubscriptionRunner;

/// Maximum number of finished messages that wait for acknowledgement without a permit.
pub(super) const ACK_BUFFER: usize = 256;

/// Acknowledges until all senders are gone.
pub(super) async fn run_acknowledger(
    runner: Arc<SubscriptionRunner>,
    in_flight: Arc<InFlightMessages>,
    mut noted: mpsc::Receiver<(MessageAddress, MessageDisposition)>,
) {
    let mut batch = Vec::with_capacity(ACK_BUFFER);
    while noted.recv_many(&mut batch, ACK_BUFFER).await > 0 {
        let mut channels: HashMap<ChannelName, Vec<(Position, MessageDisposition)>> = HashMap::new();
        for ((channel, position), done) in batch.drain(..) {
            channels.entry(channel).or_default().push((position, done));
        }
        for (channel, done) in channels {
            let is_acked = ack_channel(&runner, &channel, &done).await;
            // A message that Redis refused to acknowledge until its deadline is reclaimed
            if is_acked || !runner.process.hard_shutdown.is_cancelled() {
                in_flight.remove(done.into_iter().map(|(position, _)| (channel.clone(), position)));
            }
        }
    }
}

/// False if the process stops before Redis has recorded it, or Redis refuses that until the deadline is over: whatever
/// refuses it may pass.
async fn ack_channel(
    runner: &SubscriptionRunner,
    channel: &ChannelName,
    done: &[(Position, MessageDisposition)],
) -> bool {
    if runner.is_obsolete().await {
        return true;
    }
    let (mut delays, deadline) = (reconnect_delays(), Instant::now() + runner.lease());
    loop {
        match runner.store().ack_messages(&runner.subscription, channel, done).await {
            Ok(()) => return true,
            Err(error) => {
                log_interruption("noting what was delivered", &error);
                let pause = tokio::time::sleep(next_reconnect_delay(&mut delays));
                let goes_on = runner.process.hard_shutdown.run_until_cancelled(pause).await.is_some();
                if !goes_on || (!matches!(error, StoreError::Unavailable(_)) && Instant::now() >= deadline) {
                    return false;
                }
            }
        }
    }
}

/// Releases the unfinished messages to other workers at once.
pub(super) async fn release_in_flight(runner: &SubscriptionRunner, in_flight: &InFlightMessages) {
    let left = in_flight.drain();
    if left.is_empty() || runner.is_obsolete().await {
        return;
    }
    let store = runner.store();
    let given = async {
        store.release_messages(&runner.subscription, runner.worker(), &left).await?;
        store.notify_workers().await;
        StoreResult::Ok(())
    };
    let (name, messages) = (&runner.subscription.name, left.len());
    match given.await {
        Ok(()) => tracing::info!(subscription = %name, messages, "messages released"),
        Err(error) => {
            tracing::warn!(subscription = %name, messages, %error, "messages wait for their deadline");
        }
    }
}
