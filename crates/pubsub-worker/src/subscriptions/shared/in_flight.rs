//! Which messages this process has of a subscription: from when it was handed them until it is noted that they are done with.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::name::ChannelName;
use model::message::Position;

/// Where a message is.
pub(super) type Place = (ChannelName, Position);

#[derive(Default)]
pub(super) struct InFlight(Mutex<HashSet<Place>>);

/// A message that is worked on.
pub(super) struct UnderWay {
    among: Arc<InFlight>,
    /// None once it has ended.
    place: Option<Place>,
}

impl InFlight {
    fn all(&self) -> MutexGuard<'_, HashSet<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to work on a message; none if somebody does already.
    pub(super) fn begin(self: &Arc<Self>, place: Place) -> Option<UnderWay> {
        self.all().insert(place.clone()).then(|| UnderWay { among: self.clone(), place: Some(place) })
    }

    pub(super) fn has(&self, place: &Place) -> bool {
        self.all().contains(place)
    }

    pub(super) fn remove(&self, places: impl IntoIterator<Item = Place>) {
        let mut all = self.all();
        for place in places {
            all.remove(&place);
        }
    }

    /// Those that are left, and are this process's no longer.
    pub(super) fn drain(&self) -> Vec<Place> {
        self.all().drain().collect()
    }
}

impl UnderWay {
    /// It was worked on, and stays in flight until that is noted.
    pub(super) fn ended(mut self) -> Option<Place> {
        self.place.take()
    }
}

impl Drop for UnderWay {
    /// The work broke off: it is taken over when its deadline has passed, perhaps by this process.
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.among.all().remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_in_flight_until_it_is_done_with_or_whoever_works_on_it_fails() {
        let place: Place = ("c".parse().expect("a name"), Position::START);
        let in_flight = Arc::<InFlight>::default();
        let begun = in_flight.begin(place.clone()).expect("nobody has it");
        assert!(in_flight.begin(place.clone()).is_none(), "somebody has it");
        let failing = tokio::spawn(async move {
            let _begun = begun;
            panic!("on purpose");
        });
        assert!(failing.await.is_err());
        assert!(!in_flight.has(&place), "it can be taken over");
        let again = in_flight.begin(place.clone()).expect("nobody has it");
        assert_eq!(again.ended(), Some(place.clone()));
        assert!(in_flight.has(&place), "it is not noted yet");
        in_flight.remove([place]);
        assert!(in_flight.drain().is_empty());
    }
}
