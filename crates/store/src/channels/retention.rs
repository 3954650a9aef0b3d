//! What is kept of a channel: by count, age and bytes, and what subscriptions hold back beyond that.
//!
//! Publishing trims by count already, and by the cap once a channel has subscriptions. The rest is done here, one channel and a
//! bounded amount at a time. Nothing is taken from a subscription in silence.

use std::time::Duration;

use crate::{Redis, StoreError, StoreResult, keys, script};
use common::{name::ChannelName, settings::ChannelSettings};

/// Messages trimmed in one call.
const AT_ONCE: usize = 10_000;
/// Their bytes, about: giving back long messages costs Redis more.
const AT_ONCE_BYTES: usize = 64 << 20;

/// What `trim_channel.lua` answers.
type Answer = (u64, bool, bool, Vec<String>, Vec<String>);

/// What became of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Messages that went.
    pub messages: u64,
    /// There is more to trim.
    pub is_more: bool,
    /// Subscriptions that lost messages since the last call.
    pub overtaken: Vec<Overtaken>,
    /// The subscriptions that have groups on it.
    pub subscriptions: Vec<String>,
}

/// A subscription that lost messages, because it held back more than the cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overtaken {
    /// Its name.
    pub subscription: String,
    /// How many messages, if that can be known.
    pub lost: Option<u64>,
}

impl Redis {
    /// Trims the history of a channel to what is kept of it, a bounded amount in one call.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn trim_channel(&self, settings: &ChannelSettings, channel: &ChannelName) -> StoreResult<Trimmed> {
        let (kept, cap) = (settings.retention.of(channel), settings.retention.cap());
        let millis = |duration: Duration| duration.as_millis().to_string();
        let mut call = script::TRIM_CHANNEL.prepare_invoke();
        call.key(keys::history(channel)).key(keys::channel_state(channel));
        call.arg(kept.messages).arg(kept.age.map_or_else(|| "0".to_owned(), millis)).arg(kept.bytes.unwrap_or(0));
        call.arg(cap.messages).arg(cap.bytes).arg(AT_ONCE).arg(AT_ONCE_BYTES).arg(millis(settings.history_ttl));
        let answer: Option<Answer> = call.invoke_async(&mut self.clone()).await?;
        let Some((messages, is_more, is_due, told, subscriptions)) = answer else { return Ok(Trimmed::default()) };
        if is_due && !self.register(settings, channel).await? {
            tracing::warn!(%channel, "not on the list of channels, which is full, although a subscription needs it");
        }
        let overtaken = told.chunks_exact(2).map(|pair| {
            let lost: i64 = pair[1].parse().map_err(|_| StoreError::damaged(&pair[1]))?;
            Ok(Overtaken { subscription: pair[0].clone(), lost: u64::try_from(lost).ok() })
        });
        Ok(Trimmed { messages, is_more, overtaken: overtaken.collect::<StoreResult<_>>()?, subscriptions })
    }
}
