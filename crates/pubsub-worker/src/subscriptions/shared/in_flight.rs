//! The messages of a subscription in this process: from their claim until they are acknowledged.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::name::ChannelName;
use model::message::Position;

/// A message's channel and position.
pub(super) type MessageAddress = (ChannelName, Position);

#[derive(Default)]
pub(super) struct InFlightMessages(Mutex<HashSet<MessageAddress>>);

/// A message in delivery.
pub(super) struct InFlightGuard {
    in_flight: Arc<InFlightMessages>,
    /// None once the delivery has ended.
    address: Option<MessageAddress>,
}

impl InFlightMessages {
    fn lock(&self) -> MutexGuard<'_, HashSet<MessageAddress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the delivery of a message; none if it is in delivery already.
    pub(super) fn begin(self: &Arc<Self>, address: MessageAddress) -> Option<InFlightGuard> {
        self.lock().insert(address.clone()).then(|| InFlightGuard { in_flight: self.clone(), address: Some(address) })
    }

    pub(super) fn contains(&self, address: &MessageAddress) -> bool {
        self.lock().contains(address)
    }

    pub(super) fn remove(&self, addresses: impl IntoIterator<Item = MessageAddress>) {
        let mut all = self.lock();
        for address in addresses {
            all.remove(&address);
        }
    }

    /// Removes and returns the remaining messages, which no longer belong to this process.
    pub(super) fn drain(&self) -> Vec<MessageAddress> {
        self.lock().drain().collect()
    }
}

impl InFlightGuard {
    /// The delivery ended; the message stays in flight until it is acknowledged.
    pub(super) fn finish(mut self) -> Option<MessageAddress> {
        self.address.take()
    }
}

impl Drop for InFlightGuard {
    /// The delivery was aborted: the message is reclaimed after its deadline, perhaps by this process.
    fn drop(&mut self) {
        if let Some(address) = self.address.take() {
            self.in_flight.lock().remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_in_flight_until_it_is_acknowledged_or_its_delivery_panics() {
        let address: MessageAddress = ("c".parse().expect("a name"), Position::START);
        let in_flight = Arc::<InFlightMessages>::default();
        let begun = in_flight.begin(address.clone()).expect("it is free");
        assert!(in_flight.begin(address.clone()).is_none(), "it is in delivery");
        let failing = tokio::spawn(async move {
            let _begun = begun;
            panic!("on purpose");
        });
        assert!(failing.await.is_err());
        assert!(!in_flight.contains(&address), "it can be reclaimed");
        let again = in_flight.begin(address.clone()).expect("it is free");
        assert_eq!(again.finish(), Some(address.clone()));
        assert!(in_flight.contains(&address), "it is not acknowledged yet");
        in_flight.remove([address]);
        assert!(in_flight.drain().is_empty());
    }
}
