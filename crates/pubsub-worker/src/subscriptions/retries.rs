//! Messages that were not delivered at once, on their way through the job engine: this takes the jobs of a subscription's
//! queue when their time has come, and tries again.

use std::{sync::Arc, time::Duration};

use common::name::Priority;
use model::{
    job::{Advice, Failure as Recorded},
    subscription::Redelivery,
};
use store::{
    StoreError, StoreResult,
    events::Happened,
    jobs::{Claim, Claimed, Ended, Fence, Settled, local_now},
    long_poll::{Left, Seat},
    next_delay, note_interruption, reconnect_delays,
};
use tokio_util::task::TaskTracker;

use super::runner::{Runner, recorded};
use crate::targets::NotDelivered;

/// Jobs that are taken in one go.
const AT_ONCE: usize = 16;
/// After trouble it is looked again this soon.
const AFTER_TROUBLE: Duration = Duration::from_secs(1);

/// Tries again until the runner is stopped, then finishes what it has.
pub(super) async fn run(runner: Arc<Runner>) {
    let tasks = TaskTracker::new();
    let mut delays = reconnect_delays();
    while !runner.stop.is_cancelled() {
        let result = work(&runner, &tasks).await;
        if let Err(error) = result {
            note_interruption("taking failed deliveries", &error);
            runner.pause(next_delay(&mut delays)).await;
        } else {
            delays = reconnect_delays();
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Takes jobs for as long as there is no trouble.
async fn work(runner: &Arc<Runner>, tasks: &TaskTracker) -> StoreResult<()> {
    let queue = runner.subscription.queue();
    let queues = std::slice::from_ref(&queue);
    let Ok(seat) = runner.process.arrivals.sit_down(queues) else {
        return Err(StoreError::Damaged("more queues are waited for than can be watched".to_owned()));
    };
    let mut priorities = Vec::new();
    loop {
        if runner.stop.run_until_cancelled(seat.called()).await.is_none() {
            return Ok(());
        }
        let left = match take_all(runner, tasks, &mut priorities).await {
            Ok(Some(left)) => left,
            Ok(None) => return Ok(()),
            Err(error) => {
                looked(&seat, runner, Left::Unknown(AFTER_TROUBLE));
                return Err(error);
            }
        };
        looked(&seat, runner, left);
    }
}

fn looked(seat: &Seat, runner: &Runner, left: Left) {
    seat.looked(&[(runner.subscription.queue(), left)], false);
}

/// Takes jobs until there are no more; what the queue says to more then. None when the runner stops.
async fn take_all(
    runner: &Arc<Runner>,
    tasks: &TaskTracker,
    priorities: &mut Vec<Priority>,
) -> StoreResult<Option<Left>> {
    let queue = runner.subscription.queue();
    loop {
        let Some(mut places) = runner.places(AT_ONCE).await else { return Ok(None) };
        let lease = Some(runner.lease());
        let by = Claim::Pull { worker: Some(runner.worker()), lease };
        let batch = runner.process.jobs.claim(&queue, priorities, places.len(), by).await?;
        if batch.jobs.is_empty() {
            return Ok(Some(Left::Nothing(batch.more)));
        }
        for claimed in batch.jobs {
            let (runner, place) = (runner.clone(), places.pop());
            tasks.spawn(async move {
                attempt(&runner, claimed).await;
                drop(place);
            });
        }
    }
}

/// What is to be recorded of an attempt.
enum Step {
    Complete,
    Fail(Recorded, Advice),
    PutBack(Duration),
    GiveUp,
    HandBack,
}

async fn attempt(runner: &Runner, claimed: Claimed) {
    let history = &claimed.job.history;
    let attempt = history.current_attempt();
    let redelivery = claimed.job.envelope.parts().ok().and_then(|parts| Redelivery::from_args(parts.args));
    let step = match redelivery {
        None => {
            let (code, message) = ("invalid_message", "the arguments of this job are not a message of a subscription");
            Step::Fail(Recorded::new(code, code, message, attempt, local_now()), Advice::Never)
        }
        // Not when somebody wanted it to be tried again since: then attempts were begun here
        Some(redelivery) if redelivery.is_hopeless && history.failures > 0 && history.started_at.is_none() => {
            Step::GiveUp
        }
        Some(redelivery) => match runner.deliver(&redelivery.channel, &redelivery.message, attempt).await {
            Ok(()) => Step::Complete,
            Err(NotDelivered::Later { delay, .. }) => Step::PutBack(delay),
            Err(NotDelivered::Failed(failure)) => Step::Fail(recorded(&failure, attempt), failure.advice),
            Err(NotDelivered::Abandoned) => Step::HandBack,
        },
    };
    let mut delays = reconnect_delays();
    // It is this worker's until its lease is over, and then somebody else's
    while let Err(error) = record(runner, &claimed, &step).await {
        note_interruption("recording a delivery", &error);
        let pause = tokio::time::sleep(next_delay(&mut delays));
        if runner.process.abandon.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

async fn record(runner: &Runner, claimed: &Claimed, step: &Step) -> StoreResult<()> {
    let jobs = &runner.process.jobs;
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    match step {
        Step::Complete => {
            let now = local_now();
            let ended = Ended::completed(&claimed.job, None, Some(claimed.started_at), now);
            if jobs.finish(&claimed.job, claimed.entry, &fence, &ended, false).await? == Settled::Stale {
                // It is somebody else's, who says how it ended
                return Ok(());
            }
            jobs.record(Happened::completed(&claimed.job, claimed.started_at, now));
            runner.store().note_recovery(&runner.subscription.name).await?;
        }
        Step::Fail(failure, advice) => drop(jobs.fail(claimed, &fence, failure.clone(), *advice).await?),
        Step::GiveUp => drop(jobs.give_up(claimed, &fence).await?),
        Step::PutBack(delay) => drop(jobs.put_back(claimed, &fence, *delay).await?),
        Step::HandBack => drop(jobs.requeue(&claimed.job, claimed.entry, &fence).await?),
    }
    Ok(())
}
