//! The log of deliveries: attempts of a subscription and of a rule that sends jobs to an endpoint; sending a message again.

use actix_web::{HttpResponse, http::StatusCode, web};
use common::{
    id::JobId,
    name::{ChannelName, SubscriptionName, quoted},
    telemetry::WorkScope,
};
use model::{
    message::Position,
    subscription::{Redelivery, Subscription},
};
use serde::Deserialize;
use store::{
    deliveries::{DeliveryId, DeliveryOutcome, DeliveryOwner},
    jobs::EnqueuedJob,
};

use super::{
    ApiResult, job_json,
    jobs::state_change_response,
    json_response,
    list_answer::list_answer,
    parse_bounded,
    subscriptions::{parse_subscription_name, subscription_not_found},
};
use crate::{
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The default number of attempts on a page, and the most.
const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
pub(super) struct AttemptsQuery {
    outcome: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

/// What is stored of an attempt of a subscription.
#[derive(Deserialize)]
struct LoggedMessage {
    channel: ChannelName,
    message_id: String,
    subscription_created_ms: i64,
}

/// What is stored of an attempt of a rule.
#[derive(Deserialize)]
struct LoggedJob {
    job_id: JobId,
}

/// The newest attempts of a subscription first.
pub(super) async fn of_subscription(
    services: web::Data<Services>,
    name: web::Path<String>,
    query: web::Query<AttemptsQuery>,
) -> ApiResult {
    let subscription = find_subscription(&services, &name).await?;
    list(&services, &DeliveryOwner::Subscription(subscription.name), &query).await
}

/// The newest attempts of a rule of queue-workers first, by its pattern of job types. A rule without attempts has none.
pub(super) async fn of_rule(
    services: web::Data<Services>,
    rule: web::Path<String>,
    query: web::Query<AttemptsQuery>,
) -> ApiResult {
    list(&services, &parse_rule(rule.into_inner())?, &query).await
}

fn parse_rule(rule: String) -> Result<DeliveryOwner, ApiError> {
    if !is_rule_pattern(&rule) {
        return Err(ApiError::not_found(format_args!("rule {}", quoted(&rule))));
    }
    Ok(DeliveryOwner::Rule(rule))
}

/// Whether a rule may have that pattern of job types.
pub(crate) fn is_rule_pattern(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-*".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(is_allowed)
}

async fn list(services: &Services, owner: &DeliveryOwner, query: &AttemptsQuery) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let before: Option<DeliveryId> = query.after.as_deref().map(str::parse).transpose()?;
    let outcomes = match query.outcome.as_deref() {
        None => DeliveryOutcome::ALL.to_vec(),
        Some(word) => {
            let meant = DeliveryOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == word);
            let refused = || ApiError::invalid(format!("outcome must be delivered or failed, got {}", quoted(word)));
            vec![meant.ok_or_else(refused)?]
        }
    };
    let attempts = services.redis.read_deliveries(owner, &outcomes, before, limit).await?;
    let next = attempts.last().filter(|_| attempts.len() == limit).map(|(id, _)| id.to_string());
    let items: Vec<String> = attempts
        .iter()
        .map(|(id, json)| format!("{{\"id\":\"{id}\",{}", json.strip_prefix('{').unwrap_or("}")))
        .collect();
    Ok(json_response(list_answer(&items, next.as_deref())))
}

/// Sends the message of an attempt again: as a job of the subscription's queue, which a pubsub-worker delivers like a retry,
/// with the same `webhook-id`. Its attempt is logged as any other.
pub(super) async fn resend(services: web::Data<Services>, path: web::Path<(String, String)>) -> ApiResult {
    let (name, id) = path.into_inner();
    let enqueued = resend_message(&services, &name, &id).await?;
    let answer = job_json(&enqueued.job.view(enqueued.state).to_json());
    Ok(HttpResponse::build(StatusCode::ACCEPTED).content_type("application/json").body(answer))
}

/// The job that sends the message of an attempt again.
pub(crate) async fn resend_message(services: &Services, name: &str, id: &str) -> Result<EnqueuedJob, ApiError> {
    let subscription = find_subscription(services, name).await?;
    let not_found = || ApiError::not_found(format_args!("attempt {}", quoted(id)));
    let attempt: DeliveryId = id.parse().map_err(|_| not_found())?;
    let owner = DeliveryOwner::Subscription(subscription.name.clone());
    let logged = services.redis.find_delivery(&owner, attempt).await?.ok_or_else(not_found)?;
    let logged: LoggedMessage = serde_json::from_str(&logged).map_err(|error| ApiError::internal(error.to_string()))?;
    if logged.subscription_created_ms != subscription.created_at {
        return Err(not_found());
    }
    let position: Position =
        logged.message_id.parse().map_err(|_| ApiError::internal("an attempt without the id of its message"))?;
    let message = services.channels.read_message(&logged.channel, position).await?.ok_or_else(|| {
        ApiError::not_found(format_args!("message {position} of {}, which is not kept any more,", logged.channel))
    })?;
    let now = services.jobs.now().await?;
    let redelivery = Redelivery::new(&subscription, &logged.channel, &message, false);
    let mut job =
        redelivery.to_job(&subscription, now, Vec::new(), now).map_err(|error| ApiError::invalid(error.to_string()))?;
    // Another job than that of the first delivery, which may be over or still retried
    (job.id, job.start_at) = (None, None);
    let enqueued = services.jobs.enqueue(job, WorkScope::current().trace().clone(), now).await?;
    enqueued.map_err(|refused| {
        ApiError::new(ErrorCode::Conflict, format!("queue {} takes no job: {refused:?}", subscription.queue()))
    })
}

/// Sends the job of an attempt again, which is to retry it: now, whatever it waited for.
pub(super) async fn resend_job(services: web::Data<Services>, path: web::Path<(String, String)>) -> ApiResult {
    let (rule, id) = path.into_inner();
    let owner = parse_rule(rule)?;
    let not_found = || ApiError::not_found(format_args!("attempt {}", quoted(&id)));
    let attempt: DeliveryId = id.parse().map_err(|_| not_found())?;
    let logged = services.redis.find_delivery(&owner, attempt).await?.ok_or_else(not_found)?;
    let logged: LoggedJob = serde_json::from_str(&logged).map_err(|error| ApiError::internal(error.to_string()))?;
    let job_id = logged.job_id.to_string();
    match services.jobs.retry_now(logged.job_id).await? {
        Ok(job) => {
            let answer = job_json(&job);
            Ok(HttpResponse::build(StatusCode::ACCEPTED).content_type("application/json").body(answer))
        }
        refused => state_change_response(&job_id, refused),
    }
}

async fn find_subscription(services: &Services, name: &str) -> Result<Subscription, ApiError> {
    let parsed: SubscriptionName = parse_subscription_name(name)?;
    services.subscriptions.get(&parsed).await?.ok_or_else(|| subscription_not_found(name))
}
