//! Finds consumer groups without a subscription. A process may die after creating groups and before storing the
//! subscription, or after removing it and before leaving its channels. Such an orphan would retain the history for
//! ever.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::Channels;
use crate::{StoreResult, keys, script};
use common::{
    name::{ChannelName, SubscriptionName},
    time::Millis,
};
use model::subscription::{ChannelSelection, DeliveryMode, NewChannelStart, group_of};

/// Approximate number of subscriptions read in one call.
const SCAN_COUNT: usize = 1000;
/// Maximum number of orphans remembered from one round to the next.
const MAX_ORPHANS: usize = 10_000;

/// A stored subscription: its name and its JSON.
type SubscriptionField = (Vec<u8>, Vec<u8>);

/// The part of a subscription that says on which channels it has groups.
#[derive(Deserialize)]
pub(crate) struct SubscriptionOutline {
    channels: ChannelSelection,
    mode: DeliveryMode,
    pub(crate) begin: NewChannelStart,
    pub(crate) created_at: Millis,
}

impl SubscriptionOutline {
    /// None if it cannot be parsed.
    pub(crate) fn parse(raw: &[u8]) -> Option<Self> {
        serde_json::from_slice(raw).ok()
    }

    /// Whether it has a group on a channel. The workers of a broadcast need none.
    pub(crate) fn has_group(&self, channel: &ChannelName) -> bool {
        self.mode == DeliveryMode::Shared && self.channels.matches(channel)
    }
}

/// The groups that should exist.
pub(crate) struct ExpectedGroups {
    /// None for a subscription that cannot be parsed.
    outlines: HashMap<String, Option<SubscriptionOutline>>,
    /// The list never existed or Redis lost it: then workers restore it.
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

/// Groups seen without a subscription. A new subscription creates its groups first, so a group counts as an orphan
/// only when it is seen twice.
#[derive(Default)]
pub(crate) struct OrphanGroups {
    last_round: HashSet<(ChannelName, String)>,
    this_round: HashSet<(ChannelName, String)>,
}

impl OrphanGroups {
    /// Records such a group; true if the last round saw it, too.
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

    /// Ends a round over all channels.
    pub(crate) fn end_round(&mut self) {
        self.last_round = std::mem::take(&mut self.this_round);
    }
}

impl Channels {
    /// Reads which groups should exist.
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

    /// Calls `each` for every stored field, some of them twice, including the unnamed field that marks an existing
    /// list. Subscriptions that are created or removed meanwhile may be missing.
    pub(crate) async fn scan_subscriptions(&self, mut each: impl FnMut(String, &[u8])) -> StoreResult<()> {
        let mut connection = self.redis.pooled_connection().await?;
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(keys::SUBSCRIPTIONS).arg(cursor).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<SubscriptionField>) = command.query_async(&mut connection).await?;
            for (name, raw) in found {
                // Not UTF-8: not a subscription's name
                let Ok(name) = String::from_utf8(name) else { continue };
                each(name, &raw);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Destroys a group without a subscription, with its cursor; false if the subscription exists or the group is not
    /// Galley's.
    pub(crate) async fn destroy_orphan_group(&self, channel: &ChannelName, name: &str) -> StoreResult<bool> {
        let Ok(name) = name.parse::<SubscriptionName>() else { return Ok(false) };
        let left = self.leave_unless_subscribed(channel, &[name]).await?;
        Ok(left > 0)
    }

    /// Leaves a channel for those subscriptions that do not exist or have no group on it; returns how many.
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
                self.leave_channel(channel, name, None).await?;
                left += 1;
            }
        }
        Ok(left)
    }

    /// Removes a subscription's group and cursor from a channel; with `created_at` not those of another subscription
    /// of that name.
    pub(crate) async fn leave_channel(
        &self,
        channel: &ChannelName,
        name: &SubscriptionName,
        created_at: Option<Millis>,
    ) -> StoreResult<()> {
        let mut call = script::LEAVE_CHANNEL.key(keys::channel_history(channel));
        call.key(keys::subscription_cursor(channel, name));
        call.arg(group_of(name)).arg(created_at.map(|at| at.to_string()).unwrap_or_default());
        let _: i64 = call.invoke_async(&mut self.redis.clone()).await?;
        Ok(())
    }
}
