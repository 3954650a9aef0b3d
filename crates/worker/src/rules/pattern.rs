//! Matches job types: a whole type, or a pattern in which `*` stands for any characters.

use wildmatch::WildMatchPattern;

/// A pattern for job types.
#[derive(Debug, Clone)]
pub(super) struct JobTypePattern {
    text: String,
    // Job types have no question marks, so the single-character wildcard is disabled
    matcher: WildMatchPattern<'*', '\0'>,
}

/// Maximum length of a pattern in bytes, the same as of a type.
const MAX_BYTES: usize = 255;

/// What a pattern may be, for error messages.
pub(super) const ALLOWED: &str = "a job type such as email.send, in which * stands for any characters: at most 255 of a-z, 0-9, '.', '_', '-' and '*'";

impl JobTypePattern {
    /// None if no job type could match.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-*".contains(&byte);
        let is_pattern = (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(is_allowed);
        is_pattern.then(|| Self { text: text.to_owned(), matcher: WildMatchPattern::new(text) })
    }

    pub(super) fn matches(&self, job_type: &str) -> bool {
        self.matcher.matches(job_type)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
        for (pattern, matching, others) in [
            ("email.send", vec!["email.send"], vec!["email.sends", "email", "emailxsend"]),
            ("email.*", vec!["email.send", "email.send.bulk", "email."], vec!["email", "xemail.send"]),
            ("*", vec!["a", "a.b"], vec![]),
            ("*.v2", vec!["email.v2"], vec!["email.v20"]),
            ("a*b*c", vec!["abc", "a.b.b.c"], vec!["ab", "abcd"]),
        ] {
            let parsed = JobTypePattern::parse(pattern).expect("a pattern");
            assert!(matching.iter().all(|name| parsed.matches(name)), "{pattern} {matching:?}");
            assert!(!others.iter().any(|name| parsed.matches(name)), "{pattern} {others:?}");
        }
    }

    #[test]
    fn what_no_type_looks_like_is_no_pattern() {
        for text in ["", "a b", "a?", "a/b", "é", &"a".repeat(256)] {
            assert!(JobTypePattern::parse(text).is_none(), "{text:?}");
        }
    }
}
