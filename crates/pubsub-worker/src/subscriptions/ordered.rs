//! A channel in order: one worker has it, delivers one message at a time, and stays at one that fails until it passes or
//! somebody goes on behind it. Which worker that is follows from which workers there are; should two think that it is theirs,
//! the one that holds it is right.

use std::{sync::Arc, time::Duration};

use common::name::ChannelName;
use model::{
    job::{Advice, Policy},
    message::Stored,
};
use store::{
    StoreResult, next_delay, note_interruption, reconnect_delays,
    subscriptions::{Done, Held, InOrder, Members},
};
use tokio::sync::watch;

use super::{
    channel_tasks::{self, Again},
    message_notifier::Door,
    runner::{LONGEST_LATER, Runner},
};
use crate::targets::NotDelivered;

/// How often a worker says that it is there, and after what silence it is not.
const REPORT_EVERY: Duration = Duration::from_secs(3);
const SILENT: Duration = Duration::from_secs(10);
/// Another has a channel that should be this worker's: it is asked for again this soon.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Failures are tried again at least this often, whatever the policy says, unless the endpoint says when: nothing goes on behind
/// them.
const LONGEST_DELAY: Duration = Duration::from_mins(5);

/// Delivers until the runner is stopped.
pub(super) async fn run(runner: Arc<Runner>, door: Door) {
    let (members, known) = watch::channel(None);
    let door = Arc::new(door);
    let reporting = tokio::spawn(report(runner.clone(), door.clone(), members));
    channel_tasks::run(&runner, &door, |channel| {
        let (runner, known) = (runner.clone(), known.clone());
        async move {
            let lane = Lane { runner, channel, known };
            lane.work().await
        }
    })
    .await;
    if let Err(error) = reporting.await {
        tracing::error!(%error, "reporting failed");
    }
}

/// Says that this worker is there until the runner is stopped, and looks who else is.
async fn report(runner: Arc<Runner>, door: Arc<Door>, members: watch::Sender<Option<Members>>) {
    let (store, subscription) = (runner.store(), &runner.subscription);
    while !runner.stop.is_cancelled() {
        match store.join(subscription, runner.worker(), SILENT).await {
            Ok(now) => {
                let is_news = members.send_replace(Some(now.clone())) != Some(now);
                if is_news {
                    door.ring_everywhere();
                }
            }
            Err(error) => note_interruption("looking for other workers", &error),
        }
        runner.pause(REPORT_EVERY).await;
    }
    let left = async {
        store.leave(subscription, runner.worker()).await?;
        store.wake().await
    };
    if let Err(error) = left.await {
        note_interruption("leaving a subscription", &error);
    }
}

struct Lane {
    runner: Arc<Runner>,
    channel: ChannelName,
    known: watch::Receiver<Option<Members>>,
}

/// How long a message waits that has failed so often.
fn delay(policy: &Policy, advice: Advice, attempt: u32) -> Duration {
    match advice {
        Advice::After(delay) => delay,
        _ => policy.delay(attempt, rand::random()).min(LONGEST_DELAY),
    }
}

/// What follows a message.
enum Next {
    /// The one behind it.
    Go(InOrder),
    /// Nothing, for now.
    Stop(Again),
}

impl Lane {
    fn is_ours(&self) -> bool {
        self.known.borrow().as_ref().is_some_and(|members| members.prefer(self.runner.worker(), &self.channel))
    }

    async fn work(&self) -> Again {
        if !self.is_ours() {
            return None;
        }
        let mut delays = reconnect_delays();
        loop {
            match self.drain().await {
                Ok(again) => return again,
                Err(error) => {
                    note_interruption("delivering in order", &error);
                    self.runner.pause(next_delay(&mut delays)).await?;
                }
            }
        }
    }

    /// Delivers what there is.
    async fn drain(&self) -> StoreResult<Again> {
        let (runner, lease) = (&self.runner, self.runner.lease());
        let (store, subscription, channel) = (runner.store(), &runner.subscription, &self.channel);
        let mut taken = {
            let _look = runner.look().await;
            store.take_in_order(subscription, channel, runner.worker(), lease).await?
        };
        loop {
            match taken {
                InOrder::Next { held, messages, gap, failures } => {
                    if let Some(gap) = &gap {
                        runner.note_gap(channel, gap);
                    }
                    match self.deliver_all(&held, messages, failures).await? {
                        Next::Go(next) => taken = next,
                        Next::Stop(again) => return Ok(again),
                    }
                }
                InOrder::Closed => match store.open(subscription, channel).await? {
                    Some(_) => taken = store.take_in_order(subscription, channel, runner.worker(), lease).await?,
                    // It rings when it has a history
                    None => return Ok(None),
                },
                InOrder::Empty => return Ok(None),
                InOrder::Wait(delay) => return Ok(Some(delay)),
                InOrder::Taken(_) => return Ok(Some(ASK_AGAIN)),
                InOrder::Lost => return Ok(Some(Duration::ZERO)),
            }
        }
    }

    async fn deliver_all(&self, held: &Held, messages: Vec<Stored>, failures: u32) -> StoreResult<Next> {
        let (runner, lease) = (&self.runner, self.runner.lease());
        let (store, subscription, channel) = (runner.store(), &runner.subscription, &self.channel);
        let count = messages.len();
        for (number, message) in messages.into_iter().enumerate() {
            if runner.stop.is_cancelled() || !self.is_ours() {
                return self.hold_up(held, Duration::ZERO, None).await;
            }
            let attempt = if number == 0 { failures + 1 } else { 1 };
            let done = if subscription.filter.fits(&message) {
                match runner.deliver(channel, &message, attempt).await {
                    Ok(()) => Done::Delivered,
                    Err(NotDelivered::Abandoned) => return self.hold_up(held, Duration::ZERO, None).await,
                    Err(NotDelivered::Later { delay, .. }) => {
                        return self.hold_up(held, delay.min(LONGEST_LATER), None).await;
                    }
                    Err(NotDelivered::Failed(failure)) => {
                        let delay = delay(&subscription.policy(), failure.advice, attempt);
                        return self.hold_up(held, delay, Some(&failure.message)).await;
                    }
                }
            } else {
                Done::Unwanted
            };
            let is_last = number + 1 == count;
            let next =
                store.advance(subscription, channel, runner.worker(), lease, (held, message.position, done, is_last));
            match next.await? {
                InOrder::Next { .. } if !is_last => {}
                next => return Ok(Next::Go(next)),
            }
        }
        Ok(Next::Stop(Some(Duration::ZERO)))
    }

    /// Gives the channel back; its next message is tried after a while.
    async fn hold_up(&self, held: &Held, delay: Duration, problem: Option<&str>) -> StoreResult<Next> {
        let (runner, channel) = (&self.runner, &self.channel);
        runner.store().hold_up(&runner.subscription, channel, runner.worker(), (held, delay, problem)).await?;
        // When the channel is another's now there is nothing to wait for
        let is_ours = !runner.stop.is_cancelled() && self.is_ours();
        Ok(Next::Stop(is_ours.then_some(delay.max(Duration::from_millis(1)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_order_waits_as_its_endpoint_says_and_otherwise_not_for_long() {
        let day = Duration::from_hours(24);
        let policy = Policy { initial_interval: day, max_interval: day, jitter: false, ..Policy::default() };
        for (advice, expected) in [
            (Advice::ByPolicy, LONGEST_DELAY),
            (Advice::Never, LONGEST_DELAY),
            (Advice::After(Duration::from_secs(1)), Duration::from_secs(1)),
            (Advice::After(day), day),
        ] {
            assert_eq!(delay(&policy, advice, 1), expected, "{advice:?}");
        }
    }
}
