//! Untrusted bytes in log lines.

/// Longest untrusted text in a log line, in characters.
const MAX_CHARS: usize = 4096;

/// Bytes as text for a log line. Control characters are escaped, so bytes from the network cannot add lines or colours.
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
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_shown_as_it_is_and_controls_are_escaped() {
        assert_eq!(printable("7".as_bytes()), "7");
        assert_eq!(printable("饭 {\"a\":1}".as_bytes()), "饭 {\"a\":1}");
        assert_eq!(printable(b"a\r\n\x1b[31mb"), "a\\r\\n\\u{1b}[31mb");
        assert_eq!(printable(&[b'x'; 10_000]).chars().count(), MAX_CHARS + 1);
    }
}
