//! Namespaces: the first part of the names that a key sees and makes.

use std::{fmt, str::FromStr, sync::Arc};

use common::name::{NameError, QueueName};

/// What the queues of subscriptions begin with.
const SUBSCRIPTION_QUEUES: &str = "sub.";

/// A namespace: `acme` holds every name that begins with `acme.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// The namespace without its dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name, or every name that a pattern matches, lies inside.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        name.strip_prefix(&*self.0).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
    }

    /// Whether a queue lies inside. The queue of a subscription lies where the subscription does.
    #[must_use]
    pub fn holds_queue(&self, queue: &QueueName) -> bool {
        let name = queue.as_str();
        self.holds(name.strip_prefix(SUBSCRIPTION_QUEUES).unwrap_or(name))
    }
}

impl FromStr for Namespace {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_fit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let begins_well = text.bytes().next().is_some_and(|b| b != b'-');
        // `sub.acme.x` is the queue of the subscription `acme.x`, of another namespace
        if text.len() <= 32 && begins_well && text.bytes().all(is_fit) && text != "sub" {
            return Ok(Self(text.into()));
        }
        let allowed = "match ^[a-z0-9][a-z0-9-]*$, have 1 to 32 characters and not be \"sub\"";
        Err(NameError::new("namespace", allowed, text))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lies_inside_only_behind_the_dot() {
        let acme: Namespace = "acme".parse().expect("a namespace");
        for (name, is_inside) in [
            ("acme.orders", true),
            ("acme.*", true),
            ("acme.", false),
            ("acme", false),
            ("acmeorders", false),
            ("acme2.orders", false),
            ("other.acme.orders", false),
            ("*", false),
        ] {
            assert_eq!(acme.holds(name), is_inside, "{name}");
        }
        let queue = |name: &str| name.parse().expect("a queue");
        assert!(acme.holds_queue(&queue("sub.acme.billing")) && acme.holds_queue(&queue("acme.q")));
        assert!(!acme.holds_queue(&queue("sub.other.billing")) && !acme.holds_queue(&queue("sub.acme")));
        for bad in ["", "sub", "Acme", "a.b", "-a", "a*", &"a".repeat(33)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }
}
