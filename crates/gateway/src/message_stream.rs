//! Messages as they are published: Server-Sent Events, one stream for each client.
//!
//! The browser's `EventSource` comes back by itself and says what it saw last, at any gateway, so that nothing is missed or
//! sent twice. What is missing nevertheless is told as an event `gap`. A slow client is waited for by nobody: its stream is
//! read from the history as fast as the client takes it.

use std::{convert::Infallible, time::Duration};

use actix_web::{HttpResponse, web::Bytes};
use common::{
    json::ObjectWriter,
    message::{Position, Resume},
    redis::channels::{Reader, Told},
};
use futures_util::{Stream, stream};
use tokio::time::Instant;

use crate::sse;

/// How soon a client should come back, in milliseconds.
const RETRY_MS: u64 = 3000;
/// The same when the gateway stops: spread, so that not all come to another one at once.
const RETRY_AFTER_STOP_MS: std::ops::RangeInclusive<u64> = 500..=5000;

/// A stream on its way to a client.
pub(crate) struct MessageStream {
    reader: Reader,
    /// Of one channel: ids are positions. Otherwise they hold the positions in all channels.
    is_single: bool,
    keep_alive: Duration,
    said_at: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Over,
}

impl MessageStream {
    pub(crate) fn new(reader: Reader, is_single: bool, keep_alive: Duration) -> Self {
        Self { reader, is_single, keep_alive, said_at: Instant::now(), phase: Phase::Opening }
    }

    pub(crate) fn into_response(self) -> HttpResponse {
        sse::builder().streaming(self.into_stream())
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut stream| async move {
            let text = stream.next().await?;
            Some((Ok(Bytes::from(text)), stream))
        })
    }

    async fn next(&mut self) -> Option<String> {
        match self.phase {
            Phase::Over => return None,
            Phase::Opening => {
                self.phase = Phase::Open;
                // Whoever leaves before the first message comes back to this
                return Some(format!("retry: {RETRY_MS}\nid: {}\n\n", self.id()));
            }
            Phase::Open => {}
        }
        let silent_until = self.said_at + self.keep_alive;
        let text = match tokio::time::timeout_at(silent_until, self.reader.next()).await {
            Ok(told) => self.text(&told),
            Err(_) => ": keep-alive\n\n".to_owned(),
        };
        self.said_at = Instant::now();
        Some(text)
    }

    fn id(&self) -> String {
        if self.is_single {
            self.reader.positions().values().next().copied().unwrap_or(Position::START).to_string()
        } else {
            Resume::id(self.reader.positions().iter())
        }
    }

    fn text(&mut self, told: &Told) -> String {
        match told {
            Told::Message(message) if message.position.is_some() => {
                format!("id: {}\nevent: message\ndata: {}\n\n", self.id(), message.json)
            }
            // Whoever comes back is where it was before
            Told::Message(message) => format!("event: message\ndata: {}\n\n", message.json),
            Told::Gap { channel, gap } => {
                let mut json = ObjectWriter::default();
                json.text("channel", channel.as_str());
                gap.write(&mut json);
                format!("event: gap\ndata: {}\n\n", json.finish())
            }
            Told::LeftOut(channel) => {
                let mut json = ObjectWriter::default();
                json.text("channel", channel.as_str());
                json.text("message", "this stream has as many channels as it may have: open another for this one");
                format!("event: left_out\ndata: {}\n\n", json.finish())
            }
            Told::Stopped => {
                self.phase = Phase::Over;
                format!("retry: {}\n\n", rand::random_range(RETRY_AFTER_STOP_MS))
            }
        }
    }
}
