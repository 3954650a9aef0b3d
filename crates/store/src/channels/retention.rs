//! What is kept of a channel: by count, age and bytes, and what subscriptions hold back beyond that.
//!
//! Publishing trims by count already, and by the cap once a channel has subscriptions. The rest is done here, one channel and a
//! bounded amount at a time. Nothing is taken from a subscription in silence.

use std::time::Duration;

use super::Channels;
use crate::{StoreError, StoreResult, keys, script};
use common::name::ChannelName;

/// Messages trimmed in one call.
const TRIM_BATCH_SIZE: usize = 10_000;
/// Their bytes, about: giving back long messages costs Redis more.
const TRIM_BATCH_BYTES: usize = 64 << 20;

/// What `trim_channel.lua` answers.
type TrimChannelReply = (u64, bool, bool, Vec<String>, Vec<String>);

/// What became of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrimmedChannel {
    /// Messages that went.
    pub trimmed_count: u64,
    /// There is more to trim.
    pub has_more: bool,
    /// Subscriptions that lost messages since the last call.
    pub losses: Vec<SubscriptionLoss>,
    /// The subscriptions that have groups on it.
    pub subscriptions: Vec<String>,
}

/// A subscription that lost messages, because it held back more than the cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionLoss {
    /// Its name.
    pub subscription: String,
    /// How many messages, if that can be known.
    pub lost_count: Option<u64>,
}

impl Channels {
    /// Trims the history of a channel to what is kept of it, a bounded amount in one call.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn trim_channel(&self, channel: &ChannelName) -> StoreResult<TrimmedChannel> {
        let (kept, cap) = (self.settings.retention.for_channel(channel), self.settings.retention.backlog_cap());
        let millis = |duration: Duration| duration.as_millis().to_string();
        let mut call = script::TRIM_CHANNEL.prepare_invoke();
        call.key(keys::channel_history(channel)).key(keys::channel_state(channel));
        call.arg(kept.messages).arg(kept.age.map_or_else(|| "0".to_owned(), millis)).arg(kept.bytes.unwrap_or(0));
        call.arg(cap.messages)
            .arg(cap.bytes)
            .arg(TRIM_BATCH_SIZE)
            .arg(TRIM_BATCH_BYTES)
            .arg(millis(self.settings.history_ttl));
        let answer: Option<TrimChannelReply> = call.invoke_async(&mut self.redis.clone()).await?;
        let Some((messages, is_more, is_due, told, subscriptions)) = answer else {
            return Ok(TrimmedChannel::default());
        };
        if is_due && !self.register_channel(channel).await? {
            tracing::warn!(%channel, "not on the list of channels, which is full, although a subscription needs it");
        }
        let overtaken = told.chunks_exact(2).map(|pair| {
            let lost: i64 = pair[1].parse().map_err(|_| StoreError::damaged(&pair[1]))?;
            Ok(SubscriptionLoss { subscription: pair[0].clone(), lost_count: u64::try_from(lost).ok() })
        });
        Ok(TrimmedChannel {
            trimmed_count: messages,
            has_more: is_more,
            losses: overtaken.collect::<StoreResult<_>>()?,
            subscriptions,
        })
    }
}
