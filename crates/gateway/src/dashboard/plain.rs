//! Numbers, times and parts of addresses, as plain values.

use common::time::{self, Millis};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what an address never needs to escape, so that people can read it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A number that a template shows. Templates hand on references.
pub(super) trait Number {
    fn value(&self) -> i64;
}

macro_rules! numbers {
    ($($Number:ty),+) => {
        $(impl Number for $Number {
            fn value(&self) -> i64 {
                i64::try_from(*self).unwrap_or(i64::MAX)
            }
        })+
    };
}
numbers!(i64, u64, u32, usize);

impl<N: Number + ?Sized> Number for &N {
    fn value(&self) -> i64 {
        (**self).value()
    }
}

/// A time that a page shows, read back.
pub(super) fn parse_moment(text: &str) -> Option<Millis> {
    time::parse_time(text, 0).ok().map(|time| time.at)
}

/// A text as a part of an address.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}
