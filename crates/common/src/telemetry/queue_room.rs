//! The room of a queue on its way to a receiver: how much of it is taken, and what was lost.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::losses::{Losses, Signal};

/// How a queue does, for both of its ends.
#[derive(Debug)]
pub(super) struct QueueRoom {
    waiting: AtomicUsize,
    max: usize,
    pub(super) losses: Losses,
}

impl QueueRoom {
    pub(super) fn new(max: usize, signal: Signal) -> Self {
        Self { waiting: AtomicUsize::new(0), max, losses: Losses::of(signal) }
    }

    /// Takes a place; false if none is free.
    pub(super) fn enter(&self) -> bool {
        let has_place = self.waiting.fetch_add(1, Relaxed) < self.max;
        if !has_place {
            self.leave(1);
        }
        has_place
    }

    /// Frees places, also of what could not be sent.
    pub(super) fn leave(&self, count: usize) {
        self.waiting.fetch_sub(count, Relaxed);
    }

    /// Notes what is left when the process ends.
    pub(super) fn close(&self) {
        let left = self.waiting.load(Relaxed);
        if left > 0 {
            self.losses.note_at_the_end(left, &"the receiver did not take them in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_places_as_allowed_and_one_that_is_left_is_free() {
        let room = QueueRoom::new(2, Signal::Spans);
        assert_eq!([room.enter(), room.enter(), room.enter(), room.enter()], [true, true, false, false]);
        room.leave(1);
        assert_eq!([room.enter(), room.enter()], [true, false]);
    }
}
