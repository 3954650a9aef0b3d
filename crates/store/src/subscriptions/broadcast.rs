//! Positions of broadcast workers: each reads by itself and saves its positions, so that it continues there when it
//! returns.

use std::collections::{BTreeMap, HashMap};

use super::{
    Subscriptions,
    counts::MessageCounts,
    position::{parse_position, start_position},
};
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, WorkerId},
    time::Millis,
};
use model::{
    message::Position,
    subscription::{NewChannelStart, Subscription},
};

/// The field of a checkpoint with the time the worker was first seen. No channel has such a name.
const FIRST_SEEN_FIELD: &str = " since";

/// The positions of a broadcast worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Everything up to these positions was delivered to it.
    pub positions: BTreeMap<ChannelName, Position>,
    /// When it was first seen: in channels without a position it starts there. None if unknown.
    pub first_seen_at: Option<Millis>,
    /// Messages delivered since the last checkpoint.
    pub delivered: u64,
    /// Messages filtered out since then.
    pub filtered: u64,
    /// Whether these are all channels: positions in others are deleted.
    pub is_complete: bool,
    /// The process that saves it.
    pub process: String,
}

/// What was saved before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierCheckpoint {
    /// Whether there was a checkpoint; if not, all positions must be saved.
    pub exists: bool,
    /// The process that saved it; empty if there was none.
    pub process: String,
}

impl Subscriptions {
    /// A worker's saved positions, if none of them is older than the subscription's last seek.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn load_checkpoint(
        &self,
        subscription: &Subscription,
        instance: &WorkerId,
    ) -> StoreResult<Option<Checkpoint>> {
        let fields: HashMap<String, String> = redis::cmd("HGETALL")
            .arg(keys::broadcast_checkpoint(&subscription.name, instance))
            .query_async(&mut self.redis().clone())
            .await?;
        if fields.get("") != Some(&subscription.generation.to_string()) {
            return Ok(None);
        }
        let positions =
            fields.iter().filter_map(|(channel, position)| Some((channel.parse().ok()?, parse_position(position))));
        let there_since = fields.get(FIRST_SEEN_FIELD).and_then(|since| since.parse().ok());
        Ok(Some(Checkpoint { positions: positions.collect(), first_seen_at: there_since, ..Checkpoint::default() }))
    }

    /// Saves a worker's positions, in some of its channels or in all. Returns what was there before.
    ///
    /// # Errors
    /// Redis is unavailable: it may get messages again.
    pub async fn save_checkpoint(
        &self,
        subscription: &Subscription,
        instance: &WorkerId,
        checkpoint: &Checkpoint,
    ) -> StoreResult<EarlierCheckpoint> {
        let ttl_ms = self.settings.checkpoint_ttl.as_millis().to_string();
        let mut call = script::SAVE_CHECKPOINT.key(keys::broadcast_checkpoint(&subscription.name, instance));
        call.arg(subscription.generation).arg(&ttl_ms);
        call.arg(u8::from(checkpoint.is_complete)).arg(&checkpoint.process);
        if let Some(since) = checkpoint.first_seen_at {
            call.arg(FIRST_SEEN_FIELD).arg(since);
        }
        for (channel, position) in &checkpoint.positions {
            call.arg(channel.as_str()).arg(position.to_string());
        }
        let (exists, process): (bool, String) = call.invoke_async(&mut self.redis().clone()).await?;
        let Checkpoint { delivered, filtered, .. } = *checkpoint;
        self.count_messages(&subscription.name, MessageCounts { delivered, filtered });
        // For those who look at the lag: a worker that dies before this is listed when it is back
        let mut call = script::LIST_BROADCAST_WORKER.key(keys::subscription_workers(&subscription.name));
        let listed = call.arg(instance.as_str()).arg(&ttl_ms).invoke_async::<i64>(&mut self.redis().clone()).await;
        if let Err(error) = listed {
            tracing::debug!(%error, "a worker of a broadcast is listed with its next checkpoint");
        }
        Ok(EarlierCheckpoint { exists, process })
    }

    /// Where a new worker starts in a channel: where the subscription starts, but after messages published before the
    /// worker was first seen, unless the subscription wants those.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn broadcast_start_position(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        there_since: Millis,
    ) -> StoreResult<Position> {
        let begin = match subscription.begin {
            NewChannelStart::Now(at) => NewChannelStart::Since(at.max(there_since)),
            // The oldest stored message: trimmed ones are no gap
            NewChannelStart::Earliest => return self.channels.retained_channel_position_at(channel, 0).await,
            other => other,
        };
        start_position(&self.channels, channel, begin).await
    }
}
