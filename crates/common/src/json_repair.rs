//! Makes the JSON of a report valid: how a job ended must not be refused for the text in it.
//!
//! Programs write what they have: Python's `os.fsdecode` and JavaScript's `slice` leave lone surrogates, a program in C
//! leaves bytes in another encoding or a bare line feed, Python's `json` writes `NaN`. Such text is replaced. Nothing
//! else is touched, and JSON that is valid stays as it is, byte for byte.

use std::borrow::Cow;

/// U+FFFD as an escape.
const REPLACEMENT: &str = "\\ufffd";

/// The text with everything replaced that JSON or UTF-8 does not allow in a string, and `NaN` and `Infinity` by null.
#[must_use]
pub fn repair(bytes: &[u8]) -> Cow<'_, [u8]> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let mut repaired = Repair { text: &text, out: String::new(), copied: 0 };
    repaired.run();
    match (repaired.finish(), text) {
        (Some(repaired), _) => Cow::Owned(repaired.into_bytes()),
        (None, Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
        (None, Cow::Borrowed(_)) => Cow::Borrowed(bytes),
    }
}

struct Repair<'a> {
    text: &'a str,
    out: String,
    /// How much of the text is in `out`.
    copied: usize,
}

impl Repair<'_> {
    fn run(&mut self) {
        let bytes = self.text.as_bytes();
        let (mut at, mut in_string) = (0, false);
        while let Some(byte) = bytes.get(at) {
            at += match byte {
                b'"' => {
                    in_string = !in_string;
                    1
                }
                b'\\' if in_string => self.escape(at),
                control @ 0..=0x1f if in_string => {
                    self.replace(at, 1, &format!("\\u{control:04x}"));
                    1
                }
                b'N' | b'I' | b'-' if !in_string => self.word(at),
                _ => 1,
            };
        }
    }

    /// Looks at an escape and returns how long it is.
    fn escape(&mut self, at: usize) -> usize {
        let bytes = self.text.as_bytes();
        match bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match (self.unit(at), self.unit(at + 6)) {
                (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
                (Some(0xd800..=0xdfff), _) => {
                    self.replace(at, 6, REPLACEMENT);
                    6
                }
                (Some(_), _) => 6,
                (None, _) => self.lone_backslash(at),
            },
            _ => self.lone_backslash(at),
        }
    }

    /// A backslash that begins no escape stands for itself.
    fn lone_backslash(&mut self, at: usize) -> usize {
        self.replace(at, 1, "\\\\");
        1
    }

    /// The UTF-16 unit of an escape.
    fn unit(&self, at: usize) -> Option<u32> {
        let digits = self.text.get(at..at + 6)?.strip_prefix("\\u")?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)
    }

    /// What programs write for numbers that JSON does not have.
    fn word(&mut self, at: usize) -> usize {
        let rest = &self.text.as_bytes()[at..];
        for word in ["NaN", "-NaN", "Infinity", "-Infinity"] {
            if rest.starts_with(word.as_bytes()) {
                self.replace(at, word.len(), "null");
                return word.len();
            }
        }
        1
    }

    fn replace(&mut self, at: usize, length: usize, by: &str) {
        self.out.push_str(&self.text[self.copied..at]);
        self.out.push_str(by);
        self.copied = at + length;
    }

    /// The repaired text; none if nothing was replaced.
    fn finish(mut self) -> Option<String> {
        if self.copied == 0 {
            return None;
        }
        self.out.push_str(&self.text[self.copied..]);
        Some(self.out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn repaired(bytes: &[u8]) -> String {
        String::from_utf8(repair(bytes).into_owned()).expect("UTF-8")
    }

    #[test]
    fn text_that_json_does_not_allow_is_replaced() {
        for (given, expected) in [
            (&br#"{"a":"x\ud800y"}"#[..], r#"{"a":"x\ufffdy"}"#),
            (br#"{"a":"\udcff\ud83d\ude00\ude00"}"#, r#"{"a":"\ufffd\ud83d\ude00\ufffd"}"#),
            (br#"{"a":"\ud83d\ud83d\ude00"}"#, r#"{"a":"\ufffd\ud83d\ude00"}"#),
            (br#"{"\ud800":1}"#, r#"{"\ufffd":1}"#),
            (b"{\"a\":\"\xff\"}", "{\"a\":\"\u{fffd}\"}"),
            (b"{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\u{fffd}\u{fffd}\u{fffd}\"}"),
            (b"{\"a\":\"x\n\x00\"}", r#"{"a":"x\u000a\u0000"}"#),
            (br#"{"a":"\x41 \u12 C:\dir"}"#, r#"{"a":"\\x41 \\u12 C:\\dir"}"#),
            (br#"{"a":[NaN,-Infinity,Infinity,-1],"b":"NaN"}"#, r#"{"a":[null,null,null,-1],"b":"NaN"}"#),
            (b"\xef\xbb\xbf{}", "{}"),
        ] {
            assert_eq!(repaired(given), expected);
            serde_json::from_str::<Value>(expected).expect("valid");
        }
    }

    #[test]
    fn what_is_not_json_stays_wrong() {
        for bad in [&b""[..], b"{", b"\"", b"\"\\", b"\"\\u", b"Nan", b"{\"a\":\"b\\\"}"] {
            assert!(serde_json::from_slice::<Value>(&repair(bad)).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn valid_json_stays_byte_for_byte(text in ".{0,60}", number in any::<f64>()) {
            let json = serde_json::json!({ text.clone(): [text, number, "\u{1f600}\u{0}\\"] }).to_string();
            prop_assert!(matches!(repair(json.as_bytes()), Cow::Borrowed(same) if same == json.as_bytes()));
        }

        #[test]
        fn a_string_of_any_bytes_becomes_valid(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let inside: Vec<u8> = bytes.into_iter().filter(|byte| !b"\"\\".contains(byte)).collect();
            let json = [&b"{\"a\":\""[..], &inside, b"\"}"].concat();
            prop_assert!(serde_json::from_slice::<Value>(&repair(&json)).is_ok());
        }
    }
}
