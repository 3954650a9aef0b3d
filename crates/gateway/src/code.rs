//! The one table from error code to status.

use actix_web::http::StatusCode;

/// What a client can do wrong, and what can go wrong for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
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
    Unconfirmed,
    IdempotencyConflict,
    TooManyWaiters,
    TooManyStreams,
    TooManyReaders,
    TooManyQueues,
    TooManyCrons,
    TooManyChannels,
    TooManySubscriptions,
    FixedMember,
    CrossSiteRequest,
    Unavailable,
    StorageFull,
    Internal,
}

/// A row of the table: code, type, status, whether the same request may succeed later, and a hint.
pub(crate) struct Row(
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) StatusCode,
    pub(crate) bool,
    pub(crate) &'static str,
);

impl Code {
    #[expect(clippy::too_many_lines, reason = "a table: one row for each code")]
    pub(crate) fn row(self) -> Row {
        use StatusCode as S;
        match self {
            Self::InvalidPayload => {
                Row("invalid_payload", "validation_error", S::BAD_REQUEST, false, "send a JSON object")
            }
            Self::InvalidRequest => {
                Row("invalid_request", "validation_error", S::BAD_REQUEST, false, "the message says what is allowed")
            }
            Self::InvalidPolicy => Row(
                "invalid_request",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "the message says what is allowed",
            ),
            Self::UnknownPosition => Row(
                "unknown_position",
                "validation_error",
                S::BAD_REQUEST,
                false,
                "begin again with since, or without after",
            ),
            Self::NotFound => Row(
                "not_found",
                "not_found",
                S::NOT_FOUND,
                false,
                "check the path and the id; a job can be looked up until its TTL is over",
            ),
            Self::MethodNotAllowed => Row(
                "method_not_allowed",
                "invalid_request",
                S::METHOD_NOT_ALLOWED,
                false,
                "see /ojs/manifest for the routes",
            ),
            Self::RequestTimeout => Row(
                "request_timeout",
                "invalid_request",
                S::REQUEST_TIMEOUT,
                true,
                "send the whole body without pausing",
            ),
            Self::Conflict => Row("conflict", "conflict", S::CONFLICT, false, "look the job up: it has moved on"),
            Self::Duplicate => {
                Row("duplicate", "conflict", S::CONFLICT, false, "the job is there already; look it up by its id")
            }
            Self::PayloadTooLarge => Row(
                "payload_too_large",
                "validation_error",
                S::PAYLOAD_TOO_LARGE,
                false,
                "keep large data elsewhere and send a reference",
            ),
            Self::UnsupportedMediaType => Row(
                "unsupported_media_type",
                "validation_error",
                S::UNSUPPORTED_MEDIA_TYPE,
                false,
                "send Content-Type: application/json without Content-Encoding",
            ),
            Self::QueueFull => {
                Row("queue_full", "backpressure", S::TOO_MANY_REQUESTS, true, "try again when workers have caught up")
            }
            Self::QueueClosed => Row(
                "queue_closed",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again when the queue is open, or use another",
            ),
            Self::QueueNotEmpty => {
                Row("queue_not_empty", "conflict", S::CONFLICT, false, "purge it first, and let its running jobs end")
            }
            Self::Unconfirmed => Row(
                "confirmation_required",
                "validation_error",
                S::BAD_REQUEST,
                false,
                "the message says what confirm must be",
            ),
            Self::IdempotencyConflict => Row(
                "idempotency_conflict",
                "conflict",
                S::CONFLICT,
                false,
                "use a new Idempotency-Key for a new request",
            ),
            Self::TooManyWaiters => Row(
                "too_many_waiters",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "wait less, ask another gateway or raise gateway.max_waiters",
            ),
            Self::TooManyStreams => Row(
                "too_many_event_streams",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, at another gateway, or raise gateway.max_event_streams",
            ),
            Self::TooManyReaders => Row(
                "too_many_readers",
                "backpressure",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again later, at another gateway, or raise channels.max_readers",
            ),
            Self::TooManyQueues => Row(
                "too_many_queues",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "use fewer queues or raise jobs.max_queues",
            ),
            Self::TooManyCrons => Row(
                "too_many_cron_entries",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "delete entries that are not needed or raise cron.max_entries",
            ),
            Self::TooManyChannels => Row(
                "too_many_channels",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "use fewer channels or raise channels.max_channels",
            ),
            Self::TooManySubscriptions => Row(
                "too_many_subscriptions",
                "validation_error",
                S::UNPROCESSABLE_ENTITY,
                false,
                "delete subscriptions that are not needed or raise subscriptions.max",
            ),
            Self::FixedMember => Row(
                "fixed_member",
                "conflict",
                S::CONFLICT,
                false,
                "send it as it is, or delete the subscription and make another",
            ),
            Self::CrossSiteRequest => Row(
                "cross_site_request",
                "invalid_request",
                S::FORBIDDEN,
                false,
                "send it from a page of this origin, or from a program",
            ),
            Self::Unavailable => Row(
                "backend_unavailable",
                "backend_error",
                S::SERVICE_UNAVAILABLE,
                true,
                "try again; a request that was under way may have been carried out",
            ),
            Self::StorageFull => Row(
                "backend_full",
                "backend_error",
                S::SERVICE_UNAVAILABLE,
                true,
                "nothing was written; try again later",
            ),
            Self::Internal => Row(
                "backend_error",
                "backend_error",
                S::INTERNAL_SERVER_ERROR,
                true,
                "the log has more under the request id",
            ),
        }
    }
}

#[cfg(test)]
impl Code {
    /// Every code with its status.
    pub(crate) fn all() -> Vec<(&'static str, u16)> {
        let mut all = Vec::new();
        let mut code = Some(Self::InvalidPayload);
        while let Some(this) = code {
            let Row(name, _, status, ..) = this.row();
            all.push((name, status.as_u16()));
            code = this.next();
        }
        all
    }

    /// The one behind it in the table: the compiler sees to it that none is left out.
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
            Self::QueueNotEmpty => Self::Unconfirmed,
            Self::Unconfirmed => Self::IdempotencyConflict,
            Self::IdempotencyConflict => Self::TooManyWaiters,
            Self::TooManyWaiters => Self::TooManyStreams,
            Self::TooManyStreams => Self::TooManyReaders,
            Self::TooManyReaders => Self::TooManyQueues,
            Self::TooManyQueues => Self::TooManyCrons,
            Self::TooManyCrons => Self::TooManyChannels,
            Self::TooManyChannels => Self::TooManySubscriptions,
            Self::TooManySubscriptions => Self::FixedMember,
            Self::FixedMember => Self::CrossSiteRequest,
            Self::CrossSiteRequest => Self::Unavailable,
            Self::Unavailable => Self::StorageFull,
            Self::StorageFull => Self::Internal,
            Self::Internal => return None,
        })
    }
}
