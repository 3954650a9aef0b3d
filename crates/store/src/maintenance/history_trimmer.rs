//! Trims the histories of channels and destroys consumer groups without a subscription.

use std::{convert::Infallible, time::Duration};

use crate::{
    StoreError, StoreResult,
    channels::{Channels, ExpectedGroups, OrphanGroups, SubscriptionLoss},
    log_interruption,
};
use common::name::ChannelName;

/// Maximum number of calls for one channel in one round; the next round continues.
const MAX_CALLS: usize = 100;

/// Trims every channel once per interval, and when Redis is nearly full. An error must not end the rest of maintenance.
pub(super) async fn run(channels: &Channels, every: Duration) -> Infallible {
    let mut round = tokio::time::interval(every);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans = OrphanGroups::default();
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = channels.redis().memory().wait_for_pressure() => {}
        }
        match trim_all(channels, &mut orphans).await {
            Ok(()) => orphans.end_round(),
            Err(error) => log_interruption("maintenance of channels", &error),
        }
    }
}

async fn trim_all(channels: &Channels, orphans: &mut OrphanGroups) -> StoreResult<()> {
    let groups = channels.expected_groups().await?;
    for channel in channels.all_channels().await? {
        match trim_channel(channels, &channel, &groups, orphans).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%channel, %error, "maintenance of a channel failed"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Makes short calls one after the other, so that no client waits long.
async fn trim_channel(
    channels: &Channels,
    channel: &ChannelName,
    groups: &ExpectedGroups,
    orphans: &mut OrphanGroups,
) -> StoreResult<()> {
    let mut subscriptions = Vec::new();
    for _ in 0..MAX_CALLS {
        let trimmed = channels.trim_channel(channel).await?;
        if trimmed.trimmed_count > 0 {
            tracing::debug!(%channel, messages = trimmed.trimmed_count, "history trimmed");
            metrics::counter!("galley_messages_trimmed_total").increment(trimmed.trimmed_count);
        }
        trimmed.losses.iter().for_each(|overtaken| log_loss(channel, overtaken));
        subscriptions = trimmed.subscriptions;
        if !trimmed.has_more {
            break;
        }
    }
    for name in subscriptions.into_iter().filter(|name| !groups.may_exist(name, channel)) {
        if orphans.confirm_orphan(channel, &name) && channels.destroy_orphan_group(channel, &name).await? {
            tracing::warn!(%channel, subscription = name, "destroyed a consumer group without a subscription");
        }
    }
    Ok(())
}

fn log_loss(channel: &ChannelName, SubscriptionLoss { subscription, lost_count: lost }: &SubscriptionLoss) {
    let lost_or_unknown = lost.map_or_else(|| "unknown".to_owned(), |lost| lost.to_string());
    tracing::warn!(%channel, subscription, lost = lost_or_unknown, "subscription lost messages: too many unread");
    // An unknown number counts as one
    let labels = [("subscription", subscription.clone())];
    metrics::counter!("galley_subscription_overtaken_total", &labels).increment(lost.unwrap_or(1));
}
