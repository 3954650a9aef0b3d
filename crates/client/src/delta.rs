//! Messages that came as the difference from the one before.

use std::collections::HashMap;

use serde::Deserialize;

/// A difference that cannot be applied: it is of another text, or damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this difference is not of that text: {0}")]
pub struct DeltaError(&'static str);

const CUT_OFF: DeltaError = DeltaError("it is cut off");

/// The text that `delta` is the difference of from `base`, in the format of Fossil: for what reads event streams by
/// itself. A [`Subscription`](crate::Subscription) does it where [`deltas`](crate::Subscription::deltas) asked for differences.
///
/// # Errors
/// The difference is not of this base. Resume after the last message that you have: a whole one comes first.
pub fn apply_delta(base: &str, delta: &str) -> Result<String, DeltaError> {
    let (base, mut rest) = (base.as_bytes(), delta.as_bytes());
    let (size, operator) = take_number(&mut rest).ok_or(CUT_OFF)?;
    if operator != b'\n' {
        return Err(DeltaError("it does not begin with a length"));
    }
    let mut text = Vec::with_capacity(size.min(base.len() + delta.len()));
    loop {
        let (number, operator) = take_number(&mut rest).ok_or(CUT_OFF)?;
        let piece = match operator {
            b'@' => {
                let (offset, end) = take_number(&mut rest).ok_or(CUT_OFF)?;
                let piece = base.get(offset..).and_then(|rest| rest.get(..number)).filter(|_| end == b',');
                piece.ok_or(DeltaError("it copies what the text does not have"))?
            }
            b':' => {
                let (piece, behind) = rest.split_at_checked(number).ok_or(CUT_OFF)?;
                rest = behind;
                piece
            }
            b';' if text.len() == size && number == checksum(&text) as usize => {
                return String::from_utf8(text).map_err(|_| DeltaError("the result is no text"));
            }
            b';' => return Err(DeltaError("the result has another length or checksum")),
            _ => return Err(DeltaError("it has an unknown operator")),
        };
        if text.len() + piece.len() > size {
            return Err(DeltaError("the result is longer than it says"));
        }
        text.extend_from_slice(piece);
    }
}

/// A number to the base 64, and the byte behind it.
fn take_number(rest: &mut &[u8]) -> Option<(usize, u8)> {
    let mut number = 0_u32;
    loop {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'_' => 36,
            b'a'..=b'z' => byte - b'a' + 37,
            b'~' => 63,
            operator => return Some((number as usize, *operator)),
        };
        number = number << 6 | u32::from(digit);
    }
}

/// The sum of all words of four bytes, the last one filled up with zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let shifted = bytes.iter().zip([24, 16, 8, 0].into_iter().cycle()).map(|(byte, shift)| u32::from(*byte) << shift);
    shifted.fold(0, u32::wrapping_add)
}

/// The last message of each channel, as it came: the next one may come as its difference.
#[derive(Debug, Default)]
pub(crate) struct DeltaBases {
    pub(crate) is_wanted: bool,
    /// Their ids and texts.
    texts: HashMap<String, (String, String)>,
}

#[derive(Deserialize)]
struct DeltaEvent {
    channel: String,
    from: String,
    delta: String,
}

impl DeltaBases {
    /// Keeps the text of a message. One without an id is no base.
    pub(crate) fn keep(&mut self, channel: &str, id: Option<&str>, text: String) {
        if let Some(id) = id.filter(|_| self.is_wanted) {
            self.texts.insert(channel.to_owned(), (id.to_owned(), text));
        }
    }

    /// The text of a message that came as a difference.
    pub(crate) fn text(&self, data: &str) -> Result<String, DeltaError> {
        let delta: DeltaEvent = serde_json::from_str(data).map_err(|_| DeltaError("it cannot be read"))?;
        let base = self.texts.get(&delta.channel).filter(|(id, _)| *id == delta.from);
        apply_delta(&base.ok_or(DeltaError("the message before is another one"))?.1, &delta.delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "line 1: the first of a few lines\nline 2: the second of them\nline 3: and the last";

    #[test]
    fn a_difference_that_another_program_of_the_format_made_is_applied() {
        let text = BASE.replace("second", "third");
        let delta = "1F\ni@0,Y:third of them\nline 3: and the last2E7ykT;";
        assert_eq!(apply_delta(BASE, delta), Ok(text));
        assert_eq!(apply_delta(BASE, "1G\n1G@0,2HLiOA;"), Ok(BASE.to_owned()));
        assert_eq!(apply_delta("", "2\n2:xy1tUG00;"), Ok("xy".to_owned()));
    }

    #[test]
    fn a_difference_that_does_not_fit_or_is_damaged_is_an_error_and_nothing_else() {
        let delta = "1G\n1G@0,2HLiOA;";
        for (base, delta) in [
            ("another text", delta),
            (&*BASE.replace("first", "fifth"), delta),
            (BASE, ""),
            (BASE, "1G"),
            (BASE, "1G;"),
            (BASE, "1G\n1G@0,"),
            (BASE, "1G\n1G@0;2HLiOA;"),
            (BASE, "1G\n~~~~~~~~~@~~~~~~~~~,0;"),
            (BASE, "1G\n~~~~~:x0;"),
            (BASE, "1\n2:ab0;"),
            (BASE, "1\n1!a0;"),
            (BASE, "0\n1;"),
        ] {
            assert!(apply_delta(base, delta).is_err(), "{delta:?}");
        }
    }

    #[test]
    fn only_the_message_before_of_the_same_channel_is_a_base() {
        let mut bases = DeltaBases { is_wanted: true, ..DeltaBases::default() };
        bases.keep("a", Some("1-1"), "text".to_owned());
        bases.keep("a", None, "of a plain publisher".to_owned());
        let delta = |channel: &str, from: &str| format!(r#"{{"channel":"{channel}","from":"{from}","delta":"0\n0;"}}"#);
        assert_eq!(bases.text(&delta("a", "1-1")), Ok(String::new()));
        for (channel, from) in [("b", "1-1"), ("a", "1-0")] {
            let error = bases.text(&delta(channel, from)).expect_err("another message").to_string();
            assert!(error.contains("another one"), "{error}");
        }
        bases.is_wanted = false;
        bases.keep("a", Some("1-2"), "text".to_owned());
        assert!(bases.text(&delta("a", "1-2")).is_err(), "nothing is kept that nobody needs");
    }
}
