//! Names that a request may use, and what to say about one that it may not: the nearest name that is known.

use crate::name::quoted;

/// The most names that a message lists.
const MAX_LISTED: usize = 40;

/// The error for a name that is not known: `unknown member "priorty", did you mean "priority"? known are ...`.
#[must_use]
pub fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let asked = nearest(name, known).map_or_else(String::new, |nearest| format!(", did you mean {nearest:?}?"));
    let known = match known {
        [] => "none is allowed here".to_owned(),
        [one] => format!("known is {one}"),
        _ => format!("known are {}", known.iter().take(MAX_LISTED).copied().collect::<Vec<_>>().join(", ")),
    };
    let comma = if asked.is_empty() { "," } else { "" };
    format!("unknown {kind} {}{asked}{comma} {known}", quoted(name))
}

/// The known name that was most likely meant, if any is near. Of a known name with dots only the last part counts.
#[must_use]
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    // Longer names are not compared: the time for it grows with the square
    let wanted = Some(simplified(name)).filter(|name| (1..=64).contains(&name.chars().count()))?;
    let ranked = known.iter().filter_map(|candidate| {
        let simple = simplified(candidate.rsplit('.').next().unwrap_or(candidate));
        Some((rank(&wanted, &simple)?, *candidate))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, candidate)| candidate)
}

/// How far two names are apart; none if they have nothing to do with each other.
fn rank(wanted: &str, candidate: &str) -> Option<usize> {
    let allowed = (wanted.chars().count().max(candidate.chars().count()) / 4).clamp(1, 3);
    let distance = edit_distance(wanted, candidate);
    if distance <= allowed {
        return Some(distance);
    }
    // `job_type` for `types`
    let last_word = wanted.rsplit('_').next().unwrap_or(wanted);
    if last_word.len() >= 4 && edit_distance(last_word, candidate) <= 1 {
        return Some(allowed + 1);
    }
    // `delay` for `delay_until`, `job_type` for `type`
    let is_part = |short: &str, long: &str| {
        short.len() >= 3
            && (long.starts_with(short) || long.strip_suffix(short).is_some_and(|rest| rest.ends_with('_')))
    };
    (is_part(wanted, candidate) || is_part(candidate, wanted)).then_some(allowed + 2)
}

/// `maxAttempts`, `Max-Attempts` and `max_attempts` are the same name.
fn simplified(name: &str) -> String {
    let mut simple = String::with_capacity(name.len());
    let mut is_word = false;
    for character in name.chars() {
        if character.is_uppercase() && is_word {
            simple.push('_');
        }
        is_word = character.is_lowercase() || character.is_numeric();
        if character == '-' || character == ' ' {
            simple.push('_');
        } else {
            simple.extend(character.to_lowercase());
        }
    }
    simple
}

/// Characters to insert, delete, replace or swap with their neighbours.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(from != to);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: [&str; 9] =
        ["queue", "priority", "delay_until", "expires_at", "timeout_ms", "retry", "tags", "type", "retry.max_attempts"];

    #[test]
    fn the_name_that_was_meant_is_found() {
        for (written, meant) in [
            ("priorty", "priority"),
            ("Priority", "priority"),
            ("max_atempts", "retry.max_attempts"),
            ("maxAttempts", "retry.max_attempts"),
            ("max-attempts", "retry.max_attempts"),
            ("delay", "delay_until"),
            ("que", "queue"),
            ("qeue", "queue"),
            ("queues", "queue"),
            ("timeout", "timeout_ms"),
            ("timeoutMs", "timeout_ms"),
            ("job_type", "type"),
            ("tag", "tags"),
        ] {
            assert_eq!(nearest(written, &OPTIONS), Some(meant), "{written}");
        }
        for stranger in ["", "colour", "x", "banana", "饭", &"q".repeat(10_000)] {
            assert_eq!(nearest(stranger, &OPTIONS), None, "{stranger}");
        }
    }

    #[test]
    fn the_message_names_the_name_the_nearest_and_all() {
        assert_eq!(
            unknown("member", "limt", &["after", "limit"]),
            r#"unknown member "limt", did you mean "limit"? known are after, limit"#
        );
        assert_eq!(unknown("member", "x", &["after", "limit"]), r#"unknown member "x", known are after, limit"#);
        assert_eq!(unknown("query parameter", "x", &[]), r#"unknown query parameter "x", none is allowed here"#);
    }
}
