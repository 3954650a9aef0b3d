//! `Idempotency-Key`: a request that creates something has one effect and one answer, however often a client sends it.
//! The same key with another request is refused.

use std::{fmt::Write, future::Future, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    body::MessageBody,
    http::{
        StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
};
use common::id::WorkflowId;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use store::{
    channels::MessageDedup,
    idempotency::{IdempotencyStatus, IdempotentRequest},
};
use uuid::Uuid;

use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    services::Services,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_LENGTH: usize = 255;
/// The longest answer that is kept, in bytes. After a longer one a repeated request runs again and finds what it made.
const MAX_STORED_RESPONSE_BYTES: usize = 1 << 20;

/// Derives ids from the key of a request, so that a repeated request finds what it made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdempotencySeed(u128, Duration);

impl IdempotencySeed {
    /// When the first request arrived, in milliseconds since 1970.
    pub(crate) fn first_request_ms(self) -> u64 {
        u64::try_from(self.0 >> 80).unwrap_or_default()
    }

    /// The id of the workflow that the request creates.
    pub(crate) fn workflow_id(self) -> WorkflowId {
        WorkflowId::derived(self.0)
    }

    /// The id of the signal that the request sends.
    pub(crate) fn signal_id(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    /// How a repeated request recognises the n-th message that it publishes.
    pub(crate) fn message_dedup(self, nth: usize) -> MessageDedup {
        MessageDedup { seed: self.0, nth, ttl: self.1 }
    }

    /// The id seed of the n-th thing that the request creates.
    pub(crate) fn derive(self, n: usize) -> u64 {
        let bytes: [u8; 32] = Sha256::digest(format!("{:032x} {n}", self.0)).into();
        bytes[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// In the extensions of an answer: a part of it failed and may succeed later. So the answer is not kept, and a repeated
/// request tries again. It finds what was made by its seed.
pub(crate) struct NotReplayable;

/// Runs a request, or returns the answer to the same request before. `run` gets a seed if the request has a key. The
/// ids of what it makes must follow from its seed, because it runs again when its outcome is unknown. Requests with one
/// key are the same if they have the same `content`.
pub(crate) async fn run_idempotent<F>(
    request: &HttpRequest,
    services: &Services,
    content: &[&[u8]],
    run: impl FnOnce(Option<IdempotencySeed>) -> F,
) -> Result<HttpResponse, ApiError>
where
    F: Future<Output = Result<HttpResponse, ApiError>>,
{
    let Some(key) = request.headers().get(&IDEMPOTENCY_KEY) else { return run(None).await };
    let described = fingerprint_request(request, key, content)?;
    let ttl = services.settings.gateway.idempotency_ttl;
    let seed = match services.redis.begin_idempotent_request(&described, ttl).await? {
        IdempotencyStatus::Started { seed } => seed,
        IdempotencyStatus::Answered { status, body } => return Ok(replay_response(status, &body)),
        IdempotencyStatus::KeyReused => {
            return Err(ApiError::new(
                ErrorCode::IdempotencyConflict,
                "this Idempotency-Key was used for another request; a key is for one path and one content",
            ));
        }
    };
    match run(Some(IdempotencySeed(seed, ttl))).await {
        Ok(response) if response.extensions().get::<NotReplayable>().is_some() => Ok(response),
        Ok(response) => store_response(services, &described, seed, response).await,
        Err(error) => {
            // This request made nothing. That is uncertain after a broken connection: then it keeps the key
            if !error.is_ambiguous() {
                services.redis.forget_idempotent_request(&described, seed).await?;
            }
            Err(error)
        }
    }
}

fn fingerprint_request(
    request: &HttpRequest,
    key: &HeaderValue,
    content: &[&[u8]],
) -> Result<IdempotentRequest, ApiError> {
    let text = key.to_str().ok().filter(|text| (1..=MAX_KEY_LENGTH).contains(&text.len()));
    let text = text.ok_or_else(|| {
        ApiError::invalid(format!("Idempotency-Key must have 1 to {MAX_KEY_LENGTH} printable ASCII characters"))
    })?;
    // As it is meant: clients differ in what they percent-encode
    let path = percent_decode_str(request.path()).decode_utf8_lossy();
    let scope = format!("{} {path} {text}", request.method());
    // A key of a client is its own: another client must not get its answer
    let sender = Caller::of(request)?;
    let parts = [scope.as_bytes(), sender.id.as_bytes()];
    Ok(IdempotentRequest { fingerprint: hash_parts(&parts), content_hash: hash_parts(content) })
}

/// All requests to one path have the same number of parts, so two different requests cannot join to the same text.
fn hash_parts(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for (n, part) in parts.iter().enumerate() {
        if n > 0 {
            digest.update((parts[n - 1].len() as u64).to_be_bytes());
        }
        digest.update(part);
    }
    digest.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn replay_response(status: u16, body: &str) -> HttpResponse {
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::OK));
    response.insert_header((IDEMPOTENCY_REPLAYED, "true"));
    let (head, json) = body.split_once('\n').unwrap_or(("application/json", body));
    let (content_type, location) = head.split_once('\t').unwrap_or((head, ""));
    if !location.is_empty() {
        response.insert_header((header::LOCATION, location));
    }
    response.content_type(content_type.to_owned()).body(json.to_owned())
}

/// Keeps the answer. If that fails the request has run all the same, and a repeated request finds what it made.
async fn store_response(
    services: &Services,
    described: &IdempotentRequest,
    seed: u128,
    response: HttpResponse,
) -> Result<HttpResponse, ApiError> {
    let status = response.status().as_u16();
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kept_headers = format!("{}\t{}", text(header::CONTENT_TYPE), text(header::LOCATION));
    let (head, body) = response.into_parts();
    let Ok(bytes) = body.try_into_bytes() else {
        return Err(ApiError::new(ErrorCode::Internal, "the request was carried out, but its answer cannot be shown"));
    };
    if bytes.len() <= MAX_STORED_RESPONSE_BYTES {
        let text = format!("{kept_headers}\n{}", String::from_utf8_lossy(&bytes));
        let ttl = services.settings.gateway.idempotency_ttl;
        if let Err(error) = services.redis.save_idempotent_answer(described, seed, ttl, status, &text).await {
            tracing::warn!(%error, "the answer to a request with an Idempotency-Key is not kept");
        }
    }
    Ok(head.set_body(actix_web::body::BoxBody::new(bytes)))
}
