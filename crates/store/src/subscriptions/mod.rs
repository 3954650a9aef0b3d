//! Durable subscriptions, and their positions in their channels.
//!
//! A shared subscription reads through a consumer group on the history of each channel: each message goes to one
//! worker, and to another one if that dies. Beside the group there is a cursor: it reveals gaps before a message, and
//! outlives a group that was lost. In order, one worker at a time owns the cursor. The workers of a broadcast read by
//! themselves, and each saves its positions.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | reads and changes subscriptions |
//! | `delete` | deletes one, and what its workers write late |
//! | `put` | creates or replaces one |
//! | `position` | opens and leaves channels, seeks |
//! | `shared` | claims, reclaims and acknowledges messages |
//! | `ordered` | lets one worker at a time deliver a channel |
//! | `subscription_workers` | the live workers, and which one delivers a channel in order |
//! | `broadcast` | saves the positions of each worker |
//! | `counts` | counts what this process delivered |
//! | `progress` | lag and counters |

mod broadcast;
mod counts;
mod delete;
mod ordered;
mod position;
mod progress;
mod put;
mod shared;
mod subscription_workers;

use std::{collections::HashMap, sync::Arc};

use redis::{ScriptInvocation, Value};
use serde::Deserialize;
use serde_json::json;

use self::counts::UnwrittenCounts;
use crate::{
    Redis, StoreError, StoreResult, connection::notification::Notification, events::JobEvent, jobs::Jobs, keys, script,
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
use model::subscription::{Subscription, SubscriptionState};

pub use broadcast::{Checkpoint, EarlierCheckpoint};
pub use ordered::{ChannelFence, ClaimedChannel};
pub use position::OpenedChannel;
pub use progress::{BlockedChannel, BroadcastWorkerLag, ChannelProgress, FailureStreak, SubscriptionCounters};
pub use put::{PutSubscriptionError, PutSubscriptionResult};
pub use shared::{ChannelMessages, MAX_BATCH_BYTES, MessageDisposition, ReclaimFilter, ReclaimedMessages};
pub use subscription_workers::SubscriptionWorkers;

/// Maximum number of attempts to change a subscription that others change at the same time.
const MAX_SAVE_ATTEMPTS: usize = 16;

/// The subscriptions in the Redis of a job store. Cheap to clone.
#[derive(Clone)]
pub struct Subscriptions {
    pub(super) jobs: Jobs,
    pub(super) channels: Channels,
    settings: Arc<SubscriptionSettings>,
    /// TTL of a cursor in milliseconds: longer than that of its channel's history.
    cursor_ttl_ms: u64,
    unwritten: Arc<UnwrittenCounts>,
}

/// All subscriptions.
pub struct SubscriptionList {
    /// Each with its stored text: compare it to detect a change.
    pub subscriptions: Vec<(Subscription, String)>,
    /// The list never existed, or Redis lost it.
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
            unwritten: Arc::default(),
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

    /// The settings of all subscriptions.
    #[must_use]
    pub fn settings(&self) -> &SubscriptionSettings {
        &self.settings
    }

    /// Reads a subscription.
    ///
    /// # Errors
    /// Redis is unavailable or the subscription is damaged.
    pub async fn get(&self, name: &SubscriptionName) -> StoreResult<Option<Subscription>> {
        let Some(raw) = self.read_raw(name).await? else { return Ok(None) };
        self.parse(name.as_str(), &raw)?.ok_or_else(|| damaged_subscription(name)).map(Some)
    }

    /// All subscriptions, by name. Those that cannot be parsed are left out and logged.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list(&self) -> StoreResult<SubscriptionList> {
        let mut connection = self.redis().pooled_connection().await?;
        let all: HashMap<Vec<u8>, Vec<u8>> =
            redis::cmd("HGETALL").arg(keys::SUBSCRIPTIONS).query_async(&mut connection).await?;
        let mut known = SubscriptionList { is_missing: all.is_empty(), subscriptions: Vec::with_capacity(all.len()) };
        for (name, raw) in all.into_iter().filter(|(name, _)| !name.is_empty()) {
            let found = String::from_utf8(raw).ok().map(|raw| {
                let parsed = self.parse(&String::from_utf8_lossy(&name), &raw)?;
                // One stored under another's name would be delivered twice
                let parsed = parsed.filter(|subscription| subscription.name.as_str().as_bytes() == name);
                StoreResult::Ok(parsed.map(|subscription| (subscription, raw)))
            });
            let found = found.transpose().unwrap_or_else(|error| {
                tracing::error!(name = printable(&name), %error, "a subscription cannot be read");
                None
            });
            let found = found.flatten();
            if found.is_none() {
                tracing::warn!(name = printable(&name), "skipped a subscription that cannot be parsed");
            }
            known.subscriptions.extend(found);
        }
        known.subscriptions.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(known)
    }

    /// Restores subscriptions as they were stored, if Redis has lost all of them; true if it had.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn restore(&self, lost: &[(Subscription, String)]) -> StoreResult<bool> {
        if lost.is_empty() {
            return Ok(false);
        }
        let mut call = script::RESTORE_SUBSCRIPTIONS.key(keys::SUBSCRIPTIONS);
        call.arg(self.redis().topics().notifications()).arg(Notification::SubscriptionsChanged.encode());
        for (subscription, raw) in lost {
            call.arg(subscription.name.as_str()).arg(raw);
        }
        Ok(call.invoke_async(&mut self.redis().clone()).await?)
    }

    /// Activates, pauses or disables a subscription and its retry queue, with a reason; none if there is no such
    /// subscription.
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

    /// The same, only if `is_meant` accepts the current subscription.
    async fn set_state_if(
        &self,
        name: &SubscriptionName,
        state: SubscriptionState,
        reason: Option<&str>,
        is_meant: impl Fn(&Subscription) -> bool,
    ) -> StoreResult<Option<Subscription>> {
        if state == SubscriptionState::Active {
            // Earlier failures do not count any more. Must come first: otherwise the next failure could disable it
            // again
            self.record_recovery(name).await?;
            if let Some(before) = self.get(name).await? {
                self.unblock_channels(&before).await?;
            }
        }
        let now = self.jobs.now().await?;
        let changed = self
            .update(name, |subscription| {
                let is_meant = is_meant(subscription);
                if is_meant {
                    subscription.state = state;
                    subscription.reason = reason.map(ToOwned::to_owned);
                    if state == SubscriptionState::Active {
                        // Each resume differs from the one before
                        let before = subscription.resumed_at.map_or(now, |before| before + 1);
                        subscription.resumed_at = Some(now.max(before));
                    }
                }
                is_meant
            })
            .await?;
        let Some(changed) = changed else { return Ok(None) };
        if state == SubscriptionState::Active {
            // Before the queue resumes: what waits for a later attempt is tried now
            self.jobs.make_all_due(&changed.queue()).await?;
        }
        let mut state_now = state;
        for _ in 0..MAX_SAVE_ATTEMPTS {
            if self.jobs.set_queue_paused(&changed.queue(), state_now != SubscriptionState::Active).await?.is_err() {
                tracing::warn!(subscription = %name, "its queue can be neither made nor paused: there are too many");
            }
            // Another process may have changed both in between: the last one to change the queue sees it
            match self.get(name).await? {
                Some(now) if now.state != state_now => state_now = now.state,
                _ => break,
            }
        }
        Ok(Some(changed))
    }

    /// Disables a subscription once and records an event; not if it was changed since `known` was read, because
    /// failures of an old target do not count against the new one.
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
        tracing::error!(event = "subscription.disabled", subscription = %name, reason, "subscription disabled");
        self.record_event(name, "subscription.disabled", |data| {
            data.text("reason", reason);
        });
        Ok(())
    }

    /// Records an event of a subscription.
    pub fn record_event(&self, name: &SubscriptionName, kind: &'static str, more: impl FnOnce(&mut ObjectWriter)) {
        let mut data = ObjectWriter::default();
        data.text("subscription", name.as_str());
        more(&mut data);
        self.jobs.record_event(JobEvent::new(kind, self.jobs.estimated_now(), data.finish()));
    }

    /// Changes a subscription despite concurrent changes; none if there is none, or if `change` declines.
    pub(super) async fn update(
        &self,
        name: &SubscriptionName,
        change: impl Fn(&mut Subscription) -> bool,
    ) -> StoreResult<Option<Subscription>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(name).await? else { return Ok(None) };
            let mut subscription = self.parse(name.as_str(), &raw)?.ok_or_else(|| damaged_subscription(name))?;
            let before = subscription.updated_at;
            if !change(&mut subscription) {
                return Ok(None);
            }
            // Distinguishes one change from the next
            subscription.updated_at = self.jobs.now().await?.max(before + 1);
            if self.save(name, Some(&raw), Some(&self.encode(&subscription)?)).await? != "changed" {
                return Ok(Some(subscription));
            }
        }
        Err(too_many_conflicts(name))
    }

    /// Parses what is stored under a name; none if it is no subscription.
    pub(super) fn parse(&self, name: &str, raw: &str) -> StoreResult<Option<Subscription>> {
        match serde_json::from_str::<SealedMember>(raw) {
            Ok(SealedMember { sealed: Some(sealed) }) => {
                let opened = self.redis().sealer().open(&["subscription", name], sealed)?;
                Ok(serde_json::from_str(&opened).ok())
            }
            _ => self.redis().sealer().accept_plain(serde_json::from_str(raw).ok()),
        }
    }

    /// A subscription as it is stored. If it is sealed, what finds its channels stays beside it.
    pub(super) fn encode(&self, subscription: &Subscription) -> StoreResult<String> {
        let text = serde_json::to_string(subscription).map_err(|error| StoreError::damaged(error.to_string()))?;
        let sealer = self.redis().sealer();
        if !sealer.is_on() {
            return Ok(text);
        }
        let outline = json!({
            "channels": subscription.channels,
            "mode": subscription.mode,
            "begin": subscription.begin,
            "created_at": subscription.created_at,
            "sealed": sealer.seal(&["subscription", subscription.name.as_str()], &text),
        });
        Ok(outline.to_string())
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

    /// Stores or deletes a subscription if the stored one is still `known`.
    async fn save(&self, name: &SubscriptionName, known: Option<&str>, new: Option<&str>) -> StoreResult<String> {
        let mut call = script::SAVE_SUBSCRIPTION.key(keys::SUBSCRIPTIONS);
        call.arg(name.as_str()).arg(known.unwrap_or_default()).arg(new.unwrap_or_default()).arg(self.settings.max);
        call.arg(self.redis().topics().notifications()).arg(Notification::SubscriptionsChanged.encode());
        Ok(call.invoke_async(&mut self.redis().clone()).await?)
    }

    /// Notifies the workers of subscriptions to check for changes.
    pub async fn notify_workers(&self) {
        self.redis().notify(&Notification::SubscriptionsChanged).await;
    }
}

/// A script call about a channel of a subscription: its first keys are the history and the cursor.
fn channel_script_call(
    script: &'static redis::Script,
    subscription: &Subscription,
    channel: &ChannelName,
) -> ScriptInvocation<'static> {
    let mut call = script.key(keys::channel_history(channel));
    call.key(keys::subscription_cursor(channel, &subscription.name));
    call
}

/// The sealed part of a stored subscription.
#[derive(Deserialize)]
struct SealedMember {
    sealed: Option<String>,
}

fn damaged_subscription(name: &SubscriptionName) -> StoreError {
    StoreError::damaged(format!("subscription {name} cannot be read"))
}

fn too_many_conflicts(name: &SubscriptionName) -> StoreError {
    StoreError::damaged(format!("subscription {name} keeps changing"))
}
