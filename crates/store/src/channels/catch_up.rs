//! Reads what is new in a channel into its ring. What is published on pub/sub is only a reason to look: the messages
//! come out of the history, one read for everything that was announced since the read before.

use std::sync::{Arc, MutexGuard};

use tokio::time::Instant;

use super::{
    encoded_message::EncodedMessage,
    hub::{ChannelHubInner, ChannelState, encode_message},
    message_ring::MessageRing,
    plain_messages::split_tagged,
};
use crate::{StoreResult, log_interruption, next_reconnect_delay, reconnect_delays};
use model::message::{Position, StoredMessage, plain_to_json};

/// Maximum number of messages in one read of a history.
const PAGE_SIZE: usize = 100;
/// Maximum number in the cheap read, which has no limit in bytes.
const CHEAP_PAGE_SIZE: usize = 8;

/// What a read did.
struct ReadResult {
    has_found: bool,
    has_more: bool,
}

impl MessageRing {
    /// Adds messages of the history that follow its head.
    fn push_stored(&mut self, followed: &ChannelState, messages: &[StoredMessage]) {
        for message in messages {
            if let Some(plain) = &mut self.catch_up.plain {
                plain.note_stored(message.position, &message.body);
            }
            self.push(encode_message(&followed.name, message));
        }
    }

    /// Adds plain messages that waited; true if there were some.
    fn push_plain(&mut self) -> bool {
        let (head, read) = (self.head, self.catch_up.read);
        let ready = self.catch_up.plain.as_mut().map(|plain| plain.take_ready(head, read)).unwrap_or_default();
        let has_some = !ready.is_empty();
        for message in ready {
            self.push(message);
        }
        has_some
    }
}

impl ChannelHubInner {
    /// Reads the channel, because somebody says that it has a message up to there.
    pub(super) fn look_for(self: &Arc<Self>, followed: &Arc<ChannelState>, announced: Position) {
        let mut ring = followed.ring();
        if ring.head.is_none_or(|head| head < announced) {
            ring.catch_up.announced = ring.catch_up.announced.max(Some(announced));
            self.start_reading(followed, ring);
        }
    }

    /// Reads the channel in any case.
    pub(super) fn catch_up(self: &Arc<Self>, followed: &Arc<ChannelState>) {
        let mut ring = followed.ring();
        ring.catch_up.is_forced = true;
        self.start_reading(followed, ring);
    }

    /// Starts a read, unless one is running, which then reads once more.
    fn start_reading(self: &Arc<Self>, followed: &Arc<ChannelState>, mut ring: MutexGuard<'_, MessageRing>) {
        if std::mem::replace(&mut ring.catch_up.is_running, true) {
            return;
        }
        drop(ring);
        let (inner, followed) = (self.clone(), followed.clone());
        tokio::spawn(async move {
            let mut delays = reconnect_delays();
            while let Err(error) = inner.read_until_current(&followed).await {
                log_interruption("reading a channel", &error);
                followed.ring().catch_up.is_forced = true;
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        });
    }

    async fn read_until_current(&self, followed: &ChannelState) -> StoreResult<()> {
        let mut has_more = false;
        loop {
            let (head, is_forced, not_before) = {
                let mut ring = followed.ring();
                let is_forced = std::mem::take(&mut ring.catch_up.is_forced);
                let not_before = ring.catch_up.fruitless.not_before().max(ring.round_ends_at());
                (ring.head, is_forced, not_before)
            };
            if let Some(not_before) = not_before.filter(|at| !is_forced && *at > Instant::now()) {
                tokio::time::sleep_until(not_before).await;
            }
            {
                let mut ring = followed.ring();
                ring.catch_up.announced = None;
                ring.catch_up.read += 1;
            }
            let permit = self.catch_up_permits.acquire().await;
            let result = match head {
                None => {
                    let head = self.channels.channel_head(&followed.name).await?;
                    followed.ring().reset(head.unwrap_or(Position::START));
                    ReadResult { has_found: true, has_more: false }
                }
                Some(head) if is_forced || has_more => self.read_page(followed, head).await?,
                Some(head) => match self.read_next(followed, head).await? {
                    Some(result) => result,
                    None => self.read_page(followed, head).await?,
                },
            };
            drop(permit);
            let mut ring = followed.ring();
            has_more = result.has_more;
            if result.has_found {
                ring.catch_up.fruitless.found();
            } else if !is_forced {
                ring.catch_up.fruitless.found_nothing();
            }
            let is_changed = ring.push_plain() || result.has_found || is_forced;
            let goes_on = has_more || ring.catch_up.needs_another_read(ring.head);
            ring.catch_up.is_running = goes_on;
            drop(ring);
            if is_changed {
                followed.wake_readers();
            }
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Reads the messages right behind the head, in the cheapest way; none if that is not enough to know what is new.
    async fn read_next(&self, followed: &ChannelState, head: Position) -> StoreResult<Option<ReadResult>> {
        let messages = self.channels.read_next_messages(&followed.name, head, CHEAP_PAGE_SIZE).await?;
        let mut expected = head;
        for message in &messages {
            expected = expected.next();
            if message.position != expected {
                return Ok(None);
            }
        }
        followed.ring().push_stored(followed, &messages);
        Ok(Some(ReadResult { has_found: !messages.is_empty(), has_more: messages.len() == CHEAP_PAGE_SIZE }))
    }

    async fn read_page(&self, followed: &ChannelState, head: Position) -> StoreResult<ReadResult> {
        let page = self.channels.read_channel_page(&followed.name, head, PAGE_SIZE).await?;
        let mut ring = followed.ring();
        let has_gap = page.gap(head).is_some();
        if has_gap {
            ring.reset(page.read_up_to);
        } else {
            ring.push_stored(followed, &page.messages);
        }
        Ok(ReadResult { has_found: has_gap || !page.messages.is_empty(), has_more: page.has_more })
    }

    /// Delivers a message from a plain Redis publisher to the current readers; it is not stored.
    pub(super) fn handle_plain_message(self: &Arc<Self>, followed: &Arc<ChannelState>, payload: &[u8]) {
        let (copy_of, body) = split_tagged(payload);
        let json = plain_to_json(&followed.name, body, self.channels.redis.estimated_now());
        let message = Arc::new(EncodedMessage::new(followed.name.clone(), None, &json));
        let mut ring = followed.ring();
        let (read, is_running) = (ring.catch_up.read, ring.catch_up.is_running);
        let Some(plain) = &mut ring.catch_up.plain else { return };
        plain.add(message, copy_of, body, read);
        // Behind the messages that are being read
        let is_ready = !is_running && ring.push_plain();
        let waits = !is_running && ring.catch_up.has_waiting();
        drop(ring);
        if is_ready {
            followed.wake_readers();
        }
        if let Some(position) = copy_of.filter(|_| waits) {
            self.look_for(followed, position);
        }
    }
}
