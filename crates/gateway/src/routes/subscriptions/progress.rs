//! The progress of subscriptions, as clients see it.

use common::{name::ChannelName, time};
use futures_util::{StreamExt, TryStreamExt, stream};
use model::subscription::{DeliveryMode, Subscription};
use serde_json::{Value, json};
use store::{
    StoreResult,
    subscriptions::{BroadcastWorkerLag, ChannelProgress},
};
use tokio::sync::Semaphore;

use crate::{auth::Caller, error::ApiError, services::Services};

/// The most channels that are read concurrently for one request.
const MAX_CONCURRENT_LOOKUPS: usize = 32;
/// For all requests together: listings must not crowd out what else the connection to Redis carries.
static LOOKUPS: Semaphore = Semaphore::const_new(MAX_CONCURRENT_LOOKUPS);
/// The most channels shown for a subscription: those with the greatest lag.
const MAX_SHOWN_CHANNELS: usize = 100;
/// The most workers shown for a broadcast: those with the greatest lag.
const MAX_SHOWN_WORKERS: usize = 100;
/// The most subscriptions shown for a channel, by name.
const MAX_SHOWN_SUBSCRIPTIONS: usize = 100;

/// How many channels and workers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressDetail {
    Totals,
    Channels,
}

/// The progress of a subscription. `channels` are all channels.
pub(crate) async fn progress_json(
    services: &Services,
    subscription: &Subscription,
    channels: &[ChannelName],
    detail: ProgressDetail,
) -> Result<Value, ApiError> {
    let store = &services.subscriptions;
    let counters = store.counters(subscription).await?;
    let queue = services.jobs.queue_stats(&subscription.queue()).await?;
    let channels: Vec<&ChannelName> =
        channels.iter().filter(|channel| subscription.channels.matches(channel)).collect();
    let reached = ProgressBreakdown::load(services, subscription, &channels).await?;
    let mut shown = json!({
        "delivered": counters.delivered,
        "filtered": counters.filtered,
        "failed": counters.failed,
        "last_delivered_at": counters.last_delivered_at.map(time::format),
        "failing_since": counters.failing_since.map(time::format),
        "lag": reached.lag(),
        "in_flight": reached.in_flight(),
        "retrying": queue.available + queue.active + queue.delayed,
        "dead": queue.dead,
        "channels_total": channels.len(),
    });
    if detail == ProgressDetail::Channels {
        match reached {
            ProgressBreakdown::Shared(mut channels) => {
                channels.sort_by(|a, b| b.lag.cmp(&a.lag).then_with(|| a.channel.cmp(&b.channel)));
                channels.truncate(MAX_SHOWN_CHANNELS);
                shown["channels"] = channels.iter().map(channel_progress_json).collect();
            }
            ProgressBreakdown::Broadcast(mut workers) => {
                workers.sort_by(|a, b| b.lag.cmp(&a.lag).then_with(|| a.worker.cmp(&b.worker)));
                shown["workers_total"] = workers.len().into();
                workers.truncate(MAX_SHOWN_WORKERS);
                shown["workers"] = workers.iter().map(worker_lag_json).collect();
            }
        }
    }
    Ok(shown)
}

/// Where a subscription is in a channel. Each worker of a broadcast has its own position.
enum ProgressBreakdown {
    Shared(Vec<ChannelProgress>),
    Broadcast(Vec<BroadcastWorkerLag>),
}

impl ProgressBreakdown {
    async fn load(services: &Services, subscription: &Subscription, channels: &[&ChannelName]) -> StoreResult<Self> {
        let store = &services.subscriptions;
        if subscription.mode == DeliveryMode::Broadcast {
            return Ok(Self::Broadcast(store.broadcast_lag(subscription, channels).await?));
        }
        let channels = stream::iter(channels).map(async |channel| {
            let _permit = LOOKUPS.acquire().await;
            store.channel_progress(subscription, channel).await
        });
        Ok(Self::Shared(channels.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?))
    }

    /// Messages not delivered yet. For a broadcast: the largest number of any worker.
    fn lag(&self) -> u64 {
        match self {
            Self::Shared(channels) => channels.iter().map(|channel| channel.lag).sum(),
            Self::Broadcast(workers) => workers.iter().map(|worker| worker.lag).max().unwrap_or_default(),
        }
    }

    fn in_flight(&self) -> u64 {
        match self {
            Self::Shared(channels) => channels.iter().map(|channel| channel.in_flight).sum(),
            Self::Broadcast(_) => 0,
        }
    }
}

fn channel_progress_json(progress: &ChannelProgress) -> Value {
    let mut shown = json!({
        "channel": progress.channel,
        "position": progress.position.map(|position| position.to_string()),
        "head": progress.head.map(|position| position.to_string()),
        "lag": progress.lag,
        "in_flight": progress.in_flight,
    });
    if let Some(held_up) = &progress.blocked {
        shown["held_up"] = json!({
            "failures": held_up.failures,
            "next_attempt_at": time::format(held_up.next_attempt_at),
            "problem": held_up.last_error,
        });
    }
    shown
}

fn worker_lag_json(worker: &BroadcastWorkerLag) -> Value {
    json!({ "worker": worker.worker, "seen_at": time::format(worker.last_seen_at), "lag": worker.lag })
}

/// The first subscriptions of a channel by name, and how many there are.
pub(crate) async fn channel_subscriptions(
    caller: &Caller,
    services: &Services,
    channel: &ChannelName,
) -> StoreResult<(Vec<Value>, usize)> {
    let mut subscriptions = services.subscriptions.for_channel(channel).await?;
    subscriptions.retain(|subscription| caller.has_subscription(subscription));
    let shown = stream::iter(subscriptions.iter().take(MAX_SHOWN_SUBSCRIPTIONS)).map(async |subscription| {
        let reached = ProgressBreakdown::load(services, subscription, &[channel]).await?;
        StoreResult::Ok(json!({
            "name": subscription.name,
            "mode": subscription.mode,
            "state": subscription.state,
            "lag": reached.lag(),
            "in_flight": reached.in_flight(),
        }))
    });
    Ok((shown.buffered(MAX_CONCURRENT_LOOKUPS).try_collect().await?, subscriptions.len()))
}
