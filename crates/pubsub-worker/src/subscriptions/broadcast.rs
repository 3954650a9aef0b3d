//! Every worker gets every message, each channel in order: this one reads by itself, and notes where it is so that it goes on
//! there when it comes back under its name.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    message::{Position, Stored},
    name::ChannelName,
    redis::{StoreResult, next_delay, note_interruption, reconnect_delays, subscriptions::Checkpoint},
};

use super::{
    bell::Door,
    lanes::{self, Again},
    runner::Runner,
};
use crate::targets::NotDelivered;

/// Messages that are read of a channel in one go.
const AT_ONCE: usize = 64;
/// How often it is noted where this worker is.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// A message that fails is tried so often here, with pauses of at most so long; then it goes on as a job.
const ATTEMPTS_HERE: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

struct Broadcast {
    runner: Arc<Runner>,
    at: Mutex<Checkpoint>,
}

/// Delivers until the runner is stopped.
pub(super) async fn run(runner: Arc<Runner>, door: Door) {
    let Some(mut at) = find_place(&runner).await else { return };
    // One that comes back was there when channels began that are new to it
    at.there_since.get_or_insert(runner.process.there_since);
    let broadcast = Arc::new(Broadcast { runner: runner.clone(), at: Mutex::new(at) });
    let noting = tokio::spawn(broadcast.clone().note_until_stopped());
    let work = |channel| {
        let broadcast = broadcast.clone();
        async move { broadcast.work(&channel).await }
    };
    lanes::run(&runner, &door, work).await;
    if let Err(error) = noting.await {
        tracing::error!(%error, "noting where a broadcast is failed");
    }
    // The last deliveries ended after that
    if let Err(error) = broadcast.note().await {
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
                runner.stop.run_until_cancelled(tokio::time::sleep(next_delay(&mut delays))).await?;
            }
        }
    }
}

impl Broadcast {
    fn at(&self) -> MutexGuard<'_, Checkpoint> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn note_until_stopped(self: Arc<Self>) {
        loop {
            // At once too: should it be killed in a moment, it was there all the same
            if let Err(error) = self.note().await {
                note_interruption("noting where a broadcast is", &error);
            }
            let pause = tokio::time::sleep(NOTE_EVERY);
            if self.runner.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn note(&self) -> StoreResult<()> {
        let checkpoint = {
            let mut at = self.at();
            let checkpoint = at.clone();
            (at.delivered, at.filtered) = (0, 0);
            checkpoint
        };
        let runner = &self.runner;
        let noted = runner.store().note_checkpoint(&runner.subscription, &runner.process.name, &checkpoint).await;
        if noted.is_err() {
            let mut at = self.at();
            at.delivered += checkpoint.delivered;
            at.filtered += checkpoint.filtered;
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
                    self.runner.stop.run_until_cancelled(tokio::time::sleep(next_delay(&mut delays))).await?;
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
            let since = self.at().there_since.unwrap_or(runner.process.there_since);
            let begin = runner.store().broadcast_begin(&runner.subscription, channel, since).await?;
            self.at().positions.insert(channel.clone(), begin);
            begin
        };
        loop {
            let page = redis.channel_page(channel, after, AT_ONCE).await?;
            if let Some(gap) = page.gap(after) {
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
                self.at().positions.insert(channel.clone(), after);
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
        let mut attempt = 1;
        loop {
            match runner.deliver(channel, message, attempt).await {
                Ok(()) => {
                    self.passed(channel, message.position, true);
                    return None;
                }
                Err(NotDelivered::Abandoned) => return Some(Duration::from_secs(1)),
                Err(NotDelivered::Later { delay, .. }) => return Some(delay),
                Err(why) if attempt >= ATTEMPTS_HERE || is_final(&why) => {
                    let is_kept = runner.hand_on(channel, message, &why, attempt).await;
                    if is_kept {
                        let mut at = self.at();
                        at.positions.insert(channel.clone(), message.position);
                    }
                    return (!is_kept).then_some(Duration::from_secs(1));
                }
                Err(_) => {
                    let pause = runner.subscription.policy().delay(attempt, rand::random()).min(LONGEST_PAUSE);
                    let is_over = runner.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
                    if is_over {
                        return Some(pause);
                    }
                    attempt += 1;
                }
            }
        }
    }

    fn passed(&self, channel: &ChannelName, position: Position, is_delivered: bool) {
        let mut at = self.at();
        at.positions.insert(channel.clone(), position);
        if is_delivered { at.delivered += 1 } else { at.filtered += 1 }
    }
}

fn is_final(why: &NotDelivered) -> bool {
    matches!(why, NotDelivered::Failed(failure) if failure.advice == common::job::Advice::Never)
}
