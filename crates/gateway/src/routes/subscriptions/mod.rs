//! Durable subscriptions: create, change, look up, remove. The answer to the request that creates a secret is the only
//! one that shows it.

mod control;
mod progress;

pub(crate) use control::seek_subscription;
pub(super) use control::{pause, resume, seek};
pub(super) use progress::channel_subscriptions;
pub(crate) use progress::{ProgressDetail, progress_json};

use std::{cell::Cell, sync::OnceLock};

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use common::{
    json::{Object, ObjectWriter},
    name::{ChannelName, SubscriptionName, quoted},
};
use delivery::http::{Endpoint, Network, public_keys};
use model::job::managed_member_warning;
use model::subscription::{Subscription, SubscriptionRequestError, SubscriptionTarget};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::subscriptions::{PutSubscriptionError, PutSubscriptionResult};

use super::{ApiResult, channels::unknown_position, json_response, list_answer::list_answer, parse_bounded};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The default number of subscriptions on a page.
const DEFAULT_PAGE_SIZE: usize = 50;
/// The most subscriptions on a page.
const MAX_PAGE_SIZE: usize = 100;
/// Members of a view that a client may send back and cannot set.
const MANAGED_MEMBERS: [&str; 7] = ["state", "reason", "queue", "public_keys", "created_at", "updated_at", "progress"];
/// The most channels, of all subscriptions on a page together, whose progress is looked up. A page has fewer
/// subscriptions if they have more channels, but at least one.
const MAX_PAGE_LOOKUPS: usize = 1000;

/// Creates a subscription, or changes the one of that name. Repeating the request is safe.
pub(super) async fn put(
    caller: Caller,
    services: web::Data<Services>,
    name: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let name: SubscriptionName = name.parse()?;
    let members: Object = body.parse()?;
    let same_name = |raw: &RawValue| serde_json::from_str(raw.get()).is_ok_and(|given: String| given == name.as_str());
    if let Some(other) = members.get("name").filter(|raw| !same_name(raw)) {
        return Err(ApiError::invalid(format!("name must be that of the path or absent, got {}", quoted(other.get()))));
    }
    let mut warnings: Vec<String> =
        MANAGED_MEMBERS.into_iter().filter(|name| members.get(name).is_some()).map(managed_member_warning).collect();
    let depth_limit = services.settings.gateway.json_depth_limit;
    let network = network()?;
    let allow_private = services.settings.subscriptions.allow_private;
    let is_refused = Cell::new(false);
    let is_allowed = |subscription: &Subscription| {
        if !caller.has_subscription(subscription) {
            is_refused.set(true);
            return Err("its channels and its queue must be those of the key".to_owned());
        }
        match &subscription.deliver {
            SubscriptionTarget::Http(http) => Endpoint::for_target(http, allow_private, network)
                .map(drop)
                .map_err(|problem| format!("deliver.http: {problem}")),
            _ => Ok(()),
        }
    };
    let put = services.subscriptions.put_if(&name, body.bytes(), depth_limit, is_allowed).await?;
    if is_refused.get() {
        return Err(ApiError::name_not_allowed(format_args!("all channels and the queue of subscription {name}")));
    }
    let PutSubscriptionResult { subscription, is_new, secret } = put.map_err(put_error)?;
    let mut answer = ObjectWriter::default();
    answer.raw("subscription", &with_public_keys(&subscription).finish());
    if let Some(secret) = secret {
        answer.text("secret", &secret);
    }
    if !is_new && members.get("start").is_some() {
        warnings.push("start was ignored: the subscription exists and keeps its position; seek moves it".to_owned());
    }
    if !warnings.is_empty() {
        answer.raw("warnings", &json!(warnings).to_string());
    }
    let mut response = HttpResponse::build(if is_new { StatusCode::CREATED } else { StatusCode::OK });
    if is_new {
        response.insert_header((header::LOCATION, format!("/v1/subscriptions/{name}")));
    }
    response.insert_header((header::CACHE_CONTROL, "no-store")).content_type("application/json");
    Ok(response.body(answer.finish()))
}

/// How a worker reaches endpoints, so that each is checked the way the worker will use it. Certificates are read once.
fn network() -> Result<&'static Network, ApiError> {
    static NETWORK: OnceLock<Result<Network, String>> = OnceLock::new();
    let network = NETWORK.get_or_init(|| Network::system().map_err(|error| error.to_string()));
    network.as_ref().map_err(|problem| ApiError::internal(problem.clone()))
}

fn put_error(refused: PutSubscriptionError) -> ApiError {
    match refused {
        PutSubscriptionError::Invalid(SubscriptionRequestError::Invalid(problem)) => ApiError::invalid(problem),
        PutSubscriptionError::Invalid(fixed @ SubscriptionRequestError::Immutable(_)) => {
            ApiError::new(ErrorCode::FixedMember, fixed.to_string())
        }
        PutSubscriptionError::UnknownPosition { channel, position } => {
            unknown_position(&channel, &position.to_string())
        }
        PutSubscriptionError::TooManySubscriptions { max } => ApiError::new(
            ErrorCode::TooManySubscriptions,
            format!("there are {max} subscriptions, which is subscriptions.max"),
        ),
    }
}

#[derive(Deserialize)]
pub(super) struct ListSubscriptionsQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// Subscriptions by name.
pub(super) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListSubscriptionsQuery>,
) -> ApiResult {
    let most = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let after: Option<SubscriptionName> = query.after.as_deref().map(str::parse).transpose()?;
    let mut all = services.subscriptions.list().await?.subscriptions;
    all.retain(|(subscription, _)| {
        caller.has_subscription(subscription) && after.as_ref().is_none_or(|after| subscription.name > *after)
    });
    let channels = services.channels.list_channels(None, usize::MAX).await?;
    let mut lookups = 0;
    let fitting = all.iter().take(most).take_while(|(subscription, _)| {
        let is_first = lookups == 0;
        lookups += channels.iter().filter(|channel| subscription.channels.matches(channel)).count().max(1);
        is_first || lookups <= MAX_PAGE_LOOKUPS
    });
    let fitting = fitting.count();
    let is_more = all.len() > fitting;
    all.truncate(fitting);
    let mut shown = Vec::with_capacity(all.len());
    for (subscription, _) in &all {
        shown.push(subscription_json(&services, subscription, &channels, ProgressDetail::Totals).await?);
    }
    let next = all.last().filter(|_| is_more).map(|(subscription, _)| &subscription.name);
    Ok(json_response(list_answer(&shown, next.map(SubscriptionName::as_str))))
}

/// One subscription.
pub(super) async fn show(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let subscription = services
        .subscriptions
        .get(&parse_subscription_name(&name)?)
        .await?
        .ok_or_else(|| subscription_not_found(&name))?;
    let channels = services.channels.list_channels(None, usize::MAX).await?;
    let shown = subscription_json(&services, &subscription, &channels, ProgressDetail::Channels).await?;
    let mut answer = ObjectWriter::default();
    answer.raw("subscription", &shown);
    Ok(json_response(answer))
}

/// The subscription as clients see it, and the public keys with which its receiver verifies signatures, if it has any.
fn with_public_keys(subscription: &Subscription) -> ObjectWriter {
    let mut shown = ObjectWriter::default();
    shown.splice(&subscription.to_json());
    if let SubscriptionTarget::Http(http) = &subscription.deliver {
        let keys = public_keys(http);
        if !keys.is_empty() {
            shown.raw("public_keys", &json!(keys).to_string());
        }
    }
    shown
}

/// `channels` are all channels.
async fn subscription_json(
    services: &Services,
    subscription: &Subscription,
    channels: &[ChannelName],
    detail: ProgressDetail,
) -> Result<String, ApiError> {
    let mut shown = with_public_keys(subscription);
    let progress = progress::progress_json(services, subscription, channels, detail).await?;
    shown.raw("progress", &progress.to_string());
    Ok(shown.finish())
}

/// Removes a subscription and cancels the jobs in its queue.
pub(super) async fn delete(services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let parsed = parse_subscription_name(&name)?;
    if !services.subscriptions.delete(&parsed).await? {
        return Err(subscription_not_found(&name));
    }
    Ok(HttpResponse::Ok().json(json!({ "deleted": true, "name": parsed })))
}

/// A name in a path. An invalid name is not found: no subscription can have it.
pub(crate) fn parse_subscription_name(text: &str) -> Result<SubscriptionName, ApiError> {
    text.parse().map_err(|_| subscription_not_found(text))
}

pub(crate) fn subscription_not_found(name: &str) -> ApiError {
    ApiError::not_found(format_args!("subscription {}", quoted(name)))
}

fn subscription_response(subscription: &Subscription) -> HttpResponse {
    let mut answer = ObjectWriter::default();
    answer.raw("subscription", &subscription.to_json());
    json_response(answer)
}
