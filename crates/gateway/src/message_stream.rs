//! Messages as they are published: Server-Sent Events, one stream for each client.
//!
//! The browser's `EventSource` comes back by itself and says what it saw last, at any gateway, so that nothing is missed or
//! sent twice. What is missing nevertheless is told as an event `gap`. A slow client is waited for by nobody: its stream is
//! read from the history as fast as the client takes it.

use std::{convert::Infallible, pin::Pin, time::Duration};

use actix_web::{HttpResponse, web::Bytes};
use common::json::ObjectWriter;
use futures_util::{Stream, stream};
use model::message::Position;
use store::channels::{ChannelReader, ReaderEvent};
use tokio::time::{Instant, Sleep};

use crate::sse;

/// How soon a client should come back, in milliseconds.
const RETRY_MS: u64 = 3000;

/// A stream on its way to a client.
pub(crate) struct MessageStream {
    reader: ChannelReader,
    /// Of one channel: ids are positions. Otherwise they hold the positions in all channels.
    is_single_channel: bool,
    keep_alive: Duration,
    last_sent_at: Instant,
    /// Looks whether it is time for a sign of life. A message does not move it: that would cost more than looking again.
    keep_alive_timer: Pin<Box<Sleep>>,
    phase: MessageStreamPhase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MessageStreamPhase {
    Opening,
    Open,
    Closed,
}

impl MessageStream {
    pub(crate) fn new(reader: ChannelReader, is_single_channel: bool, keep_alive: Duration) -> Self {
        let keep_alive_timer = Box::pin(tokio::time::sleep(keep_alive));
        Self {
            reader,
            is_single_channel,
            keep_alive,
            last_sent_at: Instant::now(),
            keep_alive_timer,
            phase: MessageStreamPhase::Opening,
        }
    }

    pub(crate) fn into_response(self) -> HttpResponse {
        sse::response_builder().streaming(self.into_stream())
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok(bytes), stream))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            MessageStreamPhase::Closed => return None,
            MessageStreamPhase::Opening => {
                self.phase = MessageStreamPhase::Open;
                // Whoever leaves before the first message comes back to this
                return Some(format!("retry: {RETRY_MS}\nid: {}\n\n", self.last_event_id()).into());
            }
            MessageStreamPhase::Open => {}
        }
        loop {
            let bytes = tokio::select! {
                biased;
                told = self.reader.next() => self.encode(&told),
                () = self.keep_alive_timer.as_mut() => {
                    let silent_until = self.last_sent_at + self.keep_alive;
                    if silent_until > Instant::now() {
                        self.keep_alive_timer.as_mut().reset(silent_until);
                        continue;
                    }
                    self.keep_alive_timer.as_mut().reset(Instant::now() + self.keep_alive);
                    Bytes::from_static(b": keep-alive\n\n")
                }
            };
            self.last_sent_at = Instant::now();
            return Some(bytes);
        }
    }

    fn last_event_id(&self) -> String {
        if self.is_single_channel {
            self.reader.positions().values().next().copied().unwrap_or(Position::START).to_string()
        } else {
            self.reader.resume_id()
        }
    }

    fn encode(&mut self, told: &ReaderEvent) -> Bytes {
        let text = match told {
            // Whoever comes back behind one without a position is where it was before
            ReaderEvent::Message(message) if self.is_single_channel || message.position.is_none() => {
                return message.event();
            }
            ReaderEvent::Message(message) => {
                let id = format!("id: {}\n", self.last_event_id());
                return [id.as_bytes(), &message.event_without_id()].concat().into();
            }
            ReaderEvent::Gap { channel, gap } => {
                let mut json = ObjectWriter::default();
                json.text("channel", channel.as_str());
                gap.write(&mut json);
                format!("event: gap\ndata: {}\n\n", json.finish())
            }
            ReaderEvent::ChannelSkipped(channel) => {
                let mut json = ObjectWriter::default();
                json.text("channel", channel.as_str());
                json.text("message", "this stream has as many channels as it may have: open another for this one");
                format!("event: left_out\ndata: {}\n\n", json.finish())
            }
            ReaderEvent::Stopped => {
                self.phase = MessageStreamPhase::Closed;
                format!("retry: {}\n\n", sse::reconnect_delay_ms())
            }
        };
        text.into()
    }
}
