//! Notes that messages are done with, as many at a time as have gathered, and gives back those that are not.

use std::{collections::HashMap, sync::Arc};

use common::name::ChannelName;
use model::message::Position;
use store::{StoreError, next_delay, note_interruption, reconnect_delays, subscriptions::Done};
use tokio::sync::mpsc;

use super::in_flight::{InFlight, Place};
use crate::subscriptions::runner::Runner;

/// Messages that are done with and not noted yet, beyond those that wait for it with their place.
pub(super) const NOTES: usize = 256;

/// Notes until nobody has anything to note any more.
pub(super) async fn note(runner: Arc<Runner>, in_flight: Arc<InFlight>, mut noted: mpsc::Receiver<(Place, Done)>) {
    let mut batch = Vec::with_capacity(NOTES);
    while noted.recv_many(&mut batch, NOTES).await > 0 {
        let mut channels: HashMap<ChannelName, Vec<(Position, Done)>> = HashMap::new();
        for ((channel, position), done) in batch.drain(..) {
            channels.entry(channel).or_default().push((position, done));
        }
        for (channel, done) in channels {
            let is_noted = note_channel(&runner, &channel, &done).await;
            // What Redis refuses to note comes again when the deadline has passed
            if is_noted || !runner.process.abandon.is_cancelled() {
                in_flight.remove(done.into_iter().map(|(position, _)| (channel.clone(), position)));
            }
        }
    }
}

/// False when the process stops before Redis has heard of it.
async fn note_channel(runner: &Runner, channel: &ChannelName, done: &[(Position, Done)]) -> bool {
    let mut delays = reconnect_delays();
    loop {
        match runner.store().ack(&runner.subscription, channel, done).await {
            Ok(()) => return true,
            Err(error) => {
                note_interruption("noting what was delivered", &error);
                let pause = tokio::time::sleep(next_delay(&mut delays));
                let goes_on = runner.process.abandon.run_until_cancelled(pause).await.is_some();
                if !goes_on || !matches!(error, StoreError::Unavailable(_)) {
                    return false;
                }
            }
        }
    }
}

/// What was not delivered is another worker's, at once.
pub(super) async fn give_back(runner: &Runner, in_flight: &InFlight) {
    let left = in_flight.drain();
    if left.is_empty() {
        return;
    }
    let store = runner.store();
    let given = async {
        store.give_back(&runner.subscription, runner.worker(), &left).await?;
        store.wake().await
    };
    let (name, messages) = (&runner.subscription.name, left.len());
    match given.await {
        Ok(()) => tracing::info!(subscription = %name, messages, "messages given back"),
        Err(error) => {
            tracing::warn!(subscription = %name, messages, %error, "messages wait for their deadline");
        }
    }
}
