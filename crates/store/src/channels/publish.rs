//! Publishes messages.
//!
//! A script decides everything about a channel: its epoch, its TTL, how much of its history to keep. But the script costs
//! several times what it asks Redis to do. So a process that ran it lets the messages of the next second follow without
//! it: `XADD` to the epoch that the script returned, then two `PUBLISH`, of the position (on a cluster `SPUBLISH`) and of the
//! body. What the script would decide otherwise refuses that `XADD`: a history that is gone does not exist, and one that continues in a later epoch accepts no earlier id.
//! Then the script runs.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Value};

use super::{
    Channels, MessageDedup, PublishedMessage, TooManyChannels,
    new_channel_groups::NewChannelGroups,
    registry,
    sealed_message::{self, SealedMessage},
};
use crate::{StoreError, StoreResult, connection::pinned::PinnedConnection, keys, script};
use common::{name::ChannelName, time::Millis};
use model::message::{NewMessage, Position};

/// How long messages may follow a script. The TTL of a history is as much longer.
const MAX_FOLLOWING_TIME: Duration = Duration::from_secs(1);
/// How many messages may follow a script. The script trims the history, in steps of about a hundred.
const MAX_FOLLOWING_MESSAGES: u32 = 64;
/// How long a script may take for its reading of Redis's clock to count: it is known no better than that.
/// `find_position_at.lua` allows for more.
const MAX_CLOCK_UNCERTAINTY: Duration = Duration::from_millis(25);
/// How many channels are remembered.
const MAX_KNOWN_HISTORIES: usize = 4096;

/// What the script said about histories, by the connection that it ran on and the channel. A server that restarted with
/// less data is another connection.
#[derive(Debug, Default)]
pub(crate) struct KnownHistories(Mutex<HashMap<(u64, ChannelName), KnownHistory>>);

#[derive(Debug, Clone, Copy)]
struct KnownHistory {
    epoch: u64,
    /// The time by Redis's clock that the script read after `asked`.
    redis_time: Millis,
    asked: Instant,
    remaining: u32,
    /// Whether a message runs the script already.
    is_renewing: bool,
}

impl KnownHistory {
    /// The time by Redis's clock: never behind, so that a client that asks for messages from a time on
    /// gets all of them.
    fn now(&self) -> Millis {
        let elapsed = Millis::try_from(self.asked.elapsed().as_millis()).unwrap_or(Millis::MAX);
        self.redis_time.saturating_add(elapsed)
    }
}

impl KnownHistories {
    fn histories(&self) -> MutexGuard<'_, HashMap<(u64, ChannelName), KnownHistory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, connection: u64, channel: &ChannelName, known: KnownHistory) {
        let mut histories = self.histories();
        if histories.len() >= MAX_KNOWN_HISTORIES {
            histories.clear();
        }
        histories.insert((connection, channel.clone()), known);
    }

    /// What is known of a history, for one message. None if the script has to run again.
    fn take_one(&self, connection: u64, channel: &ChannelName, time: Duration) -> Option<KnownHistory> {
        let mut histories = self.histories();
        let known = histories.get_mut(&(connection, channel.clone()))?;
        let elapsed = known.asked.elapsed();
        if known.remaining == 0 || elapsed >= time {
            return None;
        }
        // One message runs the script while others may still do without: else all that are on their way would run it
        let is_half_over = known.remaining <= MAX_FOLLOWING_MESSAGES / 2 || elapsed >= time / 2;
        if is_half_over && !std::mem::replace(&mut known.is_renewing, true) {
            return None;
        }
        known.remaining -= 1;
        Some(*known)
    }
}

/// What the script returned.
struct ScriptOutcome {
    position: String,
    plain_subscribers: u64,
    must_register: bool,
}

fn count_published(message: &NewMessage<'_>) {
    metrics::counter!("galley_messages_published_total").increment(1);
    metrics::counter!("galley_published_bytes_total").increment(message.body.len() as u64);
}

impl Channels {
    /// Publishes a message.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published nevertheless.
    pub async fn publish(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
    ) -> StoreResult<Result<PublishedMessage, TooManyChannels>> {
        self.publish_deduplicated(channel, message, None).await
    }

    /// Publishes a message unless an earlier call with the same `dedup` did.
    ///
    /// # Errors
    /// Redis is unavailable: the message may have been published nevertheless.
    pub async fn publish_deduplicated(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        once: Option<MessageDedup>,
    ) -> StoreResult<Result<PublishedMessage, TooManyChannels>> {
        if once.is_none()
            && let Some(published) = self.publish_without_script(channel, message).await?
        {
            count_published(message);
            return Ok(Ok(published));
        }
        let sent = match self.run_publish_script(channel, message, (None, once)).await? {
            Some(sent) => sent,
            // A new channel, or one whose history is gone
            None if !self.register_channel(channel).await? => {
                return Ok(Err(TooManyChannels { max: self.settings.max_channels }));
            }
            None => {
                // Its subscriptions get it from this message on, even if no worker runs
                let joining = self.find_new_channel_groups(channel).await;
                let sent = self.run_publish_script(channel, message, (Some(&joining), once)).await?;
                joining.create_groups(self, channel).await;
                sent.ok_or_else(|| StoreError::damaged("a registered channel that is to be registered"))?
            }
        };
        count_published(message);
        if sent.must_register
            && let Err(error) = self.register_channel(channel).await
        {
            tracing::debug!(%error, %channel, "channel registration not refreshed");
        }
        let position = sent.position.parse().map_err(|_| StoreError::damaged(sent.position))?;
        Ok(Ok(PublishedMessage { position, plain_subscribers: sent.plain_subscribers }))
    }

    /// None if the channel must be registered first. A newly registered channel gets its consumer groups here.
    async fn run_publish_script(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
        (registered, once): (Option<&NewChannelGroups>, Option<MessageDedup>),
    ) -> StoreResult<Option<ScriptOutcome>> {
        let mut call = script::PUBLISH.prepare_invoke();
        call.key(keys::channel_history(channel)).key(keys::channel_state(channel));
        if let Some(MessageDedup { seed, nth, .. }) = once {
            call.key(keys::published_message(channel, seed, nth));
        }
        let topics = self.redis.topics();
        let live = topics.live_messages(channel);
        // Readers of a channel with plain publishers tell copies by what the same connection received right before them
        let is_plain = self.settings.plain_channels.contains(channel);
        call.arg(channel.as_str()).arg(if is_plain { live } else { topics.for_script(live) });
        // The epoch belongs to this connection: a server restarted with less data is another connection
        let (connection, epoch) = self.redis.pinned_with_epoch(&keys::channel_history(channel)).await?;
        let max = self.settings.retention.for_channel(channel).messages;
        call.arg(epoch).arg(max).arg(max.max(self.settings.retention.backlog_cap().messages));
        let (refresh, following) = (registry::registration_refresh_interval(&self.settings), self.max_following_time());
        call.arg((self.settings.history_ttl + following).as_millis().to_string());
        call.arg(refresh.saturating_sub(following).as_millis().to_string());
        call.arg(&*message.body).arg(message.content_type.as_deref().unwrap_or_default());
        let sealed = sealed_message::seal(self.redis.sealer(), channel, message);
        let attributes = match &sealed {
            Some(sealed) => sealed.attributes.as_deref(),
            None => message.attributes.as_deref(),
        };
        call.arg(attributes.unwrap_or_default());
        call.arg(u8::from(registered.is_some()))
            .arg(u8::from(registered.is_some_and(NewChannelGroups::may_have_subscriptions)));
        let outcome_ttl = once.map(|once| self.redis.memory().idempotency_ttl(once.ttl).as_millis().to_string());
        let has_trace = !message.trace.is_empty();
        if outcome_ttl.is_some() || sealed.is_some() || has_trace {
            call.arg(outcome_ttl.unwrap_or_default());
        }
        if sealed.is_some() || has_trace {
            call.arg(sealed.as_ref().map_or(&[][..], |sealed| &sealed.body));
        }
        if has_trace {
            let rest = sealed.as_ref().map_or_else(|| message.trace.stored_rest(), |sealed| sealed.trace_rest.clone());
            call.arg(message.trace.traceparent().unwrap_or_default()).arg(rest.unwrap_or_default());
        }
        let (id, asked) = (connection.id(), Instant::now());
        let answer: Option<(String, u64, bool, Option<Millis>)> = self.redis.run_pinned(&call, connection).await?;
        let Some((position, plain_subscribers, must_register, redis_time)) = answer else { return Ok(None) };
        if let Some(redis_time) = redis_time
            && asked.elapsed() < MAX_CLOCK_UNCERTAINTY
            && let Ok(Position { epoch, .. }) = position.parse()
        {
            let known =
                KnownHistory { epoch, redis_time, asked, remaining: MAX_FOLLOWING_MESSAGES, is_renewing: false };
            self.known_histories.note(id, channel, known);
        }
        Ok(Some(ScriptOutcome { position, plain_subscribers, must_register }))
    }

    /// How long messages may follow a script: less than the time after which it refreshes the TTL.
    fn max_following_time(&self) -> Duration {
        MAX_FOLLOWING_TIME.min(registry::registration_refresh_interval(&self.settings) / 2)
    }

    /// Publishes a message that may follow a script. None if the script has to decide: then nothing was published.
    async fn publish_without_script(
        &self,
        channel: &ChannelName,
        message: &NewMessage<'_>,
    ) -> StoreResult<Option<PublishedMessage>> {
        // Readers of a channel with plain publishers tell copies by what is published right before them
        if self.settings.plain_channels.contains(channel) {
            return Ok(None);
        }
        let (connection, _) = self.redis.pinned_with_epoch(&keys::channel_history(channel)).await?;
        let Some(known) = self.known_histories.take_one(connection.id(), channel, self.max_following_time()) else {
            return Ok(None);
        };
        let published_at = known.now();
        let sealed = sealed_message::seal(self.redis.sealer(), channel, message);
        let add = add_command(channel, known.epoch, published_at, message, sealed.as_ref());
        let live_channel = self.redis.topics().live_messages(channel);
        let announcement = Announcement {
            channel: channel.to_string(),
            is_sharded: self.redis.topics().is_sharded(&live_channel),
            live_channel,
            body: message.body.to_vec(),
        };
        let channels = self.clone();
        // A task, because a client that hangs up in between must not leave a message that nobody learns of
        let published = tokio::spawn(async move { channels.add_and_announce(add, announcement, connection).await });
        published.await.map_err(|_| RedisError::from((ErrorKind::Io, "publishing was broken off")))?
    }

    async fn add_and_announce(
        &self,
        add: Cmd,
        announcement: Announcement,
        connection: PinnedConnection,
    ) -> StoreResult<Option<PublishedMessage>> {
        let added: RedisResult<Option<String>> = self.redis.query_pinned(&add, &connection).await;
        let position = match added {
            Ok(Some(position)) => position,
            Ok(None) => return Ok(None),
            // Refused, so nothing is stored: the script says why, or continues in the later epoch
            Err(error) if error.clone().into_server_errors().is_some() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let announced = self.redis.query_pinned_pipeline(&announcement.as_pipeline(&position), &connection).await;
        let first = announced.as_ref().ok().and_then(|answers| answers.first());
        if announcement.is_sharded && matches!(first, Some(Value::ServerError(_))) {
            // The slot has moved a moment ago, or a permission is missing: readers listen to both
            let mut announce = redis::cmd("PUBLISH");
            announce.arg(&announcement.live_channel).arg(&position);
            if let Err(error) = announce.exec_async(&mut self.redis.clone()).await {
                tracing::debug!(%error, "a message was not announced; readers find it when they look");
            }
        }
        // Who has no permission for a name may keep the history, and what is stored counts even if nobody learns of it
        let listeners = announced.ok().and_then(|answers| answers.into_iter().next_back());
        let plain_subscribers = listeners.and_then(|answer| u64::from_redis_value(answer).ok()).unwrap_or_default();
        let position = position.parse().map_err(|_| StoreError::damaged(position))?;
        Ok(Some(PublishedMessage { position, plain_subscribers }))
    }
}

/// Adds a message to a history that exists, in its epoch, as `publish.lua` does.
fn add_command(
    channel: &ChannelName,
    epoch: u64,
    published_at: Millis,
    message: &NewMessage<'_>,
    sealed: Option<&SealedMessage>,
) -> Cmd {
    let mut add = Cmd::with_capacity(12, message.body.len() + 256);
    add.arg("XADD").arg(keys::channel_history(channel)).arg("NOMKSTREAM").arg(format!("{epoch}-*"));
    match sealed {
        Some(sealed) => add.arg("z").arg(&sealed.body),
        None => add.arg("b").arg(&*message.body),
    };
    add.arg("a").arg(published_at);
    if let Some(content_type) = message.content_type.as_deref().filter(|text| !text.is_empty()) {
        add.arg("t").arg(content_type);
    }
    let attributes = sealed.map_or(message.attributes.as_deref(), |sealed| sealed.attributes.as_deref());
    if let Some(attributes) = attributes.filter(|text| !text.is_empty()) {
        add.arg("h").arg(attributes);
    }
    if let Some(traceparent) = message.trace.traceparent() {
        add.arg("c").arg(traceparent);
    }
    if let Some(rest) = sealed.map_or_else(|| message.trace.stored_rest(), |sealed| sealed.trace_rest.clone()) {
        add.arg("r").arg(rest);
    }
    add
}

/// What everybody who listens is told, as `publish.lua` does.
struct Announcement {
    channel: String,
    is_sharded: bool,
    live_channel: String,
    body: Vec<u8>,
}

impl Announcement {
    fn as_pipeline(&self, position: &str) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.ignore_errors();
        let mut announce = if self.is_sharded { redis::cmd("SPUBLISH") } else { redis::cmd("PUBLISH") };
        announce.arg(&self.live_channel).arg(position);
        pipeline.add_command(announce);
        pipeline.cmd("PUBLISH").arg(&self.channel).arg(&self.body);
        pipeline
    }
}
