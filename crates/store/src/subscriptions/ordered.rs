//! A channel in order: one worker at a time holds it, delivers its messages one by one, and moves its cursor on.

use std::time::Duration;

use redis::Value;

use super::{
    Done, Subscriptions, about,
    position::read,
    shared::{gap, messages},
};
use crate::{StoreResult, keys, script};
use common::name::{ChannelName, WorkerId};
use model::{
    message::{Position, Stored, continuity::Gap},
    subscription::{Ordering, Subscription},
};

/// Messages that are handed out in one go, to be delivered one by one.
const AT_ONCE: usize = 16;
/// About their bytes.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Channels that need not wait any more, in one go.
const FREED_AT_ONCE: usize = 1_000;
/// What went wrong is kept so far, in characters.
const LONGEST_PROBLEM: usize = 500;

/// What `take_in_order.lua` answers.
type Taken = (String, String, String, String, Vec<(String, Value)>, u64, u32);

/// A worker's hold on a channel. It is a fence: whoever has an older one can move nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held(String);

/// What a channel in order has for a worker.
#[derive(Debug)]
pub enum InOrder {
    /// The channel has to be opened first.
    Closed,
    /// The channel is this worker's, with the messages that come next. There are none if none were asked for.
    Next {
        /// Its hold on the channel.
        held: Held,
        /// The messages, oldest first.
        messages: Vec<Stored>,
        /// What is missing before them.
        gap: Option<Gap>,
        /// How often the first of them has failed.
        failures: u32,
    },
    /// There is nothing; the channel is nobody's.
    Empty,
    /// The next message failed, and is tried again after this long; the channel is nobody's.
    Wait(Duration),
    /// Another worker has it, for so long unless it goes on.
    Taken(Duration),
    /// It was taken away, or moved.
    Lost,
}

impl Subscriptions {
    /// Asks for a channel, and for what comes next in it.
    ///
    /// # Errors
    /// Redis is unavailable: the channel may be this worker's all the same.
    pub async fn take_in_order(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
    ) -> StoreResult<InOrder> {
        self.in_order(subscription, channel, worker, lease, None, AT_ONCE).await
    }

    /// Notes that everything up to a position is done with, and asks for what comes next if that is wanted.
    ///
    /// # Errors
    /// Redis is unavailable: what was delivered may come again.
    pub async fn advance(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        (held, position, done, more): (&Held, Position, Done, bool),
    ) -> StoreResult<InOrder> {
        let most = if more { AT_ONCE } else { 0 };
        self.in_order(subscription, channel, worker, lease, Some((held, position, done)), most).await
    }

    async fn in_order(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        lease: Duration,
        done: Option<(&Held, Position, Done)>,
        most: usize,
    ) -> StoreResult<InOrder> {
        let mut call = about(&script::TAKE_IN_ORDER, subscription, channel);
        call.key(keys::figures(&subscription.name));
        call.arg(subscription.group()).arg(worker.as_str()).arg(lease.as_millis().to_string());
        match done {
            Some((held, position, _)) => call.arg(&held.0).arg(position.to_string()),
            None => call.arg("").arg(""),
        };
        call.arg(most).arg(BYTES_AT_ONCE).arg(self.cursor_ttl_ms);
        call.arg(match done {
            Some((_, _, Done::Delivered)) => "delivered",
            Some((_, _, Done::Unwanted)) => "filtered",
            _ => "",
        });
        let (how, token, position, before, entries, ms, failures): Taken =
            call.invoke_async(&mut self.redis().clone()).await?;
        Ok(match how.as_str() {
            "closed" => InOrder::Closed,
            "empty" => InOrder::Empty,
            "wait" => InOrder::Wait(Duration::from_millis(ms)),
            "held" => InOrder::Taken(Duration::from_millis(ms)),
            "read" | "gap" => InOrder::Next {
                held: Held(token),
                gap: (how == "gap").then(|| gap(&position, &before, &entries)).flatten(),
                messages: messages(entries),
                failures,
            },
            _ => InOrder::Lost,
        })
    }

    /// Notes that the next message of a channel failed, or was not tried at all if nothing went wrong, and is tried again
    /// after so long; how often it has failed, none when the channel is not this worker's any more.
    ///
    /// # Errors
    /// Redis is unavailable: it may be tried again sooner.
    pub async fn hold_up(
        &self,
        subscription: &Subscription,
        channel: &ChannelName,
        worker: &WorkerId,
        (held, delay, problem): (&Held, Duration, Option<&str>),
    ) -> StoreResult<Option<u32>> {
        let mut call = script::BLOCK_CHANNEL.key(keys::cursor(channel, &subscription.name));
        let problem: String = problem.unwrap_or_default().chars().take(LONGEST_PROBLEM).collect();
        call.arg(worker.as_str()).arg(&held.0).arg(delay.as_millis().to_string()).arg(problem);
        let failures: i64 = call.invoke_async(&mut self.redis().clone()).await?;
        Ok(u32::try_from(failures).ok())
    }

    /// Lets what failed in order be tried at once in all channels: the target is another one now, or was mended.
    pub(super) async fn try_at_once(&self, subscription: &Subscription) -> StoreResult<()> {
        if subscription.ordering != Ordering::Channel {
            return Ok(());
        }
        let channels = self.channels_of(subscription).await?;
        for some in channels.chunks(FREED_AT_ONCE) {
            let mut pipeline = redis::pipe();
            for channel in some {
                pipeline.cmd("HDEL").arg(keys::cursor(channel, &subscription.name)).arg("w").ignore();
            }
            let mut connection = self.redis().pooled().await?;
            let () = pipeline.query_async(&mut connection).await?;
        }
        Ok(())
    }

    /// Where a subscription is in a channel, if it has begun there.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn position(&self, subscription: &Subscription, channel: &ChannelName) -> StoreResult<Option<Position>> {
        let mut command = redis::cmd("HGET");
        command.arg(keys::cursor(channel, &subscription.name)).arg("d");
        let position: Option<String> = command.query_async(&mut self.redis().clone()).await?;
        Ok(position.map(|position| read(&position)))
    }
}
