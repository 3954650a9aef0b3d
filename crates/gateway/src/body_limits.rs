//! How large a body may be: by its path, so that a client that asks before it sends learns the same.

use actix_web::{dev::RequestHead, http::header};
use common::settings::GatewaySettings;
use store::jobs::MAX_CHECKPOINT_BYTES;

use crate::error::{ApiError, ErrorCode};

/// The largest body of a path; none for a stream, which may have any length.
pub(crate) fn length_limit(path: &str, settings: &GatewaySettings) -> Option<usize> {
    match path {
        "/ojs/v1/jobs/stream" => None,
        // Outcomes of many jobs
        "/ojs/v1/workers/fetch" | "/ojs/v1/workers/ack" | "/ojs/v1/workers/nack" => Some(settings.batch_limit_bytes),
        // With what is around the state
        _ if path.ends_with("/checkpoint") => Some(settings.body_limit_bytes.max(MAX_CHECKPOINT_BYTES + 1024)),
        _ if path.ends_with("/batch") => Some(settings.batch_limit_bytes),
        _ => Some(settings.body_limit_bytes),
    }
}

/// Whether a body of the announced length is accepted.
pub(crate) fn check_length(head: &RequestHead, settings: &GatewaySettings) -> Result<(), ApiError> {
    let announced: Option<usize> =
        head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    match (length_limit(head.uri.path(), settings), announced) {
        (Some(limit), Some(length)) if limit < length => Err(too_large(limit)),
        _ => Ok(()),
    }
}

pub(crate) fn too_large(limit: usize) -> ApiError {
    ApiError::new(ErrorCode::PayloadTooLarge, format!("the body must have at most {limit} bytes"))
}
