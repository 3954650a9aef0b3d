//! Scopes: what a key may do.

use std::{fmt, str::FromStr};

use common::{known_names, name::quoted};

/// One thing that a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Enqueue, cancel and retry jobs; workflows and cron entries.
    JobsWrite,
    /// Look up jobs, their events, workflows and cron entries.
    JobsRead,
    /// Fetch jobs and report on them.
    Work,
    /// Publish messages.
    ChannelsPublish,
    /// Read channels and their messages.
    ChannelsSubscribe,
    /// Create, change, look up and delete subscriptions.
    Subscriptions,
    /// Look up queues, workers, keys, health and metrics.
    AdminRead,
    /// Pause, limit, purge and delete; direct workers; make keys.
    AdminWrite,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 8] = [
        Self::JobsWrite,
        Self::JobsRead,
        Self::Work,
        Self::ChannelsPublish,
        Self::ChannelsSubscribe,
        Self::Subscriptions,
        Self::AdminRead,
        Self::AdminWrite,
    ];

    /// The name that settings, requests and errors use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::JobsWrite => "jobs:write",
            Self::JobsRead => "jobs:read",
            Self::Work => "work",
            Self::ChannelsPublish => "channels:publish",
            Self::ChannelsSubscribe => "channels:subscribe",
            Self::Subscriptions => "subscriptions",
            Self::AdminRead => "admin:read",
            Self::AdminWrite => "admin:write",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            let meant = known_names::nearest(text, &names);
            let meant = meant.map_or_else(String::new, |meant| format!(", did you mean {meant:?}?"));
            format!("scope must be one of {}, got {}{meant}", names.join(", "), quoted(text))
        })
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether a scope is in the set.
    #[must_use]
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether every scope of another set is in this one.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The scopes of both sets.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether no scope is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes in the order of their declaration.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_scopes_that_were_put_in_and_no_others() {
        for scope in Scope::ALL {
            assert_eq!(scope.name().parse(), Ok(scope));
            let set = Scopes::from_iter([scope]);
            assert_eq!(set.iter().collect::<Vec<_>>(), [scope]);
            assert!(Scopes::ALL.covers(set) && !set.covers(Scopes::ALL) && set.covers(set));
        }
        assert_eq!(Scopes::ALL.iter().count(), Scope::ALL.len());
        assert!(Scopes::default().is_empty() && Scopes::ALL.covers(Scopes::default()));
        let error = "job:write".parse::<Scope>().expect_err("no scope");
        assert!(error.contains("did you mean \"jobs:write\"?"), "{error}");
    }
}
