//! Channels: publish a message.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use common::name::ChannelName;
use serde_json::json;

use super::Answer;
use crate::{
    body::Body,
    error::ApiError,
    idempotency::{Repeatable, once},
    startup::Services,
};

/// Longest Content-Type that is kept with a message.
const LONGEST_CONTENT_TYPE: usize = 255;

/// The body is the message, whatever it is. A message that may have been published is not published again: with an
/// `Idempotency-Key` a repetition has to wait for the answer to the first request.
pub(super) async fn publish(
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    body: Body,
) -> Answer {
    let channel: ChannelName = channel.parse()?;
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|text| text.len() > LONGEST_CONTENT_TYPE) {
        return Err(ApiError::invalid(format!("Content-Type must have at most {LONGEST_CONTENT_TYPE} characters")));
    }
    once(&request, &services, &body.0, Repeatable::No, async |_| {
        let published = services.redis.publish(&services.settings.channels, &channel, &body.0, content_type).await?;
        let answer = json!({ "id": published.position, "channel": channel, "receivers": published.receivers });
        Ok(HttpResponse::Created().json(answer))
    })
    .await
}
