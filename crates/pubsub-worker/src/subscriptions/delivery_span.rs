//! The span of an attempt to deliver a message and what works inside it, and the entry in the log of attempts.

use std::time::Duration;

use common::{
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, Operation, SpanDescription, attribute},
    },
    time::Millis,
};
use store::{
    deliveries::{DeliveredItem, DeliveryOutcome, DeliveryOwner, DeliveryRecord},
    jobs::ClaimedJob,
};

use super::runner::SubscriptionRunner;
use crate::targets::{DeliveryAttempt, DeliveryError, TargetAnswer};

impl SubscriptionRunner {
    /// The same as an attempt of a job.
    pub(crate) async fn redeliver(
        &self,
        delivery: DeliveryAttempt<'_>,
        claimed: &ClaimedJob,
    ) -> Result<(), DeliveryError> {
        let before = claimed.job.previous_span.as_deref().copied();
        let describe = || self.describe(delivery).with_links(before);
        let trace = claimed.job.trace.clone().or(|| delivery.message.trace());
        let mut span = ActiveSpan::start(&trace, describe);
        let delivered = self.deliver_in(delivery, &mut span, Some(claimed)).await;
        claimed.job.note_span(span.recorded());
        delivered
    }

    /// What the span of an attempt says.
    pub(super) fn describe(
        &self,
        DeliveryAttempt { channel, message, attempt }: DeliveryAttempt<'_>,
    ) -> SpanDescription {
        let name = self.subscription.name.as_str();
        SpanDescription::messaging(Operation::Deliver, name)
            .with(attribute::MESSAGING_DESTINATION_SUBSCRIPTION_NAME, name.to_owned())
            .with(attribute::MESSAGING_CONSUMER_GROUP_NAME, name.to_owned())
            .with("galley.channel", channel.to_string())
            .with("galley.delivery.attempt", i64::from(attempt))
            .with(attribute::MESSAGING_CLIENT_ID, self.process.instance.to_string())
            .with_message_id(&message.position)
    }

    /// Tries once, and what it does belongs to this span.
    pub(super) async fn deliver_in(
        &self,
        delivery: DeliveryAttempt<'_>,
        span: &mut ActiveSpan,
        job: Option<&ClaimedJob>,
    ) -> Result<(), DeliveryError> {
        let trace = span.context().clone();
        let work = match job {
            Some(claimed) => WorkScope::of_job(claimed.job.id, trace),
            None => WorkScope::of_trace(trace),
        };
        // Boxed: every task that may deliver would have room for it
        work.run(Box::pin(self.deliver_once(delivery, span))).await
    }

    /// Adds an attempt to the log of the subscription. What was not tried is no attempt.
    pub(super) fn log_attempt(
        &self,
        delivery: DeliveryAttempt<'_>,
        delivered: &Result<TargetAnswer, DeliveryError>,
        (at, duration): (Millis, Duration),
    ) {
        let (outcome, answer, error) = match delivered {
            Ok(answer) => (DeliveryOutcome::Delivered, answer, None),
            Err(DeliveryError::Failed(failure)) => {
                let error = (failure.code.clone(), failure.message.clone());
                (DeliveryOutcome::Failed, &*failure.answer, Some(error))
            }
            Err(DeliveryError::Deferred { .. } | DeliveryError::Abandoned) => return,
        };
        let record = DeliveryRecord {
            item: DeliveredItem::Message {
                channel: delivery.channel.to_string(),
                id: delivery.message.position.to_string(),
                subscription_created_at: self.subscription.created_at,
            },
            webhook_id: self.deliverer.webhook_id(delivery).unwrap_or_default(),
            attempt: delivery.attempt,
            at,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            outcome,
            status: answer.status,
            response: answer.excerpt.clone(),
            error,
        };
        self.process.jobs.deliveries().record(DeliveryOwner::Subscription(self.subscription.name.clone()), record);
    }
}
