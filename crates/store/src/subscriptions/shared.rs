//! A message goes to one worker, side by side with others, and to another one if that one vanishes.

use std::time::Duration;

use redis::Value;

use super::{Subscriptions, about, position::read};
use crate::{StoreResult, channels::stored, keys, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{
        Position, Stored,
        continuity::{self, Continuity, Gap, Surroundings},
    },
    subscription::Subscription,
};

/// About the bytes of messages that are handed out in one go.
pub const BYTES_AT_ONCE: usize = 4 << 20;
/// Messages that are acknowledged in one call.
const ACKED_AT_ONCE: usize = 1_000;
/// Channels that are looked at in one call for messages of silent workers.
const LOOKED_AT_AT_ONCE: usize = 128;
/// Workers that are forgotten in one call.
const FORGOTTEN_AT_ONCE: usize = 100;
/// A message that is given back counts as held for this long, so that the next one who looks takes it.
const SILENT_MS: u64 = 1_000_000_000;

/// What `read_group.lua` answers of a channel.
type Read = (usize, String, String, String, Vec<(String, Value)>, bool);

/// What `take_over.lua` answers.
type Taken = (Vec<(String, Value)>, Vec<u32>, Vec<String>, Vec<String>, String);

/// What was done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was delivered.
    Delivered,
    /// The filter does not want it.
    Unwanted,
    /// It failed, and goes on as a job.
    HandedOn,
}

/// What a channel had for a worker.
#[derive(Debug)]
pub struct Given {
    /// Which of the channels that were asked for.
    pub number: usize,
    /// The messages, oldest first.
    pub messages: Vec<Stored>,
    /// What is missing before them.
    pub gap: Option<Gap>,
    /// There may be more.
    pub is_more: bool,
    /// The channel has to be opened first.
    pub is_closed: bool,
}

/// Messages of a worker that was silent.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// The messages, and how often each was handed out before, unless it was given back since.
    pub messages: Vec<(Stored, u32)>,
    /// They were handed out, not done with, and are not kept any more.
    pub lost: Vec<Position>,
    /// What was missing before some of them. Whether the worker that they were handed to first has heard of it nobody knows.
    pub gaps: Vec<Gap>,
    /// Up to where was looked, if there may be more behind that.
    pub more_behind: Option<Position>,
}

/// Which messages are taken over.
#[derive(Debug, Clone, Copy)]
pub struct Silent<'a> {
    /// Those of workers that were silent for so long.
    pub at_least: Duration,
    /// Of one worker, whoever that is, if it is named.
    pub of: Option<&'a WorkerId>,
    /// Those behind a position.
    pub behind: Option<Position>,
}

impl Subscriptions {
    /// Hands messages of channels to a worker, at most so many in all. Channels that are not in the answer were not looked at.
    ///
    /// # Errors
    /// After [`crate::StoreError::Unavailable`] messages may have been handed out all the same: see [`Subscriptions::take_over`].
    pub async fn read(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        worker: &WorkerId,
        most: usize,
    ) -> StoreResult<Vec<Given>> {
        let mut call = script::READ_GROUP.prepare_invoke();
        for channel in channels {
            call.key(keys::history(channel)).key(keys::cursor(channel, &subscription.name));
        }
        call.arg(subscription.group()).arg(worker.as_str()).arg(most).arg(BYTES_AT_ONCE).arg(self.cursor_ttl_ms);
        let read: Vec<Read> = call.invoke_async(&mut self.redis().clone()).await?;
        let given = read.into_iter().map(|(number, how, position, before, entries, is_more)| Given {
            number: number.saturating_sub(1),
            gap: (how == "gap").then(|| gap(&position, &before, &entries)).flatten(),
            is_closed: how == "closed",
            messages: messages(entries),
            is_more,
        });
        Ok(given.collect())
    }

    /// Notes that messages of a channel are done with.
    ///
    /// # Errors
    /// Redis is unavailable: they may come again.
    pub async fn ack(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        done: &[(Position, Done)],
    ) -> StoreResult<()> {
        for some in done.chunks(ACKED_AT_ONCE) {
            let count = |how: Done| some.iter().filter(|(_, done)| *done == how).count();
            let mut call = script::ACK_MESSAGES.key(keys::history(channel));
            call.key(keys::figures(&subscription.name));
            call.arg(subscription.group()).arg(count(Done::Delivered)).arg(count(Done::Unwanted));
            for (position, _) in some {
                call.arg(position.to_string());
            }
            let _: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        }
        Ok(())
    }

    /// Those channels that have messages of workers that were silent for so long, or of one worker if it is named.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn with_silent(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        silent: Duration,
        of: Option<&WorkerId>,
    ) -> StoreResult<Vec<ChannelName>> {
        let mut found = Vec::new();
        for some in channels.chunks(LOOKED_AT_AT_ONCE) {
            let mut call = script::FIND_IDLE.prepare_invoke();
            for channel in some {
                call.key(keys::history(channel));
            }
            call.arg(subscription.group()).arg(silent.as_millis().to_string()).arg(of.map_or("", WorkerId::as_str));
            let numbers: Vec<usize> = call.invoke_async(&mut self.redis().clone()).await?;
            found.extend(numbers.into_iter().filter_map(|number| some.get(number.checked_sub(1)?).cloned()));
        }
        Ok(found)
    }

    /// Takes messages of workers that were silent, at most so many.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn take_over(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        Silent { at_least, of, behind }: Silent<'_>,
        most: usize,
    ) -> StoreResult<TakenOver> {
        let mut call = about(&script::RECLAIM, subscription, channel);
        call.arg(subscription.group()).arg(worker.as_str()).arg(at_least.as_millis().to_string());
        call.arg(most).arg(BYTES_AT_ONCE).arg(of.map_or("", WorkerId::as_str));
        call.arg(behind.map_or_else(|| "-".to_owned(), |position| format!("({position}")));
        let (entries, times, lost, missing, seen): Taken = call.invoke_async(&mut self.redis().clone()).await?;
        let gaps = missing.chunks_exact(3).filter_map(|gap| gap_before(&gap[0], &gap[1], gap[2].parse().ok()));
        let gaps = gaps.collect();
        let messages = entries
            .into_iter()
            .zip(times)
            .filter_map(|((id, fields), times)| Some((stored(&id, fields)?, times)))
            .collect();
        let lost = lost.iter().map(|position| read(position)).collect();
        Ok(TakenOver { messages, lost, gaps, more_behind: seen.parse().ok() })
    }

    /// Gives messages back that a worker will not deliver: the next one who looks takes them over.
    ///
    /// # Errors
    /// Redis is unavailable: they are taken over when the deadline has passed.
    pub async fn give_back(
        &self,
        subscription: &Subscription,
        worker: &WorkerId,
        messages: &[(ChannelName, Position)],
    ) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        for (channel, position) in messages {
            pipeline.cmd("XCLAIM").arg(keys::history(channel)).arg(subscription.group()).arg(worker.as_str());
            pipeline.arg(0).arg(position.to_string()).arg("IDLE").arg(SILENT_MS);
            // Nobody has vanished
            pipeline.arg("RETRYCOUNT").arg(0).arg("JUSTID").ignore();
        }
        let mut connection = self.redis().pooled().await?;
        Ok(pipeline.query_async(&mut connection).await?)
    }

    /// Forgets workers that hold nothing of a channel and were silent for so long.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn forget_workers(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        silent: Duration,
    ) -> StoreResult<()> {
        let mut call = script::PRUNE_CONSUMERS.key(keys::history(channel));
        call.arg(silent.as_millis().to_string()).arg(FORGOTTEN_AT_ONCE).arg(subscription.group());
        let _: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}

/// The messages of entries. One that Galley did not write may have anything in it.
pub(super) fn messages(entries: Vec<(String, Value)>) -> Vec<Stored> {
    entries.into_iter().filter_map(|(id, fields)| stored(&id, fields)).collect()
}

/// What is missing between a position and the entries that come next.
pub(super) fn gap(position: &str, before: &str, entries: &[(String, Value)]) -> Option<Gap> {
    gap_before(position, before, entries.first().and_then(|(id, _)| id.parse().ok()))
}

fn gap_before(position: &str, before: &str, next: Option<Position>) -> Option<Gap> {
    let after = read(position);
    if after == Position::START {
        // Of whoever did not ask for what there is: the first ones were published and not handed out
        return Some(Gap { from: after, to: next, count: next.map(|next| next.sequence) });
    }
    let around = Surroundings { is_kept: before == position, before: before.parse().ok(), next, head: next };
    match continuity::behind(after, around) {
        Continuity::Whole => None,
        Continuity::Gap(gap) => Some(gap),
        Continuity::Unknown => Some(Gap { from: after, to: next, count: None }),
    }
}
