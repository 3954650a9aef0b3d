//! Letting a subscription wait, go on, or go on somewhere else.

use actix_web::web;
use common::name::{ChannelName, SubscriptionName};
use model::subscription::{Mode, Start, State, Subscription};
use serde::Deserialize;

use super::{one, parsed, unknown};
use crate::{
    body::JsonBody,
    error::ApiError,
    routes::{Answer, channels::unknown_position},
    startup::Services,
};

pub(crate) async fn pause(services: web::Data<Services>, name: web::Path<String>) -> Answer {
    switched(&services, &name, State::Paused).await
}

/// Also when Galley has given up on the target.
pub(crate) async fn resume(services: web::Data<Services>, name: web::Path<String>) -> Answer {
    switched(&services, &name, State::Active).await
}

async fn switched(services: &Services, name: &str, state: State) -> Answer {
    let changed = services.subscriptions.set_state(&parsed(name)?, state, None).await?;
    Ok(one(&changed.ok_or_else(|| unknown(name))?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seek {
    to: String,
    channel: Option<ChannelName>,
}

/// Lets a subscription go on somewhere else, in one channel or in all.
pub(crate) async fn seek(services: web::Data<Services>, name: web::Path<String>, body: JsonBody) -> Answer {
    let asked: Seek = body.parse()?;
    let parsed: SubscriptionName = parsed(&name)?;
    let subscription = services.subscriptions.get(&parsed).await?.ok_or_else(|| unknown(&name))?;
    let now = services.jobs.now().await?;
    let start = Start::parse(&asked.to, now).map_err(|problem| ApiError::invalid(format!("to {problem}")))?;
    let channel = channel(&subscription, asked.channel)?;
    if let Start::After(position) = start {
        let of = channel.as_ref().or(subscription.channels.only()).ok_or_else(|| {
            ApiError::invalid("to is the id of a message, which belongs to one channel: say which as channel")
        })?;
        if !services.subscriptions.is_known(of, position).await? {
            return Err(unknown_position(of, &asked.to));
        }
    }
    let sought = services.subscriptions.seek(&parsed, start, channel.as_ref()).await?;
    Ok(one(&sought.ok_or_else(|| unknown(&name))?))
}

/// The channel to go on somewhere else in; none for all there are.
fn channel(subscription: &Subscription, asked: Option<ChannelName>) -> Result<Option<ChannelName>, ApiError> {
    let Some(channel) = asked else { return Ok(None) };
    if !subscription.channels.fits(&channel) {
        let message = format!("channel must be one of those that {} has, unlike {channel}", subscription.name);
        return Err(ApiError::invalid(message));
    }
    if subscription.channels.only().is_some() {
        return Ok(None);
    }
    if subscription.mode == Mode::Broadcast {
        return Err(ApiError::invalid("a broadcast goes on somewhere else in all its channels: leave channel out"));
    }
    Ok(Some(channel))
}
