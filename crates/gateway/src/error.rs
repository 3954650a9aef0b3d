//! One table from error code to status, and two shapes: the Open Job Spec's error object under `/ojs`, RFC 9457
//! problem details elsewhere. Internal causes go only to the log.

use std::{fmt, time::Duration};

use actix_web::{HttpResponse, ResponseError, http::StatusCode, http::header};
use common::{
    json::JsonError,
    known_names::nearest,
    name::{MAX_PARTITIONS, NameError, quoted},
};
use model::{
    access::Scope,
    job::{RequestError, state::InvalidTransition},
    message::MessageError,
};
use serde_json::json;
use store::{
    StoreError,
    channels::TooManyChannels,
    jobs::{BatchRefusal, EnqueueRefusal, PartitionRefusal},
};

pub(crate) use crate::code::ErrorCode;
use crate::{
    code::ErrorCodeRow,
    media_type::{OJS_JSON, PROBLEM_JSON},
};

/// An error on its way to a client.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    code: ErrorCode,
    message: String,
    /// The internal cause: for the log, never for the client.
    cause: Option<String>,
    /// The scope that the key lacks.
    scope: Option<Scope>,
    /// When the same request may succeed, if that is known.
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, scope: None, retry_after: None }
    }

    /// An internal error, which the client cannot fix.
    pub(crate) fn internal(cause: impl fmt::Display) -> Self {
        let message = "the request could not be carried out".to_owned();
        Self { code: ErrorCode::Internal, message, cause: Some(cause.to_string()), scope: None, retry_after: None }
    }

    /// The key may not do this.
    pub(crate) fn scope_required(scope: Scope) -> Self {
        let message = format!("this request needs a key with the scope {scope}");
        Self { scope: Some(scope), ..Self::new(ErrorCode::ScopeRequired, message) }
    }

    /// Says when the same request may succeed.
    pub(crate) fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The key is not for this name.
    pub(crate) fn name_not_allowed(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NameNotAllowed, format!("this key is not for {what}"))
    }

    /// What is wrong, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// The internal cause, if there is one.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether the request may have been carried out despite the error.
    pub(crate) fn is_ambiguous(&self) -> bool {
        use ErrorCode as Code;
        let code = self.code;
        matches!(code, Code::BackendUnavailable | Code::BackendCannotSave | Code::BatchIncomplete | Code::Internal)
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        self.code.row().3
    }

    /// The error as JSON, for one item of a batch.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let ErrorCodeRow(code, kind, status, retryable, hint) = self.code.row();
        json!({
            "code": code, "type": kind, "status": status.as_u16(), "message": self.message, "retryable": retryable,
            "hint": hint,
        })
    }

    /// Puts the name of the item that failed before the message.
    pub(crate) fn with_subject(mut self, subject: &str) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    pub(crate) fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("{what} does not exist"))
    }

    /// Something of a name does not exist. `known` are names among which the one that was meant may be.
    pub(crate) fn unknown_name(what: &str, name: &str, known: &[&str], hint: &str) -> Self {
        let meant = nearest(name, known).map_or_else(String::new, |meant| format!(", did you mean {meant:?}?"));
        Self::new(ErrorCode::NotFound, format!("{what} {} does not exist{meant} ({hint})", quoted(name)))
    }

    /// How to authenticate, as RFC 6750 has it.
    fn challenge(&self) -> Option<String> {
        match (self.code, self.scope) {
            (ErrorCode::KeyRequired, _) => Some("Bearer realm=\"galley\"".to_owned()),
            (ErrorCode::InvalidKey | ErrorCode::InvalidToken, _) => {
                Some("Bearer realm=\"galley\", error=\"invalid_token\"".to_owned())
            }
            (ErrorCode::ScopeRequired, Some(scope)) => {
                Some(format!("Bearer realm=\"galley\", error=\"insufficient_scope\", scope=\"{scope}\""))
            }
            _ => None,
        }
    }

    /// The complete response, in the shape that the path's part of the interface uses.
    pub(crate) fn render(&self, path: &str, request_id: &str) -> HttpResponse {
        let ErrorCodeRow(code, kind, status, retryable, hint) = self.code.row();
        let mut response = HttpResponse::build(status);
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = self.retry_after.map_or(1, |wait| wait.as_millis().div_ceil(1000).max(1));
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            response.insert_header((header::UPGRADE, "websocket"));
            response.insert_header((header::SEC_WEBSOCKET_VERSION, "13"));
        }
        if let Some(challenge) = self.challenge() {
            response.insert_header((header::WWW_AUTHENTICATE, challenge));
        }
        if path.starts_with("/ojs") {
            let docs_url = format!("/ojs/errors#{code}");
            let error = json!({
                "code": code, "type": kind, "message": self.message, "retryable": retryable,
                "hint": hint, "docs_url": docs_url, "request_id": request_id,
            });
            return response.content_type(OJS_JSON).body(json!({ "error": error }).to_string());
        }
        let problem = json!({
            "type": "about:blank", "title": status.canonical_reason().unwrap_or_default(), "status": status.as_u16(),
            "detail": self.message, "code": code, "retryable": retryable, "hint": hint, "request_id": request_id,
        });
        response.content_type(PROBLEM_JSON).body(problem.to_string())
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
            StoreError::Unavailable(_) if error.is_cannot_save() => {
                let message = "redis takes no writes, because it cannot save its data to its disk (MISCONF)";
                Self::new(ErrorCode::BackendCannotSave, message)
            }
            StoreError::Unavailable(_) => {
                Self::new(ErrorCode::BackendUnavailable, "the store cannot be reached at the moment")
            }
            StoreError::NoRoom(kind) => {
                let (name, percent) = (kind.budget().name.replace('_', " "), kind.budget().percent);
                let message = format!("{name} take the {percent} % of redis's memory that they may");
                Self::new(ErrorCode::MemoryBudgetUsed, message)
            }
            StoreError::OutOfMemory => Self::new(ErrorCode::BackendFull, "the store is out of memory"),
            StoreError::Sealed(_) => {
                tracing::error!(%error, "stored data cannot be opened");
                Self::new(ErrorCode::SealedData, "this is stored sealed, and this gateway cannot open it")
            }
            StoreError::Refused(_) | StoreError::Damaged(_) => Self::internal(&error),
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        let code = match error {
            JsonError::Malformed(_) | JsonError::TooDeep { .. } => ErrorCode::InvalidPayload,
            JsonError::Unexpected(_) | JsonError::UnknownMember(_) => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl From<MessageError> for ApiError {
    fn from(error: MessageError) -> Self {
        let code = match error {
            MessageError::Invalid(_) => ErrorCode::InvalidRequest,
            MessageError::TooLarge { .. } => ErrorCode::PayloadTooLarge,
            MessageError::Unsupported(_) => ErrorCode::UnsupportedMediaType,
        };
        Self::new(code, error.to_string())
    }
}

impl From<TooManyChannels> for ApiError {
    fn from(TooManyChannels { max }: TooManyChannels) -> Self {
        Self::new(ErrorCode::TooManyChannels, format!("there are {max} channels, which is channels.max_channels"))
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
        while let RequestError::Nested { error, .. } = innermost {
            innermost = error;
        }
        let code = if matches!(innermost, RequestError::RetryPolicy(_)) {
            ErrorCode::InvalidPolicy
        } else {
            ErrorCode::InvalidRequest
        };
        Self::new(code, error.to_string())
    }
}

impl From<InvalidTransition> for ApiError {
    fn from(conflict: InvalidTransition) -> Self {
        Self::new(ErrorCode::Conflict, conflict.to_string())
    }
}

impl From<BatchRefusal> for ApiError {
    fn from(BatchRefusal { index, refusal, is_incomplete }: BatchRefusal) -> Self {
        let passes = refusal.passes();
        let mut refused = Self::from(refusal).with_subject(&format!("jobs[{index}]"));
        if is_incomplete {
            refused.message.push_str("; jobs of this batch that a request with its Idempotency-Key stored before stay");
        }
        // A request that is known to be refused frees its key, and this one had an effect
        if is_incomplete && passes { Self::new(ErrorCode::BatchIncomplete, refused.message) } else { refused }
    }
}

impl From<PartitionRefusal> for ApiError {
    fn from(refused: PartitionRefusal) -> Self {
        Self::invalid(match refused {
            PartitionRefusal::Fewer { count } => {
                format!("the queue has {count} partitions: their number can be raised, never lowered")
            }
            PartitionRefusal::OutOfBounds => format!("partitions must be an integer from 1 to {MAX_PARTITIONS}"),
            PartitionRefusal::LimitTooSmall => {
                "partitions share the limits of their queue: concurrency must be 0 or at \
                 least as large as their number, and so must limit and burst of its rate, and max_depth"
                    .to_owned()
            }
            PartitionRefusal::OfSubscription => {
                "the queue of a subscription has one partition: one process takes its jobs".to_owned()
            }
            PartitionRefusal::Queue(refused) => return refused.into(),
        })
    }
}

impl From<EnqueueRefusal> for ApiError {
    fn from(refused: EnqueueRefusal) -> Self {
        match refused {
            EnqueueRefusal::Duplicate(id) => {
                Self::new(ErrorCode::Duplicate, format!("there is a job like it already: {id}"))
            }
            EnqueueRefusal::Ignored { .. } => Self::new(ErrorCode::Duplicate, "there is a job like it already"),
            EnqueueRefusal::DuplicateInBatch => Self::new(ErrorCode::Duplicate, "another job of the batch is the same"),
            EnqueueRefusal::QueueClosed => {
                Self::new(ErrorCode::QueueClosed, "the queue is closed: it takes no new jobs")
            }
            EnqueueRefusal::QueueFull { max_depth } => Self::new(
                ErrorCode::QueueFull,
                format!("the queue holds {max_depth} waiting jobs, which is its max_depth"),
            ),
            EnqueueRefusal::TooManyQueues { max_queues } => {
                Self::new(ErrorCode::TooManyQueues, format!("there are {max_queues} queues, which is jobs.max_queues"))
            }
            EnqueueRefusal::LimitBelowPartitions { partitions } => Self::invalid(format!(
                "the queue has {partitions} partitions, which share its limits: concurrency must be 0 or at least \
                 {partitions}, limit and burst of a rate at least {partitions}"
            )),
            EnqueueRefusal::WorkflowJobWithHome => Self::invalid(
                "a job of a workflow can have no rate_limit.key and no unique in a queue whose keys are spread over \
                 partitions: all jobs of workflows are in the first one",
            ),
        }
    }
}
