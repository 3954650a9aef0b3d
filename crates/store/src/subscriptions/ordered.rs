//! Ordered delivery: one worker at a time owns a channel, delivers its messages one by one, and advances its cursor.

use std::time::Duration;

use redis::Value;

use super::{
    MessageDisposition, Subscriptions, channel_script_call, position::parse_position, shared::gap_before_entries,
};
use crate::{StoreResult, keys, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{Position, StoredMessage, continuity::Gap},
    subscription::{DeliveryOrdering, Subscription},
};

/// Maximum number of messages claimed at once, to be delivered one by one.
const ORDERED_BATCH_SIZE: usize = 16;
/// Approximate maximum of their bytes.
const MAX_ORDERED_BATCH_BYTES: usize = 1 << 20;
/// Number of channels unblocked at once.
const UNBLOCK_BATCH_SIZE: usize = 1_000;
/// Maximum length of a stored error, in characters.
const MAX_ERROR_CHARS: usize = 500;

/// The reply of `claim_channel.lua`.
type ClaimChannelReply = (String, String, String, String, Vec<(String, Value)>, u64, u32, u32);

/// Proof that a worker owns a channel: the owner of an older one can change nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelFence(String);

/// The result of claiming a channel.
#[derive(Debug)]
pub enum ClaimedChannel {
    /// The channel must be opened first.
    NotOpened,
    /// The channel is this worker's, with its next messages. There are none if none were requested.
    Messages {
        /// Proof of ownership.
        fence: ChannelFence,
        /// The messages, oldest first.
        messages: Vec<StoredMessage>,
        /// What is missing before them.
        gap: Option<Gap>,
        /// Failed attempts of the first message.
        failures: u32,
        /// Workers that vanished with the first message.
        crashes: u32,
    },
    /// There are no messages; nobody owns the channel.
    Empty,
    /// The next message failed and is due after this delay; nobody owns the channel.
    Blocked(Duration),
    /// Another worker owns it, for this long unless it renews.
    OwnedElsewhere(Duration),
    /// The ownership was lost, or the position was moved.
    Lost,
}

impl Subscriptions {
    /// Claims a channel and its next messages.
    ///
    /// # Errors
    /// Redis is unavailable: the channel may be this worker's nevertheless.
    pub async fn claim_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
    ) -> StoreResult<ClaimedChannel> {
        self.run_claim_channel(subscription, channel, worker, lease, None, ORDERED_BATCH_SIZE).await
    }

    /// Records that everything up to a position was processed, and claims the next messages if requested.
    ///
    /// # Errors
    /// Redis is unavailable: delivered messages may come again.
    pub async fn advance_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        (held, position, done, more): (&ChannelFence, Position, MessageDisposition, bool),
    ) -> StoreResult<ClaimedChannel> {
        let max = if more { ORDERED_BATCH_SIZE } else { 0 };
        self.run_claim_channel(subscription, channel, worker, lease, Some((held, position, done)), max).await
    }

    async fn run_claim_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        done: Option<(&ChannelFence, Position, MessageDisposition)>,
        max: usize,
    ) -> StoreResult<ClaimedChannel> {
        let mut call = channel_script_call(&script::CLAIM_CHANNEL, subscription, channel);
        call.key(keys::channel_state(channel));
        call.arg(subscription.group()).arg(worker.as_str()).arg(lease.as_millis().to_string());
        match done {
            Some((held, position, _)) => call.arg(&held.0).arg(position.to_string()),
            None => call.arg("").arg(""),
        };
        call.arg(max).arg(MAX_ORDERED_BATCH_BYTES).arg(self.cursor_ttl_ms);
        call.arg(subscription.created_at);
        let (how, token, position, before, entries, ms, failures, crashes): ClaimChannelReply =
            call.invoke_async(&mut self.redis().clone()).await?;
        if let Some((_, _, done)) = done
            && !["not_opened", "lost"].contains(&how.as_str())
        {
            self.count_messages(&subscription.name, done.counts());
        }
        Ok(match how.as_str() {
            "not_opened" => ClaimedChannel::NotOpened,
            "empty" => ClaimedChannel::Empty,
            "blocked" => ClaimedChannel::Blocked(Duration::from_millis(ms)),
            "owned_elsewhere" => ClaimedChannel::OwnedElsewhere(Duration::from_millis(ms)),
            "read" | "gap" => ClaimedChannel::Messages {
                fence: ChannelFence(token),
                gap: (how == "gap").then(|| gap_before_entries(&position, &before, &entries)).flatten(),
                messages: self.parse_messages(channel, entries),
                failures,
                crashes,
            },
            _ => ClaimedChannel::Lost,
        })
    }

    /// Records that the next message of a channel failed, or was not tried if there is no error, and is due after a
    /// delay. Returns the number of failed attempts, or none if this worker no longer owns the channel.
    ///
    /// # Errors
    /// Redis is unavailable: it may be tried sooner.
    pub async fn block_channel(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        (held, delay, problem): (&ChannelFence, Duration, Option<&str>),
    ) -> StoreResult<Option<u32>> {
        let mut call = script::BLOCK_CHANNEL.key(keys::subscription_cursor(channel, &subscription.name));
        let mut problem: String = problem.unwrap_or_default().chars().take(MAX_ERROR_CHARS).collect();
        if !problem.is_empty() {
            let place = ["problem", subscription.name.as_str(), channel.as_str()];
            problem = self.redis().sealer().seal_owned(&place, problem);
        }
        call.arg(worker.as_str()).arg(&held.0).arg(delay.as_millis().to_string()).arg(problem);
        let failures: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        Ok(u32::try_from(failures).ok())
    }

    /// Makes failed messages due in all channels: the target is new or was fixed.
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

    /// A subscription's position in a channel, if it has one.
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
