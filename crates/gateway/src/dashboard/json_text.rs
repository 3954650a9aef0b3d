//! JSON as text: without blanks, and as people read it. Numbers stay digit for digit, which they would not as values.

/// What is at most this long stands in one line.
const MAX_LINE: usize = 64;
/// Levels that get lines of their own.
const MAX_DEPTH: usize = 24;

/// What is outside of strings, with what is inside of them untouched: `change` gets each byte outside.
fn outside_strings(json: &str, mut change: impl FnMut(&mut String, char)) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut is_string, mut is_escaped) = (false, false);
    for letter in json.chars() {
        if is_string {
            out.push(letter);
            is_string = is_escaped || letter != '"';
            is_escaped = letter == '\\' && !is_escaped;
        } else {
            is_string = letter == '"';
            change(&mut out, letter);
        }
    }
    out
}

/// Without blanks.
pub(super) fn compact(json: &str) -> String {
    outside_strings(json, |out, letter| {
        if !letter.is_ascii_whitespace() {
            out.push(letter);
        }
    })
}

/// As people read it.
pub(super) fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    write(&mut out, &compact(json), 0);
    out
}

fn write(out: &mut String, value: &str, depth: usize) {
    let is_long = value.len() > MAX_LINE && depth < MAX_DEPTH;
    let inner = value.get(1..value.len().saturating_sub(1)).unwrap_or_default();
    if !is_long || !value.starts_with(['[', '{']) || !value.ends_with([']', '}']) {
        out.push_str(&outside_strings(value, |out, letter| {
            out.push(letter);
            if matches!(letter, ',' | ':') {
                out.push(' ');
            }
        }));
        return;
    }
    out.push_str(&value[..1]);
    for (index, child) in children(inner).into_iter().enumerate() {
        out.push_str(if index > 0 { ",\n" } else { "\n" });
        out.extend(std::iter::repeat_n("  ", depth + 1));
        let (key, child) = if value.starts_with('{') { split_key(child) } else { ("", child) };
        out.push_str(key);
        out.push_str(if key.is_empty() { "" } else { " " });
        write(out, child, depth + 1);
    }
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
    out.push_str(&value[value.len() - 1..]);
}

/// The places of bytes outside of strings, with how deep they are.
fn structure(text: &str) -> impl Iterator<Item = (usize, u8, usize)> {
    let (mut is_string, mut is_escaped, mut depth) = (false, false, 0_usize);
    text.bytes().enumerate().filter_map(move |(place, byte)| {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = byte == b'\\' && !is_escaped;
            return None;
        }
        is_string = byte == b'"';
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        Some((place, byte, depth))
    })
}

/// The parts between commas.
fn children(inner: &str) -> Vec<&str> {
    let mut start = 0;
    let mut found: Vec<&str> = structure(inner)
        .filter(|(_, byte, depth)| *byte == b',' && *depth == 0)
        .map(|(place, ..)| {
            let child = &inner[start..place];
            start = place + 1;
            child
        })
        .collect();
    found.push(&inner[start..]);
    found
}

/// A member's name with its colon, and its value.
fn split_key(member: &str) -> (&str, &str) {
    let colon = structure(member).find(|(_, byte, depth)| *byte == b':' && *depth == 0);
    colon.map_or(("", member), |(place, ..)| member.split_at(place + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_stand_in_a_line_and_numbers_and_strings_stay_as_they_are() {
        assert_eq!(pretty("[ 1 ,{\"a\":\t[ ]} ]"), r#"[1, {"a": []}]"#);
        let long = format!(r#"{{"n":12345678901234567890123.0,"s":"{}, [a: \"b\\","l":[1,2]}}"#, "é".repeat(40));
        let shown = pretty(&long);
        assert!(shown.contains("\n  \"n\": 12345678901234567890123.0,\n") && shown.contains("\n  \"l\": [1, 2]\n}"));
        assert_eq!(compact(&shown), long);
        assert_eq!((pretty(""), compact(" ")), (String::new(), String::new()));
    }

    #[test]
    fn what_is_shown_means_the_same_and_no_text_makes_it_panic() {
        let texts = ["", "a\"b", "\\", "[1,{\"x\":2}]", "é\u{202e}\n", "a: b, c"];
        let list =
            serde_json::json!({ "list": texts, "deep": [[[[texts]]], { "": texts }], "n": [null, true, -1.5e3] });
        let text = serde_json::json!([list, list]).to_string();
        assert_eq!(compact(&pretty(&text)), text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pretty(&text)).ok(), serde_json::from_str(&text).ok());
        let letters: Vec<char> = "[]{}\",:\\ é1".chars().collect();
        for seed in 0..20_000_usize {
            let text: String =
                (0..90).map(|place| letters[(seed * 31 + place * place * (seed % 97)) % letters.len()]).collect();
            let _ = pretty(&text);
        }
    }
}
