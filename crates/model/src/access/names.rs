//! The queues or channels that a key is limited to.

use common::{channel_pattern::NamePattern, name::NameError};

/// The most patterns of a key for queues, and for channels.
pub const MAX_PATTERNS: usize = 32;

/// The names that a key may use.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum NamePatterns {
    /// Every name.
    #[default]
    All,
    /// Names that one of these matches.
    Matching(Vec<NamePattern>),
}

impl NamePatterns {
    /// Patterns as they were given; without any, every name.
    ///
    /// # Errors
    /// A pattern that cannot be one.
    pub fn parse<'a>(given: Option<impl IntoIterator<Item = &'a str>>) -> Result<Self, NameError> {
        let Some(given) = given else { return Ok(Self::All) };
        given.into_iter().map(str::parse).collect::<Result<_, _>>().map(Self::Matching)
    }

    /// Whether a name may be used.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Whether every name that a name or pattern stands for may be used.
    #[must_use]
    pub fn cover(&self, text: &str) -> bool {
        match self {
            Self::All => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.covers(text)),
        }
    }

    /// Whether every name that others allow may be used.
    #[must_use]
    pub fn cover_all(&self, others: &Self) -> bool {
        match (self, others) {
            (Self::All, _) => true,
            (Self::Matching(_), Self::All) => self.cover("*"),
            (Self::Matching(_), Self::Matching(others)) => others.iter().all(|other| self.cover(&other.to_string())),
        }
    }

    /// The patterns as text; none for every name.
    #[must_use]
    pub fn to_texts(&self) -> Option<Vec<String>> {
        match self {
            Self::All => None,
            Self::Matching(patterns) => Some(patterns.iter().map(ToString::to_string).collect()),
        }
    }
}
