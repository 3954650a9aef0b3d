//! Server-Sent Events: one writer for job events and for channel messages. A source says what to send; the writer says
//! how: headers, frames, the reconnect delay, keep-alives and the end of the stream.
//!
//! A client pulls: the writer asks its source for the next frame only when the connection has room for it. So a slow
//! client holds one frame here, delays nobody, and its source reads from the history what it has fallen behind.

use std::{convert::Infallible, fmt, pin::Pin, time::Duration};

use actix_web::{HttpResponse, HttpResponseBuilder, http::header, web::Bytes};
use common::json::{ObjectWriter, escape_line_ends};
use futures_util::{Stream, stream};
use tokio::time::{Instant, Sleep};

use crate::auth::{AccessEnd, StreamSession};

/// How long a client waits before it reconnects, in milliseconds.
const RETRY_MS: u64 = 3000;
/// Bytes that go to the connection at a time. It copies them, so a long message must not go to each of many clients that
/// take nothing as a whole.
const PIECE_BYTES: usize = 16 << 10;

/// What a stream is made of.
pub(crate) trait SseSource {
    /// The id with which a client that has received no event yet continues here.
    fn first_id(&self) -> String;

    /// The next frames. A call that is dropped loses nothing.
    async fn next(&mut self) -> SseFrames;

    /// What to send when the stream has been silent for the keep-alive interval: a keep-alive by default.
    async fn next_when_silent(&mut self) -> SseFrames {
        SseFrames::keep_alive()
    }
}

/// Frames, or none.
pub(crate) enum SseFrames {
    /// More may follow, at once if the last one is not whole. If there are none the stream stays as silent as it was.
    More(Bytes),
    /// The stream ends behind these.
    Last(Bytes),
}

impl SseFrames {
    /// A comment that shows the client, and what is between, that the stream lives. No empty line follows it: some
    /// clients would take that for the end of an event without data.
    pub(crate) fn keep_alive() -> Self {
        Self::More(Bytes::from_static(b": keep-alive\n"))
    }
}

/// A stream on its way to a client.
struct SseWriter<S> {
    source: S,
    session: StreamSession,
    keep_alive: Duration,
    last_sent_at: Instant,
    /// Checks whether a keep-alive is due. A frame does not move the timer: that would cost more than one check too
    /// many.
    keep_alive_timer: Pin<Box<Sleep>>,
    phase: SsePhase,
    /// What the connection gets next of what the source gave.
    unsent: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SsePhase {
    Opening,
    Open,
    Closed,
}

/// A stream of what the source has. It sends a keep-alive after `keep_alive` without a frame, and ends with the session.
pub(crate) fn stream_response(
    source: impl SseSource + 'static,
    session: StreamSession,
    keep_alive: Duration,
) -> HttpResponse {
    response_builder().streaming(SseWriter::new(source, session, keep_alive).into_stream())
}

/// A complete stream: these frames and its end.
pub(crate) fn complete_response(frames: &str) -> HttpResponse {
    response_builder().body(retry_line(RETRY_MS) + frames)
}

/// How long clients wait before they reconnect when the gateway stops, in milliseconds. It is random, so that they do
/// not all reach another gateway at once.
pub(crate) fn reconnect_delay_ms() -> u64 {
    rand::random_range(500..=5000)
}

/// Adds an event to `frames`. The id and the event must have no line breaks, the data is JSON on one line.
pub(crate) fn push_event(frames: &mut String, id: Option<&dyn fmt::Display>, event: &str, data: &str) {
    if let Some(id) = id {
        frames.push_str("id: ");
        frames.push_str(&id.to_string());
        frames.push('\n');
    }
    for part in ["event: ", event, "\ndata: ", &escape_line_ends(data), "\n\n"] {
        frames.push_str(part);
    }
}

/// Tells the client how long to wait before it reconnects. Clients take it from the line: no empty line needs to follow.
pub(crate) fn retry_line(delay_ms: u64) -> String {
    format!("retry: {delay_ms}\n")
}

/// The end of a stream whose client has lost its rights.
fn access_ended(why: AccessEnd) -> String {
    let mut data = ObjectWriter::default();
    why.write(&mut data);
    let mut frame = String::new();
    push_event(&mut frame, None, "access_ended", &data.finish());
    frame
}

/// The beginning of a stream: an event, because many clients keep the id of an event with data only.
fn opening(id: &str) -> String {
    let mut frames = retry_line(RETRY_MS);
    let mut data = ObjectWriter::default();
    data.text("after", id);
    push_event(&mut frames, Some(&id), "begin", &data.finish());
    frames
}

fn response_builder() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
        // A middleware or proxy that compresses would hold events back
        .insert_header((header::CACHE_CONTROL, "no-store, no-transform"))
        // nginx would buffer the answer until it ends
        .insert_header(("X-Accel-Buffering", "no"));
    response
}

impl<S: SseSource> SseWriter<S> {
    fn new(source: S, session: StreamSession, keep_alive: Duration) -> Self {
        Self {
            source,
            session,
            keep_alive,
            last_sent_at: Instant::now(),
            keep_alive_timer: Box::pin(tokio::time::sleep(keep_alive)),
            phase: SsePhase::Opening,
            unsent: Bytes::new(),
        }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut writer| async move {
            if writer.unsent.is_empty() {
                writer.unsent = writer.next().await?;
            }
            let piece = writer.unsent.split_to(writer.unsent.len().min(PIECE_BYTES));
            Some((Ok(piece), writer))
        })
    }

    /// What to send next, which is not empty.
    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            SsePhase::Closed => return None,
            SsePhase::Opening => {
                self.phase = SsePhase::Open;
                return Some(opening(&self.source.first_id()).into());
            }
            SsePhase::Open => {}
        }
        loop {
            let frames = tokio::select! {
                biased;
                // First, because a busy source always has something
                why = self.session.ended() => SseFrames::Last(access_ended(why).into()),
                frames = self.source.next() => frames,
                () = self.keep_alive_timer.as_mut() => {
                    let due_at = self.last_sent_at + self.keep_alive;
                    if due_at > Instant::now() {
                        self.keep_alive_timer.as_mut().reset(due_at);
                        continue;
                    }
                    let frames = self.source.next_when_silent().await;
                    self.keep_alive_timer.as_mut().reset(Instant::now() + self.keep_alive);
                    frames
                }
            };
            let bytes = match frames {
                SseFrames::More(bytes) if bytes.is_empty() => continue,
                SseFrames::More(bytes) => bytes,
                SseFrames::Last(bytes) => {
                    self.phase = SsePhase::Closed;
                    if bytes.is_empty() {
                        return None;
                    }
                    bytes
                }
            };
            self.last_sent_at = Instant::now();
            return Some(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::StreamExt;

    use super::*;

    /// Sends what it has and is silent between.
    struct Script(VecDeque<Option<SseFrames>>);

    impl SseSource for Script {
        fn first_id(&self) -> String {
            "7".to_owned()
        }

        async fn next(&mut self) -> SseFrames {
            match self.0.front() {
                Some(Some(_)) => self.0.pop_front().flatten().expect("frames"),
                _ => std::future::pending().await,
            }
        }

        async fn next_when_silent(&mut self) -> SseFrames {
            self.0.pop_front();
            SseFrames::keep_alive()
        }
    }

    async fn written(script: Vec<Option<SseFrames>>) -> String {
        written_in(StreamSession::endless(), script).await
    }

    async fn written_in(session: StreamSession, script: Vec<Option<SseFrames>>) -> String {
        let writer = SseWriter::new(Script(script.into()), session, Duration::from_secs(15));
        let chunks: Vec<_> = writer.into_stream().collect().await;
        let text: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.expect("never fails")).collect();
        String::from_utf8(text).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_a_beginning_keep_alives_while_it_is_silent_and_an_end() {
        let mut event = String::new();
        push_event(&mut event, Some(&8), "job.completed", "{}");
        assert_eq!(event, "id: 8\nevent: job.completed\ndata: {}\n\n");
        let more = SseFrames::More(event.into());
        let script =
            vec![Some(more), None, Some(SseFrames::More(Bytes::new())), None, Some(SseFrames::Last("x".into()))];
        let opening = "retry: 3000\nid: 7\nevent: begin\ndata: {\"after\":\"7\"}\n\n";
        let rest = "id: 8\nevent: job.completed\ndata: {}\n\n: keep-alive\n: keep-alive\nx";
        assert_eq!(written(script).await, [opening, rest].concat());
        assert_eq!(written(vec![Some(SseFrames::Last(Bytes::new()))]).await, opening);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_loses_its_rights_ends_with_the_reason_however_much_there_is_to_send() {
        let busy = vec![Some(SseFrames::More("x".into())), Some(SseFrames::More("y".into()))];
        let session = StreamSession::ended_already(AccessEnd::Expired);
        let text = written_in(session, busy).await;
        let (_, end) = text.split_once("event: begin\ndata: {\"after\":\"7\"}\n\n").expect("a beginning");
        assert!(
            end.starts_with("event: access_ended\ndata: {\"reason\":\"expired\",") && end.ends_with("\n\n"),
            "{end}"
        );
    }
}
