//! A message goes to one worker, side by side with others, and to another one if that one vanishes.

use std::time::Duration;

use redis::Value;

use super::{Subscriptions, channel_script_call, position::parse_position};
use crate::{StoreResult, channels::parse_stored_message, keys, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{
        Position, StoredMessage,
        continuity::{self, Continuity, Gap, HistoryNeighbors},
    },
    subscription::Subscription,
};

/// About the bytes of messages that are handed out in one go.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// Messages that are acknowledged in one call.
const ACK_BATCH_SIZE: usize = 1_000;
/// Channels that are looked at in one call for messages of silent workers.
const IDLE_SCAN_BATCH_SIZE: usize = 128;
/// Workers that are forgotten in one call.
const PRUNE_BATCH_SIZE: usize = 100;
/// A message that is given back counts as held for this long, so that the next one who looks takes it.
const RELEASED_IDLE_MS: u64 = 1_000_000_000;

/// What `read_group.lua` answers of a channel.
type ReadGroupReply = (usize, String, String, String, Vec<(String, Value)>, bool);

/// What `take_over.lua` answers.
type ReclaimReply = (Vec<(String, Value)>, Vec<u32>, Vec<String>, Vec<String>, String);

/// What was done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageDisposition {
    /// It was delivered.
    Delivered,
    /// The filter does not want it.
    Filtered,
    /// It failed, and goes on as a job.
    RetriedAsJob,
}

/// What a channel had for a worker.
#[derive(Debug)]
pub struct ChannelMessages {
    /// Which of the channels that were asked for.
    pub channel_index: usize,
    /// The messages, oldest first.
    pub messages: Vec<StoredMessage>,
    /// What is missing before them.
    pub gap: Option<Gap>,
    /// There may be more.
    pub has_more: bool,
    /// The channel has to be opened first.
    pub needs_open: bool,
}

/// Messages of a worker that was silent.
#[derive(Debug, Default)]
pub struct ReclaimedMessages {
    /// The messages, and how often each was handed out before, unless it was given back since.
    pub messages: Vec<(StoredMessage, u32)>,
    /// They were handed out, not done with, and are not kept any more.
    pub lost: Vec<Position>,
    /// What was missing before some of them. Whether the worker that they were handed to first has heard of it nobody knows.
    pub gaps: Vec<Gap>,
    /// Up to where was looked, if there may be more behind that.
    pub resume_after: Option<Position>,
}

/// Which messages are taken over.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimFilter<'a> {
    /// Those of workers that were silent for so long.
    pub min_idle: Duration,
    /// Of one worker, whoever that is, if it is named.
    pub worker: Option<&'a WorkerId>,
    /// Those behind a position.
    pub after: Option<Position>,
}

impl Subscriptions {
    /// Hands messages of channels to a worker, at most so many in all. Channels that are not in the answer were not looked at.
    ///
    /// # Errors
    /// After [`crate::StoreError::Unavailable`] messages may have been handed out all the same: see [`Subscriptions::take_over`].
    pub async fn read_messages(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        worker: &WorkerId,
        most: usize,
    ) -> StoreResult<Vec<ChannelMessages>> {
        let mut call = script::READ_GROUP.prepare_invoke();
        for channel in channels {
            call.key(keys::channel_history(channel)).key(keys::subscription_cursor(channel, &subscription.name));
        }
        call.arg(subscription.group()).arg(worker.as_str()).arg(most).arg(MAX_BATCH_BYTES).arg(self.cursor_ttl_ms);
        let read: Vec<ReadGroupReply> = call.invoke_async(&mut self.redis().clone()).await?;
        let given = read.into_iter().map(|(number, how, position, before, entries, is_more)| ChannelMessages {
            channel_index: number.saturating_sub(1),
            gap: (how == "gap").then(|| gap_before_entries(&position, &before, &entries)).flatten(),
            needs_open: how == "not_opened",
            messages: parse_messages(entries),
            has_more: is_more,
        });
        Ok(given.collect())
    }

    /// Notes that messages of a channel are done with.
    ///
    /// # Errors
    /// Redis is unavailable: they may come again.
    pub async fn ack_messages(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        done: &[(Position, MessageDisposition)],
    ) -> StoreResult<()> {
        for some in done.chunks(ACK_BATCH_SIZE) {
            let count = |how: MessageDisposition| some.iter().filter(|(_, done)| *done == how).count();
            let mut call = script::ACK_MESSAGES.key(keys::channel_history(channel));
            call.key(keys::subscription_counters(&subscription.name));
            call.arg(subscription.group())
                .arg(count(MessageDisposition::Delivered))
                .arg(count(MessageDisposition::Filtered));
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
    pub async fn find_idle(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        silent: Duration,
        of: Option<&WorkerId>,
    ) -> StoreResult<Vec<ChannelName>> {
        let mut found = Vec::new();
        for some in channels.chunks(IDLE_SCAN_BATCH_SIZE) {
            let mut call = script::FIND_IDLE.prepare_invoke();
            for channel in some {
                call.key(keys::channel_history(channel));
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
    pub async fn reclaim(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        ReclaimFilter { min_idle: at_least, worker: of, after: behind }: ReclaimFilter<'_>,
        most: usize,
    ) -> StoreResult<ReclaimedMessages> {
        let mut call = channel_script_call(&script::RECLAIM, subscription, channel);
        call.arg(subscription.group()).arg(worker.as_str()).arg(at_least.as_millis().to_string());
        call.arg(most).arg(MAX_BATCH_BYTES).arg(of.map_or("", WorkerId::as_str));
        call.arg(behind.map_or_else(|| "-".to_owned(), |position| format!("({position}")));
        let (entries, times, lost, missing, seen): ReclaimReply = call.invoke_async(&mut self.redis().clone()).await?;
        let gaps = missing.chunks_exact(3).filter_map(|gap| gap_between(&gap[0], &gap[1], gap[2].parse().ok()));
        let gaps = gaps.collect();
        let messages = entries
            .into_iter()
            .zip(times)
            .filter_map(|((id, fields), times)| Some((parse_stored_message(&id, fields)?, times)))
            .collect();
        let lost = lost.iter().map(|position| parse_position(position)).collect();
        Ok(ReclaimedMessages { messages, lost, gaps, resume_after: seen.parse().ok() })
    }

    /// Gives messages back that a worker will not deliver: the next one who looks takes them over.
    ///
    /// # Errors
    /// Redis is unavailable: they are taken over when the deadline has passed.
    pub async fn release_messages(
        &self,
        subscription: &Subscription,
        worker: &WorkerId,
        messages: &[(ChannelName, Position)],
    ) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        for (channel, position) in messages {
            pipeline.cmd("XCLAIM").arg(keys::channel_history(channel)).arg(subscription.group()).arg(worker.as_str());
            pipeline.arg(0).arg(position.to_string()).arg("IDLE").arg(RELEASED_IDLE_MS);
            // Nobody has vanished
            pipeline.arg("RETRYCOUNT").arg(0).arg("JUSTID").ignore();
        }
        let mut connection = self.redis().pooled_connection().await?;
        Ok(pipeline.query_async(&mut connection).await?)
    }

    /// Forgets workers that hold nothing of a channel and were silent for so long.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn prune_consumers(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        silent: Duration,
    ) -> StoreResult<()> {
        let mut call = script::PRUNE_CONSUMERS.key(keys::channel_history(channel));
        call.arg(silent.as_millis().to_string()).arg(PRUNE_BATCH_SIZE).arg(subscription.group());
        let _: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}

/// The messages of entries. One that Galley did not write may have anything in it.
pub(super) fn parse_messages(entries: Vec<(String, Value)>) -> Vec<StoredMessage> {
    entries.into_iter().filter_map(|(id, fields)| parse_stored_message(&id, fields)).collect()
}

/// What is missing between a position and the entries that come next.
pub(super) fn gap_before_entries(position: &str, before: &str, entries: &[(String, Value)]) -> Option<Gap> {
    gap_between(position, before, entries.first().and_then(|(id, _)| id.parse().ok()))
}

fn gap_between(position: &str, before: &str, next: Option<Position>) -> Option<Gap> {
    let after = parse_position(position);
    if after == Position::START {
        // Of whoever did not ask for what there is: the first ones were published and not handed out
        return Some(Gap { from: after, to: next, count: next.map(|next| next.sequence) });
    }
    let around = HistoryNeighbors { is_retained: before == position, before: before.parse().ok(), next, head: next };
    match continuity::check_continuity(after, around) {
        Continuity::Contiguous => None,
        Continuity::Gap(gap) => Some(gap),
        Continuity::Unknown => Some(Gap { from: after, to: next, count: None }),
    }
}
