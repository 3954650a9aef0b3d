//! Where a reader of events is. One server has one stream of events, so a position in that says it: `<ms>-<sequence>-<index>`.
//! A cluster has several, so that no node takes the events of all queues. There a cursor has a position in each:
//!
//! `1764000000000-0-3-5~.2s-1..T7.A1.H.5k.3`
//!
//! The event that the client saw, the number of its stream, and after `~` the position in each stream: nothing for its
//! beginning, `H` for that of the event, else how many milliseconds before the event the last entry was that was read, in base 36
//! (`A`: after it, as nodes have clocks of their own), its sequence unless that is 0, and an index unless all of its events
//! were read. `T` is a time, not an entry: nothing is known to be missing if there is none.

use std::{fmt, str::FromStr};

use super::read::{EventPosition, ReadEvent};
use crate::keys::EVENT_STREAMS;
use common::{id::EntryId, name::NameError};

/// How far the clocks of nodes may differ, in milliseconds.
const MAX_CLOCK_SKEW_MS: u64 = 60_000;
/// Longer text is no cursor.
const MAX_LENGTH: usize = 512;

/// Where a reader is in one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamPosition {
    /// At its beginning, or nowhere: before this nothing can be missing.
    Start,
    /// Behind an event. If its entry is gone, events are missing.
    After(EventPosition),
    /// Behind the entries of a time, of which there may be none.
    Time(EventPosition),
}

/// After which events a client continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventCursor {
    head: EventPosition,
    /// Of a cluster: which stream has the event, and the positions in all.
    of_cluster: Option<(usize, Option<Box<[StreamPosition; EVENT_STREAMS]>>)>,
}

impl EventCursor {
    /// Before every event.
    pub const START: Self = Self { head: EventPosition::START, of_cluster: None };

    /// After every event: the id of a stream that has ended.
    pub const END: Self = Self { head: EventPosition::END, of_cluster: None };

    /// Where a reader is that has seen no event yet. The only stream of one server, or all of a cluster.
    pub(super) fn of_streams(positions: &[StreamPosition]) -> Self {
        match <[StreamPosition; EVENT_STREAMS]>::try_from(positions) {
            Ok(all) => Self { head: EventPosition::START, of_cluster: Some((0, Some(Box::new(all)))) },
            Err(_) => Self {
                head: positions.first().map_or(EventPosition::START, |position| position.position()),
                of_cluster: None,
            },
        }
    }

    /// Where to continue in a stream.
    pub(super) fn position_in(&self, stream: usize) -> StreamPosition {
        match &self.of_cluster {
            Some((_, Some(all))) => all.get(stream).copied().unwrap_or(StreamPosition::Start),
            Some((own, None)) if *own == stream => StreamPosition::of(self.head),
            // The id of an event alone. The other streams continue at its time, or a bit earlier: their nodes have other clocks
            Some((_, None)) => {
                let milliseconds = self.head.entry.milliseconds.saturating_sub(MAX_CLOCK_SKEW_MS);
                StreamPosition::Time(EventPosition::end_of(EntryId { milliseconds, sequence: u64::MAX }))
            }
            None if stream == 0 => StreamPosition::of(self.head),
            // From a version, or a server, that had one stream only: nothing of the others was read
            None => StreamPosition::Start,
        }
    }

    /// Whether it is the beginning of everything.
    #[must_use]
    pub fn is_start(&self) -> bool {
        (0..EVENT_STREAMS).all(|stream| self.position_in(stream) == StreamPosition::Start)
    }

    /// Whether an event comes after it in a list.
    #[must_use]
    pub fn is_before(&self, event: &ReadEvent) -> bool {
        let is_alone = matches!(self.of_cluster, Some((_, None)));
        let after = if is_alone { self.head } else { self.position_in(event.stream.unwrap_or(0)).position() };
        *self != Self::END && event.position > after
    }
}

impl StreamPosition {
    pub(super) fn of(position: EventPosition) -> Self {
        if position > EventPosition::START { Self::After(position) } else { Self::Start }
    }

    pub(super) fn position(self) -> EventPosition {
        match self {
            Self::Start => EventPosition::START,
            Self::After(position) | Self::Time(position) => position,
        }
    }

    fn write(self, of_head: u64, f: &mut impl fmt::Write) -> fmt::Result {
        let position = match self {
            Self::Start => return Ok(()),
            Self::After(position) => position,
            Self::Time(position) => {
                f.write_char('T')?;
                position
            }
        };
        let time = position.entry.milliseconds;
        if time > of_head {
            f.write_char('A')?;
        }
        write_base36(f, time.abs_diff(of_head))?;
        let is_whole = position.index == usize::MAX;
        if position.entry.sequence > 0 || !is_whole {
            f.write_char('-')?;
            write_base36(f, position.entry.sequence)?;
        }
        if !is_whole {
            f.write_char('-')?;
            write_base36(f, position.index as u64)?;
        }
        Ok(())
    }

    fn read(text: &str, head: EventPosition) -> Option<Self> {
        match text {
            "" => return Some(Self::Start),
            "H" => return Some(Self::of(head)),
            _ => {}
        }
        let (is_time, text) = text.strip_prefix('T').map_or((false, text), |text| (true, text));
        let (is_ahead, text) = text.strip_prefix('A').map_or((false, text), |text| (true, text));
        let mut numbers = text.split('-').map(read_base36);
        let (distance, of_head) = (numbers.next()??, head.entry.milliseconds);
        let milliseconds = if is_ahead { of_head.saturating_add(distance) } else { of_head.saturating_sub(distance) };
        let sequence = numbers.next().unwrap_or(Some(0))?;
        let index = numbers.next().map_or(Some(usize::MAX), |index| usize::try_from(index?).ok())?;
        let position = EventPosition { entry: EntryId { milliseconds, sequence }, index };
        let read = if is_time { Self::Time(position) } else { Self::of(position) };
        numbers.next().is_none().then_some(read)
    }
}

fn write_base36(f: &mut impl fmt::Write, mut number: u64) -> fmt::Result {
    let mut digits = [0; 13];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    f.write_str(std::str::from_utf8(&digits[first..]).unwrap_or_default())
}

/// Lower-case digits only: one text for each number.
fn read_base36(text: &str) -> Option<u64> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    text.bytes().all(is_digit).then(|| u64::from_str_radix(text, 36).ok())?
}

/// The rest of the ids of the events of one entry: which stream it is in, and where the reader is in the others.
pub(super) fn suffix(stream: usize, entry: EntryId, all: impl Iterator<Item = StreamPosition>) -> String {
    let mut text = format!("-{stream}~");
    for (number, position) in all.enumerate() {
        if number > 0 {
            text.push('.');
        }
        if number == stream {
            text.push('H');
        } else {
            let _ = position.write(entry.milliseconds, &mut text);
        }
    }
    text
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.head, f)?;
        let Some((stream, all)) = &self.of_cluster else { return Ok(()) };
        write!(f, "-{stream}")?;
        let Some(all) = all else { return Ok(()) };
        for (number, position) in all.iter().enumerate() {
            f.write_str(if number == 0 { "~" } else { "." })?;
            if number == *stream && *position == StreamPosition::After(self.head) {
                f.write_str("H")?;
            } else {
                position.write(self.head.entry.milliseconds, f)?;
            }
        }
        Ok(())
    }
}

impl FromStr for EventCursor {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::new("position", "be the id of an event, such as 1764000000000-0-0", text);
        if text.len() > MAX_LENGTH {
            return Err(refused());
        }
        let (id, list) = text.split_once('~').map_or((text, None), |(id, list)| (id, Some(list)));
        if list.is_none() && id.bytes().filter(|byte| *byte == b'-').count() < 3 {
            return Ok(Self { head: id.parse()?, of_cluster: None });
        }
        let read = || {
            let (head, stream) = id.rsplit_once('-')?;
            let head: EventPosition = head.parse().ok()?;
            let stream = (0..EVENT_STREAMS).find(|number| number.to_string() == stream)?;
            let Some(list) = list else { return Some(Self { head, of_cluster: Some((stream, None)) }) };
            let all: Option<Vec<_>> = list.split('.').map(|item| StreamPosition::read(item, head)).collect();
            let all = <[StreamPosition; EVENT_STREAMS]>::try_from(all?).ok()?;
            Some(Self { head, of_cluster: Some((stream, Some(Box::new(all)))) })
        };
        read().ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(milliseconds: u64, sequence: u64, index: usize) -> EventPosition {
        EventPosition { entry: EntryId { milliseconds, sequence }, index }
    }

    fn any_position() -> impl Strategy<Value = EventPosition> {
        let index = prop_oneof![Just(usize::MAX), 0..200_usize];
        (prop_oneof![1..u64::MAX, 1_764_000_000_000..1_764_000_100_000_u64], 0..9_u64, index)
            .prop_map(|(milliseconds, sequence, index)| position(milliseconds, sequence, index))
    }

    fn any_stream_position() -> impl Strategy<Value = StreamPosition> {
        prop_oneof![
            Just(StreamPosition::Start),
            any_position().prop_map(StreamPosition::After),
            any_position().prop_map(StreamPosition::Time),
        ]
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back(
            all in proptest::collection::vec(any_stream_position(), EVENT_STREAMS),
            entry in any_position(),
            stream in 0..EVENT_STREAMS,
            index in 0..200_usize,
        ) {
            let beginning = EventCursor::of_streams(&all);
            let read: EventCursor = beginning.to_string().parse().expect("a cursor");
            prop_assert!((0..EVENT_STREAMS).all(|stream| read.position_in(stream) == all[stream]), "{}", beginning);
            let of_event = EventPosition { index, ..entry };
            let id = format!("{of_event}{}", suffix(stream, entry.entry, all.iter().copied()));
            let read: EventCursor = id.parse().expect("an id");
            for (number, expected) in all.iter().enumerate() {
                let expected = if number == stream { StreamPosition::After(of_event) } else { *expected };
                prop_assert_eq!(read.position_in(number), expected, "{}", id);
            }
            prop_assert_eq!(read.to_string().parse(), Ok(read));
        }

        #[test]
        fn any_text_reads_back_or_is_refused(text in "[0-9]{1,3}-[0-9]-[0-9](-[0-9](~([HTA]{0,2}[0-9a-z]{0,3}[.-]){0,8}[0-9A-Z]?)?)?") {
            if let Ok(cursor) = text.parse::<EventCursor>() {
                prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
        }
    }

    #[test]
    fn the_id_of_an_event_alone_continues_the_other_streams_at_its_time() {
        let cursor: EventCursor = "1764000000000-2-3-5".parse().expect("an id");
        assert_eq!(cursor.position_in(5), StreamPosition::After(position(1_764_000_000_000, 2, 3)));
        let StreamPosition::Time(other) = cursor.position_in(0) else { panic!("{cursor:?}") };
        assert_eq!(other.entry.milliseconds, 1_764_000_000_000 - MAX_CLOCK_SKEW_MS);
    }

    #[test]
    fn an_id_of_one_stream_is_the_beginning_of_the_others() {
        let cursor: EventCursor = "1764000000000-2-3".parse().expect("an id");
        assert_eq!(cursor.position_in(0), StreamPosition::After(position(1_764_000_000_000, 2, 3)));
        assert!((1..EVENT_STREAMS).all(|stream| cursor.position_in(stream) == StreamPosition::Start));
        for start in ["0-0-0", "0-0-0-0~.......", "0-0-0-3~H......."] {
            assert!(start.parse::<EventCursor>().expect("a cursor").is_start(), "{start}");
        }
        assert!(EventCursor::START.is_start() && !cursor.is_start());
        assert_eq!(EventCursor::END.to_string().parse(), Ok(EventCursor::END));
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let long = format!("1-1-1-1~{}.......", "1".repeat(MAX_LENGTH));
        for bad in [
            "1-1-1-8",
            "1-1-1-01",
            "1-1-1-",
            "1-1-1-1-1",
            "1-1-1~.......",
            "1-1-1-1~",
            "1-1-1-1~......",
            "1-1-1-1~........",
            "1-1-1-1~X.......",
            "1-1-1-1~AT1.......",
            "1-1-1-1~1-1-1-1.......",
            "1-1-1-1~-1.......",
            "1-1-1-1~T.......",
            &long,
        ] {
            assert!(bad.parse::<EventCursor>().is_err(), "{bad}");
        }
    }
}
