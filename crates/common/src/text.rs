//! Untrusted text in log lines: nothing in it may add lines or colours, or make a line read as another one.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

/// Longest untrusted text in a log line, in characters.
const MAX_CHARS: usize = 4096;

/// Whether a character changes what a reader sees without being seen itself: controls, separators of lines, marks that
/// turn the direction of text around, and other invisible ones. Those that languages and emoji need are not among them.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Bytes as text for a log line. Hidden characters are escaped, so bytes from the network cannot add lines or colours.
/// Long text is cut.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len().min(MAX_CHARS));
    for (index, character) in text.chars().enumerate() {
        if index == MAX_CHARS {
            shown.push('…');
            break;
        }
        if is_hidden(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A JSON text whose hidden characters are written as JSON's own escapes: it means the same, and is safe on a terminal.
#[must_use]
pub fn json_without_hidden(json: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_hidden(c) && c != '\n';
    if !json.contains(is_escaped) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_escaped(character) {
            push_json_escape(&mut escaped, character);
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

fn push_json_escape(text: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        let _ = write!(text, "\\u{unit:04x}");
    }
}

/// How hidden characters are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// As in JSON: `\u202e`.
    Json,
    /// For people: `\u{202e}`; what continues a line is indented, so that it does not look like another one.
    People,
}

/// Escapes what is hidden in log lines, whichever field it came with.
pub(crate) struct LineWriter<W> {
    pub(crate) inner: W,
    pub(crate) format: LineFormat,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A write is a whole line, or several
        self.inner.write_all(escape_line(line, self.format).as_ref())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn escape_line(line: &[u8], format: LineFormat) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(line) else { return Cow::Borrowed(line) };
    let text = text.strip_suffix('\n').unwrap_or(text);
    // Our own colours are not hidden in lines for people
    let is_escaped = |c: char| is_hidden(c) && !(format == LineFormat::People && c == '\u{1b}');
    if !text.contains(is_escaped) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for character in text.chars() {
        match (character, format) {
            ('\n', LineFormat::People) => escaped.push_str("\n    "),
            (hidden, LineFormat::People) if is_escaped(hidden) => escaped.extend(hidden.escape_default()),
            (hidden, LineFormat::Json) if is_escaped(hidden) => push_json_escape(&mut escaped, hidden),
            _ => escaped.push(character),
        }
    }
    escaped.push_str(if line.ends_with(b"\n") { "\n" } else { "" });
    Cow::Owned(escaped.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_shown_as_it_is_and_controls_are_escaped() {
        assert_eq!(printable("7".as_bytes()), "7");
        assert_eq!(printable("饭 {\"a\":1}".as_bytes()), "饭 {\"a\":1}");
        assert_eq!(printable(b"a\r\n\x1b[31mb"), "a\\r\\n\\u{1b}[31mb");
        assert_eq!(printable("a\u{202e}b\u{2028}c".as_bytes()), "a\\u{202e}b\\u{2028}c");
        assert_eq!(printable("می‌خواهم 👩‍🚀".as_bytes()), "می‌خواهم 👩‍🚀");
        assert_eq!(printable(&[b'x'; 10_000]).chars().count(), MAX_CHARS + 1);
    }

    #[test]
    fn json_for_a_terminal_means_the_same() {
        let json = "{\"a\":\"饭\u{9b}31m\u{202e}\u{e0041}\"}\n";
        let safe = json_without_hidden(json);
        assert_eq!(safe, "{\"a\":\"饭\\u009b31m\\u202e\\udb40\\udc41\"}\n");
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(parsed(&safe), parsed(json));
    }

    #[test]
    fn whatever_field_it_came_with_nothing_hidden_reaches_a_line() {
        let escaped = |line: &str, format| {
            let mut writer = LineWriter { inner: Vec::new(), format };
            writer.write_all(line.as_bytes()).expect("memory takes it");
            String::from_utf8(writer.inner).expect("text")
        };
        for format in [LineFormat::Json, LineFormat::People] {
            assert_eq!(escaped("{\"a\":\"饭\"}\n", format), "{\"a\":\"饭\"}\n");
        }
        let line = "a\u{202e}b\u{2028}c\u{85}\u{e0041}\n";
        assert_eq!(escaped(line, LineFormat::Json), "a\\u202eb\\u2028c\\u0085\\udb40\\udc41\n");
        let seen = escaped("a\u{202e}b\nc\r\u{1b}[31m\n", LineFormat::People);
        assert_eq!(seen, "a\\u{202e}b\n    c\\r\u{1b}[31m\n");
    }
}
