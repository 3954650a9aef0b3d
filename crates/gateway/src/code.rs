//! The one table from error code to status.

use actix_web::http::StatusCode;

/// Everything that an error answer can report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    InvalidPayload,
    InvalidRequest,
    InvalidPolicy,
    UnknownPosition,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    Duplicate,
    PayloadTooLarge,
    UnsupportedMediaType,
    QueueFull,
    QueueClosed,
    QueueNotEmpty,
    ConfirmationRequired,
    IdempotencyConflict,
    TooManyWaiters,
    TooManyEventStreams,
    TooManyReaders,
    TooManyQueues,
    TooManyCronEntries,
    TooManyChannels,
    TooManySubscriptions,
    TooManyKeys,
    FixedMember,
    CrossSiteRequest,
    HostNotAllowed,
    KeyRequired,
    InvalidKey,
    ScopeRequired,
    NameNotAllowed,
    UpgradeRequired,
    TooManyBodies,
    TooManyAnswers,
    BackendUnavailable,
    BackendFull,
    MemoryBudgetUsed,
    BackendCannotSave,
    Internal,
}

/// A row of the table: code, type, status, whether the same request may succeed later, and a hint.
pub(crate) struct ErrorCodeRow(
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) StatusCode,
    pub(crate) bool,
    pub(crate) &'static str,
);

impl ErrorCode {
    #[expect(clippy::too_many_lines, reason = "a table: one row for each code")]
    pub(crate) fn row(self) -> ErrorCodeRow {
        use StatusCode as S;
        match self {
            Self::InvalidPayload => {
                ErrorCodeRow("invalid_payload", "validation_error", S::BAD_REQUEST, false, "send a JSON object")
            }
            Self::InvalidRequest => ErrorCodeRow(
                "invalid_request",
                "validation_error",
                S::BAD_REQUEST,
                false,
                "the message says what is allowed",
            ),
            Self::InvalidPolicy => ErrorCodeRow(
                "invalid_request",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "the message says what is allowed",
            ),
            Self::UnknownPosition => ErrorCodeRow(
                "unknown_position",
                "validation_error",
                S::BAD_REQUEST,
                false,
                "begin again with since, or without after",
            ),
            Self::NotFound => ErrorCodeRow(
                "not_found",
                "not_found",
                S::NOT_FOUND,
                false,
                "check the path and the id; a job can be looked up until its TTL is over",
            ),
            Self::MethodNotAllowed => ErrorCodeRow(
                "method_not_allowed",
                "invalid_request",
                S::METHOD_NOT_ALLOWED,
                false,
                "see /ojs/manifest for the routes",
            ),
            Self::RequestTimeout => ErrorCodeRow(
                "request_timeout",
                "invalid_request",
                S::REQUEST_TIMEOUT,
                true,
                "send the whole body without pausing",
            ),
            Self::Conflict => {
                ErrorCodeRow("conflict", "conflict", S::CONFLICT, false, "look the job up: it has moved on")
            }
            Self::Duplicate => ErrorCodeRow(
                "duplicate",
                "conflict",
                S::CONFLICT,
                false,
                "the job is there already; look it up by its id",
            ),
            Self::PayloadTooLarge => ErrorCodeRow(
                "payload_too_large",
                "validation_error",
                S::PAYLOAD_TOO_LARGE,
                false,
                "keep large data elsewhere and send a reference",
            ),
            Self::UnsupportedMediaType => ErrorCodeRow(
                "unsupported_media_type",
                "validation_error",
                S::UNSUPPORTED_MEDIA_TYPE,
                false,
                "send Content-Type: application/json without Content-Encoding",
            ),
            Self::QueueFull => ErrorCodeRow(
                "queue_full",
                "backpressure",
                S::TOO_MANY_REQUESTS,
                true,
                "try again when workers have caught up",
            ),
            Self::QueueClosed => ErrorCodeRow(
                "queue_closed",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again when the queue is open, or use another",
            ),
            Self::QueueNotEmpty => ErrorCodeRow(
                "queue_not_empty",
                "conflict",
                S::CONFLICT,
                false,
                "purge it first, and let its running jobs end",
            ),
            Self::ConfirmationRequired => ErrorCodeRow(
                "confirmation_required",
                "validation_error",
                S::BAD_REQUEST,
                false,
                "the message says what confirm must be",
            ),
            Self::IdempotencyConflict => ErrorCodeRow(
                "idempotency_conflict",
                "conflict",
                S::CONFLICT,
                false,
                "use a new Idempotency-Key for a new request",
            ),
            Self::TooManyWaiters => ErrorCodeRow(
                "too_many_waiters",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "wait less, ask another gateway or raise gateway.max_waiters",
            ),
            Self::TooManyEventStreams => ErrorCodeRow(
                "too_many_event_streams",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, at another gateway, or raise gateway.max_event_streams",
            ),
            Self::TooManyReaders => ErrorCodeRow(
                "too_many_readers",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, at another gateway, or raise channels.max_readers",
            ),
            Self::TooManyQueues => ErrorCodeRow(
                "too_many_queues",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "use fewer queues or raise jobs.max_queues",
            ),
            Self::TooManyCronEntries => ErrorCodeRow(
                "too_many_cron_entries",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "delete entries that are not needed or raise cron.max_entries",
            ),
            Self::TooManyChannels => ErrorCodeRow(
                "too_many_channels",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "use fewer channels or raise channels.max_channels",
            ),
            Self::TooManySubscriptions => ErrorCodeRow(
                "too_many_subscriptions",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "delete subscriptions that are not needed or raise subscriptions.max",
            ),
            Self::TooManyKeys => ErrorCodeRow(
                "too_many_keys",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "revoke keys that nobody uses",
            ),
            Self::FixedMember => ErrorCodeRow(
                "fixed_member",
                "conflict",
                S::CONFLICT,
                false,
                "send it as it is, or delete the subscription and make another",
            ),
            Self::CrossSiteRequest => ErrorCodeRow(
                "cross_site_request",
                "invalid_request",
                S::FORBIDDEN,
                false,
                "send it from a page of this origin, or from a program",
            ),
            Self::HostNotAllowed => ErrorCodeRow(
                "host_not_allowed",
                "invalid_request",
                S::FORBIDDEN,
                false,
                "use another name of the gateway, or list this one in gateway.allowed_hosts",
            ),
            Self::KeyRequired => ErrorCodeRow(
                "key_required",
                "authentication_error",
                S::UNAUTHORIZED,
                false,
                "send Authorization: Bearer with a key of this installation",
            ),
            Self::InvalidKey => ErrorCodeRow(
                "invalid_key",
                "authentication_error",
                S::UNAUTHORIZED,
                false,
                "use another key; an administrator lists and makes keys at /v1/admin/keys",
            ),
            Self::ScopeRequired => ErrorCodeRow(
                "scope_required",
                "authorization_error",
                S::FORBIDDEN,
                false,
                "use a key that has the scope; docs/reference/scopes.md lists what each route needs",
            ),
            Self::NameNotAllowed => ErrorCodeRow(
                "name_not_allowed",
                "authorization_error",
                S::FORBIDDEN,
                false,
                "use a key for these names, or names of this key",
            ),
            Self::UpgradeRequired => ErrorCodeRow(
                "upgrade_required",
                "invalid_request",
                S::UPGRADE_REQUIRED,
                false,
                "open this path with a WebSocket client",
            ),
            Self::TooManyBodies => ErrorCodeRow(
                "too_many_bodies",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, send smaller bodies, or raise gateway.bodies_max_bytes",
            ),
            Self::TooManyAnswers => ErrorCodeRow(
                "too_many_answers",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, ask for less at a time, or raise gateway.answers_max_bytes",
            ),
            Self::BackendUnavailable => ErrorCodeRow(
                "backend_unavailable",
                "backend_error",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again; a request that was under way may have been carried out",
            ),
            Self::BackendFull => ErrorCodeRow(
                "backend_full",
                "backend_error",
                S::SERVICE_UNAVAILABLE,
                true,
                "nothing was written; try again later",
            ),
            Self::MemoryBudgetUsed => ErrorCodeRow(
                "memory_budget_used",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "nothing was written; try again when there is less of it, or raise maxmemory of redis",
            ),
            Self::BackendCannotSave => ErrorCodeRow(
                "backend_cannot_save",
                "backend_error",
                S::SERVICE_UNAVAILABLE,
                true,
                "make the disk of redis writable (its log has the reason), or set stop-writes-on-bgsave-error no",
            ),
            Self::Internal => ErrorCodeRow(
                "backend_error",
                "backend_error",
                S::INTERNAL_SERVER_ERROR,
                true,
                "the log has more under the request id",
            ),
        }
    }
}

impl ErrorCode {
    /// Every code.
    pub(crate) fn every() -> impl Iterator<Item = Self> {
        std::iter::successors(Some(Self::InvalidPayload), |code| code.next())
    }

    /// Every code with its status.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<(&'static str, u16)> {
        let rows = Self::every().map(Self::row);
        rows.map(|ErrorCodeRow(name, _, status, ..)| (name, status.as_u16())).collect()
    }

    /// The next code of the table. The compiler rejects a table that leaves one out.
    fn next(self) -> Option<Self> {
        Some(match self {
            Self::InvalidPayload => Self::InvalidRequest,
            Self::InvalidRequest => Self::InvalidPolicy,
            Self::InvalidPolicy => Self::UnknownPosition,
            Self::UnknownPosition => Self::NotFound,
            Self::NotFound => Self::MethodNotAllowed,
            Self::MethodNotAllowed => Self::RequestTimeout,
            Self::RequestTimeout => Self::Conflict,
            Self::Conflict => Self::Duplicate,
            Self::Duplicate => Self::PayloadTooLarge,
            Self::PayloadTooLarge => Self::UnsupportedMediaType,
            Self::UnsupportedMediaType => Self::QueueFull,
            Self::QueueFull => Self::QueueClosed,
            Self::QueueClosed => Self::QueueNotEmpty,
            Self::QueueNotEmpty => Self::ConfirmationRequired,
            Self::ConfirmationRequired => Self::IdempotencyConflict,
            Self::IdempotencyConflict => Self::TooManyWaiters,
            Self::TooManyWaiters => Self::TooManyEventStreams,
            Self::TooManyEventStreams => Self::TooManyReaders,
            Self::TooManyReaders => Self::TooManyQueues,
            Self::TooManyQueues => Self::TooManyCronEntries,
            Self::TooManyCronEntries => Self::TooManyChannels,
            Self::TooManyChannels => Self::TooManySubscriptions,
            Self::TooManySubscriptions => Self::TooManyKeys,
            Self::TooManyKeys => Self::FixedMember,
            Self::FixedMember => Self::CrossSiteRequest,
            Self::CrossSiteRequest => Self::HostNotAllowed,
            Self::HostNotAllowed => Self::KeyRequired,
            Self::KeyRequired => Self::InvalidKey,
            Self::InvalidKey => Self::ScopeRequired,
            Self::ScopeRequired => Self::NameNotAllowed,
            Self::NameNotAllowed => Self::UpgradeRequired,
            Self::UpgradeRequired => Self::TooManyBodies,
            Self::TooManyBodies => Self::TooManyAnswers,
            Self::TooManyAnswers => Self::BackendUnavailable,
            Self::BackendUnavailable => Self::BackendFull,
            Self::BackendFull => Self::MemoryBudgetUsed,
            Self::MemoryBudgetUsed => Self::BackendCannotSave,
            Self::BackendCannotSave => Self::Internal,
            Self::Internal => return None,
        })
    }
}
