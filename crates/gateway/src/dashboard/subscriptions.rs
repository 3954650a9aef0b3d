//! The pages of subscriptions: lag and failures, pause, seek, delete.

use actix_web::{HttpRequest, web};
use askama::Template;
use model::subscription::{Subscription, SubscriptionState};
use serde::Deserialize;
use serde_json::Value;
use store::deliveries::DeliveryOwner;

use super::{
    attempts::{self, AttemptsTableQuery},
    page::{Page, redirect},
    session::Form,
    shown_value::ShownValue,
    unknown_action,
};
use crate::{
    auth::Caller,
    request_check::query_pairs,
    routes::{
        ApiResult, ProgressDetail, parse_subscription_name, progress_json, resend_message, seek_subscription,
        subscription_not_found,
    },
    services::Services,
};

/// Subscriptions on a page. Each costs a look at each of its channels.
const PAGE_SIZE: usize = 25;

#[derive(Template)]
#[template(path = "subscriptions.html")]
struct SubscriptionsPage {
    page: Page,
    rows: Vec<SubscriptionRow>,
    total: usize,
    next: Option<String>,
}

struct SubscriptionRow {
    name: String,
    state: &'static str,
    channels: String,
    lag: u64,
    delivered: u64,
    failed: u64,
}

#[derive(Template)]
#[template(path = "subscription.html")]
struct SubscriptionPage {
    page: Page,
    name: String,
    state: &'static str,
    reason: String,
    description: String,
    numbers: Vec<(&'static str, u64)>,
    /// Where it stands in each channel, and its workers if it is a broadcast.
    channels: Vec<ChannelRowProgress>,
    workers: Option<ShownValue>,
    definition: ShownValue,
    /// Where its messages go, in a word or an address.
    target: String,
    attempts: String,
}

/// Where a subscription stands in a channel.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ChannelRowProgress {
    channel: String,
    position: String,
    head: String,
    lag: u64,
    in_flight: u64,
}

/// Where messages go: the address of an endpoint, the name of a queue, or the kind of the target.
fn target_of(definition: &Value) -> String {
    let deliver = &definition["deliver"];
    let known = deliver["http"]["url"].as_str().or_else(|| deliver["queue"]["queue"].as_str());
    known.or_else(|| deliver["command"]["program"].as_str()).map_or_else(
        || deliver.as_object().and_then(|kinds| kinds.keys().next().cloned()).unwrap_or_default(),
        ToOwned::to_owned,
    )
}

fn state_of(subscription: &Subscription) -> &'static str {
    match subscription.state {
        SubscriptionState::Active => "active",
        SubscriptionState::Paused => "paused",
        SubscriptionState::Disabled => "disabled",
    }
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let after = pairs.iter().find(|(name, _)| name == "after").map_or("", |(_, value)| value.as_str());
    let mut all = services.subscriptions.list().await?.subscriptions;
    all.retain(|(subscription, _)| caller.has_subscription(subscription));
    let total = all.len();
    all.retain(|(subscription, _)| subscription.name.as_str() > after);
    let has_more = all.len() > PAGE_SIZE;
    all.truncate(PAGE_SIZE);
    let channels = services.channels.list_channels(None, usize::MAX).await?;
    let mut rows = Vec::with_capacity(all.len());
    for (subscription, _) in &all {
        let progress = progress_json(&services, subscription, &channels, ProgressDetail::Totals).await?;
        let number = |name: &str| progress[name].as_u64().unwrap_or_default();
        rows.push(SubscriptionRow {
            name: subscription.name.to_string(),
            state: state_of(subscription),
            channels: Vec::<String>::from(subscription.channels.clone()).join(" "),
            lag: number("lag"),
            delivered: number("delivered"),
            failed: number("failed"),
        });
    }
    let next = rows.last().filter(|_| has_more).map(|row| row.name.clone());
    let page = Page::open(&request, "/ui/subscriptions").await;
    let template = SubscriptionsPage { page, rows, total, next };
    template.page.render(&template)
}

pub(crate) async fn show(request: HttpRequest, services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let found = services.subscriptions.get(&parse_subscription_name(&name)?).await?;
    let subscription = found.ok_or_else(|| subscription_not_found(&name))?;
    let channels = services.channels.list_channels(None, usize::MAX).await?;
    let progress = progress_json(&services, &subscription, &channels, ProgressDetail::Channels).await?;
    let number = |name: &str| progress[name].as_u64().unwrap_or_default();
    let numbers = [
        ("subscription.lag", "lag"),
        ("subscription.in_flight", "in_flight"),
        ("subscription.delivered", "delivered"),
        ("subscription.failed", "failed"),
        ("subscription.retrying", "retrying"),
        ("overview.dead", "dead"),
    ];
    let definition: Value = serde_json::from_str(&subscription.to_json()).unwrap_or_default();
    let page = Page::open(&request, "/ui/subscriptions").await;
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let query = AttemptsTableQuery {
        owner: DeliveryOwner::Subscription(subscription.name.clone()),
        path: format!("/ui/subscriptions/{}", subscription.name),
        outcome: value("outcome"),
        before: value("before"),
        may_resend: page.may_subscriptions(),
    };
    let attempts = attempts::table(&page, &services, query).await?;
    let template = SubscriptionPage {
        page,
        name: subscription.name.to_string(),
        state: state_of(&subscription),
        reason: subscription.reason.clone().unwrap_or_default(),
        description: subscription.description.clone().unwrap_or_default(),
        numbers: numbers.map(|(key, name)| (key, number(name))).to_vec(),
        channels: progress.get("channels").and_then(|list| Deserialize::deserialize(list).ok()).unwrap_or_default(),
        workers: progress.get("workers").map(ShownValue::of),
        target: target_of(&definition),
        definition: ShownValue::of(&definition),
        attempts,
    };
    template.page.render(&template)
}

pub(crate) async fn act(services: web::Data<Services>, path: web::Path<(String, String)>, form: Form) -> ApiResult {
    let (name, action) = path.into_inner();
    let parsed = parse_subscription_name(&name)?;
    let here = format!("/ui/subscriptions/{parsed}");
    let set = async |state| {
        let changed = services.subscriptions.set_state(&parsed, state, None).await?;
        changed.map(drop).ok_or_else(|| subscription_not_found(&name))
    };
    let note = match action.as_str() {
        "pause" => {
            set(SubscriptionState::Paused).await?;
            "subscription_paused"
        }
        "resume" => {
            set(SubscriptionState::Active).await?;
            "subscription_resumed"
        }
        "seek" => {
            seek_subscription(&services, &name, form.get("to").trim(), None).await?;
            "subscription_sought"
        }
        "resend" => {
            let sent = resend_message(&services, &name, form.get("attempt")).await?;
            return Ok(redirect(&format!("/ui/jobs/{}", sent.job.id), "message_resent", &name));
        }
        "delete" => {
            if !services.subscriptions.delete(&parsed).await? {
                return Err(subscription_not_found(&name));
            }
            return Ok(redirect("/ui/subscriptions", "subscription_deleted", &name));
        }
        other => return Err(unknown_action(other)),
    };
    Ok(redirect(&here, note, &name))
}
