//! `Idempotency-Key`: a request that creates something has one effect however often it is sent, and every time the same
//! answer. The same key with another request is refused.

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
use sha2::{Digest, Sha256};
use store::{
    channels::MessageDedup,
    idempotency::{IdempotencyStatus, IdempotentRequest},
};

use crate::{
    error::{ApiError, ErrorCode},
    startup::Services,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_LENGTH: usize = 255;
/// An answer that is longer is not kept: a repetition is carried out again, and finds what is there.
const MAX_STORED_RESPONSE_BYTES: usize = 1 << 20;

/// What a request may be given to make its effects recognisable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdempotencySeed(u128, Duration);

impl IdempotencySeed {
    /// When the first request came, in milliseconds since 1970.
    pub(crate) fn first_request_ms(self) -> u64 {
        u64::try_from(self.0 >> 80).unwrap_or_default()
    }

    /// The workflow that the request makes.
    pub(crate) fn workflow_id(self) -> WorkflowId {
        WorkflowId::derived(self.0)
    }

    /// What the n-th message that the request publishes is known by.
    pub(crate) fn message_dedup(self, nth: usize) -> MessageDedup {
        MessageDedup { seed: self.0, nth, ttl: self.1 }
    }

    /// The seed of the n-th thing that the request makes.
    pub(crate) fn derive(self, n: usize) -> u64 {
        let bytes: [u8; 32] = Sha256::digest(format!("{:032x} {n}", self.0)).into();
        bytes[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// In the extensions of an answer: something in it may go better later, so it is not kept, and a repetition of the request
/// tries that again. What was made is found then by its seed.
pub(crate) struct NotReplayable;

/// Carries a request out, or answers as before. `run` is given a seed if the request has a key; what it makes has to follow
/// from it, because it is run again when nobody knows what became of it. Requests with a key are the same if they have the
/// same `content`.
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
    let (seed, is_first) = match services.redis.begin_idempotent_request(&described, ttl).await? {
        IdempotencyStatus::Started { seed, is_first } => (seed, is_first),
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
            // Nothing was made: the same key may try again. After a broken connection that is not sure, nor when an
            // earlier request broke off
            if is_first && !error.is_ambiguous() {
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
    let path = request.path();
    let scope = format!("{} {path} {text}", request.method());
    Ok(IdempotentRequest { fingerprint: hash_parts(&[scope.as_bytes()]), content_hash: hash_parts(content) })
}

/// Requests to one path have as many parts each, so what is one part cannot be taken for two.
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

/// Notes the answer. If that fails the request has been carried out all the same, and a repetition finds what it made.
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
