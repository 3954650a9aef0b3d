//! Into a queue, as a job: whoever works there has it exactly once, however often this is tried.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use delivery::http::Room;
use model::{
    job::Advice,
    subscription::{QueueTarget, Subscription},
};
use store::{
    StoreError,
    jobs::{Jobs, Refused, local_now},
};

use tokio::time::Instant;

use super::{Delivery, Failure, NotDelivered};

/// A queue that takes nothing now is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Queue {
    target: QueueTarget,
    jobs: Jobs,
    /// It took nothing, and is left alone until then.
    rests_until: Mutex<Option<Instant>>,
}

impl Queue {
    pub(super) fn new(target: QueueTarget, jobs: Jobs) -> Self {
        Self { target, jobs, rests_until: Mutex::default() }
    }

    pub(super) fn room(&self) -> Room {
        let rests_until = self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = rests_until.map(|until| until.saturating_duration_since(Instant::now()));
        rest.filter(|rest| !rest.is_zero()).map_or(Room::Free, Room::In)
    }

    pub(super) async fn deliver(
        &self,
        subscription: &Subscription,
        delivery: Delivery<'_>,
    ) -> Result<(), NotDelivered> {
        let Delivery { channel, message, .. } = delivery;
        let now = local_now();
        let job = self
            .target
            .job(&subscription.name, channel, message, now)
            .map_err(|error| Failure::of("no_job", error.to_string(), Advice::Never))?;
        match self.jobs.enqueue(job, traceparent(delivery), now).await {
            Ok(Ok(_) | Err(Refused::Duplicate(_))) => Ok(()),
            Ok(Err(refused)) => Err(self.rest(format!("the queue {} takes no job: {refused:?}", self.target.queue))),
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full)) => Err(self.rest(error.to_string())),
            Err(error) => Err(Failure::of("not_enqueued", error.to_string(), Advice::ByPolicy)),
        }
    }

    fn rest(&self, why: String) -> NotDelivered {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + ASK_AGAIN);
        NotDelivered::Later { delay: ASK_AGAIN, why }
    }
}

/// The trace that an event belongs to, if it says so (the distributed tracing extension of `CloudEvents`).
fn traceparent(Delivery { message, .. }: Delivery<'_>) -> Option<String> {
    let attributes: serde_json::Value = serde_json::from_str(message.attributes.as_deref()?).ok()?;
    let text = attributes.get("traceparent")?.as_str()?;
    let is_one = text.len() == 55 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_one.then(|| text.to_owned())
}
