//! Which messages this process has of a subscription: from when it was handed them until it is noted that they are done with.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::name::ChannelName;
use model::message::Position;

/// Where a message is.
pub(super) type MessageAddress = (ChannelName, Position);

#[derive(Default)]
pub(super) struct InFlightMessages(Mutex<HashSet<MessageAddress>>);

/// A message that is worked on.
pub(super) struct InFlightGuard {
    in_flight: Arc<InFlightMessages>,
    /// None once it has ended.
    address: Option<MessageAddress>,
}

impl InFlightMessages {
    fn lock(&self) -> MutexGuard<'_, HashSet<MessageAddress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to work on a message; none if somebody does already.
    pub(super) fn begin(self: &Arc<Self>, place: MessageAddress) -> Option<InFlightGuard> {
        self.lock().insert(place.clone()).then(|| InFlightGuard { in_flight: self.clone(), address: Some(place) })
    }

    pub(super) fn contains(&self, place: &MessageAddress) -> bool {
        self.lock().contains(place)
    }

    pub(super) fn remove(&self, places: impl IntoIterator<Item = MessageAddress>) {
        let mut all = self.lock();
        for place in places {
            all.remove(&place);
        }
    }

    /// Those that are left, and are this process's no longer.
    pub(super) fn drain(&self) -> Vec<MessageAddress> {
        self.lock().drain().collect()
    }
}

impl InFlightGuard {
    /// It was worked on, and stays in flight until that is noted.
    pub(super) fn finish(mut self) -> Option<MessageAddress> {
        self.address.take()
    }
}

impl Drop for InFlightGuard {
    /// The work broke off: it is taken over when its deadline has passed, perhaps by this process.
    fn drop(&mut self) {
        if let Some(place) = self.address.take() {
            self.in_flight.lock().remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_in_flight_until_it_is_done_with_or_whoever_works_on_it_fails() {
        let place: MessageAddress = ("c".parse().expect("a name"), Position::START);
        let in_flight = Arc::<InFlightMessages>::default();
        let begun = in_flight.begin(place.clone()).expect("nobody has it");
        assert!(in_flight.begin(place.clone()).is_none(), "somebody has it");
        let failing = tokio::spawn(async move {
            let _begun = begun;
            panic!("on purpose");
        });
        assert!(failing.await.is_err());
        assert!(!in_flight.contains(&place), "it can be taken over");
        let again = in_flight.begin(place.clone()).expect("nobody has it");
        assert_eq!(again.finish(), Some(place.clone()));
        assert!(in_flight.contains(&place), "it is not noted yet");
        in_flight.remove([place]);
        assert!(in_flight.drain().is_empty());
    }
}
