//! Request bodies: bounded in size, in time, in memory for all requests together and, for JSON, in depth, before a handler
//! sees them.

use std::borrow::Cow;

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    dev::Payload,
    http::header::{self, HeaderMap},
    web::{Bytes, BytesMut, Data},
};
use common::{json::JsonError, json_repair};
use futures_util::{StreamExt, future::LocalBoxFuture};
use serde::Deserialize;

use crate::{
    auth::Credentials,
    body_budget::BodyLease,
    body_limits::{length_limit, too_large},
    error::{ApiError, ErrorCode},
    services::Services,
};

/// A body that is too large is read up to this many times the limit, so that the client receives the answer instead of
/// a broken connection.
const DRAIN_FACTOR: usize = 8;
/// Any body.
pub(crate) struct RawBody(pub(crate) Bytes, #[expect(dead_code, reason = "holds the memory")] BodyLease);

impl FromRequest for RawBody {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move { read_body(&request, payload).await.map(|(bytes, lease)| Self(bytes, lease)) })
    }
}

async fn read_body(request: &HttpRequest, payload: Payload) -> Result<(Bytes, BodyLease), ApiError> {
    let services = app_services(request)?;
    reject_content_encoding(request.headers())?;
    let settings = &services.settings.gateway;
    let limit = length_limit(request.path(), settings).unwrap_or(settings.body_limit_bytes);
    let time = settings.body_timeout;
    let lease = services.bodies.lease();
    let read = tokio::time::timeout(time, collect_payload(payload, limit, lease)).await.unwrap_or_else(|_| {
        Err(ApiError::new(ErrorCode::RequestTimeout, format!("the body did not arrive within {} ms", time.as_millis())))
    })?;
    count_unannounced(request, &services, read.0.len()).await?;
    Ok(read)
}

/// Counts a body whose length the head did not tell. Others were counted before they were read.
async fn count_unannounced(request: &HttpRequest, services: &Services, length: usize) -> Result<(), ApiError> {
    if request.headers().contains_key(header::CONTENT_LENGTH) {
        return Ok(());
    }
    let meter = request.extensions().get::<Credentials>().and_then(|credentials| credentials.meter.clone());
    match meter {
        Some(meter) => meter.count_body(&services.redis, length as u64).await,
        None => Ok(()),
    }
}

async fn read_json_body(request: &HttpRequest, payload: Payload) -> Result<JsonBody, ApiError> {
    let (bytes, lease) = read_body(request, payload).await?;
    if !is_json(request.headers()) && !bytes.is_empty() {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "Content-Type must be application/json or application/openjobspec+json",
        ));
    }
    Ok(JsonBody { bytes, depth_limit: app_services(request)?.settings.gateway.json_depth_limit, _lease: lease })
}

/// A body that must be JSON with the media type of JSON. A page of another site can send forms and text without a
/// preflight request, but not JSON.
pub(crate) struct JsonBody {
    bytes: Bytes,
    depth_limit: usize,
    _lease: BodyLease,
}

/// A report of how a job does, made valid: it must not be refused for the text in it, or its job would wait for its
/// whole lease.
pub(crate) struct ReportBody(JsonBody);

impl std::ops::Deref for ReportBody {
    type Target = JsonBody;
    fn deref(&self) -> &JsonBody {
        &self.0
    }
}

impl FromRequest for ReportBody {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = JsonBody::from_request(request, payload);
        Box::pin(async move {
            let mut body = body.await?;
            let repaired = match json_repair::repair(&body.bytes) {
                Cow::Owned(repaired) => Some(Bytes::from(repaired)),
                // Without a byte order mark
                Cow::Borrowed(part) if part.len() < body.bytes.len() => Some(Bytes::copy_from_slice(part)),
                Cow::Borrowed(_) => None,
            };
            body.bytes = repaired.unwrap_or(body.bytes);
            Ok(Self(body))
        })
    }
}

impl JsonBody {
    /// The bytes as received.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body as a `T`. If `T` is a struct, the body may have only the members that it reads.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        if self.bytes.is_empty() {
            return Err(ApiError::new(ErrorCode::InvalidPayload, "body is not valid JSON: it is empty"));
        }
        let parsed = common::json_members::parse_request(&self.bytes, self.depth_limit);
        // serde would also accept an array as a struct, member by member
        if self.bytes.trim_ascii_start().first() != Some(&b'{')
            && matches!(parsed, Ok(_) | Err(JsonError::Unexpected(_)))
        {
            return Err(ApiError::invalid("body has the wrong shape: it must be a JSON object"));
        }
        Ok(parsed?)
    }
}

impl FromRequest for JsonBody {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move { read_json_body(&request, payload).await })
    }
}

fn app_services(request: &HttpRequest) -> Result<Data<Services>, ApiError> {
    let found = request.app_data::<Data<Services>>().cloned();
    found.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the service is not set up"))
}

fn reject_content_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "a Content-Encoding is not accepted: send the body as it is",
        )),
        _ => Ok(()),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.eq_ignore_ascii_case("application/openjobspec+json")
}

async fn collect_payload(
    mut payload: Payload,
    limit: usize,
    mut lease: BodyLease,
) -> Result<(Bytes, BodyLease), ApiError> {
    let (mut body, mut length) = (BytesMut::new(), 0_usize);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| {
            ApiError::new(ErrorCode::InvalidPayload, "the body ended early, or its chunks are malformed")
        })?;
        length = length.saturating_add(chunk.len());
        if length <= limit {
            lease.resize(length)?;
            body.extend_from_slice(&chunk);
        } else if length > limit.saturating_mul(DRAIN_FACTOR) {
            break;
        }
    }
    if length > limit { Err(too_large(limit)) } else { Ok((body.freeze(), lease)) }
}
