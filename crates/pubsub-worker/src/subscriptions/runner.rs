//! What all ways to deliver a subscription share: its target, its places, and what follows a failure.

use std::{sync::Arc, time::Duration};

use common::{
    json::ObjectWriter,
    name::{ChannelName, WorkerId},
    time::Millis,
};
use delivery::http::Room;
use model::{
    job::{Failure as Recorded, Verdict},
    message::{Stored, continuity::Gap},
    subscription::{Redelivery, Subscription},
};
use store::{
    StoreError, StoreResult,
    jobs::{Jobs, Refused, local_now},
    long_poll::Arrivals,
    next_delay, note_interruption, reconnect_delays,
    subscriptions::Subscriptions,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::message_notifier::Bell;
use crate::targets::{Deliverer, Delivery, Failure, Means, NotDelivered};

/// A worker may be silent this much longer than its longest delivery, before others take its messages.
const TAKE_OVER_GRACE: Duration = Duration::from_secs(5);

/// A channel whose message was not tried asks for a place again this soon. Whoever gives places knows how long the target has to be
/// left alone; nobody else does, and nothing has to be undone when it is another one.
pub(crate) const LONGEST_LATER: Duration = Duration::from_millis(500);

/// What the subscriptions of a process share.
pub(crate) struct Process {
    pub(crate) store: Subscriptions,
    pub(crate) jobs: Jobs,
    pub(crate) means: Means,
    pub(crate) bell: Bell,
    pub(crate) arrivals: Arrivals,
    /// The name by which it is known when it comes back.
    pub(crate) name: WorkerId,
    /// A name that nobody else has or had.
    pub(crate) worker: WorkerId,
    /// Since when it is there, on Redis's clock.
    pub(crate) there_since: Millis,
    /// Workers that may vanish while they have a message.
    pub(crate) crash_budget: u32,
    /// Cancelled when the grace is over: what is under way is given back.
    pub(crate) abandon: CancellationToken,
    /// Looks for messages that are under way at a time: hundreds of subscriptions with hundreds of channels each that look all at
    /// once must not wait for each other until their connection counts as broken.
    pub(crate) looks: Semaphore,
    /// Room for messages that are under way, in kibibytes.
    pub(crate) room: Arc<Semaphore>,
}

/// See [`Process::room`]: messages of a mebibyte, a thousand of them at a time, must not be more than a worker has memory for.
pub(crate) const ROOM_KIB: usize = 128 * 1024;

/// See [`Process::looks`].
pub(crate) const LOOKS_AT_ONCE: usize = 16;

/// Delivers one subscription.
pub(crate) struct Runner {
    pub(crate) process: Arc<Process>,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    deliverer: Deliverer,
}

impl Runner {
    /// Makes one; the error is for people.
    pub(crate) fn new(
        process: &Arc<Process>,
        subscription: Arc<Subscription>,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let deliverer = Deliverer::new(&subscription, &process.means)?;
        Ok(Self {
            process: process.clone(),
            places: Arc::new(Semaphore::new(deliverer.places())),
            subscription,
            stop,
            deliverer,
        })
    }

    pub(crate) fn store(&self) -> &Subscriptions {
        &self.process.store
    }

    /// Waits until there is room for so many bytes more; none when this runner stops.
    pub(crate) async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let room = self.process.room.clone().acquire_many_owned(kibibytes(bytes));
        self.stop.run_until_cancelled(room).await?.ok()
    }

    /// Waits until this process may look into Redis once more. To be held while it does.
    pub(crate) async fn look(&self) -> Option<SemaphorePermit<'_>> {
        self.process.looks.acquire().await.ok()
    }

    pub(crate) fn worker(&self) -> &WorkerId {
        &self.process.worker
    }

    /// After so much silence a worker's messages are taken from it.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.subscription.ack_deadline_ms) + TAKE_OVER_GRACE
    }

    /// Waits; none when this runner stops.
    pub(crate) async fn pause(&self, delay: Duration) -> Option<()> {
        self.stop.run_until_cancelled(tokio::time::sleep(delay)).await
    }

    /// Waits for a place, and until the target may be asked. Takes as many more as there are and the target has room for, up to
    /// so many; none when this runner stops.
    pub(crate) async fn places(&self, most: usize) -> Option<Vec<OwnedSemaphorePermit>> {
        let place = self.stop.run_until_cancelled(self.places.clone().acquire_owned()).await?.ok()?;
        loop {
            let wait = match self.deliverer.room() {
                Room::In(wait) => wait,
                Room::Trial => return Some(vec![place]),
                Room::Free => {
                    let more = std::iter::from_fn(|| self.another_place());
                    return Some(std::iter::once(place).chain(more).take(most).collect());
                }
            };
            self.pause(wait).await?;
        }
    }

    /// One more place, if there is one.
    pub(crate) fn another_place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Tries to deliver a message once, and notes what that says of the target.
    pub(crate) async fn deliver(
        &self,
        channel: &ChannelName,
        message: &Stored,
        attempt: u32,
    ) -> Result<(), NotDelivered> {
        let delivery = Delivery { channel, message, attempt };
        let delivered = self.deliverer.deliver(delivery, &self.process.abandon).await;
        let outcome = match &delivered {
            Ok(()) => "delivered",
            Err(NotDelivered::Later { .. }) => "later",
            Err(NotDelivered::Failed(_)) => "failed",
            Err(NotDelivered::Abandoned) => "abandoned",
        };
        let name = self.subscription.name.to_string();
        metrics::counter!("galley_deliveries_total", "subscription" => name, "outcome" => outcome).increment(1);
        match &delivered {
            Err(NotDelivered::Later { why, .. }) => {
                tracing::debug!(subscription = %self.subscription.name, why, "not delivered now");
            }
            Err(NotDelivered::Failed(failure)) => self.note_failure(channel, message, attempt, failure).await,
            Ok(()) | Err(NotDelivered::Abandoned) => {}
        }
        delivered
    }

    async fn note_failure(&self, channel: &ChannelName, message: &Stored, attempt: u32, failure: &Failure) {
        let (name, id, code) = (&self.subscription.name, message.position, &failure.code);
        tracing::warn!(subscription = %name, %channel, %id, attempt, code, message = failure.message, "not delivered");
        let noted = async {
            let failing_for = self.store().note_failure(&self.subscription).await?;
            let limit = self.store().settings().disable_after;
            if failure.is_gone {
                let reason = "the endpoint answered 410: it is gone";
                return self.store().disable(&self.subscription, reason).await;
            }
            if u128::try_from(failing_for).unwrap_or_default() >= limit.as_millis() {
                let reason = format!("nothing but failures for {} hours", limit.as_secs() / 3600);
                return self.store().disable(&self.subscription, &reason).await;
            }
            Ok(())
        };
        if let Err(error) = noted.await {
            note_interruption("noting a failed delivery", &error);
        }
    }

    /// Lets a message go on as a job after an attempt that failed, or was not made, and after `earlier` ones that failed. Repeats
    /// that until it is done: what comes out is false only when this runner stops before. Room that it takes up is given back when
    /// that takes longer: others must not wait for a queue that takes nothing.
    pub(crate) async fn hand_on(
        &self,
        Delivery { channel, message, attempt }: Delivery<'_>,
        why: &NotDelivered,
        earlier: Vec<Recorded>,
        mut room: Option<OwnedSemaphorePermit>,
    ) -> bool {
        let mut failures = earlier;
        let (delay, is_hopeless) = match why {
            NotDelivered::Abandoned => return false,
            NotDelivered::Later { delay, .. } => (*delay, false),
            NotDelivered::Failed(failure) => {
                let policy = self.subscription.policy();
                let verdict = policy.after_failure(attempt - 1, &failure.code, failure.advice, rand::random());
                failures.push(recorded(failure, attempt));
                match verdict {
                    Verdict::Retry(delay) => (delay, false),
                    // It is shown as a dead letter, which only a job can become
                    Verdict::Discard { .. } => (Duration::ZERO, true),
                }
            }
        };
        let redelivery = Redelivery { channel: channel.clone(), message: message.clone(), is_hopeless };
        let mut delays = reconnect_delays();
        loop {
            match self.make_job(&redelivery, delay, failures.clone()).await {
                Ok(Ok(())) => return true,
                Ok(Err(problem)) => {
                    self.give_up(channel, message, &problem);
                    return true;
                }
                Err(error) => {
                    note_interruption("keeping a message that was not delivered", &error);
                    drop(room.take());
                    if self.pause(next_delay(&mut delays)).await.is_none() {
                        return false;
                    }
                }
            }
        }
    }

    /// Makes the job; the inner error says why there cannot be one.
    async fn make_job(
        &self,
        redelivery: &Redelivery,
        delay: Duration,
        failures: Vec<Recorded>,
    ) -> StoreResult<Result<(), String>> {
        let now = self.process.jobs.now().await?;
        let at = now.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        let job = match redelivery.job(&self.subscription, at, failures, now) {
            Ok(job) => job,
            Err(error) => return Ok(Err(error.to_string())),
        };
        match self.process.jobs.enqueue(job, None, now).await? {
            Ok(_) | Err(Refused::Duplicate(_)) => Ok(Ok(())),
            // Somebody closed the queue, or there are too many: that may change
            Err(refused) => {
                Err(StoreError::Damaged(format!("{} takes no job: {refused:?}", self.subscription.queue())))
            }
        }
    }

    /// A message that can be neither delivered nor kept.
    fn give_up(&self, channel: &ChannelName, message: &Stored, problem: &str) {
        let (name, id) = (&self.subscription.name, message.position);
        tracing::error!(subscription = %name, %channel, %id, problem, "a message was given up");
        metrics::counter!("galley_messages_given_up_total", "subscription" => name.to_string()).increment(1);
    }

    /// Messages are missing that this subscription would have had.
    pub(crate) fn note_gap(&self, channel: &ChannelName, gap: &Gap) {
        let name = &self.subscription.name;
        metrics::counter!("galley_subscription_gaps_total", "subscription" => name.to_string()).increment(1);
        tracing::error!(subscription = %name, %channel, gap = gap.to_json(), "messages are missing");
        self.store().record(name, "subscription.gap", |data: &mut ObjectWriter| {
            data.text("channel", channel.as_str());
            gap.write(data);
        });
    }
}

/// Kibibytes, begun ones counting as whole, within the room that there is.
pub(crate) fn kibibytes(bytes: usize) -> u32 {
    u32::try_from((bytes / 1024 + 1).min(ROOM_KIB)).unwrap_or(u32::MAX)
}

/// A failure as the history of a job has it.
pub(crate) fn recorded(failure: &Failure, attempt: u32) -> Recorded {
    Recorded::new(&failure.code, &failure.code, &failure.message, attempt, local_now()).with_output(&failure.output)
}
