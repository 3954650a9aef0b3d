//! Into a queue, as a job: whoever works there has it exactly once, however often this is tried.

use std::time::Duration;

use common::{
    job::Advice,
    redis::{
        StoreError,
        jobs::{Jobs, Refused, local_now},
    },
    subscription::{QueueTarget, Subscription},
};

use super::{Delivery, Failure, NotDelivered};

/// A queue that takes nothing now is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn deliver(
    subscription: &Subscription,
    target: &QueueTarget,
    jobs: &Jobs,
    delivery: Delivery<'_>,
) -> Result<(), NotDelivered> {
    let Delivery { channel, message, .. } = delivery;
    let now = local_now();
    let job = target
        .job(&subscription.name, channel, message, now)
        .map_err(|error| Failure::of("no_job", error.to_string(), Advice::Never))?;
    let later = |why: String| NotDelivered::Later { delay: ASK_AGAIN, why };
    match jobs.enqueue(job, traceparent(delivery), now).await {
        Ok(Ok(_) | Err(Refused::Duplicate(_))) => Ok(()),
        Ok(Err(refused)) => Err(later(format!("the queue {} takes no job: {refused:?}", target.queue))),
        Err(error @ (StoreError::Unavailable(_) | StoreError::Full)) => Err(later(error.to_string())),
        Err(error) => Err(Failure::of("not_enqueued", error.to_string(), Advice::ByPolicy)),
    }
}

/// The trace that an event belongs to, if it says so (the distributed tracing extension of `CloudEvents`).
fn traceparent(Delivery { message, .. }: Delivery<'_>) -> Option<String> {
    let attributes: serde_json::Value = serde_json::from_str(message.attributes.as_deref()?).ok()?;
    let text = attributes.get("traceparent")?.as_str()?;
    let is_one = text.len() == 55 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_one.then(|| text.to_owned())
}
