//! Delivers into a queue as a job. Repeated deliveries of a message create one job.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use common::telemetry::WorkScope;
use delivery::http::TargetAvailability;
use model::{
    job::RetryAdvice,
    subscription::{QueueTarget, Subscription},
};
use store::{
    StoreError,
    jobs::{EnqueueRefusal, Jobs},
};

use tokio::time::Instant;

use super::{DeliveryAttempt, DeliveryError, DeliveryFailure};

/// Delay before a queue that refuses jobs is asked again.
const QUEUE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct QueueTargetClient {
    target: QueueTarget,
    jobs: Jobs,
    /// The queue refused a job and is left alone until then.
    unavailable_until: Mutex<Option<Instant>>,
}

impl QueueTargetClient {
    pub(super) fn new(target: QueueTarget, jobs: Jobs) -> Self {
        Self { target, jobs, unavailable_until: Mutex::default() }
    }

    pub(super) fn availability(&self) -> TargetAvailability {
        let rests_until = self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = rests_until.map(|until| until.saturating_duration_since(Instant::now()));
        rest.filter(|rest| !rest.is_zero()).map_or(TargetAvailability::Available, TargetAvailability::UnavailableFor)
    }

    pub(super) async fn deliver(
        &self,
        subscription: &Subscription,
        delivery: DeliveryAttempt<'_>,
    ) -> Result<(), DeliveryError> {
        let DeliveryAttempt { channel, message, .. } = delivery;
        let now = self.jobs.estimated_now();
        let job = self
            .target
            .to_job((&subscription.name, subscription.created_at), channel, message, now)
            .map_err(|error| DeliveryFailure::error("no_job", error.to_string(), RetryAdvice::Never))?;
        match self.jobs.enqueue(job, WorkScope::current().trace().clone(), now).await {
            Ok(Ok(_) | Err(EnqueueRefusal::Duplicate(_))) => Ok(()),
            Ok(Err(refused)) => Err(self.defer(format!("the queue {} takes no job: {refused:?}", self.target.queue))),
            Err(error @ (StoreError::Unavailable(_) | StoreError::OutOfMemory | StoreError::NoRoom(_))) => {
                Err(self.defer(error.to_string()))
            }
            Err(error) => Err(DeliveryFailure::error("not_enqueued", error.to_string(), RetryAdvice::ByPolicy)),
        }
    }

    fn defer(&self, why: String) -> DeliveryError {
        *self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + QUEUE_RETRY_INTERVAL);
        DeliveryError::Deferred { delay: QUEUE_RETRY_INTERVAL, reason: why }
    }
}
