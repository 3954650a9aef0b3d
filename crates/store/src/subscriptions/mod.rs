//! Durable subscriptions: which there are, and where each of them is in its channels.
//!
//! A shared subscription reads through a consumer group on the history of each channel, so that each message is handed to one
//! worker and comes to another one when that one vanishes. Beside the group there is a cursor: it shows what is missing before
//! a message, and outlives a group that was lost. In order, one worker at a time holds the cursor. The workers of a
//! broadcast read by themselves, and each notes where it is.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | shows, changes and removes subscriptions |
//! | `put` | makes them, or replaces what was asked for |
//! | `position` | opens channels for one, closes them, goes somewhere else |
//! | `new_channel_groups` | channels that are new: their subscriptions have them from the first message on |
//! | `groups` | which groups nobody has any more |
//! | `shared` | hands messages out, takes them over, notes that they are done with |
//! | `ordered` | lets one worker at a time deliver a channel |
//! | `subscription_workers` | which workers there are, and who delivers which channel in order |
//! | `broadcast` | notes where each worker is |
//! | `progress` | shows how far it is and how it does |

mod broadcast;
mod ordered;
mod position;
mod progress;
mod put;
mod shared;
mod subscription_workers;

use std::{collections::HashMap, sync::Arc};

use redis::{ScriptInvocation, Value};

use crate::{
    Redis, StoreError, StoreResult,
    connection::notification::Notification,
    events::JobEvent,
    jobs::{Jobs, PurgeRequest},
    keys, script,
};
use crate::{
    Store,
    channels::{Channels, cursor_ttl_ms},
};
use common::{
    json::ObjectWriter,
    name::{ChannelName, SubscriptionName},
    settings::SubscriptionSettings,
    text::printable,
};
use model::{
    job,
    message::Position,
    subscription::{NewChannelStart, Subscription, SubscriptionState},
};

pub use broadcast::Checkpoint;
pub use ordered::{ChannelFence, ClaimedChannel};
pub use position::OpenedChannel;
pub use progress::{BlockedChannel, BroadcastWorkerLag, ChannelProgress, SubscriptionCounters};
pub use put::{PutSubscriptionError, PutSubscriptionResult};
pub use shared::{ChannelMessages, MAX_BATCH_BYTES, MessageDisposition, ReclaimFilter, ReclaimedMessages};
pub use subscription_workers::SubscriptionWorkers;

/// How often a change is tried while others change the same subscription.
const MAX_SAVE_ATTEMPTS: usize = 16;
/// Jobs that are cancelled in one go when a subscription is removed.
const PURGE_BATCH_SIZE: usize = 200;

/// The subscriptions in the Redis of a job store. Clone it freely.
#[derive(Clone)]
pub struct Subscriptions {
    pub(super) jobs: Jobs,
    pub(super) channels: Channels,
    settings: Arc<SubscriptionSettings>,
    /// TTL of a cursor: it outlives the history that it is about.
    cursor_ttl_ms: u64,
}

/// The subscriptions there are.
pub struct SubscriptionList {
    /// Each as it is stored, too: whoever compares knows whether it has changed.
    pub subscriptions: Vec<(Subscription, String)>,
    /// There never were any, or Redis has lost them.
    pub is_missing: bool,
}

impl Subscriptions {
    /// The subscriptions in the store of these jobs.
    #[must_use]
    pub fn new(jobs: &Jobs) -> Self {
        let Store { redis, settings, .. } = jobs.store();
        Self {
            jobs: jobs.clone(),
            channels: Channels::new(redis, &settings.channels),
            settings: Arc::new(settings.subscriptions.clone()),
            cursor_ttl_ms: cursor_ttl_ms(&settings.channels),
        }
    }

    /// The channels that they follow.
    #[must_use]
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    pub(crate) fn redis(&self) -> &Redis {
        &self.channels.redis
    }

    /// The jobs that messages become.
    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// What applies to all of them.
    #[must_use]
    pub fn settings(&self) -> &SubscriptionSettings {
        &self.settings
    }

    /// A subscription.
    ///
    /// # Errors
    /// Redis is unavailable or the subscription is damaged.
    pub async fn get(&self, name: &SubscriptionName) -> StoreResult<Option<Subscription>> {
        self.read_raw(name)
            .await?
            .map(|raw| parse_subscription(&raw).ok_or_else(|| damaged_subscription(name)))
            .transpose()
    }

    /// All subscriptions, by name. What cannot be read is left out and logged.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list(&self) -> StoreResult<SubscriptionList> {
        let mut connection = self.redis().pooled_connection().await?;
        let all: HashMap<Vec<u8>, Vec<u8>> =
            redis::cmd("HGETALL").arg(keys::SUBSCRIPTIONS).query_async(&mut connection).await?;
        let mut known = SubscriptionList { is_missing: all.is_empty(), subscriptions: Vec::with_capacity(all.len()) };
        for (name, raw) in all.into_iter().filter(|(name, _)| !name.is_empty()) {
            let found = String::from_utf8(raw).ok().and_then(|raw| Some((parse_subscription(&raw)?, raw)));
            // One under another's name would be served twice
            let found = found.filter(|(subscription, _)| subscription.name.as_str().as_bytes() == name);
            if found.is_none() {
                tracing::warn!(name = printable(&name), "a subscription that cannot be read is left alone");
            }
            known.subscriptions.extend(found);
        }
        known.subscriptions.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(known)
    }

    /// Puts subscriptions back, as they were stored, if Redis has lost all of them; true if it had.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn restore(&self, lost: &[(Subscription, String)]) -> StoreResult<bool> {
        if lost.is_empty() {
            return Ok(false);
        }
        let mut call = script::RESTORE_SUBSCRIPTIONS.key(keys::SUBSCRIPTIONS);
        call.arg(keys::NOTIFICATIONS).arg(Notification::SubscriptionsChanged.encode());
        for (subscription, raw) in lost {
            call.arg(subscription.name.as_str()).arg(raw);
        }
        Ok(call.invoke_async(&mut self.redis().clone()).await?)
    }

    /// Lets messages be delivered or not, for a reason; none if there is no such subscription. Failed deliveries wait too.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn set_state(
        &self,
        name: &SubscriptionName,
        state: SubscriptionState,
        reason: Option<&str>,
    ) -> StoreResult<Option<Subscription>> {
        self.set_state_if(name, state, reason, |_| true).await
    }

    /// The same if the subscription, as it is now, is meant.
    async fn set_state_if(
        &self,
        name: &SubscriptionName,
        state: SubscriptionState,
        reason: Option<&str>,
        is_meant: impl Fn(&Subscription) -> bool,
    ) -> StoreResult<Option<Subscription>> {
        if state == SubscriptionState::Active {
            // What was seen before does not count against it. First of all: otherwise the first failure could disable it again
            self.record_recovery(name).await?;
            if let Some(before) = self.get(name).await? {
                self.unblock_channels(&before).await?;
            }
        }
        let changed = self
            .update(name, |subscription| {
                let is_meant = is_meant(subscription);
                if is_meant {
                    subscription.state = state;
                    subscription.reason = reason.map(ToOwned::to_owned);
                }
                is_meant
            })
            .await?;
        let Some(changed) = changed else { return Ok(None) };
        let mut state_now = state;
        for _ in 0..MAX_SAVE_ATTEMPTS {
            if self.jobs.set_queue_paused(&changed.queue(), state_now != SubscriptionState::Active).await?.is_err() {
                tracing::warn!(subscription = %name, "its queue can be neither made nor paused: there are too many");
            }
            // Somebody else may have changed both in between: whoever is the last to change the queue sees it
            match self.get(name).await? {
                Some(now) if now.state != state_now => state_now = now.state,
                _ => break,
            }
        }
        Ok(Some(changed))
    }

    /// Gives up on a subscription's target, once, and says so in an event; not if it was changed since: what an old target said
    /// is not held against the new one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn disable(&self, known: &Subscription, reason: &str) -> StoreResult<()> {
        let name = &known.name;
        let is_as_known = |now: &Subscription| {
            now.state != SubscriptionState::Disabled
                && (now.created_at, now.updated_at) == (known.created_at, known.updated_at)
        };
        if self.set_state_if(name, SubscriptionState::Disabled, Some(reason), is_as_known).await?.is_none() {
            return Ok(());
        }
        metrics::counter!("galley_subscriptions_disabled_total", "subscription" => name.to_string()).increment(1);
        tracing::error!(subscription = %name, reason, "subscription disabled");
        self.record_event(name, "subscription.disabled", |data| {
            data.text("reason", reason);
        });
        Ok(())
    }

    /// Notes an event of a subscription.
    pub fn record_event(&self, name: &SubscriptionName, kind: &'static str, more: impl FnOnce(&mut ObjectWriter)) {
        let mut data = ObjectWriter::default();
        data.text("subscription", name.as_str());
        more(&mut data);
        self.jobs.record_event(JobEvent::new(kind, crate::local_now(), data.finish()));
    }

    /// Changes a subscription, whatever others change meanwhile; none if there is none, or if the change is not wanted after
    /// all.
    pub(super) async fn update(
        &self,
        name: &SubscriptionName,
        change: impl Fn(&mut Subscription) -> bool,
    ) -> StoreResult<Option<Subscription>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(name).await? else { return Ok(None) };
            let mut subscription = parse_subscription(&raw).ok_or_else(|| damaged_subscription(name))?;
            let before = subscription.updated_at;
            if !change(&mut subscription) {
                return Ok(None);
            }
            // It tells one change from the next
            subscription.updated_at = self.jobs.now().await?.max(before + 1);
            if self.save(name, Some(&raw), Some(&encode_subscription(&subscription)?)).await? != "changed" {
                return Ok(Some(subscription));
            }
        }
        Err(too_many_conflicts(name))
    }

    /// Removes a subscription with everything that belongs to it; false if there is none. Its failed deliveries are cancelled.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn delete(&self, name: &SubscriptionName) -> StoreResult<bool> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(name).await? else { return Ok(false) };
            if self.save(name, Some(&raw), None).await? == "changed" {
                continue;
            }
            if let Some(subscription) = parse_subscription(&raw) {
                self.clear_data(&subscription).await?;
            }
            return Ok(true);
        }
        Err(too_many_conflicts(name))
    }

    /// Removes what was written late of a subscription that is removed: by whoever served it, once that is over, as nobody
    /// else would. False if there is a subscription of that name.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn clear_if_deleted(&self, removed: &Subscription) -> StoreResult<bool> {
        if self.read_raw(&removed.name).await?.is_some() {
            return Ok(false);
        }
        self.clear_data(removed).await?;
        Ok(true)
    }

    /// Removes everything that belongs to a subscription but itself, dead letters, and where workers of a broadcast were: these
    /// go when their time is over. It can take long, and ends when there is one of that name again: what is there from then on is
    /// that one's.
    async fn clear_data(&self, subscription: &Subscription) -> StoreResult<()> {
        let (name, queue) = (&subscription.name, subscription.queue());
        for channel in self.matching_channels(subscription).await? {
            if self.read_raw(name).await?.is_some() {
                return Ok(());
            }
            self.channels.leave_channel(&channel, name).await?;
        }
        let states = vec![job::JobState::Available, job::JobState::Scheduled, job::JobState::Retryable];
        let purge = PurgeRequest { states, limit: PURGE_BATCH_SIZE };
        loop {
            if self.read_raw(name).await?.is_some() {
                return Ok(());
            }
            let purged = self.jobs.purge(&queue, &purge).await?;
            // What cannot be cancelled has a worker, who finds out by itself
            if !purged.has_more || purged.count == 0 {
                break;
            }
        }
        if self.read_raw(name).await?.is_some() {
            return Ok(());
        }
        // A delivery that is under way keeps it for a while; then it is empty and in nobody's way
        self.jobs.delete_queue(&queue).await?;
        let keys = [keys::subscription_counters(name), keys::subscription_workers(name)];
        let _: i64 = redis::cmd("DEL").arg(&keys).query_async(&mut self.redis().clone()).await?;
        Ok(())
    }

    async fn read_raw(&self, name: &SubscriptionName) -> StoreResult<Option<String>> {
        let mut command = redis::cmd("HGET");
        let raw: Value =
            command.arg(keys::SUBSCRIPTIONS).arg(name.as_str()).query_async(&mut self.redis().clone()).await?;
        match raw {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| damaged_subscription(name)),
            _ => Err(damaged_subscription(name)),
        }
    }

    async fn count(&self) -> StoreResult<u64> {
        let fields: u64 = redis::cmd("HLEN").arg(keys::SUBSCRIPTIONS).query_async(&mut self.redis().clone()).await?;
        Ok(fields.saturating_sub(1))
    }

    /// Stores or removes a subscription if what is stored still is `known`.
    async fn save(&self, name: &SubscriptionName, known: Option<&str>, new: Option<&str>) -> StoreResult<String> {
        let mut call = script::SAVE_SUBSCRIPTION.key(keys::SUBSCRIPTIONS);
        call.arg(name.as_str()).arg(known.unwrap_or_default()).arg(new.unwrap_or_default()).arg(self.settings.max);
        call.arg(keys::NOTIFICATIONS).arg(Notification::SubscriptionsChanged.encode());
        Ok(call.invoke_async(&mut self.redis().clone()).await?)
    }

    /// Calls workers of subscriptions to look at what there is.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn notify_workers(&self) -> StoreResult<()> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(keys::NOTIFICATIONS).arg(Notification::SubscriptionsChanged.encode());
        let _: i64 = command.query_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}

/// A call about a channel of a subscription: its history and its cursor come first.
fn channel_script_call(
    script: &'static redis::Script,
    subscription: &Subscription,
    channel: &ChannelName,
) -> ScriptInvocation<'static> {
    let mut call = script.key(keys::channel_history(channel));
    call.key(keys::subscription_cursor(channel, &subscription.name));
    call
}

fn parse_subscription(raw: &str) -> Option<Subscription> {
    serde_json::from_str(raw).ok()
}

fn encode_subscription(subscription: &Subscription) -> StoreResult<String> {
    serde_json::to_string(subscription).map_err(|error| StoreError::damaged(error.to_string()))
}

fn damaged_subscription(name: &SubscriptionName) -> StoreError {
    StoreError::damaged(format!("subscription {name} cannot be read"))
}

fn too_many_conflicts(name: &SubscriptionName) -> StoreError {
    StoreError::damaged(format!("subscription {name} keeps changing"))
}

/// Where a channel begins.
async fn start_position(channels: &Channels, channel: &ChannelName, begin: NewChannelStart) -> StoreResult<Position> {
    match begin {
        // Behind what is not kept any more, which nobody asked for
        NewChannelStart::Earliest => channels.channel_start_position(channel).await,
        NewChannelStart::After(position) => Ok(position),
        NewChannelStart::Now(at) | NewChannelStart::Since(at) => channels.channel_position_at(channel, at).await,
    }
}
