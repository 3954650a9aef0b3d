//! One table from error code to status, and two shapes: the Open Job Spec's error object under `/ojs`, RFC 9457
//! problem details elsewhere. What went wrong inside goes to the log only.

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode, http::header};
use common::{
    job::{RequestError, state::Conflict},
    json::JsonError,
    name::NameError,
    redis::{StoreError, jobs::Refused},
};
use serde_json::json;

/// What a client can do wrong, and what can go wrong for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidPayload,
    InvalidRequest,
    InvalidPolicy,
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
    IdempotencyInProgress,
    TooManyWaiters,
    TooManyStreams,
    TooManyQueues,
    TooManyCrons,
    CrossSiteRequest,
    Unavailable,
    StorageFull,
    Internal,
}

/// A row of the table: code, type, status, whether the same request may succeed later, and a hint.
struct Row(&'static str, &'static str, StatusCode, bool, &'static str);

impl Code {
    #[expect(clippy::too_many_lines, reason = "a table: one row for each code")]
    fn row(self) -> Row {
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
            Self::IdempotencyInProgress => Row(
                "idempotency_in_progress",
                "conflict",
                S::CONFLICT,
                true,
                "try again with the same key when the first request has been answered",
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
            Self::InvalidPolicy => Self::NotFound,
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
            Self::IdempotencyConflict => Self::IdempotencyInProgress,
            Self::IdempotencyInProgress => Self::TooManyWaiters,
            Self::TooManyWaiters => Self::TooManyStreams,
            Self::TooManyStreams => Self::TooManyQueues,
            Self::TooManyQueues => Self::TooManyCrons,
            Self::TooManyCrons => Self::CrossSiteRequest,
            Self::CrossSiteRequest => Self::Unavailable,
            Self::Unavailable => Self::StorageFull,
            Self::StorageFull => Self::Internal,
            Self::Internal => return None,
        })
    }
}

/// An error on its way to a client.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    code: Code,
    message: String,
    /// What went wrong inside: for the log, never for the client.
    cause: Option<String>,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    fn inside(cause: &StoreError) -> Self {
        let message = "the request could not be carried out".to_owned();
        Self { code: Code::Internal, message, cause: Some(cause.to_string()) }
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// What went wrong inside, if it did.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether the request may have been carried out all the same.
    pub(crate) fn is_ambiguous(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Internal)
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        self.code.row().3
    }

    /// The code and the message, for one of many in an answer.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let Row(code, kind, status, retryable, hint) = self.code.row();
        json!({
            "code": code, "type": kind, "status": status.as_u16(), "message": self.message, "retryable": retryable,
            "hint": hint,
        })
    }

    /// The same, saying which of many it is about.
    pub(crate) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    pub(crate) fn not_found(what: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("{what} does not exist"))
    }

    /// The whole response, in the shape of the part of the interface that the path belongs to.
    pub(crate) fn render(&self, path: &str, request_id: &str) -> HttpResponse {
        let Row(code, kind, status, retryable, hint) = self.code.row();
        let mut response = HttpResponse::build(status);
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            response.insert_header((header::RETRY_AFTER, "1"));
        }
        if path.starts_with("/ojs") {
            let docs_url = format!("/ojs/manifest#{code}");
            let error = json!({
                "code": code, "type": kind, "message": self.message, "retryable": retryable,
                "hint": hint, "docs_url": docs_url, "request_id": request_id,
            });
            return response.content_type(super::routes::OJS_JSON).body(json!({ "error": error }).to_string());
        }
        let problem = json!({
            "type": "about:blank", "title": status.canonical_reason().unwrap_or_default(), "status": status.as_u16(),
            "detail": self.message, "code": code, "retryable": retryable, "hint": hint, "request_id": request_id,
        });
        response.content_type("application/problem+json").body(problem.to_string())
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.code.row().2
    }

    /// Only the status: `context` renders the body, because it knows the path and the request id.
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unavailable(_) => Self::new(Code::Unavailable, "the store cannot be reached at the moment"),
            StoreError::Full => Self::new(Code::StorageFull, "the store is out of memory"),
            StoreError::Refused(_) | StoreError::Damaged(_) => Self::inside(&error),
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        let code = match error {
            JsonError::Malformed(_) | JsonError::TooDeep { .. } => Code::InvalidPayload,
            JsonError::Unexpected(_) => Code::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let mut innermost = &error;
        while let RequestError::In { error, .. } = innermost {
            innermost = error;
        }
        let code =
            if matches!(innermost, RequestError::Policy(_)) { Code::InvalidPolicy } else { Code::InvalidRequest };
        Self::new(code, error.to_string())
    }
}

impl From<Conflict> for ApiError {
    fn from(conflict: Conflict) -> Self {
        Self::new(Code::Conflict, conflict.to_string())
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Duplicate(id) => Self::new(Code::Duplicate, format!("there is a job like it already: {id}")),
            Refused::Ignored { .. } => Self::new(Code::Duplicate, "there is a job like it already"),
            Refused::SameInBatch => Self::new(Code::Duplicate, "another job of the batch is the same"),
            Refused::Closed => Self::new(Code::QueueClosed, "the queue is closed: it takes no new jobs"),
            Refused::Full { max_depth } => {
                Self::new(Code::QueueFull, format!("the queue holds {max_depth} waiting jobs, which is its max_depth"))
            }
            Refused::TooManyQueues { max_queues } => {
                Self::new(Code::TooManyQueues, format!("there are {max_queues} queues, which is jobs.max_queues"))
            }
        }
    }
}
