//! Why a push failed, and what may follow: one table, [`Kind::row`].
//!
//! Messages show where it went (scheme, host, port) and what came back. They never show a path, a query, a header that was
//! sent or a secret: any of those may be the key to the receiver.

use std::time::Duration;

/// A push that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PushError {
    /// What kind of failure: see `docs/push.md`.
    pub code: &'static str,
    /// For people. Without secrets, and with at most 256 characters of what came back.
    pub message: String,
    /// Whether and when to try again.
    pub retry: Retry,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// Whether the receiver was asked: not while the breaker is open.
    pub was_sent: bool,
}

/// Whether and when another attempt may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// As the job's own policy says.
    ByPolicy,
    /// It would fail in the same way.
    Never,
    /// Not before this has passed.
    After(Duration),
}

/// What a failure says about the receiver, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It answers.
    Good,
    /// It does not, or it asks to be left alone.
    Bad,
    /// Nothing.
    Unknown,
}

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    RequestInvalid,
    AddressRefused,
    Unresolved,
    Unreachable,
    ConnectTimeout,
    Tls,
    Timeout,
    Broken,
    AnswerTooLarge,
    Redirected,
    Rejected,
    Deferred,
    RateLimited,
    Failing,
    NoPlace,
    BreakerOpen,
}

impl Kind {
    /// Every kind, for tests of the table.
    #[cfg(test)]
    pub(super) const ALL: [Self; 16] = [
        Self::RequestInvalid,
        Self::AddressRefused,
        Self::Unresolved,
        Self::Unreachable,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Timeout,
        Self::Broken,
        Self::AnswerTooLarge,
        Self::Redirected,
        Self::Rejected,
        Self::Deferred,
        Self::RateLimited,
        Self::Failing,
        Self::NoPlace,
        Self::BreakerOpen,
    ];

    /// Its code, what follows, and what the breaker makes of it.
    const fn row(self) -> (&'static str, Retry, Health) {
        use Health::{Bad, Good, Unknown};
        use Retry::{ByPolicy, Never};
        match self {
            Self::RequestInvalid => ("push_request_invalid", Never, Unknown),
            Self::AddressRefused => ("push_address_refused", Never, Unknown),
            Self::Unresolved => ("push_dns_failed", ByPolicy, Bad),
            Self::Unreachable => ("push_connect_failed", ByPolicy, Bad),
            Self::ConnectTimeout => ("push_connect_timeout", ByPolicy, Bad),
            Self::Tls => ("push_tls_failed", ByPolicy, Bad),
            Self::Timeout => ("push_timeout", ByPolicy, Bad),
            Self::Broken => ("push_answer_broken", ByPolicy, Bad),
            // The work is done, and would be done again for the same answer
            Self::AnswerTooLarge => ("push_answer_too_large", Never, Good),
            // A redirect stays until somebody changes the URL
            Self::Redirected => ("push_redirected", Never, Good),
            Self::Rejected => ("push_rejected", Never, Good),
            Self::Deferred => ("push_deferred", ByPolicy, Good),
            Self::RateLimited => ("push_rate_limited", ByPolicy, Bad),
            Self::Failing => ("push_server_error", ByPolicy, Bad),
            Self::NoPlace => ("push_no_place", ByPolicy, Unknown),
            // With the time that is left instead
            Self::BreakerOpen => ("push_breaker_open", ByPolicy, Unknown),
        }
    }

    /// The kind of a status that is not 2xx.
    pub(super) const fn of_status(status: u16) -> Self {
        match status {
            300..=399 => Self::Redirected,
            408 | 409 | 425 => Self::Deferred,
            429 => Self::RateLimited,
            400..=499 => Self::Rejected,
            _ => Self::Failing,
        }
    }

    pub(super) const fn health(self) -> Health {
        self.row().2
    }

    pub(super) const fn retry(self) -> Retry {
        self.row().1
    }

    pub(super) const fn code(self) -> &'static str {
        self.row().0
    }
}

/// A failure before it is told to the caller.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) status: Option<u16>,
    /// How long the receiver, or the breaker, wants to be left alone.
    pub(super) wait: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), status: None, wait: None }
    }
}

impl From<Failure> for PushError {
    fn from(failure: Failure) -> Self {
        let retry = match (failure.kind.retry(), failure.wait) {
            (Retry::ByPolicy, Some(wait)) => Retry::After(wait),
            (retry, _) => retry,
        };
        let was_sent = failure.kind != Kind::BreakerOpen;
        Self { code: failure.kind.code(), message: failure.message, retry, status: failure.status, was_sent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_of_the_kind_that_the_requirements_say() {
        for (status, kind) in [
            (301, Kind::Redirected),
            (304, Kind::Redirected),
            (400, Kind::Rejected),
            (404, Kind::Rejected),
            (410, Kind::Rejected),
            (408, Kind::Deferred),
            (409, Kind::Deferred),
            (425, Kind::Deferred),
            (429, Kind::RateLimited),
            (500, Kind::Failing),
            (503, Kind::Failing),
            (799, Kind::Failing),
            (101, Kind::Failing),
        ] {
            assert_eq!(Kind::of_status(status), kind, "{status}");
        }
    }

    #[test]
    fn a_wait_does_not_make_a_hopeless_push_worth_trying() {
        let failure = |kind| Failure { wait: Some(Duration::from_secs(7)), ..Failure::new(kind, "x") };
        assert_eq!(PushError::from(failure(Kind::Failing)).retry, Retry::After(Duration::from_secs(7)));
        assert_eq!(PushError::from(failure(Kind::Rejected)).retry, Retry::Never);
    }

    #[test]
    fn every_code_is_in_the_document_with_what_follows() {
        let document = include_str!("../../../../docs/push.md");
        for kind in Kind::ALL {
            let (code, retry, health) = kind.row();
            let follows = match (kind, retry) {
                (Kind::BreakerOpen, _) => "when it closes",
                (_, Retry::Never) => "no",
                _ => "yes",
            };
            let counts = if health == Health::Bad { "yes" } else { "no" };
            let row = document.lines().find(|line| line.starts_with(&format!("| `{code}` |")));
            let row = row.unwrap_or_else(|| panic!("{code} has no row"));
            assert!(row.ends_with(&format!("| {follows} | {counts} |")), "{row}");
        }
        let rows = document.lines().filter(|line| line.starts_with("| `push_")).count();
        assert_eq!(rows, Kind::ALL.len(), "no row is of a code that does not exist");
    }
}
