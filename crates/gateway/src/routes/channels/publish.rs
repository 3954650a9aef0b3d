//! Publishes one message with any body, or a batch. A body with the media type of a `CloudEvent` must be one.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use common::{json, name::ChannelName};
use model::message::{MessageError, NewMessage, check_content_type, cloud_event, essence, item};
use serde_json::{Value, json, value::RawValue};
use store::channels::PublishedMessage;

use crate::{
    body::RawBody,
    error::{ApiError, ErrorCode},
    idempotency::{NotReplayable, run_idempotent},
    routes::ApiResult,
    services::Services,
};

/// The most messages in one request.
const MAX_BATCH_MESSAGES: usize = 100;

/// The body is the message, and its headers become attributes.
pub(crate) async fn publish(
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    body: RawBody,
) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let message = parse_message(&request, &body.0, services.settings.gateway.json_depth_limit)?;
    let (kind, attributes) = body_metadata(&request);
    run_idempotent(&request, &services, &[kind, &attributes, &body.0], async |seed| {
        let published = services.publish(&channel, message.clone(), seed.map(|seed| seed.message_dedup(0))).await?;
        Ok(HttpResponse::Created().json(published_json(&channel, &published)))
    })
    .await
}

/// The content type and the attributes from headers, in an order that does not depend on the order of the headers.
fn body_metadata(request: &HttpRequest) -> (&[u8], Vec<u8>) {
    let headers = request.headers();
    let mut attributes: Vec<(&str, &[u8])> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, _)| cloud_event::is_attribute_header(name))
        .collect();
    attributes.sort_unstable();
    let lines = attributes.into_iter().map(|(name, value)| [name.as_bytes(), b":", value, b"\n"].concat());
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    (kind, lines.flatten().collect())
}

fn published_json(channel: &ChannelName, published: &PublishedMessage) -> Value {
    json!({ "id": published.position.to_string(), "channel": channel, "plain_subscribers": published.plain_subscribers })
}

/// What the headers say about the body: nothing, a content type, or a `CloudEvent`.
fn parse_message<'a>(
    request: &'a HttpRequest,
    body: &'a [u8],
    depth_limit: usize,
) -> Result<NewMessage<'a>, MessageError> {
    let content_type = content_type(request)?;
    let kind = essence(content_type.unwrap_or_default());
    if cloud_event::is_cloud_events(kind) {
        if cloud_event::is_structured(kind) {
            let message = cloud_event::parse_structured(body, depth_limit)?;
            return Ok(NewMessage { content_type: content_type.map(Into::into), ..message });
        }
        return Err(cloud_event::unsupported_encoding());
    }
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let attributes = cloud_event::attributes_from_headers(headers)?;
    Ok(NewMessage { content_type: content_type.map(Into::into), attributes, ..NewMessage::plain(body) })
}

fn content_type(request: &HttpRequest) -> Result<Option<&str>, MessageError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return Ok(None) };
    // Some clients send an empty header instead of none
    let text = value.to_str().unwrap_or("\u{fffd}");
    if text.is_empty() { Ok(None) } else { check_content_type(text).map(|()| Some(text)) }
}

/// Publishes many messages in their order. Each has its own outcome.
pub(crate) async fn publish_batch(
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    body: RawBody,
) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let kind = essence(content_type(&request)?.unwrap_or_default()).to_ascii_lowercase();
    let parse = match kind.as_str() {
        "application/json" => item::parse,
        cloud_event::BATCH_MEDIA_TYPE => item::parse_event,
        _ => {
            let message = format!("Content-Type must be application/json or {}", cloud_event::BATCH_MEDIA_TYPE);
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
        }
    };
    let gateway = &services.settings.gateway;
    // The array around the messages is one level
    let items: Vec<&RawValue> = json::parse(&body.0, gateway.json_depth_limit + 1)?;
    if !(1..=MAX_BATCH_MESSAGES).contains(&items.len()) {
        let message = format!("a batch must have 1 to {MAX_BATCH_MESSAGES} messages, got {}", items.len());
        return Err(ApiError::invalid(message));
    }
    run_idempotent(&request, &services, &[kind.as_bytes(), &body.0], async |seed| {
        let mut results = Vec::with_capacity(items.len());
        let mut are_final = true;
        for (nth, item) in items.iter().enumerate() {
            let message = parse(item, gateway.json_depth_limit)
                .and_then(|message| check_message_size(gateway.body_limit_bytes, message))
                .map_err(ApiError::from);
            let outcome = match message {
                Ok(message) => services.publish(&channel, message, seed.map(|seed| seed.message_dedup(nth))).await,
                Err(error) => Err(error),
            };
            are_final &= !outcome.as_ref().is_err_and(|error| error.is_retryable() || error.is_ambiguous());
            results.push(
                outcome.map_or_else(
                    |error| rejected_item_json(&error),
                    |published| accepted_item_json(&channel, &published),
                ),
            );
        }
        let mut response = HttpResponse::Ok().json(json!({ "results": results }));
        if !are_final {
            response.extensions_mut().insert(NotReplayable);
        }
        Ok(response)
    })
    .await
}

fn check_message_size(limit: usize, message: NewMessage<'_>) -> Result<NewMessage<'_>, MessageError> {
    if message.body.len() > limit { Err(MessageError::TooLarge { limit }) } else { Ok(message) }
}

fn accepted_item_json(channel: &ChannelName, published: &PublishedMessage) -> Value {
    let mut outcome = published_json(channel, published);
    outcome["status"] = StatusCode::CREATED.as_u16().into();
    outcome
}

fn rejected_item_json(error: &ApiError) -> Value {
    let error = error.to_json();
    json!({ "status": error["status"], "error": error })
}
