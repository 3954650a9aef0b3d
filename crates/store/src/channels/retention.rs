//! Trims a channel's history by count, age and bytes, but retains what its subscriptions have not read yet, up to the
//! cap.
//!
//! Publishing trims by count, and by the cap once a channel has subscriptions. The rest happens here, one channel and
//! a bounded amount at a time. A subscription that loses messages is always reported.

use std::time::Duration;

use super::Channels;
use crate::{StoreError, StoreResult, connection::memory::backlog_budget, keys, script};
use common::{name::ChannelName, time::Millis};

/// Maximum number of messages trimmed in one call.
const TRIM_BATCH_SIZE: usize = 10_000;
/// Approximate maximum bytes trimmed in one call: freeing large messages costs Redis more.
const TRIM_BATCH_BYTES: usize = 64 << 20;

/// A history that takes less is not trimmed by force when Redis is nearly full: others take the room.
const PRESSURE_MIN_BYTES: u64 = 256 << 10;

/// The reply of `trim_channel.lua`.
type TrimChannelReply = (u64, bool, bool, Vec<String>, Vec<(String, u64, u64, Option<Millis>)>);

/// The result of trimming a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrimmedChannel {
    /// Number of trimmed messages.
    pub trimmed_count: u64,
    /// Whether there is more to trim.
    pub has_more: bool,
    /// Subscriptions that lost messages since the last call.
    pub losses: Vec<SubscriptionLoss>,
    /// Subscriptions with a consumer group on the channel, and what they have before them.
    pub subscriptions: Vec<(String, Backlog)>,
}

/// What a subscription has before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages that were not handed out.
    pub lag: u64,
    /// Messages that were handed out and not acknowledged.
    pub in_flight: u64,
    /// When the oldest of those that were not handed out was published.
    pub oldest_at: Option<Millis>,
}

impl Backlog {
    /// Adds that of another channel.
    pub(crate) fn add(&mut self, other: Self) {
        self.lag += other.lag;
        self.in_flight += other.in_flight;
        self.oldest_at = self.oldest_at.into_iter().chain(other.oldest_at).min();
    }
}

/// A subscription that lost messages, because it had more unread ones than the cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionLoss {
    /// Its name.
    pub subscription: String,
    /// Number of lost messages, if known.
    pub lost_count: Option<u64>,
}

impl Channels {
    /// Trims the history of a channel, a bounded amount in one call.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn trim_channel(&self, channel: &ChannelName) -> StoreResult<TrimmedChannel> {
        let (kept, cap) = (self.settings.retention.for_channel(channel), self.settings.retention.backlog_cap());
        let millis = |duration: Duration| duration.as_millis().to_string();
        let mut call = script::TRIM_CHANNEL.prepare_invoke();
        call.key(keys::channel_history(channel)).key(keys::channel_state(channel));
        call.arg(kept.messages).arg(kept.age.map_or_else(|| "0".to_owned(), millis)).arg(kept.bytes.unwrap_or(0));
        let memory = self.redis.memory();
        call.arg(cap.messages)
            .arg(backlog_budget(cap.bytes, memory.used_and_max().1))
            .arg(TRIM_BATCH_SIZE)
            .arg(TRIM_BATCH_BYTES)
            .arg(millis(self.settings.history_ttl))
            .arg(if memory.must_trim_histories() { PRESSURE_MIN_BYTES } else { 0 });
        let answer: Option<TrimChannelReply> = call.invoke_async(&mut self.redis.clone()).await?;
        let Some((messages, is_more, is_due, told, subscriptions)) = answer else {
            return Ok(TrimmedChannel::default());
        };
        if is_due && !self.register_channel(channel).await? {
            tracing::warn!(%channel, "list of channels is full: channel not registered although subscribed");
        }
        let overtaken = told.chunks_exact(2).map(|pair| {
            let lost: i64 = pair[1].parse().map_err(|_| StoreError::damaged(&pair[1]))?;
            Ok(SubscriptionLoss { subscription: pair[0].clone(), lost_count: u64::try_from(lost).ok() })
        });
        let subscriptions = subscriptions
            .into_iter()
            .map(|(name, lag, in_flight, oldest_at)| (name, Backlog { lag, in_flight, oldest_at }));
        Ok(TrimmedChannel {
            trimmed_count: messages,
            has_more: is_more,
            losses: overtaken.collect::<StoreResult<_>>()?,
            subscriptions: subscriptions.collect(),
        })
    }
}
