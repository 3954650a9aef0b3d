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
use store::channels::{Reader, Told};
use tokio::time::{Instant, Sleep};

use crate::sse;

/// How soon a client should come back, in milliseconds.
const RETRY_MS: u64 = 3000;

/// A stream on its way to a client.
pub(crate) struct MessageStream {
    reader: Reader,
    /// Of one channel: ids are positions. Otherwise they hold the positions in all channels.
    is_single: bool,
    keep_alive: Duration,
    said_at: Instant,
    /// Looks whether it is time for a sign of life. A message does not move it: that would cost more than looking again.
    silence: Pin<Box<Sleep>>,
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
        let silence = Box::pin(tokio::time::sleep(keep_alive));
        Self { reader, is_single, keep_alive, said_at: Instant::now(), silence, phase: Phase::Opening }
    }

    pub(crate) fn into_response(self) -> HttpResponse {
        sse::builder().streaming(self.into_stream())
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok(bytes), stream))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::Over => return None,
            Phase::Opening => {
                self.phase = Phase::Open;
                // Whoever leaves before the first message comes back to this
                return Some(format!("retry: {RETRY_MS}\nid: {}\n\n", self.id()).into());
            }
            Phase::Open => {}
        }
        loop {
            let bytes = tokio::select! {
                biased;
                told = self.reader.next() => self.bytes(&told),
                () = self.silence.as_mut() => {
                    let silent_until = self.said_at + self.keep_alive;
                    if silent_until > Instant::now() {
                        self.silence.as_mut().reset(silent_until);
                        continue;
                    }
                    self.silence.as_mut().reset(Instant::now() + self.keep_alive);
                    Bytes::from_static(b": keep-alive\n\n")
                }
            };
            self.said_at = Instant::now();
            return Some(bytes);
        }
    }

    fn id(&self) -> String {
        if self.is_single {
            self.reader.positions().values().next().copied().unwrap_or(Position::START).to_string()
        } else {
            self.reader.resume_id()
        }
    }

    fn bytes(&mut self, told: &Told) -> Bytes {
        let text = match told {
            // Whoever comes back behind one without a position is where it was before
            Told::Message(message) if self.is_single || message.position.is_none() => return message.event(),
            Told::Message(message) => {
                let id = format!("id: {}\n", self.id());
                return [id.as_bytes(), &message.event_without_id()].concat().into();
            }
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
                format!("retry: {}\n\n", sse::retry_after_stop_ms())
            }
        };
        text.into()
    }
}
