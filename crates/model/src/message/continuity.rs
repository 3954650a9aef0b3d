//! Whether messages are missing after a position, judged by the history around it. Pure: the gaps that readers see
//! follow from it.

use super::Position;
use common::json::ObjectWriter;

/// Missing messages: they are no longer kept, or Redis lost them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last position before the gap.
    pub from: Position,
    /// The first position after the gap, if there is one yet.
    pub to: Option<Position>,
    /// The number of missing messages, if it is known.
    pub count: Option<u64>,
}

impl Gap {
    /// The gap as clients see it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = ObjectWriter::default();
        self.write(&mut json);
        json.finish()
    }

    /// The members of the gap's JSON.
    pub fn write(&self, json: &mut ObjectWriter) {
        json.text("from", &self.from.to_string());
        match self.to {
            Some(to) => json.text("to", &to.to_string()),
            None => json.raw("to", "null"),
        };
        match self.count {
            Some(count) => json.number("count", count),
            None => json.raw("count", "null"),
        };
    }
}

/// The history around a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryNeighbors {
    /// Whether the position itself is kept.
    pub is_retained: bool,
    /// The newest kept position before it.
    pub before: Option<Position>,
    /// The oldest kept position after it.
    pub next: Option<Position>,
    /// The newest position ever; none if there is no history.
    pub head: Option<Position>,
    /// The last position before the newest epoch, or of a history that expired, if it is known.
    pub predecessor: Option<Position>,
}

impl HistoryNeighbors {
    /// Whether a position is the last one of an earlier history or epoch, and the next one is the first of the newest.
    fn is_followed_by_new_epoch(&self, after: Position) -> bool {
        let is_first = |next: Position| next.sequence == 0 && self.head.is_none_or(|head| head.epoch == next.epoch);
        // Without a history nothing follows yet
        self.predecessor == Some(after) && (self.head.is_none() || self.next.is_some_and(is_first))
    }
}

/// Whether messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing is missing.
    Contiguous,
    /// Messages are missing, or may be.
    Gap(Gap),
    /// The position is not of this history: it is of another channel, or Redis lost the messages without a trace.
    Unknown,
}

/// Whether messages are missing after a position. After [`Position::START`] only the kept epoch is counted: nothing
/// says how many messages an earlier one had.
#[must_use]
pub fn check_continuity(after: Position, around: HistoryNeighbors) -> Continuity {
    let gap = |count| Continuity::Gap(Gap { from: after, to: around.next, count });
    if around.is_retained || around.next == Some(after.next()) || around.is_followed_by_new_epoch(after) {
        return Continuity::Contiguous;
    }
    let Some(head) = around.head else {
        return if after == Position::START { Continuity::Contiguous } else { gap(None) };
    };
    if after == Position::START {
        // An epoch starts with 0, so the first kept sequence is the number of messages before it
        let missing = around.next.map_or(head.sequence.saturating_add(1), |next| next.sequence);
        return if missing == 0 { Continuity::Contiguous } else { gap(Some(missing)) };
    }
    match (around.before, around.next) {
        // The history was trimmed completely, and this was its newest message
        (_, None) if after == head => Continuity::Contiguous,
        (_, None) if after < head => gap((after.epoch == head.epoch).then(|| head.sequence - after.sequence)),
        (_, None) => Continuity::Unknown,
        (None, Some(next)) => gap((after.epoch == next.epoch).then(|| next.sequence - after.sequence - 1)),
        // Beyond the end of its epoch as it is kept: Redis lost messages
        (Some(before), Some(next)) if before.epoch == after.epoch => {
            gap((after.epoch == next.epoch).then(|| next.sequence - after.sequence - 1))
        }
        (Some(_), Some(_)) => Continuity::Unknown,
    }
}

/// Where to continue if messages are missing or the position is unknown: no later message that is kept is left out, and
/// no earlier one is sent again.
#[must_use]
pub fn resume_from(after: Position, around: HistoryNeighbors) -> Position {
    if around.is_retained || around.is_followed_by_new_epoch(after) {
        return after;
    }
    match around.next {
        Some(next) if next == after.next() => after,
        Some(_) => around.before.unwrap_or(Position::START),
        None => around.head.unwrap_or(Position::START),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch, sequence }
    }

    /// What a history with these positions shows.
    fn around(kept: &[Position], head: Option<Position>, after: Position) -> HistoryNeighbors {
        HistoryNeighbors {
            is_retained: kept.contains(&after),
            before: kept.iter().copied().filter(|position| *position < after).max(),
            next: kept.iter().copied().filter(|position| *position > after).min(),
            head,
            predecessor: None,
        }
    }

    #[test]
    fn an_expiry_after_the_last_message_was_read_is_no_gap() {
        let (last, first) = (at(5, 7), at(9, 0));
        let check = |after, next: Option<Position>, head| {
            let around = HistoryNeighbors { is_retained: false, before: None, next, head, predecessor: Some(last) };
            check_continuity(after, around)
        };
        assert_eq!(check(last, None, None), Continuity::Contiguous, "nothing was published since");
        assert_eq!(check(last, Some(first), Some(first)), Continuity::Contiguous);
        assert_eq!(check(last, Some(first), Some(at(9, 4))), Continuity::Contiguous);
        for (after, next, head) in [
            (at(5, 6), None, None),
            (at(5, 6), Some(first), Some(first)),
            (last, Some(at(9, 1)), Some(at(9, 1))),
            (last, Some(first), Some(at(10, 0))),
            (last, None, Some(first)),
        ] {
            assert!(matches!(check(after, next, head), Continuity::Gap(_)), "{after} {next:?} {head:?}");
        }
    }

    #[test]
    fn what_is_missing_is_seen_and_nothing_else_is() {
        let gap = |from, to, count| Continuity::Gap(Gap { from, to, count });
        // Epoch 5 was trimmed to 3.., epoch 9 follows
        let kept = [at(5, 3), at(5, 4), at(9, 0), at(9, 1)];
        for (after, expected) in [
            (Position::START, gap(Position::START, Some(at(5, 3)), Some(3))),
            (at(5, 3), Continuity::Contiguous),
            (at(5, 2), Continuity::Contiguous),
            (at(5, 1), gap(at(5, 1), Some(at(5, 3)), Some(1))),
            (at(5, 4), Continuity::Contiguous),
            (at(5, 9), gap(at(5, 9), Some(at(9, 0)), None)),
            (at(4, 7), gap(at(4, 7), Some(at(5, 3)), None)),
            (at(7, 0), Continuity::Unknown),
            (at(9, 1), Continuity::Contiguous),
            (at(9, 2), Continuity::Unknown),
            (at(12, 0), Continuity::Unknown),
        ] {
            assert_eq!(check_continuity(after, around(&kept, Some(at(9, 1)), after)), expected, "{after}");
        }
    }

    #[test]
    fn a_client_that_was_there_before_the_first_message_misses_what_was_in_front_of_the_first_that_is_kept() {
        let start = Position::START;
        let behind_start = |kept: &[Position], head| check_continuity(start, around(kept, head, start));
        assert_eq!(behind_start(&[], None), Continuity::Contiguous, "there is nothing yet");
        assert_eq!(behind_start(&[at(5, 0), at(5, 1)], Some(at(5, 1))), Continuity::Contiguous);
        let some = Continuity::Gap(Gap { from: start, to: Some(at(5, 1)), count: Some(1) });
        assert_eq!(behind_start(&[at(5, 1)], Some(at(5, 1))), some);
        let all = Continuity::Gap(Gap { from: start, to: None, count: Some(2) });
        assert_eq!(behind_start(&[], Some(at(5, 1))), all);
    }

    #[test]
    fn an_empty_history_has_lost_whatever_was_after_a_position() {
        let after = at(5, 2);
        let lost = Continuity::Gap(Gap { from: after, to: None, count: None });
        assert_eq!(check_continuity(after, around(&[], None, after)), lost, "redis was emptied");
        assert_eq!(check_continuity(after, around(&[], Some(after), after)), Continuity::Contiguous, "all was trimmed");
        let some = Continuity::Gap(Gap { from: after, to: None, count: Some(3) });
        assert_eq!(check_continuity(after, around(&[], Some(at(5, 5)), after)), some);
        assert_eq!(check_continuity(Position::START, around(&[], None, Position::START)), Continuity::Contiguous);
        let ahead = at(5, 6);
        assert_eq!(check_continuity(ahead, around(&[], Some(at(5, 5)), ahead)), Continuity::Unknown);
    }

    #[test]
    fn a_client_that_cannot_go_on_where_it_was_goes_on_behind_the_newest_before_it() {
        let kept = [at(5, 3), at(5, 4), at(9, 0)];
        for (after, expected) in
            [(at(5, 3), at(5, 3)), (at(5, 1), Position::START), (at(5, 9), at(5, 4)), (at(99, 0), at(9, 0))]
        {
            assert_eq!(resume_from(after, around(&kept, Some(at(9, 0)), after)), expected, "{after}");
        }
    }

    #[test]
    fn a_gap_is_shown_with_what_is_known_of_it() {
        let gap = Gap { from: at(5, 1), to: None, count: None };
        assert_eq!(gap.to_json(), r#"{"from":"5-1","to":null,"count":null}"#);
        let gap = Gap { from: at(5, 1), to: Some(at(5, 3)), count: Some(1) };
        assert_eq!(gap.to_json(), r#"{"from":"5-1","to":"5-3","count":1}"#);
    }
}
