//! Why a push failed and what may follow: one table, [`PushErrorKind::properties`].
//!
//! Messages show the origin (scheme, host, port) and what came back. They never show a path, a query, a sent header or
//! a secret: each may be the key to the receiver.

use std::time::Duration;

/// A failed push.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PushError {
    /// The kind of failure: see `docs/push.md`.
    pub code: &'static str,
    /// For people. Without secrets, and with at most 256 characters of the answer.
    pub message: String,
    /// Whether and when to retry.
    pub retry: PushRetry,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// The beginning of the answer, without secrets that were sent.
    pub excerpt: String,
    /// Whether the request was sent: not while the breaker is open.
    pub was_sent: bool,
    /// Whether the request is at fault, and not the endpoint: the next request may succeed.
    pub is_request_at_fault: bool,
}

/// Whether and when another attempt may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushRetry {
    /// As the job's policy says.
    ByPolicy,
    /// It would fail in the same way.
    Never,
    /// Not before this delay.
    After(Duration),
}

/// What a failure says about the receiver, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointHealth {
    /// It answers.
    Healthy,
    /// It does not answer properly, or it asks for a pause.
    Unhealthy,
    /// Nothing.
    Unknown,
}

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushErrorKind {
    RequestInvalid,
    AddressRefused,
    DnsFailed,
    ConnectFailed,
    ConnectTimeout,
    TlsFailed,
    Timeout,
    AnswerBroken,
    Redirected,
    Rejected,
    Deferred,
    RateLimited,
    ServerError,
    ConcurrencyLimit,
    BreakerOpen,
}

impl PushErrorKind {
    /// Every kind, for tests of the table.
    #[cfg(test)]
    pub(super) const ALL: [Self; 15] = [
        Self::RequestInvalid,
        Self::AddressRefused,
        Self::DnsFailed,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::Timeout,
        Self::AnswerBroken,
        Self::Redirected,
        Self::Rejected,
        Self::Deferred,
        Self::RateLimited,
        Self::ServerError,
        Self::ConcurrencyLimit,
        Self::BreakerOpen,
    ];

    /// The code, what follows, and what it says about the receiver.
    const fn properties(self) -> (&'static str, PushRetry, EndpointHealth) {
        use EndpointHealth::{Healthy, Unhealthy, Unknown};
        use PushRetry::{ByPolicy, Never};
        match self {
            Self::RequestInvalid => ("push_request_invalid", Never, Unknown),
            Self::AddressRefused => ("push_address_refused", Never, Unknown),
            Self::DnsFailed => ("push_dns_failed", ByPolicy, Unhealthy),
            Self::ConnectFailed => ("push_connect_failed", ByPolicy, Unhealthy),
            Self::ConnectTimeout => ("push_connect_timeout", ByPolicy, Unhealthy),
            Self::TlsFailed => ("push_tls_failed", ByPolicy, Unhealthy),
            Self::Timeout => ("push_timeout", ByPolicy, Unhealthy),
            Self::AnswerBroken => ("push_answer_broken", ByPolicy, Unhealthy),
            // A redirect stays until somebody changes the URL
            Self::Redirected => ("push_redirected", Never, Healthy),
            Self::Rejected => ("push_rejected", Never, Healthy),
            Self::Deferred => ("push_deferred", ByPolicy, Healthy),
            Self::RateLimited => ("push_rate_limited", ByPolicy, Unhealthy),
            Self::ServerError => ("push_server_error", ByPolicy, Unhealthy),
            Self::ConcurrencyLimit => ("push_no_place", ByPolicy, Unknown),
            // With the remaining time instead
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
            _ => Self::ServerError,
        }
    }

    /// Whether a status is about this request: 4xx, unless it says that the endpoint is closed to Galley or is not there.
    const fn blames_request(status: u16) -> bool {
        matches!(status, 400..=499) && !matches!(status, 401 | 403 | 404 | 410)
    }

    pub(super) const fn health(self) -> EndpointHealth {
        self.properties().2
    }

    pub(super) const fn retry(self) -> PushRetry {
        self.properties().1
    }

    pub(super) const fn code(self) -> &'static str {
        self.properties().0
    }
}

/// A failure before it becomes a [`PushError`].
#[derive(Debug)]
pub(super) struct PushFailure {
    pub(super) kind: PushErrorKind,
    pub(super) message: String,
    pub(super) status: Option<u16>,
    /// The beginning of the answer.
    pub(super) excerpt: String,
    /// The delay that the receiver, or the breaker, asks for.
    pub(super) retry_after: Option<Duration>,
}

impl PushFailure {
    pub(super) fn new(kind: PushErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), status: None, excerpt: String::new(), retry_after: None }
    }
}

impl From<PushFailure> for PushError {
    fn from(failure: PushFailure) -> Self {
        let retry = match (failure.kind.retry(), failure.retry_after) {
            (PushRetry::ByPolicy, Some(wait)) => PushRetry::After(wait),
            (retry, _) => retry,
        };
        let was_sent = failure.kind != PushErrorKind::BreakerOpen;
        let is_request_at_fault =
            failure.status.map_or(failure.kind == PushErrorKind::RequestInvalid, PushErrorKind::blames_request);
        Self {
            code: failure.kind.code(),
            message: failure.message,
            retry,
            status: failure.status,
            excerpt: failure.excerpt,
            was_sent,
            is_request_at_fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_of_the_kind_that_the_requirements_say() {
        for (status, kind) in [
            (301, PushErrorKind::Redirected),
            (304, PushErrorKind::Redirected),
            (400, PushErrorKind::Rejected),
            (404, PushErrorKind::Rejected),
            (410, PushErrorKind::Rejected),
            (408, PushErrorKind::Deferred),
            (409, PushErrorKind::Deferred),
            (425, PushErrorKind::Deferred),
            (429, PushErrorKind::RateLimited),
            (500, PushErrorKind::ServerError),
            (503, PushErrorKind::ServerError),
            (799, PushErrorKind::ServerError),
            (101, PushErrorKind::ServerError),
        ] {
            assert_eq!(PushErrorKind::of_status(status), kind, "{status}");
        }
    }

    #[test]
    fn a_wait_does_not_make_a_hopeless_push_worth_trying() {
        let failure = |kind| PushFailure { retry_after: Some(Duration::from_secs(7)), ..PushFailure::new(kind, "x") };
        assert_eq!(
            PushError::from(failure(PushErrorKind::ServerError)).retry,
            PushRetry::After(Duration::from_secs(7))
        );
        assert_eq!(PushError::from(failure(PushErrorKind::Rejected)).retry, PushRetry::Never);
    }

    #[test]
    fn a_4xx_blames_the_request_unless_it_is_about_the_endpoint() {
        let blamed =
            |kind, status| PushError::from(PushFailure { status, ..PushFailure::new(kind, "x") }).is_request_at_fault;
        for status in 100..=999 {
            let is_blamed = (400..500).contains(&status) && ![401, 403, 404, 410].contains(&status);
            assert_eq!(blamed(PushErrorKind::of_status(status), Some(status)), is_blamed, "{status}");
        }
        assert!(blamed(PushErrorKind::RequestInvalid, None) && !blamed(PushErrorKind::Timeout, None));
    }

    #[test]
    fn every_code_is_in_the_document_with_what_follows() {
        let document = include_str!("../../../../docs/push.md");
        for kind in PushErrorKind::ALL {
            let (code, retry, health) = kind.properties();
            let follows = match (kind, retry) {
                (PushErrorKind::BreakerOpen, _) => "when it closes",
                (_, PushRetry::Never) => "no",
                _ => "yes",
            };
            let counts = if health == EndpointHealth::Unhealthy { "yes" } else { "no" };
            let row = document.lines().find(|line| line.starts_with(&format!("| `{code}` |")));
            let row = row.unwrap_or_else(|| panic!("{code} has no row"));
            assert!(row.ends_with(&format!("| {follows} | {counts} |")), "{row}");
        }
        let rows = document.lines().filter(|line| line.starts_with("| `push_")).count();
        assert_eq!(rows, PushErrorKind::ALL.len(), "no row is of a code that does not exist");
    }
}
