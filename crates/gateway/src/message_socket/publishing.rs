//! Publishing from a WebSocket: a frame is what a request to `/v1/channels/{channel}/messages` is, with the same checks.

use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest, http::header};
use common::{json::ObjectWriter, name::ChannelName};
use model::{access::Scope, message::item};
use sha2::{Digest, Sha256};
use store::channels::MessageDedup;

use super::client_frame::ClientFrame;
use crate::{
    auth::{Caller, Credentials},
    error::{ApiError, ErrorCode},
    key_usage::KeyMeter,
    services::Services,
};

/// The most bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 255;

/// What a connection may publish.
pub(crate) struct SocketPublisher {
    meter: Option<Arc<KeyMeter>>,
    /// A page of another site, which reads without a key, must not change anything.
    pub(super) is_stranger: bool,
}

/// Whether a page of another site sends a request without a key: it may read what others may read, and change nothing.
pub(crate) fn is_stranger(request: &HttpRequest, services: &Services) -> bool {
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let other_sites = &services.settings.gateway.allowed_origins;
    let is_other_site = origin.is_some_and(|origin| other_sites.iter().any(|site| site.as_str() == origin));
    is_other_site && !services.auth.is_demanded()
}

impl SocketPublisher {
    pub(crate) fn of(request: &HttpRequest, services: &Services) -> Self {
        let meter = request.extensions().get::<Credentials>().and_then(|known| known.meter.clone());
        Self { meter, is_stranger: is_stranger(request, services) }
    }

    /// Publishes the message of a frame, and gives the answer.
    pub(super) async fn publish(
        &self,
        services: &Services,
        caller: &Caller,
        frame: &ClientFrame,
    ) -> Result<ObjectWriter, ApiError> {
        let channel: ChannelName = frame.channel.parse()?;
        caller.check_channel(Scope::ChannelsPublish, &channel)?;
        if self.is_stranger {
            let message = "a page of another site may publish with a key or token only";
            return Err(ApiError::new(ErrorCode::CrossSiteRequest, message));
        }
        let missing = || ApiError::invalid("a publish must have a message, such as {\"data\": \"hello\"}");
        let given = frame.message.as_deref().ok_or_else(missing)?;
        let message = item::parse(given, services.settings.gateway.json_depth_limit)?;
        if let Some(meter) = &self.meter {
            meter.count_request(&services.redis).await?;
            meter.count_body(&services.redis, given.get().len() as u64).await?;
        }
        let once = frame.idempotency_key.as_deref().map(|key| dedup(services, caller, &channel, key, given.get()));
        let mark = services.confirmer.mark();
        let published = services.publish(&channel, message, once.transpose()?).await?;
        let mut json = ObjectWriter::default();
        json.text("type", "published").text("channel", channel.as_str()).text("id", &published.position.to_string());
        json.number("plain_subscribers", published.plain_subscribers);
        if !services.confirmer.confirm(mark).await {
            json.text("durability", "unconfirmed");
        }
        Ok(json)
    }
}

/// How a message that is sent once more is recognised: by its sender, channel and key, and by what it says.
fn dedup(
    services: &Services,
    caller: &Caller,
    channel: &ChannelName,
    key: &str,
    message: &str,
) -> Result<MessageDedup, ApiError> {
    if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Err(ApiError::invalid(format!("idempotency_key must have 1 to {MAX_KEY_BYTES} bytes")));
    }
    let mut hash = Sha256::new();
    for part in ["socket", &caller.id, channel.as_str(), key, message] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let seed = hash[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte));
    Ok(MessageDedup { seed, nth: 0, ttl: services.settings.gateway.idempotency_ttl })
}
