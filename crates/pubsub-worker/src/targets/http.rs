//! Delivers to an HTTP endpoint. `docs/subscriptions.md` describes the request, `docs/push.md` the answers.

use common::{
    id::JobId,
    json::Object,
    time::{self, Millis},
};
use delivery::http::{Endpoint, PushRequest, PushRetry};
use model::{job::RetryAdvice, message::cloud_event, subscription::Subscription};

use super::{DeliveryAttempt, DeliveryError, DeliveryFailure, TargetAnswer};

/// HTTP 410, gone: the receiver wants no more messages.
const STATUS_GONE: u16 = 410;
/// The type of a message that is not an event.
const DEFAULT_EVENT_TYPE: &str = "message";

pub(super) async fn deliver(
    subscription: &Subscription,
    endpoint: &Endpoint,
    delivery: DeliveryAttempt<'_>,
    now: Millis,
) -> Result<TargetAnswer, DeliveryError> {
    let DeliveryAttempt { channel, message, .. } = delivery;
    let headers = build_headers(subscription, delivery);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request = PushRequest {
        id: &webhook_id(subscription, delivery),
        values: &[("subscription", subscription.name.as_str()), ("channel", channel.as_str())],
        headers: &headers,
        body: message.body.clone().into(),
        sent_at: now,
    };
    match endpoint.post(request).await {
        Ok(answer) => Ok(TargetAnswer { status: Some(answer.status), excerpt: answer.excerpt }),
        // Nothing was sent. Spread the retries so that they do not arrive at the same moment
        Err(error) if !error.was_sent && matches!(error.retry, PushRetry::After(_)) => {
            let PushRetry::After(delay) = error.retry else { return Ok(TargetAnswer::default()) };
            Err(DeliveryError::Deferred { delay: delay.mul_f64(rand::random_range(1.0..1.5)), reason: error.message })
        }
        Err(error) => {
            let advice = match error.retry {
                PushRetry::ByPolicy => RetryAdvice::ByPolicy,
                PushRetry::Never => RetryAdvice::Never,
                PushRetry::After(delay) => RetryAdvice::After(delay),
            };
            let is_gone = error.status == Some(STATUS_GONE);
            let answer = Box::new(TargetAnswer { status: error.status, excerpt: error.excerpt });
            let (code, message) = (error.code.to_owned(), error.message);
            Err(DeliveryError::Failed(DeliveryFailure {
                code,
                message,
                advice,
                output: String::new(),
                is_message_at_fault: error.is_request_at_fault,
                is_gone,
                answer,
            }))
        }
    }
}

/// The headers that describe a message.
fn build_headers(subscription: &Subscription, delivery: DeliveryAttempt<'_>) -> Vec<(String, String)> {
    let DeliveryAttempt { channel, message, attempt } = delivery;
    let (position, attempt) = (message.position.to_string(), attempt.to_string());
    let published_at = time::format(message.published_at);
    let content_type = message.content_type.as_deref().unwrap_or("application/octet-stream");
    let mut headers = vec![
        ("content-type".to_owned(), content_type.to_owned()),
        ("galley-subscription".to_owned(), subscription.name.to_string()),
        ("galley-channel".to_owned(), channel.to_string()),
        ("galley-message-id".to_owned(), position.clone()),
        ("galley-message-time".to_owned(), published_at.clone()),
        ("galley-attempt".to_owned(), attempt),
    ];
    let attributes = message.attributes.as_deref().and_then(|text| serde_json::from_str::<Object>(text).ok());
    let is_structured = cloud_event::is_structured(content_type);
    match attributes {
        // The body has the event's attributes
        Some(_) if is_structured => {}
        Some(attributes) => {
            for (name, value) in attributes.iter() {
                headers.push((format!("ce-{name}"), cloud_event::attribute_text(value).into_owned()));
            }
        }
        None => {
            let source = format!("/galley/channels/{channel}");
            for (name, value) in [
                ("specversion", "1.0"),
                ("id", &position),
                ("source", &source),
                ("type", DEFAULT_EVENT_TYPE),
                ("time", &published_at),
            ] {
                headers.push((format!("ce-{name}"), value.to_owned()));
            }
        }
    }
    headers
}

/// Unique to a message and a subscription, and the same in every attempt: receivers recognize repetitions by it.
pub(super) fn webhook_id(
    subscription: &Subscription,
    DeliveryAttempt { channel, message, .. }: DeliveryAttempt<'_>,
) -> String {
    let (name, created_at) = (&subscription.name, subscription.created_at);
    let purpose = format!("webhook {name} {created_at} {channel} {}", message.position);
    JobId::for_purpose(u64::try_from(message.published_at).unwrap_or_default(), &subscription.queue(), &purpose)
        .to_string()
}
