//! The newest messages of a channel, shared by all of its readers: a reader is a number in the ring, not a queue.
//!
//! Invariant: between `base` and `head` no message is missing. Whatever breaks that empties the ring and starts a new
//! generation, and readers find out from the history what they missed. Bounded in bytes, for each ring and for all
//! rings together. A long message counts until the last reader has sent it, also when it has left its ring: while readers that
//! take nothing hold all the memory, messages leave at once, and the others read them from the history.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::{catch_up_state::CatchUp, encoded_message::EncodedMessage};
use model::message::Position;

/// Approximate memory of a message besides its text, in bytes.
const OVERHEAD_BYTES: usize = 256;

/// Among how many messages one is looked for that a reader got before.
const MAX_LOOK_BACK: usize = 64;

/// Shorter messages go to a connection as a whole: nobody holds one that has left its ring.
const MIN_LONG_BYTES: usize = 16 << 10;

/// About what it takes to write to a reader. While all readers are written to, new messages wait for the next round: each
/// reader then gets several in one write, which costs little more than one.
const WRITE_TIME: Duration = Duration::from_micros(4);
/// Shorter rounds are not worth a timer.
const MIN_ROUND: Duration = Duration::from_millis(1);
/// Longest time that a message waits for the round before it.
const MAX_ROUND: Duration = Duration::from_millis(50);

/// Limits of a ring.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "bytes are the unit")]
pub(super) struct RingBudget {
    /// Maximum bytes of one ring.
    pub(super) max_ring_bytes: usize,
    /// Maximum bytes of all rings.
    pub(super) max_total_bytes: usize,
    /// Current bytes of all rings, and of long messages that have left them.
    pub(super) used_bytes: Arc<AtomicUsize>,
}

impl RingBudget {
    /// The same message, whose bytes, which count already, do so until nobody has them.
    fn lease(&self, message: &Arc<EncodedMessage>) -> Arc<EncodedMessage> {
        let size = encoded_size(message);
        let leased = LeasedBytes { message: message.clone(), size, used_bytes: self.used_bytes.clone() };
        Arc::new(message.with_event(Bytes::from_owner(leased)))
    }

    /// The same message, whose bytes count from now on, until nobody has them.
    pub(super) fn count(&self, message: &Arc<EncodedMessage>) -> Arc<EncodedMessage> {
        self.used_bytes.fetch_add(encoded_size(message), Relaxed);
        self.lease(message)
    }

    /// Whether all rings have more than they may have.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used_bytes.load(Relaxed) > self.max_total_bytes
    }
}

#[derive(Debug)]
pub(super) struct MessageRing {
    messages: VecDeque<Arc<EncodedMessage>>,
    /// The number of the oldest item.
    first_number: u64,
    bytes: usize,
    budget: RingBudget,
    /// Messages after this position up to `head` are in the ring; none until the channel is followed.
    base: Option<Position>,
    /// The newest position that was received.
    pub(super) head: Option<Position>,
    /// Incremented when numbers become invalid.
    pub(super) generation: u64,
    pub(super) catch_up: CatchUp,
    /// Incremented when readers should check again.
    pub(super) change_count: u64,
    /// One slot for each reader; the next change wakes its waker.
    wakers: Slab<Option<Waker>>,
    /// When the last round of writes will be over.
    round_ends_at: Option<Instant>,
}

/// What the ring has at a number.
pub(super) enum RingRead {
    Message(Arc<EncodedMessage>),
    Empty,
    /// No longer in the ring.
    Evicted,
}

impl MessageRing {
    pub(super) fn new(budget: RingBudget, catch_up: CatchUp) -> Self {
        Self {
            messages: VecDeque::new(),
            first_number: 0,
            bytes: 0,
            budget,
            base: None,
            head: None,
            generation: 0,
            catch_up,
            change_count: 0,
            wakers: Slab::new(),
            round_ends_at: None,
        }
    }

    /// Empties the ring, which then continues after `at`. Its readers must find their position again.
    pub(super) fn reset(&mut self, at: Position) {
        while self.drop_oldest() {}
        // Readers that were up to date are now behind, too
        self.first_number += 1;
        self.generation += 1;
        (self.base, self.head) = (Some(at), Some(at));
    }

    /// Appends the message after `head`, or one without a position.
    pub(super) fn push(&mut self, item: Arc<EncodedMessage>) {
        self.head = item.position.or(self.head);
        let size = encoded_size(&item);
        self.bytes += size;
        self.budget.used_bytes.fetch_add(size, Relaxed);
        self.messages.push_back(if is_long(&item) { self.budget.lease(&item) } else { item });
        while self.bytes > self.budget.max_ring_bytes || self.budget.is_exceeded() {
            if !self.drop_oldest() {
                break;
            }
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(item) = self.messages.pop_front() else { return false };
        self.first_number += 1;
        let size = encoded_size(&item);
        self.bytes -= size;
        if !is_long(&item) {
            self.budget.used_bytes.fetch_sub(size, Relaxed);
        }
        self.base = item.position.or(self.base);
        true
    }

    pub(super) fn get(&self, number: u64) -> RingRead {
        let Some(index) = number.checked_sub(self.first_number) else { return RingRead::Evicted };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.messages.get(index).map_or(RingRead::Empty, |item| RingRead::Message(item.clone()))
    }

    /// The message at a position, if it is among the newest before a number.
    pub(super) fn find_before(&self, number: u64, position: Position) -> Option<Arc<EncodedMessage>> {
        let index = usize::try_from(number.checked_sub(self.first_number)?).unwrap_or(usize::MAX);
        let earlier = self.messages.range(..index.min(self.messages.len())).rev().take(MAX_LOOK_BACK);
        earlier.into_iter().find(|message| message.position == Some(position)).cloned()
    }

    /// The number at which a reader that has everything up to `after` continues, if possible.
    pub(super) fn join(&self, after: Position, generation: u64) -> Option<u64> {
        if self.generation != generation || self.base.is_none_or(|base| after < base) {
            return None;
        }
        let is_known = |item: &Arc<EncodedMessage>| item.position.is_some_and(|position| position <= after);
        let skipped = self.messages.iter().rposition(is_known).map_or(0, |index| index + 1);
        Some(self.first_number + u64::try_from(skipped).unwrap_or_default())
    }

    /// The same for a reader that has all that the ring has: nothing needs to be read for it.
    pub(super) fn join_head(&self, after: Position) -> Option<u64> {
        if self.head == Some(after) { self.join(after, self.generation) } else { None }
    }

    /// Registers a reader's slot for a waker.
    pub(super) fn register_waiter(&mut self) -> usize {
        self.wakers.insert(None)
    }

    pub(super) fn unregister_waiter(&mut self, waiter_id: usize) {
        self.wakers.try_remove(waiter_id);
    }

    /// Sets the waker for the next change. Lock the ring for both the check and this call, and you miss no change.
    pub(super) fn set_waker(&mut self, waiter_id: usize, waker: &Waker) {
        match self.wakers.get_mut(waiter_id) {
            Some(Some(known)) => known.clone_from(waker),
            Some(none) => *none = Some(waker.clone()),
            None => {}
        }
    }

    /// Records a change and returns the wakers to wake.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        self.change_count += 1;
        let round = WRITE_TIME * u32::try_from(self.wakers.len()).unwrap_or(u32::MAX);
        self.round_ends_at = (round >= MIN_ROUND).then(|| Instant::now() + round.min(MAX_ROUND));
        self.wakers.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
    }

    /// When readers should be woken again at the earliest; none for at once.
    pub(super) fn round_ends_at(&self) -> Option<Instant> {
        self.round_ends_at
    }

    pub(super) fn is_initialized(&self) -> bool {
        self.base.is_some()
    }
}

impl Drop for MessageRing {
    fn drop(&mut self) {
        while self.drop_oldest() {}
    }
}

/// The bytes of a long message.
struct LeasedBytes {
    message: Arc<EncodedMessage>,
    size: usize,
    used_bytes: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for LeasedBytes {
    fn as_ref(&self) -> &[u8] {
        self.message.event_bytes()
    }
}

impl Drop for LeasedBytes {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.size, Relaxed);
    }
}

fn is_long(item: &EncodedMessage) -> bool {
    item.event_len() >= MIN_LONG_BYTES
}

fn encoded_size(item: &EncodedMessage) -> usize {
    item.event_len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: 5, sequence }
    }

    fn item(sequence: Option<u64>, length: usize) -> Arc<EncodedMessage> {
        let channel = "c".parse().expect("a name");
        let shown = EncodedMessage::new(channel, sequence.map(at), "");
        let filling = "x".repeat(length.saturating_sub(shown.event_len()));
        Arc::new(EncodedMessage::new(shown.channel, shown.position, &filling))
    }

    fn ring(each: usize, all: usize) -> MessageRing {
        let mut ring = MessageRing::new(
            RingBudget { max_ring_bytes: each, max_total_bytes: all, used_bytes: Arc::default() },
            CatchUp::new(false),
        );
        ring.reset(at(0));
        ring
    }

    fn positions(ring: &MessageRing, mut number: u64) -> Vec<Option<u64>> {
        let mut found = Vec::new();
        while let RingRead::Message(item) = ring.get(number) {
            found.push(item.position.map(|position| position.sequence));
            number += 1;
        }
        found
    }

    #[test]
    fn a_reader_that_has_everything_up_to_the_oldest_joins_after_it() {
        let mut ring = ring(10_000, 10_000);
        for sequence in [Some(1), Some(2), None, Some(3)] {
            ring.push(item(sequence, 1));
        }
        for (after, expected) in [
            (0, vec![Some(1), Some(2), None, Some(3)]),
            (1, vec![Some(2), None, Some(3)]),
            (2, vec![None, Some(3)]),
            (3, vec![]),
            (9, vec![]),
        ] {
            let number = ring.join(at(after), ring.generation).expect("in the ring");
            assert_eq!(positions(&ring, number), expected, "after {after}");
        }
        assert_eq!(ring.join(Position::START, ring.generation), None);
        assert_eq!(ring.join(at(1), ring.generation + 1), None);
    }

    #[test]
    fn a_ring_is_bounded_alone_and_with_others_and_who_is_left_behind_knows() {
        let mut ring = ring(3 * (OVERHEAD_BYTES + 100), usize::MAX);
        let start = ring.join(at(0), ring.generation).expect("in the ring");
        for sequence in 1..=5 {
            ring.push(item(Some(sequence), 100));
        }
        assert!(matches!(ring.get(start), RingRead::Evicted));
        assert_eq!(ring.join(at(1), ring.generation), None);
        let number = ring.join(at(2), ring.generation).expect("in the ring");
        assert_eq!(positions(&ring, number), [Some(3), Some(4), Some(5)]);
        assert_eq!(ring.budget.used_bytes.load(Relaxed), 3 * (OVERHEAD_BYTES + 100));

        let budget = RingBudget { max_total_bytes: OVERHEAD_BYTES, ..ring.budget.clone() };
        let mut other = MessageRing::new(budget, CatchUp::new(false));
        other.reset(at(0));
        other.push(item(Some(1), 1));
        assert!(other.messages.is_empty() && other.head == Some(at(1)), "there is no room for it");
        drop((ring, other));
    }

    #[test]
    fn a_long_message_counts_until_the_last_reader_has_sent_it_and_short_ones_leave_with_the_ring() {
        let budget = 3 * MIN_LONG_BYTES;
        let mut ring = ring(budget, budget);
        let used = ring.budget.used_bytes.clone();
        let number = ring.join(at(0), ring.generation).expect("in the ring");
        ring.push(item(Some(1), 2 * MIN_LONG_BYTES));
        let RingRead::Message(message) = ring.get(number) else { panic!("it is in the ring") };
        let sending = message.event().split_off(100);
        drop(message);
        ring.push(item(Some(2), 2 * MIN_LONG_BYTES));
        assert!(ring.messages.is_empty() && used.load(Relaxed) >= 2 * MIN_LONG_BYTES, "a reader still has the first");
        ring.push(item(Some(3), 100));
        assert_eq!((ring.messages.len(), ring.head), (1, Some(at(3))), "a short one fits beside it");
        drop(sending);
        ring.push(item(Some(4), 2 * MIN_LONG_BYTES));
        assert_eq!(ring.messages.len(), 2);
        drop(ring);
        assert_eq!(used.load(Relaxed), 0);
    }

    #[test]
    fn a_change_wakes_once_who_waits_and_nobody_who_left() {
        let mut ring = ring(10_000, 10_000);
        let (task, other) = (Arc::new(WakeCounter::default()), Arc::new(WakeCounter::default()));
        let (stays, leaves) = (ring.register_waiter(), ring.register_waiter());
        ring.set_waker(stays, &other.clone().into());
        ring.set_waker(stays, &task.clone().into());
        ring.set_waker(leaves, &other.clone().into());
        ring.unregister_waiter(leaves);
        for _ in 0..2 {
            ring.take_wakers().into_iter().for_each(Waker::wake);
        }
        assert_eq!((task.0.load(Relaxed), other.0.load(Relaxed), ring.change_count), (1, 0, 2));
        assert_eq!(ring.register_waiter(), leaves, "places are used again");
    }

    #[tokio::test(start_paused = true)]
    async fn many_readers_are_woken_in_rounds_and_few_at_once() {
        let mut ring = ring(10_000, 10_000);
        for (readers, round) in [(1, None), (200, None), (1000, Some(4)), (100_000, Some(50))] {
            while ring.wakers.len() < readers {
                ring.register_waiter();
            }
            assert!(ring.take_wakers().is_empty());
            let left = ring.round_ends_at().map(|at| at - Instant::now());
            assert_eq!(left, round.map(Duration::from_millis), "{readers} readers");
        }
    }

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl std::task::Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_new_era_leaves_everybody_behind() {
        let mut ring = ring(10_000, 10_000);
        ring.push(item(Some(1), 1));
        let (number, generation) = (ring.join(at(1), ring.generation).expect("in the ring"), ring.generation);
        ring.reset(at(9));
        assert!(matches!(ring.get(number), RingRead::Evicted));
        assert_eq!(ring.join(at(9), generation), None);
        assert!(ring.join(at(9), ring.generation).is_some());
        assert_eq!(ring.budget.used_bytes.load(Relaxed), 0);
    }
}
