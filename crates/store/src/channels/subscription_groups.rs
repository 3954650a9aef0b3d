//! Consumer groups that no subscription has. A process may end between making groups and storing the subscription, or between
//! removing it and leaving its channels. Nobody would ever move such a group, and it would hold back the history for ever.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::Channels;
use crate::{StoreResult, keys};
use common::name::{ChannelName, SubscriptionName};
use model::subscription::{ChannelSelection, DeliveryMode, NewChannelStart, group_of};

/// Subscriptions that are read in one call, about: there may be very many.
const SCAN_COUNT: usize = 1000;
/// Groups without a subscription that are remembered from one round to the next.
const MAX_ORPHANS: usize = 10_000;

/// A subscription as it is stored: its name, and what it is.
type SubscriptionField = (Vec<u8>, Vec<u8>);

/// What tells the channels on which a subscription has groups. The rest of it is not read.
#[derive(Deserialize)]
pub(crate) struct SubscriptionOutline {
    channels: ChannelSelection,
    mode: DeliveryMode,
    pub(crate) begin: NewChannelStart,
}

impl SubscriptionOutline {
    /// None if it cannot be read.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        serde_json::from_slice(raw).ok()
    }

    /// The workers of a broadcast read by themselves.
    pub(crate) fn has_group(&self, channel: &ChannelName) -> bool {
        self.mode == DeliveryMode::Shared && self.channels.matches(channel)
    }
}

/// Which groups there should be.
pub(crate) struct ExpectedGroups {
    /// None for a subscription that cannot be read.
    outlines: HashMap<String, Option<SubscriptionOutline>>,
    /// The list was never begun, or Redis has lost it: then workers put it back.
    is_list_missing: bool,
}

impl ExpectedGroups {
    /// Whether a subscription may have a group on a channel.
    #[must_use]
    pub(crate) fn may_exist(&self, name: &str, channel: &ChannelName) -> bool {
        self.is_list_missing
            || self
                .outlines
                .get(name)
                .is_some_and(|outline| outline.as_ref().is_none_or(|outline| outline.has_group(channel)))
    }
}

/// Groups that were seen without a subscription. A subscription that is being made has its groups first, so one that is seen
/// once is not without one yet.
#[derive(Default)]
pub(crate) struct OrphanGroups {
    last_round: HashSet<(ChannelName, String)>,
    this_round: HashSet<(ChannelName, String)>,
}

impl OrphanGroups {
    /// Notes such a group; whether it was one in the last round, too.
    pub(crate) fn confirm_orphan(&mut self, channel: &ChannelName, name: &str) -> bool {
        let group = (channel.clone(), name.to_owned());
        if self.last_round.contains(&group) {
            return true;
        }
        if self.this_round.len() < MAX_ORPHANS {
            self.this_round.insert(group);
        }
        false
    }

    /// Every channel was looked at.
    pub(crate) fn end_round(&mut self) {
        self.last_round = std::mem::take(&mut self.this_round);
    }
}

impl Channels {
    /// Which groups there should be.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub(crate) async fn expected_groups(&self) -> StoreResult<ExpectedGroups> {
        let mut groups = ExpectedGroups { outlines: HashMap::new(), is_list_missing: true };
        self.scan_subscriptions(|name, raw| {
            groups.is_list_missing = false;
            if !name.is_empty() {
                groups.outlines.insert(name, SubscriptionOutline::parse(raw));
            }
        })
        .await?;
        Ok(groups)
    }

    /// Goes through the subscriptions as they are stored, some of them twice, and the field of no name that says that the list was
    /// begun. Those that are made or removed meanwhile are among them or not.
    pub(crate) async fn scan_subscriptions(&self, mut each: impl FnMut(String, &[u8])) -> StoreResult<()> {
        let mut connection = self.redis.pooled_connection().await?;
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(keys::SUBSCRIPTIONS).arg(cursor).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<SubscriptionField>) = command.query_async(&mut connection).await?;
            for (name, raw) in found {
                // What is no text names no subscription
                let Ok(name) = String::from_utf8(name) else { continue };
                each(name, &raw);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Destroys a group that no subscription has, with its cursor; false if there is one, or if the group is not Galley's.
    pub(crate) async fn destroy_orphan_group(&self, channel: &ChannelName, name: &str) -> StoreResult<bool> {
        let Ok(name) = name.parse::<SubscriptionName>() else { return Ok(false) };
        let left = self.leave_unless_subscribed(channel, &[name]).await?;
        Ok(left > 0)
    }

    /// Leaves a channel for those subscriptions that have no group on it, or are not there; how many they are.
    pub(crate) async fn leave_unless_subscribed(
        &self,
        channel: &ChannelName,
        names: &[SubscriptionName],
    ) -> StoreResult<usize> {
        let mut command = redis::cmd("HMGET");
        command.arg(keys::SUBSCRIPTIONS);
        for name in names {
            command.arg(name.as_str());
        }
        let stored: Vec<Option<Vec<u8>>> = command.query_async(&mut self.redis.clone()).await?;
        let mut left = 0;
        for (name, raw) in names.iter().zip(stored) {
            let is_wanted = raw
                .is_some_and(|raw| SubscriptionOutline::parse(&raw).is_none_or(|outline| outline.has_group(channel)));
            if !is_wanted {
                self.leave_channel(channel, name).await?;
                left += 1;
            }
        }
        Ok(left)
    }

    /// Removes the group and the cursor of a subscription from a channel.
    pub(crate) async fn leave_channel(&self, channel: &ChannelName, name: &SubscriptionName) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("XGROUP").arg("DESTROY").arg(keys::channel_history(channel)).arg(group_of(name));
        pipeline.cmd("DEL").arg(keys::subscription_cursor(channel, name));
        // A history that is gone has no groups
        pipeline.ignore_errors();
        let mut connection = self.redis.pooled_connection().await?;
        let _: redis::Value = pipeline.query_async(&mut connection).await?;
        Ok(())
    }
}
