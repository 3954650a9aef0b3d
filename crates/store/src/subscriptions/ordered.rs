//! A channel in order: one worker at a time holds it, delivers its messages one by one, and moves its cursor on.

use std::time::Duration;

use redis::Value;

use super::{
    MessageDisposition, Subscriptions, channel_script_call,
    position::parse_position,
    shared::{gap_before_entries, parse_messages},
};
use crate::{StoreResult, keys, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{Position, StoredMessage, continuity::Gap},
    subscription::{DeliveryOrdering, Subscription},
};

/// Messages that are handed out in one go, to be delivered one by one.
const ORDERED_BATCH_SIZE: usize = 16;
/// About their bytes.
const MAX_ORDERED_BATCH_BYTES: usize = 1 << 20;
/// Channels that need not wait any more, in one go.
const UNBLOCK_BATCH_SIZE: usize = 1_000;
/// What went wrong is kept so far, in characters.
const MAX_ERROR_CHARS: usize = 500;

/// What `take_in_order.lua` answers.
type ClaimChannelReply = (String, String, String, String, Vec<(String, Value)>, u64, u32);

/// A worker's hold on a channel. It is a fence: whoever has an older one can move nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelFence(String);

/// What a channel in order has for a worker.
#[derive(Debug)]
pub enum ClaimedChannel {
    /// The channel has to be opened first.
    NotOpened,
    /// The channel is this worker's, with the messages that come next. There are none if none were asked for.
    Messages {
        /// Its hold on the channel.
        fence: ChannelFence,
        /// The messages, oldest first.
        messages: Vec<StoredMessage>,
        /// What is missing before them.
        gap: Option<Gap>,
        /// How often the first of them has failed.
        failures: u32,
    },
    /// There is nothing; the channel is nobody's.
    Empty,
    /// The next message failed, and is tried again after this long; the channel is nobody's.
    Blocked(Duration),
    /// Another worker has it, for so long unless it goes on.
    OwnedElsewhere(Duration),
    /// It was taken away, or moved.
    Lost,
}

impl Subscriptions {
    /// Asks for a channel, and for what comes next in it.
    ///
    /// # Errors
    /// Redis is unavailable: the channel may be this worker's all the same.
    pub async fn claim_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
    ) -> StoreResult<ClaimedChannel> {
        self.run_claim_channel(subscription, channel, worker, lease, None, ORDERED_BATCH_SIZE).await
    }

    /// Notes that everything up to a position is done with, and asks for what comes next if that is wanted.
    ///
    /// # Errors
    /// Redis is unavailable: what was delivered may come again.
    pub async fn advance_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        (held, position, done, more): (&ChannelFence, Position, MessageDisposition, bool),
    ) -> StoreResult<ClaimedChannel> {
        let most = if more { ORDERED_BATCH_SIZE } else { 0 };
        self.run_claim_channel(subscription, channel, worker, lease, Some((held, position, done)), most).await
    }

    async fn run_claim_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        done: Option<(&ChannelFence, Position, MessageDisposition)>,
        most: usize,
    ) -> StoreResult<ClaimedChannel> {
        let mut call = channel_script_call(&script::CLAIM_CHANNEL, subscription, channel);
        call.key(keys::subscription_counters(&subscription.name));
        call.arg(subscription.group()).arg(worker.as_str()).arg(lease.as_millis().to_string());
        match done {
            Some((held, position, _)) => call.arg(&held.0).arg(position.to_string()),
            None => call.arg("").arg(""),
        };
        call.arg(most).arg(MAX_ORDERED_BATCH_BYTES).arg(self.cursor_ttl_ms);
        call.arg(match done {
            Some((_, _, MessageDisposition::Delivered)) => "delivered",
            Some((_, _, MessageDisposition::Filtered)) => "filtered",
            _ => "",
        });
        let (how, token, position, before, entries, ms, failures): ClaimChannelReply =
            call.invoke_async(&mut self.redis().clone()).await?;
        Ok(match how.as_str() {
            "not_opened" => ClaimedChannel::NotOpened,
            "empty" => ClaimedChannel::Empty,
            "blocked" => ClaimedChannel::Blocked(Duration::from_millis(ms)),
            "owned_elsewhere" => ClaimedChannel::OwnedElsewhere(Duration::from_millis(ms)),
            "read" | "gap" => ClaimedChannel::Messages {
                fence: ChannelFence(token),
                gap: (how == "gap").then(|| gap_before_entries(&position, &before, &entries)).flatten(),
                messages: parse_messages(entries),
                failures,
            },
            _ => ClaimedChannel::Lost,
        })
    }

    /// Notes that the next message of a channel failed, or was not tried at all if nothing went wrong, and is tried again
    /// after so long; how often it has failed, none when the channel is not this worker's any more.
    ///
    /// # Errors
    /// Redis is unavailable: it may be tried again sooner.
    pub async fn block_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        (held, delay, problem): (&ChannelFence, Duration, Option<&str>),
    ) -> StoreResult<Option<u32>> {
        let mut call = script::BLOCK_CHANNEL.key(keys::subscription_cursor(channel, &subscription.name));
        let problem: String = problem.unwrap_or_default().chars().take(MAX_ERROR_CHARS).collect();
        call.arg(worker.as_str()).arg(&held.0).arg(delay.as_millis().to_string()).arg(problem);
        let failures: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        Ok(u32::try_from(failures).ok())
    }

    /// Lets what failed in order be tried at once in all channels: the target is another one now, or was mended.
    pub(super) async fn unblock_channels(&self, subscription: &Subscription) -> StoreResult<()> {
        if subscription.ordering != DeliveryOrdering::Channel {
            return Ok(());
        }
        let channels = self.matching_channels(subscription).await?;
        for some in channels.chunks(UNBLOCK_BATCH_SIZE) {
            let mut pipeline = redis::pipe();
            for channel in some {
                pipeline.cmd("HDEL").arg(keys::subscription_cursor(channel, &subscription.name)).arg("w").ignore();
            }
            let mut connection = self.redis().pooled_connection().await?;
            let () = pipeline.query_async(&mut connection).await?;
        }
        Ok(())
    }

    /// Where a subscription is in a channel, if it has begun there.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn cursor_position(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
    ) -> StoreResult<Option<Position>> {
        let mut command = redis::cmd("HGET");
        command.arg(keys::subscription_cursor(channel, &subscription.name)).arg("d");
        let position: Option<String> = command.query_async(&mut self.redis().clone()).await?;
        Ok(position.map(|position| parse_position(&position)))
    }
}
