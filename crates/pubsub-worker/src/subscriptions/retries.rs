//! Redelivers failed messages through the job engine: each is a job in the subscription's queue, and an attempt of
//! that job is one delivery.

use std::{sync::Arc, time::Duration};

use model::{
    job::{AttemptError, RetryAdvice},
    subscription::Redelivery,
};
use store::{
    jobs::{ClaimedJob, Fence},
    log_interruption,
};
use worker::{
    pulled_queue::PulledQueue,
    settlement::{Settlement, SettlementOutcome, settle},
};

use super::runner::SubscriptionRunner;
use crate::targets::{DeliveryAttempt, DeliveryError};

/// Delay before a worker that does not know of a change yet gets the delivery again, if no other does.
const STALE_DELAY: Duration = Duration::from_secs(1);

/// Redelivers until the runner is stopped, then finishes the running attempts.
pub(super) async fn run(runner: Arc<SubscriptionRunner>) {
    let process = &runner.process;
    let queue = PulledQueue {
        jobs: process.jobs.clone(),
        long_poll: process.long_poll.clone(),
        queue: runner.subscription.queue(),
        worker: runner.worker().clone(),
        lease: runner.lease(),
    };
    let acquire = |max| runner.acquire_slots(max);
    let redeliver = |claimed| redeliver(runner.clone(), claimed);
    queue.run(acquire, redeliver, &runner.stop).await;
}

async fn redeliver(runner: Arc<SubscriptionRunner>, claimed: ClaimedJob) {
    let mut settlement = deliver(&runner, &claimed).await;
    if let Settlement::Fail { advice, .. } = &mut settlement
        && matches!(runner.is_deleted().await, Ok(true))
    {
        // It must become neither a job nor a dead letter of the next subscription of that name
        *advice = RetryAdvice::Discard;
    }
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    // This worker has the attempt until its lease expires, then another worker gets it
    let settled = settle(&runner.process.jobs, &claimed, &fence, &settlement, &runner.process.hard_shutdown).await;
    if matches!((settlement, settled), (Settlement::Complete, Some(SettlementOutcome::Recorded(_))))
        && !runner.is_obsolete().await
        && let Err(error) = runner.store().record_recovery(&runner.subscription.name).await
    {
        log_interruption("recording a recovery", &error);
    }
}

async fn deliver(runner: &SubscriptionRunner, claimed: &ClaimedJob) -> Settlement {
    let history = &claimed.job.history;
    let attempt = history.current_attempt();
    let redelivery = claimed.job.envelope.fields().ok().and_then(|parts| Redelivery::from_args(parts.args));
    match redelivery {
        None => {
            let (code, message) = ("invalid_message", "the arguments of this job are not a message of a subscription");
            let error = AttemptError::new(code, code, message, attempt, runner.process.jobs.estimated_now());
            Settlement::Fail { error, advice: RetryAdvice::Never }
        }
        Some(redelivery) if redelivery.subscription_created_at != runner.subscription.created_at => {
            settle_foreign(runner, &redelivery, attempt).await
        }
        // Unless somebody asked for a redelivery since: then attempts were started here, or the subscription was resumed
        Some(redelivery)
            if redelivery.is_permanent_failure
                && history.failures > 0
                && history.started_at.is_none()
                && redelivery.subscription_resumed_at == runner.subscription.resumed_at =>
        {
            Settlement::Discard
        }
        Some(Redelivery { channel, message, .. }) => {
            match runner.redeliver(DeliveryAttempt { channel: &channel, message: &message, attempt }, claimed).await {
                Ok(()) => Settlement::Complete,
                Err(DeliveryError::Deferred { delay, .. }) => Settlement::Snooze(delay),
                Err(DeliveryError::Failed(failure)) => {
                    Settlement::Fail { error: runner.attempt_error(&failure, attempt), advice: failure.advice }
                }
                Err(DeliveryError::Abandoned) => Settlement::Release,
            }
        }
    }
}

/// What follows for a delivery of another subscription of this name.
async fn settle_foreign(runner: &SubscriptionRunner, redelivery: &Redelivery, attempt: u32) -> Settlement {
    let name = &runner.subscription.name;
    match runner.store().is_deleted(name, redelivery.subscription_created_at).await {
        Ok(true) => {
            let (code, message) = ("subscription_deleted", "its subscription was deleted");
            let error = AttemptError::new(code, code, message, attempt, runner.process.jobs.estimated_now());
            Settlement::Fail { error, advice: RetryAdvice::Discard }
        }
        // This worker does not know of the change yet: another one delivers it
        Ok(false) | Err(_) => Settlement::Snooze(STALE_DELAY),
    }
}
