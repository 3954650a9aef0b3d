//! Filters of readers. Readers with the same filter share it, and what it says of a message: it is asked once for all of
//! them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use model::{
    message::Position,
    subscription::{FilterVerdict, MessageFilter},
};

use super::encoded_message::EncodedMessage;

/// Maximum number of verdicts that a channel remembers.
const MAX_VERDICTS: usize = 1024;
/// How many filters are known before those that nobody has any more are looked for.
const PRUNE_ABOVE: usize = 64;

/// A filter that readers share.
#[derive(Debug)]
pub struct SharedFilter {
    filter: MessageFilter,
    /// Identifies it as long as the process runs.
    id: u64,
    text_len: usize,
}

impl SharedFilter {
    /// The length of its text in bytes.
    pub(super) fn text_len(&self) -> usize {
        self.text_len
    }
}

/// The filters in use, by their text.
#[derive(Default)]
pub(super) struct SharedFilters {
    known: Mutex<HashMap<String, Weak<SharedFilter>>>,
    last_id: AtomicU64,
}

impl SharedFilters {
    /// The filter, shared with those who have the same one; none if it matches everything.
    pub(super) fn share(&self, filter: MessageFilter) -> Option<Arc<SharedFilter>> {
        if filter.is_empty() {
            return None;
        }
        let text = serde_json::to_string(&filter).unwrap_or_default();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.get(&text).and_then(Weak::upgrade) {
            return Some(shared);
        }
        if known.len() >= PRUNE_ABOVE && known.len().is_power_of_two() {
            known.retain(|_, filter| filter.strong_count() > 0);
        }
        let id = self.last_id.fetch_add(1, Relaxed);
        let shared = Arc::new(SharedFilter { filter, id, text_len: text.len() });
        known.insert(text, Arc::downgrade(&shared));
        Some(shared)
    }
}

/// What filters said of the messages of a channel.
#[derive(Default)]
pub(super) struct FilterVerdicts(Mutex<HashMap<(Position, u64), bool>>);

impl FilterVerdicts {
    /// Whether a filter lets a message pass. One that nobody can read does not.
    pub(super) fn passes(&self, filter: &SharedFilter, message: &EncodedMessage) -> bool {
        let ask = || filter.filter.matches_shown(message.json()) == FilterVerdict::Matches;
        let Some(position) = message.position else { return ask() };
        let mut verdicts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = verdicts.get(&(position, filter.id)) {
            return *known;
        }
        drop(verdicts);
        // Another reader may ask meanwhile, and gets the same
        let passes = ask();
        verdicts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if verdicts.len() >= MAX_VERDICTS {
            verdicts.clear();
        }
        verdicts.insert((position, filter.id), passes);
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(json: &str) -> MessageFilter {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn readers_with_the_same_filter_share_it_and_others_are_forgotten() {
        let filters = SharedFilters::default();
        let paid = r#"{"attributes":{"type":"order.paid"}}"#;
        let first = filters.share(filter(paid)).expect("a filter");
        let second = filters.share(filter(&paid.replace(':', " : "))).expect("a filter");
        assert!(Arc::ptr_eq(&first, &second) && first.text_len() == paid.len());
        assert!(filters.share(filter(r#"{"attributes":{}}"#)).is_none());
        for n in 0..10 * PRUNE_ABOVE {
            drop(filters.share(filter(&format!(r#"{{"data":{{"/n":{n}}}}}"#))));
        }
        assert!(filters.known.lock().expect("a lock").len() <= PRUNE_ABOVE);
        assert!(Arc::ptr_eq(&filters.share(filter(paid)).expect("a filter"), &first));
    }

    #[test]
    fn verdicts_are_of_their_message_and_filter_and_bounded() {
        let (filters, verdicts) = (SharedFilters::default(), FilterVerdicts::default());
        let [odd, even] =
            [1, 0].map(|n| filters.share(filter(&format!(r#"{{"data":{{"":{n}}}}}"#))).expect("a filter"));
        for sequence in (0..2 * MAX_VERDICTS as u64).chain(0..10) {
            let json = format!(r#"{{"content_type":"application/json","data":{}}}"#, sequence % 2);
            let position = Position { epoch: 1, sequence };
            let message = EncodedMessage::new("c".parse().expect("a name"), Some(position), &json);
            assert_eq!(verdicts.passes(&odd, &message), sequence % 2 == 1);
            assert_eq!(verdicts.passes(&even, &message), sequence % 2 == 0);
            assert!(verdicts.0.lock().expect("a lock").len() <= MAX_VERDICTS);
        }
        let plain = EncodedMessage::new("c".parse().expect("a name"), None, r#"{"data":"1"}"#);
        assert!(verdicts.passes(&odd, &plain) && !verdicts.passes(&even, &plain));
    }
}
