//! Reads the history of a channel page by page. A page says whether messages are missing before it.

use std::collections::HashMap;

use redis::{FromRedisValue, Value};

use super::{Channels, sealed_message};
use crate::{StoreResult, keys, script, sealing::Sealer};
use common::{name::ChannelName, time::Millis, trace_context::TraceContext};
use model::message::{
    Position, StoredMessage,
    continuity::{self, Continuity, Gap, HistoryNeighbors},
};

/// Maximum bytes of a page; a page has at least one message, however large.
pub const MAX_PAGE_BYTES: usize = 1 << 20;
/// Maximum number of epochs to search for a time; each is a restart of Redis.
const MAX_EPOCHS: usize = 1000;
/// The window for a channel's message rate, in milliseconds.
const RATE_WINDOW_MS: Millis = 60_000;

/// A page of a history.
#[derive(Debug)]
pub struct ChannelPage {
    /// Whether messages are missing after the requested position.
    pub continuity: Continuity,
    /// The messages, oldest first.
    pub messages: Vec<StoredMessage>,
    /// Everything up to this position was read.
    pub read_up_to: Position,
    /// Whether more messages follow.
    pub has_more: bool,
}

impl ChannelPage {
    /// What is or may be missing after `asked`.
    #[must_use]
    pub fn gap(&self, asked: Position) -> Option<Gap> {
        match self.continuity {
            Continuity::Contiguous => None,
            Continuity::Gap(gap) => Some(gap),
            Continuity::Unknown => {
                Some(Gap { from: asked, to: self.messages.first().map(|message| message.position), count: None })
            }
        }
    }
}

type HistoryEntries = Vec<(String, Value)>;

/// Statistics of a channel.
#[derive(Debug)]
pub struct ChannelInfo {
    /// The newest position ever.
    pub head: Position,
    /// The oldest stored message.
    pub oldest: Option<Position>,
    /// Number of stored messages.
    pub length: u64,
    /// Approximate memory of the messages in Redis, in bytes.
    pub bytes: u64,
    /// When the newest stored message was published.
    pub last_published_at: Option<Millis>,
    /// Messages published in the last minute; extrapolated if less than a minute is stored.
    pub per_minute: u64,
}

impl Channels {
    /// Reads at most `limit` messages after a position.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read_channel_page(
        &self,
        channel: &ChannelName,
        after: Position,
        max: usize,
    ) -> StoreResult<ChannelPage> {
        self.read_channel_page_bounded(channel, after, max, MAX_PAGE_BYTES).await
    }

    /// Like [`Channels::read_channel_page`], with a limit in bytes; a single message may be larger.
    pub(super) async fn read_channel_page_bounded(
        &self,
        channel: &ChannelName,
        after: Position,
        max: usize,
        bytes: usize,
    ) -> StoreResult<ChannelPage> {
        let mut call = script::READ_PAGE.key(keys::channel_history(channel));
        call.key(keys::channel_state(channel)).arg(after.to_string()).arg(max).arg(bytes);
        let (head, is_kept, before, is_more, entries, predecessor): (String, bool, String, bool, _, String) =
            call.invoke_async(&mut self.redis.clone()).await?;
        let entries: HistoryEntries = entries;
        let positions: Vec<Position> = entries.iter().filter_map(|(id, _)| id.parse().ok()).collect();
        let around = HistoryNeighbors {
            is_retained: is_kept,
            before: before.parse().ok(),
            next: positions.first().copied(),
            head: head.parse().ok(),
            predecessor: predecessor.parse().ok(),
        };
        let messages: Vec<StoredMessage> = self.parse_messages(channel, entries);
        let last = positions.last().copied();
        let after_all = last.unwrap_or_else(|| continuity::resume_from(after, around));
        Ok(ChannelPage {
            continuity: continuity::check_continuity(after, around),
            messages,
            read_up_to: after_all,
            has_more: is_more,
        })
    }

    /// The message at a position, if it is still kept.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read_message(&self, channel: &ChannelName, at: Position) -> StoreResult<Option<StoredMessage>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::channel_history(channel)).arg(at.to_string()).arg(at.to_string());
        let entries: HistoryEntries = command.query_async(&mut self.redis.clone()).await?;
        Ok(self.parse_messages(channel, entries).into_iter().next())
    }

    /// At most `max` messages behind a position, without asking whether some are missing before them.
    pub(super) async fn read_next_messages(
        &self,
        channel: &ChannelName,
        after: Position,
        max: usize,
    ) -> StoreResult<Vec<StoredMessage>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::channel_history(channel)).arg(format!("({after}")).arg("+").arg("COUNT").arg(max);
        let entries: HistoryEntries = command.query_async(&mut self.redis.clone()).await?;
        Ok(self.parse_messages(channel, entries))
    }

    /// The position before the first message published at that time or later.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channel_position_at(&self, channel: &ChannelName, at: Millis) -> StoreResult<Position> {
        Ok(self.find_position_at(channel, at).await?.map_or(Position::START, |(position, _)| position))
    }

    /// Like [`Channels::channel_position_at`], but never before the oldest stored message, so that trimmed messages
    /// are no gap.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn retained_channel_position_at(&self, channel: &ChannelName, at: Millis) -> StoreResult<Position> {
        match self.channel_position_at(channel, at).await? {
            Position::START => self.channel_start_position(channel).await,
            since => Ok(since),
        }
    }

    /// The position before the oldest stored message.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub(crate) async fn channel_start_position(&self, channel: &ChannelName) -> StoreResult<Position> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::channel_history(channel)).arg("-").arg("+").arg("COUNT").arg(1);
        let first: HistoryEntries = command.query_async(&mut self.redis.clone()).await?;
        let first: Option<Position> = first.first().and_then(|(id, _)| id.parse().ok());
        match first {
            Some(Position { sequence: 0, .. }) => Ok(Position::START),
            Some(Position { epoch, sequence }) => Ok(Position { epoch, sequence: sequence - 1 }),
            // All messages may have been trimmed
            None => Ok(self.channel_head(channel).await?.unwrap_or(Position::START)),
        }
    }

    async fn find_position_at(&self, channel: &ChannelName, at: Millis) -> StoreResult<Option<(Position, u64)>> {
        let mut call = script::FIND_POSITION_AT.key(keys::channel_history(channel));
        let found: Option<(String, u64)> = call.arg(at).arg(MAX_EPOCHS).invoke_async(&mut self.redis.clone()).await?;
        Ok(found.map(|(position, count)| (position.parse().unwrap_or(Position::START), count)))
    }

    /// The newest position ever in a channel; none if it has no history.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channel_head(&self, channel: &ChannelName) -> StoreResult<Option<Position>> {
        // Read a page of zero messages
        let mut call = script::READ_PAGE.key(keys::channel_history(channel));
        call.key(keys::channel_state(channel)).arg(Position::START.to_string()).arg(0).arg(0);
        let (head, _, _, _, _, _): (String, Value, Value, Value, Value, Value) =
            call.invoke_async(&mut self.redis.clone()).await?;
        Ok(head.parse().ok())
    }

    /// Statistics of a channel; none if it has no history.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn channel_info(&self, channel: &ChannelName) -> StoreResult<Option<ChannelInfo>> {
        let key = keys::channel_history(channel);
        let mut pipeline = redis::pipe();
        pipeline.cmd("XREVRANGE").arg(&key).arg("+").arg("-").arg("COUNT").arg(1);
        pipeline.cmd("XRANGE").arg(&key).arg("-").arg("+").arg("COUNT").arg(1);
        pipeline.cmd("XLEN").arg(&key).cmd("MEMORY").arg("USAGE").arg(&key);
        let mut connection = self.redis.pooled_connection().await?;
        let (newest, oldest, length, bytes): (HistoryEntries, HistoryEntries, u64, Option<u64>) =
            pipeline.query_async(&mut connection).await?;
        let Some(head) = self.channel_head(channel).await? else { return Ok(None) };
        let read = |entries: HistoryEntries| {
            let (id, fields) = entries.into_iter().next()?;
            parse_stored_message(self.redis.sealer(), channel, &id, fields)
        };
        let (newest, oldest) = (read(newest), read(oldest));
        let now = self.redis.now().await?;
        let kept = self.find_position_at(channel, now - RATE_WINDOW_MS).await?.map_or(0, |(_, count)| count);
        let per_minute = oldest.as_ref().map_or(0, |oldest| messages_per_minute(kept, oldest, now));
        let (first, last_at) = (oldest.map(|message| message.position), newest.map(|message| message.published_at));
        Ok(Some(ChannelInfo {
            head,
            oldest: first,
            length,
            bytes: bytes.unwrap_or_default(),
            last_published_at: last_at,
            per_minute,
        }))
    }

    fn parse_messages(&self, channel: &ChannelName, entries: HistoryEntries) -> Vec<StoredMessage> {
        let parse = |(id, fields): (String, Value)| parse_stored_message(self.redis.sealer(), channel, &id, fields);
        entries.into_iter().filter_map(parse).collect()
    }

    /// The time by Redis's clock, which dates messages.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn server_time(&self) -> StoreResult<Millis> {
        self.redis.now().await
    }
}

/// Messages per minute, from the number of messages in the window and the oldest stored one.
fn messages_per_minute(kept: u64, oldest: &StoredMessage, now: Millis) -> u64 {
    let age = (now - oldest.published_at).max(1);
    let is_trimmed = oldest.position.sequence > 0;
    if !is_trimmed || age >= RATE_WINDOW_MS {
        return kept;
    }
    let per_minute = u128::from(kept) * u128::from(RATE_WINDOW_MS.unsigned_abs()) / u128::from(age.unsigned_abs());
    u64::try_from(per_minute).unwrap_or(u64::MAX)
}

/// Parses a message of the history. An entry that Galley did not write may contain anything.
pub(crate) fn parse_stored_message(
    sealer: &Sealer,
    channel: &ChannelName,
    id: &str,
    fields: Value,
) -> Option<StoredMessage> {
    let position = id.parse().ok()?;
    let mut fields = HashMap::<String, Vec<u8>>::from_redis_value(fields).unwrap_or_default();
    let opened = sealed_message::open(sealer, channel, &mut fields);
    if let Err(error) = opened {
        tracing::error!(%channel, id, %error, "a message cannot be read");
        metrics::counter!("galley_damaged_messages_total").increment(1);
        return None;
    }
    let mut text = |name: &str| fields.remove(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let at = text("a").and_then(|text| text.parse().ok()).unwrap_or_default();
    let (content_type, attributes) = (text("t"), text("h"));
    Some(StoredMessage {
        position,
        published_at: at,
        content_type,
        attributes,
        trace: TraceContext::from_stored(text("c").as_deref(), text("r").as_deref()),
        body: fields.remove("b").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_a_channel_does_not_end_at_what_is_kept_of_it() {
        let oldest = |sequence: u64, at: Millis| StoredMessage {
            position: Position { epoch: 1, sequence },
            published_at: at,
            content_type: None,
            attributes: None,
            body: Vec::new(),
            trace: TraceContext::default(),
        };
        for (kept, oldest, expected) in [
            (100, oldest(0, 95_000), 100),
            (100, oldest(900, 95_000), 1_200),
            (100, oldest(900, 40_000), 100),
            (100, oldest(900, 100_000), 6_000_000),
            (100, oldest(900, 100_500), 6_000_000),
        ] {
            assert_eq!(messages_per_minute(kept, &oldest, 100_000), expected);
        }
    }
}
