//! Trims the histories of channels and destroys consumer groups without a subscription.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use super::metrics_collector::LeaderFindings;
use crate::{
    StoreError, StoreResult,
    channels::{Backlog, Channels, ExpectedGroups, OrphanGroups, SubscriptionLoss},
    log_interruption,
};
use common::name::ChannelName;

/// Maximum number of calls for one channel in one round; the next round continues.
const MAX_CALLS: usize = 100;

/// Trims every channel once per interval, and when Redis is nearly full. An error must not end the rest of maintenance.
pub(super) async fn run(channels: &Channels, findings: &LeaderFindings, every: Duration) -> Infallible {
    let mut round = tokio::time::interval(every);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans = OrphanGroups::default();
    loop {
        tokio::select! {
            _ = round.tick() => {}
            () = channels.redis().memory().wait_for_pressure() => {}
        }
        match trim_all(channels, findings, &mut orphans).await {
            Ok(()) => orphans.end_round(),
            Err(error) => log_interruption("maintenance of channels", &error),
        }
    }
}

async fn trim_all(channels: &Channels, findings: &LeaderFindings, orphans: &mut OrphanGroups) -> StoreResult<()> {
    let mut backlogs = HashMap::<String, Backlog>::new();
    let groups = channels.expected_groups().await?;
    for channel in channels.all_channels().await?.iter() {
        match trim_channel(channels, channel, &groups, orphans).await {
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => tracing::error!(%channel, %error, "maintenance of a channel failed"),
            Ok(found) => {
                for (subscription, backlog) in found {
                    backlogs.entry(subscription).or_default().add(backlog);
                }
            }
        }
    }
    findings.set_backlogs(backlogs);
    Ok(())
}

/// Makes short calls one after the other, so that no client waits long. Returns what subscriptions have before them.
async fn trim_channel(
    channels: &Channels,
    channel: &ChannelName,
    groups: &ExpectedGroups,
    orphans: &mut OrphanGroups,
) -> StoreResult<Vec<(String, Backlog)>> {
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
    for (name, _) in subscriptions.iter().filter(|(name, _)| !groups.may_exist(name, channel)) {
        if orphans.confirm_orphan(channel, name) && channels.destroy_orphan_group(channel, name).await? {
            tracing::warn!(%channel, subscription = name, "destroyed a consumer group without a subscription");
        }
    }
    Ok(subscriptions)
}

fn log_loss(channel: &ChannelName, SubscriptionLoss { subscription, lost_count: lost }: &SubscriptionLoss) {
    let lost_or_unknown = lost.map_or_else(|| "unknown".to_owned(), |lost| lost.to_string());
    tracing::warn!(%channel, subscription, lost = lost_or_unknown, "subscription lost messages: too many unread");
    // An unknown number counts as one
    let labels = [("subscription", subscription.clone())];
    metrics::counter!("galley_subscription_overtaken_total", &labels).increment(lost.unwrap_or(1));
}
