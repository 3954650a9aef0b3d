//! Durable subscriptions: making, changing, looking up and removing them. What is secret in one is shown once, to whoever
//! has it made.

mod control;
mod progress;

pub(super) use control::{pause, resume, seek};
pub(super) use progress::of_channel;

use std::sync::OnceLock;

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use common::{
    json::Object,
    name::{ChannelName, SubscriptionName, quoted},
};
use delivery::http::{Endpoint, Network};
use model::subscription::{Refused, Subscription, Target};
use serde::Deserialize;
use serde_json::{Value, json};
use store::subscriptions::{NotPut, Put};

use self::progress::Detail;
use super::{Answer, bounded, channels::unknown_position};
use crate::{
    body::JsonBody,
    error::{ApiError, Code},
    startup::Services,
};

/// Subscriptions on a page that does not say how many.
const USUAL_PAGE: usize = 50;
/// Subscriptions on a page: the progress of each is looked at.
const LARGEST_PAGE: usize = 100;

/// Makes a subscription, or changes the one of that name; repeatable by itself.
pub(super) async fn put(services: web::Data<Services>, name: web::Path<String>, body: JsonBody) -> Answer {
    let name: SubscriptionName = name.parse()?;
    let _: Object = body.parse()?;
    let depth_limit = services.settings.gateway.json_depth_limit;
    let network = network()?;
    let allow_private = services.settings.subscriptions.allow_private;
    let is_allowed = |target: &Target| match target {
        Target::Http(http) => Endpoint::for_target(http, allow_private, network)
            .map(drop)
            .map_err(|problem| format!("deliver.http: {problem}")),
        _ => Ok(()),
    };
    let put = services.subscriptions.put_if(&name, body.bytes(), depth_limit, is_allowed).await?;
    let Put { subscription, is_new, secret } = put.map_err(refused)?;
    let mut answer = json!({ "subscription": subscription.to_json() });
    if let Some(secret) = secret {
        answer["secret"] = secret.into();
    }
    let mut response = HttpResponse::build(if is_new { StatusCode::CREATED } else { StatusCode::OK });
    if is_new {
        response.insert_header((header::LOCATION, format!("/v1/subscriptions/{name}")));
    }
    Ok(response.insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}

/// How a worker would reach others: an endpoint is checked as the worker will use it. Certificates are read once.
fn network() -> Result<&'static Network, ApiError> {
    static NETWORK: OnceLock<Result<Network, String>> = OnceLock::new();
    let network = NETWORK.get_or_init(|| Network::system().map_err(|error| error.to_string()));
    network.as_ref().map_err(|problem| ApiError::failed(problem.clone()))
}

fn refused(refused: NotPut) -> ApiError {
    match refused {
        NotPut::Refused(Refused::Invalid(problem)) => ApiError::invalid(problem),
        NotPut::Refused(fixed @ Refused::Fixed(_)) => ApiError::new(Code::FixedMember, fixed.to_string()),
        NotPut::UnknownPosition { channel, position } => unknown_position(&channel, &position.to_string()),
        NotPut::TooMany { max } => ApiError::new(
            Code::TooManySubscriptions,
            format!("there are {max} subscriptions, which is subscriptions.max"),
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    after: Option<String>,
    limit: Option<String>,
}

/// Subscriptions by name.
pub(super) async fn list(services: web::Data<Services>, query: web::Query<Query>) -> Answer {
    let most = bounded("limit", query.limit.as_deref(), USUAL_PAGE, LARGEST_PAGE)?;
    let after: Option<SubscriptionName> = query.after.as_deref().map(str::parse).transpose()?;
    let mut all = services.subscriptions.all().await?.subscriptions;
    all.retain(|(subscription, _)| after.as_ref().is_none_or(|after| subscription.name > *after));
    let is_more = all.len() > most;
    all.truncate(most);
    let channels = services.redis.channels(None, usize::MAX).await?;
    let mut shown = Vec::with_capacity(all.len());
    for (subscription, _) in &all {
        shown.push(with_progress(&services, subscription, &channels, Detail::Totals).await?);
    }
    let next = all.last().filter(|_| is_more).map(|(subscription, _)| &subscription.name);
    Ok(HttpResponse::Ok().json(json!({ "subscriptions": shown, "next": next })))
}

/// One subscription.
pub(super) async fn show(services: web::Data<Services>, name: web::Path<String>) -> Answer {
    let subscription = services.subscriptions.get(&parsed(&name)?).await?.ok_or_else(|| unknown(&name))?;
    let channels = services.redis.channels(None, usize::MAX).await?;
    let shown = with_progress(&services, &subscription, &channels, Detail::Channels).await?;
    Ok(HttpResponse::Ok().json(json!({ "subscription": shown })))
}

/// `channels` are all there are.
async fn with_progress(
    services: &Services,
    subscription: &Subscription,
    channels: &[ChannelName],
    detail: Detail,
) -> Result<Value, ApiError> {
    let mut shown = subscription.to_json();
    shown["progress"] = progress::of(services, subscription, channels, detail).await?;
    Ok(shown)
}

/// Removes a subscription; what waits in its queue is cancelled.
pub(super) async fn delete(services: web::Data<Services>, name: web::Path<String>) -> Answer {
    let parsed = parsed(&name)?;
    if !services.subscriptions.delete(&parsed).await? {
        return Err(unknown(&name));
    }
    Ok(HttpResponse::Ok().json(json!({ "deleted": true, "name": parsed })))
}

/// A name in a path. What is no name cannot be the name of a subscription either.
fn parsed(text: &str) -> Result<SubscriptionName, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format_args!("subscription {}", quoted(name)))
}

fn one(subscription: &Subscription) -> HttpResponse {
    HttpResponse::Ok().json(json!({ "subscription": subscription.to_json() }))
}
