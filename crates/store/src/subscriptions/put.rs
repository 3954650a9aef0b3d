//! Creates a subscription, or changes an existing one to what the request asks for.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{MAX_SAVE_ATTEMPTS, Subscriptions, too_many_conflicts};
use crate::{StoreResult, keys};
use common::name::{ChannelName, SubscriptionName};
use model::{
    message::{Position, continuity::Continuity},
    subscription::{
        DeliveryMode, Subscription, SubscriptionRequest, SubscriptionRequestError, SubscriptionStart,
        SubscriptionTarget,
    },
};

/// Channels whose newest position is read concurrently.
const MAX_CONCURRENT_HEAD_READS: usize = 32;

/// The result of a request.
pub struct PutSubscriptionResult {
    /// The subscription as it is now.
    pub subscription: Subscription,
    /// Whether no subscription had that name before.
    pub is_new: bool,
    /// The signing secret, if Galley generated it now: it is shown only here.
    pub secret: Option<String>,
}

/// Why a request was refused; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutSubscriptionError {
    /// Something in it is not allowed.
    Invalid(SubscriptionRequestError),
    /// It should start at a position that the channel does not have.
    UnknownPosition {
        /// The channel.
        channel: ChannelName,
        /// The position.
        position: Position,
    },
    /// The maximum number of subscriptions is reached.
    TooManySubscriptions {
        /// The maximum.
        max: u64,
    },
}

impl Subscriptions {
    /// Creates a subscription, or changes the existing one. An existing one continues at its positions; channels that
    /// are new to it start now.
    ///
    /// # Errors
    /// Redis is unavailable or full.
    pub async fn put(
        &self,
        name: &SubscriptionName,
        body: &[u8],
        depth_limit: usize,
    ) -> StoreResult<Result<PutSubscriptionResult, PutSubscriptionError>> {
        self.put_if(name, body, depth_limit, |_| Ok(())).await
    }

    /// Like [`Subscriptions::put`], if `is_allowed` accepts the subscription; its error says why not.
    ///
    /// # Errors
    /// Redis is unavailable or full.
    pub async fn put_if(
        &self,
        name: &SubscriptionName,
        body: &[u8],
        depth_limit: usize,
        is_allowed: impl Fn(&Subscription) -> Result<(), String>,
    ) -> StoreResult<Result<PutSubscriptionResult, PutSubscriptionError>> {
        let mut begun = BTreeSet::new();
        let put = self.try_put(name, body, depth_limit, is_allowed, &mut begun).await;
        if !matches!(put, Ok(Ok(_))) {
            self.leave_started_channels(name, &begun).await;
        }
        put
    }

    /// Remembers the channels that were opened: they must be left if the request fails.
    async fn try_put(
        &self,
        name: &SubscriptionName,
        body: &[u8],
        depth_limit: usize,
        is_allowed: impl Fn(&Subscription) -> Result<(), String>,
        begun: &mut BTreeSet<ChannelName>,
    ) -> StoreResult<Result<PutSubscriptionResult, PutSubscriptionError>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let now = self.jobs.now().await?;
            let raw = self.read_raw(name).await?;
            // A subscription that cannot be parsed is replaced like a missing one
            let before = raw.as_deref().map(|raw| self.parse(name.as_str(), raw)).transpose()?.flatten();
            let applied = SubscriptionRequest::parse(body, depth_limit, now).and_then(|request| {
                let (start, needs_secret) = (request.start(), request.needs_secret(before.as_ref()));
                let subscription = request.apply(name.clone(), before.as_ref(), now)?;
                is_allowed(&subscription).map_err(SubscriptionRequestError::Invalid)?;
                Ok((start, needs_secret, subscription))
            });
            let (start, needs_secret, subscription) = match applied {
                Ok(applied) => applied,
                Err(refused) => return Ok(Err(PutSubscriptionError::Invalid(refused))),
            };
            if before.is_none()
                && let Some(unknown) = self.check_start_position(&subscription, start).await?
            {
                return Ok(Err(unknown));
            }
            if raw.is_none() && self.count().await? >= self.settings.max {
                return Ok(Err(PutSubscriptionError::TooManySubscriptions { max: self.settings.max }));
            }
            let begins = self.start_positions(&subscription, before.as_ref(), start).await?;
            // Another request may have created it meanwhile: messages published since then must not be skipped
            if self.read_raw(name).await? != raw {
                continue;
            }
            for (channel, start) in begins {
                begun.insert(channel.clone());
                self.seek_channel(&subscription, &channel, start).await?;
            }
            let saved = self.save(name, raw.as_deref(), Some(&self.encode(&subscription)?)).await?;
            match saved.as_str() {
                "saved" | "already_saved" => {
                    self.clear_previous(&subscription, before.as_ref()).await?;
                    let secret = signing_secret(&subscription).filter(|_| needs_secret);
                    let is_new = raw.is_none() && saved == "saved";
                    return Ok(Ok(PutSubscriptionResult { subscription, is_new, secret }));
                }
                "full" => return Ok(Err(PutSubscriptionError::TooManySubscriptions { max: self.settings.max })),
                _ => {}
            }
        }
        Err(too_many_conflicts(name))
    }

    /// Applies the effects of a change.
    async fn apply_change_effects(&self, before: &Subscription, now: &Subscription) -> StoreResult<()> {
        self.leave_channels(before, |channel| now.channels.matches(channel)).await?;
        if serde_json::to_value(&before.deliver).ok() != serde_json::to_value(&now.deliver).ok() {
            // Failures of the old target do not count against the new one, and what waits is tried there now
            self.record_recovery(&now.name).await?;
            self.unblock_channels(now).await?;
            self.jobs.make_all_due(&now.queue()).await?;
        }
        Ok(())
    }

    /// Why a subscription cannot start where it should, if so.
    async fn check_start_position(
        &self,
        subscription: &Subscription,
        start: SubscriptionStart,
    ) -> StoreResult<Option<PutSubscriptionError>> {
        let (SubscriptionStart::After(position), Some(channel)) = (start, subscription.channels.single_channel())
        else {
            return Ok(None);
        };
        let is_known = self.is_known_position(channel, position).await?;
        Ok((!is_known).then(|| PutSubscriptionError::UnknownPosition { channel: channel.clone(), position }))
    }

    /// Whether a position is, or may have been, in a channel's history.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn is_known_position(&self, channel: &ChannelName, position: Position) -> StoreResult<bool> {
        // Without a history nothing can tell, and a wrong position would hide later messages
        if position != Position::START && self.channels.channel_head(channel).await?.is_none() {
            return Ok(false);
        }
        Ok(self.channels.read_channel_page(channel, position, 1).await?.continuity != Continuity::Unknown)
    }

    /// Opens the existing channels that are new to a subscription, before it is created, so that no later message is
    /// missed. Ignores data that an earlier subscription of that name left behind.
    async fn start_positions(
        &self,
        subscription: &Subscription,
        before: Option<&Subscription>,
        start: SubscriptionStart,
    ) -> StoreResult<Vec<(ChannelName, SubscriptionStart)>> {
        if subscription.mode == DeliveryMode::Broadcast {
            return Ok(Vec::new());
        }
        let mut channels = self.matching_channels(subscription).await?;
        channels.retain(|channel| !before.is_some_and(|before| before.channels.matches(channel)));
        let start = if before.is_none() { start } else { SubscriptionStart::New };
        let begins = stream::iter(channels).map(async |channel| {
            // The newest position now may be newer later; if there is none, start before everything
            let start = match start {
                SubscriptionStart::New => self
                    .channels
                    .channel_head(&channel)
                    .await?
                    .map_or(SubscriptionStart::After(Position::START), SubscriptionStart::After),
                other => other,
            };
            StoreResult::Ok((channel, start))
        });
        begins.buffered(MAX_CONCURRENT_HEAD_READS).try_collect().await
    }

    /// Deletes data of the previous version that no longer belongs to the subscription.
    async fn clear_previous(&self, subscription: &Subscription, before: Option<&Subscription>) -> StoreResult<()> {
        if subscription.mode == DeliveryMode::Broadcast {
            // An earlier version, or one that could not be parsed, may have had groups
            self.leave_channels(subscription, |_| false).await?;
        }
        match before {
            Some(before) => self.apply_change_effects(before, subscription).await,
            None => self.clear_leftovers(subscription).await,
        }
    }

    /// Leaves channels that were opened in vain. Another request may have created the subscription meanwhile, and
    /// maintenance does what fails here.
    async fn leave_started_channels(&self, name: &SubscriptionName, begun: &BTreeSet<ChannelName>) {
        for channel in begun {
            let left = match self.is_still_subscribed((name, None), channel).await {
                Ok(true) => Ok(()),
                Ok(false) => self.channels.leave_channel(channel, name, None).await,
                Err(error) => Err(error),
            };
            if let Err(error) = left {
                tracing::debug!(subscription = %name, %channel, %error, "channel opened in vain not left yet");
                return;
            }
        }
    }

    /// Deletes what the last subscription of that name left behind, or its workers wrote late.
    async fn clear_leftovers(&self, subscription: &Subscription) -> StoreResult<()> {
        let _: i64 = redis::cmd("DEL")
            .arg(keys::subscription_counters(&subscription.name))
            .query_async(&mut self.redis().clone())
            .await?;
        let queue = subscription.queue();
        if self.jobs.queue_control(&queue).await?.is_paused {
            drop(self.jobs.set_queue_paused(&queue, false).await?);
        }
        Ok(())
    }
}

fn signing_secret(subscription: &Subscription) -> Option<String> {
    match &subscription.deliver {
        SubscriptionTarget::Http(http) => http.secrets.first().cloned(),
        _ => None,
    }
}
