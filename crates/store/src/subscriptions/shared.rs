//! Shared delivery: each message goes to one worker, and to another one if that dies.

use std::time::Duration;

use redis::{FromRedisValue, Value};

use super::{Subscriptions, channel_script_call, counts::MessageCounts, position::parse_position};
use crate::{StoreError, StoreResult, channels::parse_stored_message, keys, maintenance, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{
        Position, StoredMessage,
        continuity::{self, Continuity, Gap, HistoryNeighbors},
    },
    subscription::Subscription,
};

/// Approximate maximum bytes of messages claimed at once.
pub const MAX_BATCH_BYTES: usize = 4 << 20;
/// Maximum number of messages acknowledged in one call.
const ACK_BATCH_SIZE: usize = 1_000;
/// Number of channels searched for idle messages in one pipeline.
const IDLE_SCAN_BATCH_SIZE: usize = 128;
/// Number of channels read in one pipeline. Each of them gets its share of the messages and bytes, and at least one message.
const READ_BATCH_SIZE: usize = 16;
/// Maximum number of idle consumers deleted in one call.
const PRUNE_BATCH_SIZE: usize = 100;
/// A released message gets this idle time, so that the next reclaim takes it.
const RELEASED_IDLE_MS: u64 = 1_000_000_000;

/// The reply of `read_group.lua`.
type ReadGroupReply = (String, String, String, Vec<(String, Value)>, bool);

/// The reply of `reclaim.lua`.
type ReclaimReply = (Vec<(String, Value)>, Vec<u32>, Vec<String>, Vec<String>, String);

/// How a message was processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageDisposition {
    /// Delivered.
    Delivered,
    /// Filtered out.
    Filtered,
    /// Failed, and enqueued as a job in the retry queue.
    RetriedAsJob,
}

impl MessageDisposition {
    /// What one such message counts as.
    pub(super) fn counts(self) -> MessageCounts {
        match self {
            Self::Delivered => MessageCounts { delivered: 1, filtered: 0 },
            Self::Filtered => MessageCounts { delivered: 0, filtered: 1 },
            Self::RetriedAsJob => MessageCounts::default(),
        }
    }
}

/// The messages of a channel for a worker.
#[derive(Debug)]
pub struct ChannelMessages {
    /// The index of the channel in the request.
    pub channel_index: usize,
    /// The messages, oldest first.
    pub messages: Vec<StoredMessage>,
    /// What is missing before them.
    pub gap: Option<Gap>,
    /// There may be more.
    pub has_more: bool,
    /// The channel must be opened first.
    pub needs_open: bool,
}

/// Messages reclaimed from an idle worker.
#[derive(Debug, Default)]
pub struct ReclaimedMessages {
    /// The messages, and how often each was handed out before, unless it was released since.
    pub messages: Vec<(StoredMessage, u32)>,
    /// They were handed out, not acknowledged, and are trimmed.
    pub lost: Vec<Position>,
    /// Gaps before some of them. The worker that had them first may or may not have reported these.
    pub gaps: Vec<Gap>,
    /// Continue the search after this position, if there may be more.
    pub resume_after: Option<Position>,
}

/// Which messages to reclaim.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimFilter<'a> {
    /// Those of workers that were silent for this long.
    pub min_idle: Duration,
    /// Only those of this worker, if given.
    pub worker: Option<&'a WorkerId>,
    /// Only those after this position, if given.
    pub after: Option<Position>,
}

/// How much may be read.
#[derive(Debug, Clone, Copy)]
struct ReadShare {
    messages: usize,
    bytes: usize,
}

impl ReadShare {
    /// What the channel with that number may read of it, if there are `count` channels, at most as many as messages.
    fn share(self, number: usize, count: usize) -> Self {
        let has_one_more = number < self.messages % count;
        Self { messages: self.messages / count + usize::from(has_one_more), bytes: self.bytes / count }
    }
}

impl Subscriptions {
    /// Whether Redis's clock was set less than a lease ago, so that a message may look idle that is being delivered. If
    /// it was set back, idle times grow again from now on.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn are_idle_times_wrong(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        lease: Duration,
        is_one_idle: bool,
    ) -> StoreResult<bool> {
        if is_one_idle {
            self.jobs.now().await?;
        }
        let steps = self.redis().clock_steps();
        if steps.remaining(lease).is_zero() {
            return Ok(false);
        }
        if steps.total_ms < 0 {
            for channel in channels {
                let history = keys::channel_history(channel);
                maintenance::heal_group(&mut self.redis().clone(), &history, &subscription.group()).await?;
            }
        }
        Ok(true)
    }

    /// Claims messages of channels for a worker, at most `max` in all. Channels that are not in the answer were not
    /// read.
    ///
    /// # Errors
    /// After [`crate::StoreError::Unavailable`] messages may have been claimed nevertheless: see
    /// [`Subscriptions::reclaim`].
    pub async fn read_messages(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        worker: &WorkerId,
        max: usize,
    ) -> StoreResult<Vec<ChannelMessages>> {
        let (mut given, mut free) = (Vec::new(), ReadShare { messages: max, bytes: MAX_BATCH_BYTES });
        let mut rest = channels;
        while free.bytes > 0
            && let Some((some, later)) = rest.split_at_checked(rest.len().min(READ_BATCH_SIZE).min(free.messages))
            && !some.is_empty()
        {
            // After an error the caller reclaims what was read before it, too
            for mut read in self.read_some(subscription, some, worker, free).await? {
                read.channel_index += channels.len() - rest.len();
                free.messages = free.messages.saturating_sub(read.messages.len());
                free.bytes = read.messages.iter().fold(free.bytes, |free, one| free.saturating_sub(one.body.len()));
                given.push(read);
            }
            rest = later;
        }
        Ok(given)
    }

    /// Claims messages of a few channels at once. Each has a slot of its own, so each gets its share of what may be read.
    async fn read_some(
        &self,
        subscription: &Subscription,
        channels: &[ChannelName],
        worker: &WorkerId,
        free: ReadShare,
    ) -> StoreResult<Vec<ChannelMessages>> {
        let calls = channels.iter().enumerate().map(|(number, channel)| {
            let share = free.share(number, channels.len());
            let mut call = channel_script_call(&script::READ_GROUP, subscription, channel);
            call.key(keys::channel_state(channel)).arg(subscription.group()).arg(worker.as_str());
            call.arg(share.messages).arg(share.bytes).arg(self.cursor_ttl_ms).arg(subscription.created_at);
            call
        });
        let calls: Vec<_> = calls.collect();
        let answers = script::invoke_each(&mut self.redis().clone(), &calls).await;
        let mut read = Vec::with_capacity(channels.len());
        for ((number, channel), answer) in channels.iter().enumerate().zip(answers) {
            let (how, position, before, entries, has_more) =
                ReadGroupReply::from_redis_value(answer?).map_err(|error| StoreError::damaged(error.to_string()))?;
            read.push(ChannelMessages {
                channel_index: number,
                gap: (how == "gap").then(|| gap_before_entries(&position, &before, &entries)).flatten(),
                needs_open: how == "not_opened",
                messages: self.parse_messages(channel, entries),
                has_more,
            });
        }
        Ok(read)
    }

    /// Acknowledges messages of a channel.
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
            let mut call = channel_script_call(&script::ACK_MESSAGES, subscription, channel);
            call.arg(subscription.group()).arg(subscription.created_at);
            let mut counts = MessageCounts::default();
            for (position, done) in some {
                call.arg(position.to_string());
                counts.add(done.counts());
            }
            let acknowledged: u64 = call.invoke_async(&mut self.redis().clone()).await?;
            if acknowledged > 0 {
                self.count_messages(&subscription.name, counts);
            }
        }
        Ok(())
    }

    /// The channels with messages of workers that were silent for `min_idle`, or of `worker` if given.
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
            let calls = some.iter().map(|channel| {
                let mut call = script::FIND_IDLE.key(keys::channel_history(channel));
                call.arg(subscription.group()).arg(silent.as_millis().to_string()).arg(of.map_or("", WorkerId::as_str));
                call
            });
            let calls: Vec<_> = calls.collect();
            let answers = script::invoke_each(&mut self.redis().clone(), &calls).await;
            for (channel, answer) in some.iter().zip(answers) {
                if answer? == Value::Int(1) {
                    found.push(channel.clone());
                }
            }
        }
        Ok(found)
    }

    /// Reclaims at most `max` messages of idle workers.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn reclaim(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        ReclaimFilter { min_idle: at_least, worker: of, after: behind }: ReclaimFilter<'_>,
        max: usize,
    ) -> StoreResult<ReclaimedMessages> {
        let mut call = channel_script_call(&script::RECLAIM, subscription, channel);
        call.arg(subscription.group()).arg(worker.as_str()).arg(at_least.as_millis().to_string());
        call.arg(max).arg(MAX_BATCH_BYTES).arg(of.map_or("", WorkerId::as_str));
        call.arg(behind.map_or_else(|| "-".to_owned(), |position| format!("({position}")));
        call.arg(subscription.created_at);
        let (entries, times, lost, missing, seen): ReclaimReply = call.invoke_async(&mut self.redis().clone()).await?;
        let gaps = missing.chunks_exact(3).filter_map(|gap| gap_between(&gap[0], &gap[1], gap[2].parse().ok()));
        let gaps = gaps.collect();
        let sealer = self.redis().sealer();
        let messages = entries
            .into_iter()
            .zip(times)
            .filter_map(|((id, fields), times)| Some((parse_stored_message(sealer, channel, &id, fields)?, times)))
            .collect();
        let lost = lost.iter().map(|position| parse_position(position)).collect();
        Ok(ReclaimedMessages { messages, lost, gaps, resume_after: seen.parse().ok() })
    }

    /// Releases messages that a worker will not deliver: the next reclaim takes them.
    ///
    /// # Errors
    /// Redis is unavailable: they are reclaimed after their deadline.
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
            // No worker died, so reset the count
            pipeline.arg("RETRYCOUNT").arg(0).arg("JUSTID").ignore();
        }
        let mut connection = self.redis().pooled_connection().await?;
        Ok(pipeline.query_async(&mut connection).await?)
    }

    /// Parses the messages of entries. An entry that Galley did not write may contain anything.
    pub(super) fn parse_messages(&self, channel: &ChannelName, entries: Vec<(String, Value)>) -> Vec<StoredMessage> {
        let sealer = self.redis().sealer();
        let parse = |(id, fields): (String, Value)| parse_stored_message(sealer, channel, &id, fields);
        entries.into_iter().filter_map(parse).collect()
    }

    /// Deletes consumers that hold nothing in a channel and were silent for this long.
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

/// The gap between a position and the next entries.
pub(super) fn gap_before_entries(position: &str, before: &str, entries: &[(String, Value)]) -> Option<Gap> {
    gap_between(position, before, entries.first().and_then(|(id, _)| id.parse().ok()))
}

fn gap_between(position: &str, before: &str, next: Option<Position>) -> Option<Gap> {
    let after = parse_position(position);
    if after == Position::START {
        // A subscription that starts later has no gap here, but the first messages were published and not handed out
        return Some(Gap { from: after, to: next, count: next.map(|next| next.sequence) });
    }
    let is_retained = before == position;
    let around = HistoryNeighbors { is_retained, before: before.parse().ok(), next, head: next, predecessor: None };
    match continuity::check_continuity(after, around) {
        Continuity::Contiguous => None,
        Continuity::Gap(gap) => Some(gap),
        Continuity::Unknown => Some(Gap { from: after, to: next, count: None }),
    }
}
