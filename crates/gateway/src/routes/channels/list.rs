//! Lists channels and describes each.

use actix_web::{HttpResponse, web};
use common::{name::ChannelName, time};
use serde::Deserialize;
use serde_json::{Value, json};
use store::channels::ChannelInfo;

use crate::{
    auth::Caller,
    error::ApiError,
    routes::{
        ApiResult, MAX_COMPARED_NAMES, json_response, list_answer::list_answer, parse_bounded,
        subscriptions::channel_subscriptions,
    },
    services::Services,
};

/// The default number of channels on a page.
const DEFAULT_PAGE_SIZE: usize = 50;
/// The most channels on a page. Each costs a lookup.
const MAX_PAGE_SIZE: usize = 100;

#[derive(Deserialize)]
pub(crate) struct ListChannelsQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// Channels by name. A channel without a history is left out, so a page may be short: only `next` says whether more
/// follow.
pub(crate) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListChannelsQuery>,
) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let after: Option<ChannelName> = query.after.as_deref().map(str::parse).transpose()?;
    let names = if caller.has_every_channel() {
        services.channels.list_channels(after.as_ref(), limit).await?
    } else {
        let mut names = services.channels.list_channels(after.as_ref(), usize::MAX).await?;
        names.retain(|name| caller.has_channel(name));
        names.truncate(limit);
        names
    };
    let readers = services.channel_hub.count_readers(&names).await?;
    let mut channels = Vec::with_capacity(names.len());
    for (name, readers) in names.iter().zip(readers) {
        if let Some(info) = services.channels.channel_info(name).await? {
            channels.push(channel_json(&services, name, &info, readers).to_string());
        }
    }
    let next = names.last().filter(|_| names.len() == limit);
    Ok(json_response(list_answer(&channels, next.map(ChannelName::as_str))))
}

/// One channel, with its subscriptions.
pub(crate) async fn show(caller: Caller, services: web::Data<Services>, channel: web::Path<String>) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let info = services.channels.channel_info(&channel).await?;
    let Some(info) = info else { return Err(channel_not_found(&caller, &services, &channel).await?) };
    let readers = services.channel_hub.count_readers(std::slice::from_ref(&channel)).await?;
    let mut view = channel_json(&services, &channel, &info, readers.iter().sum());
    let (subscriptions, total) = channel_subscriptions(&caller, &services, &channel).await?;
    view["subscriptions"] = subscriptions.into();
    view["subscriptions_total"] = total.into();
    Ok(HttpResponse::Ok().json(json!({ "channel": view })))
}

/// The error for a channel without a history, with the name that was perhaps meant.
pub(super) async fn channel_not_found(
    caller: &Caller,
    services: &Services,
    channel: &ChannelName,
) -> Result<ApiError, ApiError> {
    let names = services.channels.list_channels(None, MAX_COMPARED_NAMES).await?;
    let known: Vec<&str> = names.iter().filter(|name| caller.has_channel(name)).map(ChannelName::as_str).collect();
    Ok(ApiError::unknown_name("a history of channel", channel.as_str(), &known, "its first message creates it"))
}

fn channel_json(services: &Services, name: &ChannelName, info: &ChannelInfo, readers: usize) -> Value {
    let kept = services.settings.channels.retention.for_channel(name);
    json!({
        "name": name,
        "head": info.head.to_string(),
        "first": info.oldest.map(|position| position.to_string()),
        "length": info.length,
        "bytes": info.bytes,
        "last_published_at": info.last_published_at.map(time::format),
        "messages_per_minute": info.per_minute,
        "readers": readers,
        "retention": {
            "messages": kept.messages,
            "age_ms": kept.age.and_then(|age| u64::try_from(age.as_millis()).ok()),
            "bytes": kept.bytes,
        },
    })
}
