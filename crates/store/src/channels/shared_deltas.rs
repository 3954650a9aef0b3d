//! Differences between messages of a channel, for readers that asked for them instead of whole messages. Readers that got the
//! same message before share the difference: it is made once, when the first of them gets to it, and never otherwise.
//!
//! The memory of differences counts as that of rings does. Long messages and many different predecessors of one message,
//! which readers with different filters have, are not worth the time: these readers get the whole message.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use common::json::ObjectWriter;
use model::message::{Position, delta};

use super::{encoded_message::EncodedMessage, message_ring::RingBudget};

/// Maximum number of differences that a channel remembers.
const MAX_DELTAS: usize = 64;
/// How many messages that readers got out of pages are kept until they get the next one.
const MAX_KEPT_BASES: usize = 4;
/// From how many other messages a difference of one message is made.
const MAX_BASES_PER_MESSAGE: usize = 4;

/// What a difference is of: two messages, as clients see them behind `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeltaKey {
    base: Position,
    position: Position,
    head: &'static str,
}

/// None: the whole message is not longer.
type Delta = Arc<OnceLock<Option<Arc<EncodedMessage>>>>;

/// The newest differences of one channel.
pub(super) struct SharedDeltas {
    made: Mutex<VecDeque<(DeltaKey, Delta)>>,
    kept: Mutex<VecDeque<Arc<EncodedMessage>>>,
    budget: RingBudget,
}

impl SharedDeltas {
    pub(super) fn new(budget: RingBudget) -> Self {
        Self { made: Mutex::default(), kept: Mutex::default(), budget }
    }

    /// Keeps the last message of a page, where the ring may not have it: the next one is a difference from it.
    pub(super) fn keep_base(&self, base: &EncodedMessage) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = kept.iter().any(|known| known.position == base.position);
        if is_known || base.json().len() > delta::MAX_TEXT_BYTES || self.budget.is_exceeded() {
            return;
        }
        if kept.len() >= MAX_KEPT_BASES {
            kept.pop_front();
        }
        // In memory of its own: that of pages is for those who read on
        let copy = EncodedMessage::new(base.channel.clone(), base.position, base.json());
        kept.push_back(self.budget.count(&Arc::new(copy)));
    }

    /// The message at a position that was kept.
    pub(super) fn kept_base(&self, position: Position) -> Option<Arc<EncodedMessage>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|base| base.position == Some(position)).cloned()
    }

    /// The difference of a message from the one at `base`, which `find` finds; none if the reader gets the whole message.
    /// Both begin with `head` for the client, in place of their first bracket.
    pub(super) fn get(
        &self,
        base: Position,
        message: &EncodedMessage,
        head: &'static str,
        find: impl FnOnce() -> Option<Arc<EncodedMessage>>,
    ) -> Option<Arc<EncodedMessage>> {
        let key = DeltaKey { base, position: message.position?, head };
        let known = self.lock().iter().rev().find(|(known, _)| *known == key).map(|(_, delta)| delta.clone());
        if let Some(made) = known.as_ref().and_then(|delta| delta.get()) {
            return made.clone();
        }
        // Nothing is remembered of a base that this reader does not find: another one may have it
        let base = find()?;
        let delta = self.slot(key)?;
        delta.get_or_init(|| self.make(&base, message, key)).clone()
    }

    /// Where the difference is or will be; none if the message has too many.
    fn slot(&self, key: DeltaKey) -> Option<Delta> {
        let mut made = self.lock();
        if let Some((_, delta)) = made.iter().rev().find(|(known, _)| *known == key) {
            return Some(delta.clone());
        }
        if made.iter().filter(|(known, _)| known.position == key.position).count() >= MAX_BASES_PER_MESSAGE {
            return None;
        }
        if self.budget.is_exceeded() {
            made.clear();
        }
        if made.len() >= MAX_DELTAS {
            made.pop_front();
        }
        let delta = Delta::default();
        made.push_back((key, delta.clone()));
        Some(delta)
    }

    fn make(&self, base: &EncodedMessage, message: &EncodedMessage, key: DeltaKey) -> Option<Arc<EncodedMessage>> {
        let seen = |message: &EncodedMessage| [key.head, message.json().get(1..).unwrap_or_default()].concat();
        let is_long = base.json().len().max(message.json().len()) > delta::MAX_TEXT_BYTES;
        let text = (!is_long).then(|| delta::encode(&seen(base), &seen(message), message.json().len())).flatten()?;
        let mut json = ObjectWriter::default();
        json.text("channel", message.channel.as_str()).text("from", &key.base.to_string()).text("delta", &text);
        let delta = EncodedMessage::delta(message.channel.clone(), key.position, &json.finish());
        (delta.event_len() < message.event_len()).then(|| self.budget.count(&Arc::new(delta)))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(DeltaKey, Delta)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 5, sequence }
    }

    fn message(sequence: u64, filling: usize) -> Arc<EncodedMessage> {
        let json = format!(r#"{{"id":"5-{sequence}","data":"{}"}}"#, "abcdefghij".repeat(filling));
        Arc::new(EncodedMessage::new("c".parse().expect("a name"), Some(at(sequence)), &json))
    }

    fn deltas(max_total_bytes: usize) -> SharedDeltas {
        SharedDeltas::new(RingBudget { max_ring_bytes: 1, max_total_bytes, used_bytes: Arc::default() })
    }

    #[test]
    fn readers_with_the_same_message_before_share_one_difference() {
        let deltas = deltas(usize::MAX);
        let (base, next) = (message(1, 50), message(2, 50));
        let asked = AtomicUsize::new(0);
        let get = |head| {
            deltas.get(at(1), &next, head, || {
                asked.fetch_add(1, Relaxed);
                Some(base.clone())
            })
        };
        assert!(deltas.get(at(1), &next, "{", || None).is_none(), "a base that is gone");
        let first = get("{").expect("it is shorter");
        let second = get("{").expect("it is shorter");
        assert!(Arc::ptr_eq(&first, &second) && asked.load(Relaxed) == 1);
        assert_eq!((first.kind(), first.position), ("delta", next.position));
        assert!(first.json().starts_with(r#"{"channel":"c","from":"5-1","delta":"#), "{}", first.json());
        assert!(first.event_len() < next.event_len() / 2);
        let frame = get(r#"{"type":"message","#).expect("it is shorter");
        assert!(frame.json() != first.json(), "lengths are of what the client sees");
        assert!(deltas.budget.used_bytes.load(Relaxed) > 0);
        drop((deltas, second, frame));
    }

    #[test]
    fn a_message_that_is_short_or_long_is_sent_as_a_whole_and_asked_for_once() {
        let deltas = deltas(usize::MAX);
        for filling in [0, delta::MAX_TEXT_BYTES / 10 + 1] {
            let (base, next) = (message(1, filling), message(2, filling));
            assert!(deltas.get(at(1), &next, "{", || Some(base)).is_none());
            assert!(deltas.get(at(1), &next, "{", || unreachable!("it is known")).is_none());
            deltas.lock().clear();
        }
    }

    #[test]
    fn differences_are_bounded_by_number_by_message_and_by_the_memory_of_all_rings() {
        let unbounded = deltas(usize::MAX);
        for sequence in 1..=3 * MAX_DELTAS as u64 {
            let base = message(sequence - 1, 50);
            assert!(unbounded.get(at(sequence - 1), &message(sequence, 50), "{", || Some(base)).is_some());
            assert!(unbounded.lock().len() <= MAX_DELTAS);
        }
        let used = unbounded.budget.used_bytes.clone();
        drop(unbounded);
        assert_eq!(used.load(Relaxed), 0);

        let of_one = deltas(usize::MAX);
        let made: Vec<_> = (0..=MAX_BASES_PER_MESSAGE as u64)
            .map(|sequence| of_one.get(at(sequence), &message(100, 50), "{", || Some(message(sequence, 50))).is_some())
            .collect();
        assert_eq!(made.iter().filter(|made| **made).count(), MAX_BASES_PER_MESSAGE, "{made:?}");

        let crowded = deltas(0);
        for sequence in 1..5 {
            let base = message(sequence - 1, 50);
            assert!(crowded.get(at(sequence - 1), &message(sequence, 50), "{", || Some(base)).is_some());
            assert_eq!(crowded.lock().len(), 1, "others make room");
        }
    }
}
