//! Access: what the sender of a request may do. A key and a token become the same [`Access`].
//!
//! | file | what it is |
//! |---|---|
//! | `scope` | the scopes, and sets of them |
//! | `names`, `namespace` | the queues and channels that a key is limited to |
//! | `api_key` | keys, their hashes, and how they are compared |
//! | `record` | a key as it is stored, without its secret |

mod api_key;
mod names;
mod namespace;
mod record;
mod scope;

use crate::MemberId;
use common::{
    name::{ChannelName, QueueName},
    time::Millis,
};

pub use self::{
    api_key::{ApiKey, KEY_PREFIX, KeyHash, KeyId, PresentedKey},
    names::{MAX_PATTERNS, NamePatterns},
    namespace::Namespace,
    record::{ApiKeyRecord, KeyCheck, KeyText, MAX_KEY_NAME_LENGTH},
    scope::{Scope, Scopes},
};

/// What the sender of a request may do.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// The id of the key, or the subject of the token.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// With which queues.
    pub queues: NamePatterns,
    /// With which channels.
    pub channels: NamePatterns,
    /// The namespace outside of which it sees and makes nothing.
    pub namespace: Option<Namespace>,
    /// When it ends.
    pub expires_at: Option<Millis>,
    /// How much it may send.
    pub limits: AccessLimits,
    /// As which member of a channel it may take part.
    pub member: MemberRight,
}

/// As which member of a channel the owner may take part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MemberRight {
    /// As any: a key speaks for all.
    #[default]
    Any,
    /// As this one, whom its token names.
    Only(MemberId),
    /// As none: its token names nobody for whom somebody trusted speaks.
    None,
}

/// How much the owner of a key may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AccessLimits {
    /// Requests per second.
    pub requests_per_second: Option<u32>,
    /// Bytes of request bodies per second.
    pub bytes_per_second: Option<u64>,
}

impl Access {
    /// Access to everything: of every client while no keys are demanded.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            scopes: Scopes::ALL,
            queues: NamePatterns::All,
            channels: NamePatterns::All,
            namespace: None,
            expires_at: None,
            limits: AccessLimits::default(),
            member: MemberRight::Any,
        }
    }

    /// Whether it has a scope.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(scope)
    }

    /// Whether it has a scope, and a queue is one of its own.
    #[must_use]
    pub fn may_queue(&self, scope: Scope, queue: &QueueName) -> bool {
        self.may(scope) && self.has_queue(queue)
    }

    /// Whether it has a scope, and a channel is one of its own.
    #[must_use]
    pub fn may_channel(&self, scope: Scope, channel: &ChannelName) -> bool {
        self.may(scope) && self.has_channel(channel)
    }

    /// Whether a queue is one of its own.
    #[must_use]
    pub fn has_queue(&self, queue: &QueueName) -> bool {
        self.queues.matches(queue.as_str())
            && self.namespace.as_ref().is_none_or(|namespace| namespace.holds_queue(queue))
    }

    /// Whether a channel is one of its own.
    #[must_use]
    pub fn has_channel(&self, channel: &ChannelName) -> bool {
        self.channels.matches(channel.as_str()) && self.holds(channel.as_str())
    }

    /// Whether every channel that a name or pattern stands for is one of its own.
    #[must_use]
    pub fn has_channel_pattern(&self, text: &str) -> bool {
        self.channels.cover(text) && self.holds(text)
    }

    /// Whether a name of a subscription, cron entry or other thing lies in its namespace.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| namespace.holds(name))
    }

    /// Whether it sees every queue.
    #[must_use]
    pub fn has_every_queue(&self) -> bool {
        self.namespace.is_none() && self.queues.cover("*")
    }

    /// Whether it sees every channel.
    #[must_use]
    pub fn has_every_channel(&self) -> bool {
        self.namespace.is_none() && self.channels.cover("*")
    }

    /// Whether it sees everything: what concerns the whole installation is for such keys alone.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.has_every_queue() && self.has_every_channel()
    }

    /// Whether it may do all that another may. A key makes, changes and deletes only keys that it covers, so that none
    /// gains what it did not have.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.scopes.covers(other.scopes) && self.sees(other)
    }

    /// Whether another is limited to what this one is limited to, or to a part of it.
    #[must_use]
    pub fn sees(&self, other: &Self) -> bool {
        self.queues.cover_all(&other.queues)
            && self.channels.cover_all(&other.channels)
            && (self.namespace.is_none() || self.namespace == other.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(scopes: &[Scope], queues: &[&str], namespace: Option<&str>) -> Access {
        let queues = Some(queues.iter().copied()).filter(|_| !queues.is_empty());
        Access {
            scopes: scopes.iter().copied().collect(),
            queues: NamePatterns::parse(queues).expect("patterns"),
            namespace: namespace.map(|text| text.parse().expect("a namespace")),
            ..Access::everything()
        }
    }

    fn queue(name: &str) -> QueueName {
        name.parse().expect("a queue")
    }

    #[test]
    fn scope_pattern_and_namespace_must_all_allow_a_queue() {
        let key = access(&[Scope::JobsWrite], &["acme.orders.*"], Some("acme"));
        assert!(key.may_queue(Scope::JobsWrite, &queue("acme.orders.eu")));
        for (scope, name) in
            [(Scope::JobsRead, "acme.orders.eu"), (Scope::JobsWrite, "acme.mails"), (Scope::JobsWrite, "orders.eu")]
        {
            assert!(!key.may_queue(scope, &queue(name)), "{scope} {name}");
        }
        assert!(!access(&[Scope::JobsWrite], &["*"], Some("acme")).may_queue(Scope::JobsWrite, &queue("other.q")));
        assert!(Access::everything().is_unlimited() && access(&[], &["*"], None).is_unlimited() && !key.is_unlimited());
    }

    #[test]
    fn a_key_covers_only_what_can_do_no_more() {
        let (read, write) = (Scope::JobsRead, Scope::JobsWrite);
        let all = access(&[read, write], &[], None);
        let some = access(&[read, write], &["orders.*"], None);
        let spaced = access(&[read, write], &["acme.*"], Some("acme"));
        assert!(all.covers(&some) && all.covers(&spaced) && all.covers(&all) && some.covers(&some));
        assert!(some.covers(&access(&[read], &["orders.eu"], None)) && !some.covers(&all));
        assert!(!some.covers(&access(&[Scope::Work], &["orders.eu"], None)), "another scope");
        assert!(!some.covers(&access(&[read], &["orders.eu", "mails"], None)), "another queue");
        assert!(!spaced.covers(&access(&[read], &["acme.*"], None)), "no namespace");
        assert!(!spaced.covers(&access(&[read], &["acme.*"], Some("other"))), "another namespace");
        assert!(access(&[read], &["*"], None).covers(&access(&[read], &[], None)));
    }
}
