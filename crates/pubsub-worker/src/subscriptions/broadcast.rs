//! Every worker gets every message, each channel in order: this one reads by itself, and notes where it is so that it goes on
//! there when it comes back under its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{name::ChannelName, time::Millis};
use model::{
    job::{Advice, Failure as Recorded, Policy, Verdict},
    message::{Position, Stored, continuity::Gap},
};
use store::{StoreResult, next_delay, note_interruption, reconnect_delays, subscriptions::Checkpoint};
use tokio::time::Instant;

use super::{
    channel_tasks::{self, Again},
    message_notifier::Door,
    runner::{LONGEST_LATER, Runner, recorded},
};
use crate::targets::{Delivery, Failure, NotDelivered};

/// Messages that are read of a channel in one go.
const AT_ONCE: usize = 64;
/// How often it is noted where this worker is now, if it went on.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How often it is noted that it is there at all.
const SAY_EVERY: Duration = Duration::from_secs(15);
/// How often all of its places are noted, and those forgotten whose channels are there no more.
const NOTE_ALL_EVERY: Duration = Duration::from_hours(1);
/// A message that fails is tried so often here, with pauses of at most so long; then it goes on as a job.
const ATTEMPTS_HERE: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

struct Broadcast {
    runner: Arc<Runner>,
    at: Mutex<Place>,
}

/// Where this worker is.
#[derive(Default)]
struct Place {
    positions: BTreeMap<ChannelName, Position>,
    /// Channels in which that is not noted yet.
    changed: BTreeSet<ChannelName>,
    /// The gap that was told last, if its next message has not been delivered yet.
    told: BTreeMap<ChannelName, Gap>,
    /// When it was there first.
    there_since: Millis,
    delivered: u64,
    filtered: u64,
}

impl Place {
    fn set(&mut self, channel: &ChannelName, position: Position) {
        if self.positions.insert(channel.clone(), position) != Some(position) {
            self.changed.insert(channel.clone());
            self.told.remove(channel);
        }
    }

    /// Whether a gap was not told yet: one is found each time that its next message cannot be delivered.
    fn is_news(&mut self, channel: &ChannelName, gap: &Gap) -> bool {
        self.told.insert(channel.clone(), *gap) != Some(*gap)
    }
}

/// Delivers until the runner is stopped.
pub(super) async fn run(runner: Arc<Runner>, door: Door) {
    let Some(found) = find_place(&runner).await else { return };
    // One that comes back was there when channels began that are new to it
    let there_since = found.there_since.unwrap_or(runner.process.there_since);
    let at = Place { positions: found.positions, there_since, ..Place::default() };
    let broadcast = Arc::new(Broadcast { runner: runner.clone(), at: Mutex::new(at) });
    // Before it delivers anything: should it be killed in a moment, it was there all the same
    if broadcast.note_first().await.is_none() {
        return;
    }
    let noting = tokio::spawn(broadcast.clone().note_until_stopped());
    let work = |channel| {
        let broadcast = broadcast.clone();
        async move { broadcast.work(&channel).await }
    };
    channel_tasks::run(&runner, &door, work).await;
    if let Err(error) = noting.await {
        tracing::error!(%error, "noting where a broadcast is failed");
    }
    // The last deliveries ended after that
    if let Err(error) = broadcast.note_to_the_end().await {
        note_interruption("noting where a broadcast is", &error);
    }
}

/// Where this worker was; none when it stops before that is known.
async fn find_place(runner: &Runner) -> Option<Checkpoint> {
    let mut delays = reconnect_delays();
    loop {
        match runner.store().checkpoint(&runner.subscription, &runner.process.name).await {
            Ok(place) => return Some(place.unwrap_or_default()),
            Err(error) => {
                note_interruption("looking where a broadcast was", &error);
                runner.pause(next_delay(&mut delays)).await?;
            }
        }
    }
}

impl Broadcast {
    fn at(&self) -> MutexGuard<'_, Place> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this worker is there; none when it stops before that is done.
    async fn note_first(&self) -> Option<()> {
        let mut delays = reconnect_delays();
        while let Err(error) = self.note_all().await {
            note_interruption("noting where a broadcast is", &error);
            self.runner.pause(next_delay(&mut delays)).await?;
        }
        Some(())
    }

    async fn note_until_stopped(self: Arc<Self>) {
        let (mut say_at, mut all_at) = (Instant::now() + SAY_EVERY, Instant::now() + NOTE_ALL_EVERY);
        loop {
            let (now, has_news) = (Instant::now(), !self.at().changed.is_empty());
            let noted = if all_at <= now {
                self.note_all().await.map(|()| all_at = now + NOTE_ALL_EVERY)
            } else if has_news || say_at <= now {
                self.note_to_the_end().await
            } else {
                Ok(())
            };
            match noted {
                Ok(()) if has_news || say_at <= now => say_at = now + SAY_EVERY,
                Ok(()) => {}
                Err(error) => note_interruption("noting where a broadcast is", &error),
            }
            if self.runner.pause(NOTE_EVERY).await.is_none() {
                return;
            }
        }
    }

    /// Notes what has changed; everything if Redis has lost what was noted before.
    async fn note_to_the_end(&self) -> StoreResult<()> {
        if self.note(false).await? { Ok(()) } else { self.note(true).await.map(drop) }
    }

    /// Forgets channels that are there no more, and notes all the others.
    async fn note_all(&self) -> StoreResult<()> {
        let before: Vec<ChannelName> = self.at().positions.keys().cloned().collect();
        let there: BTreeSet<ChannelName> =
            self.runner.store().channels_of(&self.runner.subscription).await?.into_iter().collect();
        {
            let mut at = self.at();
            // Those that came meanwhile stay
            for gone in before.iter().filter(|channel| !there.contains(channel)) {
                at.positions.remove(gone);
                at.changed.remove(gone);
            }
        }
        self.note(true).await.map(drop)
    }

    /// False if nothing was noted before.
    async fn note(&self, is_whole: bool) -> StoreResult<bool> {
        let checkpoint = {
            let mut at = self.at();
            let changed = std::mem::take(&mut at.changed);
            let positions = if is_whole {
                at.positions.clone()
            } else {
                let position = |channel: ChannelName| at.positions.get(&channel).map(|position| (channel, *position));
                changed.into_iter().filter_map(position).collect()
            };
            let (delivered, filtered) = (std::mem::take(&mut at.delivered), std::mem::take(&mut at.filtered));
            Checkpoint { positions, there_since: Some(at.there_since), delivered, filtered, is_whole }
        };
        let runner = &self.runner;
        let noted = runner.store().note_checkpoint(&runner.subscription, &runner.process.name, &checkpoint).await;
        if noted.is_err() {
            let mut at = self.at();
            at.delivered += checkpoint.delivered;
            at.filtered += checkpoint.filtered;
            at.changed.extend(checkpoint.positions.into_keys());
        }
        noted
    }

    async fn work(&self, channel: &ChannelName) -> Again {
        let mut delays = reconnect_delays();
        loop {
            match self.drain(channel).await {
                Ok(again) => return again,
                Err(error) => {
                    note_interruption("reading for a broadcast", &error);
                    self.runner.pause(next_delay(&mut delays)).await?;
                }
            }
        }
    }

    /// Delivers what there is.
    async fn drain(&self, channel: &ChannelName) -> StoreResult<Again> {
        let (runner, redis) = (&self.runner, self.runner.store().redis());
        let known = self.at().positions.get(channel).copied();
        let mut after = if let Some(position) = known {
            position
        } else {
            let since = self.at().there_since;
            let _look = runner.look().await;
            let begin = runner.store().broadcast_begin(&runner.subscription, channel, since).await?;
            self.at().set(channel, begin);
            begin
        };
        loop {
            let page = {
                let _look = runner.look().await;
                redis.channel_page(channel, after, AT_ONCE).await?
            };
            if let Some(gap) = page.gap(after).filter(|gap| self.at().is_news(channel, gap)) {
                runner.note_gap(channel, &gap);
            }
            for message in &page.messages {
                if runner.stop.is_cancelled() {
                    return Ok(None);
                }
                if let Some(pause) = self.deliver(channel, message).await {
                    return Ok(Some(pause));
                }
                after = message.position;
            }
            if page.messages.is_empty() {
                after = page.after;
                self.at().set(channel, after);
            }
            if !page.is_more {
                return Ok(None);
            }
        }
    }

    /// Delivers a message, or lets it go on as a job; a pause when neither could be done.
    async fn deliver(&self, channel: &ChannelName, message: &Stored) -> Option<Duration> {
        let runner = &self.runner;
        if !runner.subscription.filter.fits(message) {
            self.passed(channel, message.position, false);
            return None;
        }
        let mut failures = Vec::new();
        loop {
            let attempt = u32::try_from(failures.len()).unwrap_or(ATTEMPTS_HERE) + 1;
            let why = match runner.deliver(channel, message, attempt).await {
                Ok(()) => {
                    self.passed(channel, message.position, true);
                    return None;
                }
                Err(NotDelivered::Abandoned) => return Some(Duration::from_secs(1)),
                // Attempts that were made count: they must not begin anew each time that the target is left alone
                Err(later @ NotDelivered::Later { .. }) if !failures.is_empty() => {
                    return self.hand_on(Delivery { channel, message, attempt }, &later, failures).await;
                }
                Err(NotDelivered::Later { delay, .. }) => return Some(delay.min(LONGEST_LATER)),
                Err(NotDelivered::Failed(failure)) => failure,
            };
            let Some(pause) = pause(&runner.subscription.policy(), &why, attempt) else {
                let why = NotDelivered::Failed(why);
                return self.hand_on(Delivery { channel, message, attempt }, &why, failures).await;
            };
            failures.push(recorded(&why, attempt));
            if runner.pause(pause).await.is_none() {
                return Some(pause);
            }
        }
    }

    /// Lets a message go on as a job, after earlier failures; a pause when that cannot be done.
    async fn hand_on(&self, delivery: Delivery<'_>, why: &NotDelivered, earlier: Vec<Recorded>) -> Option<Duration> {
        let is_kept = self.runner.hand_on(delivery, why, earlier, None).await;
        if is_kept {
            self.at().set(delivery.channel, delivery.message.position);
        }
        (!is_kept).then_some(Duration::from_secs(1))
    }

    fn passed(&self, channel: &ChannelName, position: Position, is_delivered: bool) {
        let mut at = self.at();
        at.set(channel, position);
        if is_delivered { at.delivered += 1 } else { at.filtered += 1 }
    }
}

/// How long to wait here before the next attempt at a message, of which so many have failed; none if it is to go on as a job.
fn pause(policy: &Policy, failure: &Failure, attempt: u32) -> Option<Duration> {
    let verdict = policy.after_failure(attempt - 1, &failure.code, failure.advice, rand::random());
    match (verdict, failure.advice) {
        _ if attempt >= ATTEMPTS_HERE => None,
        // The channel does not wait for longer than that, and the endpoint is not asked sooner
        (Verdict::Retry(delay), Advice::After(_)) => Some(delay).filter(|delay| *delay <= LONGEST_PAUSE),
        (Verdict::Retry(delay), _) => Some(delay.min(LONGEST_PAUSE)),
        (Verdict::Discard { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_waits_here_for_a_moment_and_goes_on_as_a_job_when_that_is_not_enough() {
        let patient = Policy { initial_interval: Duration::from_hours(1), jitter: false, ..Policy::default() };
        let (twice, second) = (Policy { max_attempts: 2, ..patient.clone() }, Duration::from_secs(1));
        for (policy, advice, attempt, expected) in [
            (&patient, Advice::ByPolicy, 1, Some(LONGEST_PAUSE)),
            (&patient, Advice::ByPolicy, ATTEMPTS_HERE, None),
            (&patient, Advice::Never, 1, None),
            (&patient, Advice::After(second), 1, Some(second)),
            (&patient, Advice::After(LONGEST_PAUSE + second), 1, None),
            (&twice, Advice::ByPolicy, 1, Some(LONGEST_PAUSE)),
            (&twice, Advice::ByPolicy, 2, None),
        ] {
            let NotDelivered::Failed(failure) = Failure::of("code", "message", advice) else { panic!("it failed") };
            assert_eq!(pause(policy, &failure, attempt), expected, "{advice:?} {attempt}");
        }
    }
}
