//! Every worker of a broadcast reads by itself and notes where it is, so that it goes on there when it comes back.

use std::collections::{BTreeMap, HashMap};

use super::{Subscriptions, position::parse_position, start_position};
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, WorkerId},
    time::Millis,
};
use model::{
    message::Position,
    subscription::{NewChannelStart, Subscription},
};

/// The field of a checkpoint that says since when the worker is there. No channel has such a name.
const FIRST_SEEN_FIELD: &str = " since";

/// Where a worker of a broadcast is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Everything up to there was delivered to it.
    pub positions: BTreeMap<ChannelName, Position>,
    /// When it was there first: in channels without a position it begins there. None if that is not known.
    pub first_seen_at: Option<Millis>,
    /// Messages delivered since the last time this was noted.
    pub delivered: u64,
    /// Messages that were not wanted since then.
    pub filtered: u64,
    /// These are all channels: what was noted of others is forgotten.
    pub is_complete: bool,
}

impl Subscriptions {
    /// Where a worker was when it went, if it was there since the subscription was last told where to go on.
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

    /// Notes where a worker is, in some of its channels or in all. False if nothing was noted before that still counts: then
    /// all of them are to be noted.
    ///
    /// # Errors
    /// Redis is unavailable: it may get messages again.
    pub async fn save_checkpoint(
        &self,
        subscription: &Subscription,
        instance: &WorkerId,
        checkpoint: &Checkpoint,
    ) -> StoreResult<bool> {
        let mut call = script::SAVE_CHECKPOINT.key(keys::broadcast_checkpoint(&subscription.name, instance));
        call.key(keys::subscription_workers(&subscription.name)).key(keys::subscription_counters(&subscription.name));
        call.arg(instance.as_str()).arg(subscription.generation);
        call.arg(self.settings.checkpoint_ttl.as_millis().to_string());
        call.arg(checkpoint.delivered).arg(checkpoint.filtered).arg(u8::from(checkpoint.is_complete));
        if let Some(since) = checkpoint.first_seen_at {
            call.arg(FIRST_SEEN_FIELD).arg(since);
        }
        for (channel, position) in &checkpoint.positions {
            call.arg(channel.as_str()).arg(position.to_string());
        }
        Ok(call.invoke_async(&mut self.redis().clone()).await?)
    }

    /// Where a worker that was not there before begins in a channel: where the subscription begins, but not with what was
    /// published before the worker was there, unless that is wanted.
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
            // Whatever there is: what is not kept any more is not missed
            NewChannelStart::Earliest => return self.channels.retained_channel_position_at(channel, 0).await,
            other => other,
        };
        start_position(&self.channels, channel, begin).await
    }
}
