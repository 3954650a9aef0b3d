//! Pauses and resumes subscriptions, and moves their positions.

use actix_web::web;
use common::name::{ChannelName, SubscriptionName};
use model::subscription::{DeliveryMode, Subscription, SubscriptionStart, SubscriptionState};
use serde::Deserialize;

use super::{parse_subscription_name, subscription_not_found, subscription_response};
use crate::{
    body::JsonBody,
    error::ApiError,
    routes::{ApiResult, channels::unknown_position},
    services::Services,
};

pub(crate) async fn pause(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    set_state(&services, &name, SubscriptionState::Paused).await
}

/// Resumes a subscription that a client paused, or that Galley paused because its target failed.
pub(crate) async fn resume(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    set_state(&services, &name, SubscriptionState::Active).await
}

async fn set_state(services: &Services, name: &str, state: SubscriptionState) -> ApiResult {
    let changed = services.subscriptions.set_state(&parse_subscription_name(name)?, state, None).await?;
    Ok(subscription_response(&changed.ok_or_else(|| subscription_not_found(name))?))
}

#[derive(Deserialize)]
struct SeekRequest {
    to: String,
    channel: Option<ChannelName>,
}

/// Moves a subscription to another position, in one channel or in all.
pub(crate) async fn seek(services: web::Data<Services>, name: web::Path<String>, body: JsonBody) -> ApiResult {
    let asked: SeekRequest = body.parse()?;
    Ok(subscription_response(&seek_subscription(&services, &name, &asked.to, asked.channel).await?))
}

/// Moves a subscription to where `to` says.
pub(crate) async fn seek_subscription(
    services: &Services,
    name: &str,
    to: &str,
    channel: Option<ChannelName>,
) -> Result<Subscription, ApiError> {
    let parsed: SubscriptionName = parse_subscription_name(name)?;
    let subscription = services.subscriptions.get(&parsed).await?.ok_or_else(|| subscription_not_found(name))?;
    let now = services.jobs.now().await?;
    let start = SubscriptionStart::parse(to, now).map_err(|problem| ApiError::invalid(format!("to {problem}")))?;
    let channel = seek_channel(&subscription, channel)?;
    if let SubscriptionStart::After(position) = start {
        let of = channel.as_ref().or(subscription.channels.single_channel()).ok_or_else(|| {
            ApiError::invalid("to is the id of a message, which belongs to one channel: say which as channel")
        })?;
        if !services.subscriptions.is_known_position(of, position).await? {
            return Err(unknown_position(of, to));
        }
    }
    let sought = services.subscriptions.seek(&parsed, start, channel.as_ref()).await?;
    sought.ok_or_else(|| subscription_not_found(name))
}

/// The channel to move in; none for all channels.
fn seek_channel(subscription: &Subscription, asked: Option<ChannelName>) -> Result<Option<ChannelName>, ApiError> {
    let Some(channel) = asked else { return Ok(None) };
    if !subscription.channels.matches(&channel) {
        let message = format!("channel must be one of those that {} has, unlike {channel}", subscription.name);
        return Err(ApiError::invalid(message));
    }
    if subscription.channels.single_channel().is_some() {
        return Ok(None);
    }
    if subscription.mode == DeliveryMode::Broadcast {
        return Err(ApiError::invalid("a broadcast goes on somewhere else in all its channels: leave channel out"));
    }
    Ok(Some(channel))
}
