//! Server-Sent Events: one writer for job events and for channel messages. A source says what to send; the writer says
//! how: headers, frames, the reconnect delay, keep-alives and the end of the stream.
//!
//! A client pulls: the writer asks its source for the next frame only when the connection has room for it. So a slow
//! client holds one frame here, delays nobody, and its source reads from the history what it has fallen behind.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_web::{HttpResponse, HttpResponseBuilder, http::header, web::Bytes};
use common::json::{ObjectWriter, escape_line_ends};
use futures_util::{FutureExt, Stream, future::LocalBoxFuture};
use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};

use crate::{
    auth::{AccessEnd, StreamSession},
    wake_relay::RelayedWaker,
};

/// How long a client waits before it reconnects, in milliseconds.
const RETRY_MS: u64 = 3000;
/// Bytes that go to the connection at a time. It copies them, so a long message must not go to each of many clients that
/// take nothing as a whole.
const PIECE_BYTES: usize = 16 << 10;

/// What a stream is made of. It is polled, not awaited: a future of each of thousands of streams would take more memory than
/// the stream, and be made anew for each frame.
pub(crate) trait SseSource: Unpin {
    /// The id with which a client that has received no event yet continues here.
    fn first_id(&self) -> String;

    /// Polls for the next frames.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<SseFrames>;

    /// What to send when the stream has been silent for the keep-alive interval: a keep-alive by default. None if polling
    /// tells.
    fn when_silent(&mut self) -> Option<SseFrames> {
        Some(SseFrames::keep_alive())
    }
}

/// What a stream is made of that has few readers: it is awaited. [`AwaitedSource`] makes it a source.
pub(crate) trait AwaitedSse: 'static {
    /// As of a source.
    fn first_id(&self) -> String;

    /// The next frames. A call that is dropped loses nothing.
    async fn next(&mut self) -> SseFrames;

    /// What to send when the stream has been silent for the keep-alive interval: a keep-alive by default.
    async fn next_when_silent(&mut self) -> SseFrames {
        SseFrames::keep_alive()
    }
}

/// A source that is awaited.
pub(crate) struct AwaitedSource<S> {
    first_id: String,
    /// The next frames, and the source behind them.
    next: LocalBoxFuture<'static, (SseFrames, S)>,
    silence: Rc<Notify>,
}

impl<S: AwaitedSse> AwaitedSource<S> {
    pub(crate) fn new(source: S) -> Self {
        let (first_id, silence) = (source.first_id(), Rc::default());
        Self { first_id, next: next_of(source, Rc::clone(&silence)).boxed_local(), silence }
    }
}

async fn next_of<S: AwaitedSse>(mut source: S, silence: Rc<Notify>) -> (SseFrames, S) {
    let frames = tokio::select! {
        biased;
        frames = source.next() => Some(frames),
        () = silence.notified() => None,
    };
    match frames {
        Some(frames) => (frames, source),
        None => (source.next_when_silent().await, source),
    }
}

impl<S: AwaitedSse> SseSource for AwaitedSource<S> {
    fn first_id(&self) -> String {
        self.first_id.clone()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<SseFrames> {
        let (frames, source) = ready!(self.next.poll_unpin(cx));
        self.next = next_of(source, self.silence.clone()).boxed_local();
        Poll::Ready(frames)
    }

    fn when_silent(&mut self) -> Option<SseFrames> {
        self.silence.notify_one();
        None
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
    /// What the source wakes.
    waker: RelayedWaker,
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
    response_builder().streaming(SseWriter::new(source, session, keep_alive))
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
            waker: RelayedWaker::default(),
            session,
            keep_alive,
            last_sent_at: Instant::now(),
            keep_alive_timer: Box::pin(tokio::time::sleep(keep_alive)),
            phase: SsePhase::Opening,
            unsent: Bytes::new(),
        }
    }

    /// What to send next, which is not empty; none at the end.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.phase {
            SsePhase::Closed => return Poll::Ready(None),
            SsePhase::Opening => {
                self.phase = SsePhase::Open;
                return Poll::Ready(Some(opening(&self.source.first_id()).into()));
            }
            SsePhase::Open => {}
        }
        loop {
            let bytes = match ready!(self.poll_frames(cx)) {
                SseFrames::More(bytes) if bytes.is_empty() => continue,
                SseFrames::More(bytes) => bytes,
                SseFrames::Last(bytes) => {
                    self.phase = SsePhase::Closed;
                    if bytes.is_empty() {
                        return Poll::Ready(None);
                    }
                    bytes
                }
            };
            self.last_sent_at = Instant::now();
            return Poll::Ready(Some(bytes));
        }
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<SseFrames> {
        // First, because a busy source always has something
        if let Poll::Ready(why) = self.session.poll_ended(cx) {
            return Poll::Ready(SseFrames::Last(access_ended(why).into()));
        }
        loop {
            let source = &mut self.source;
            if let Poll::Ready(frames) = self.waker.poll(cx, |cx| source.poll_next(cx)) {
                return Poll::Ready(frames);
            }
            ready!(self.keep_alive_timer.as_mut().poll(cx));
            let (due_at, now) = (self.last_sent_at + self.keep_alive, Instant::now());
            if due_at > now {
                self.keep_alive_timer.as_mut().reset(due_at);
                continue;
            }
            self.keep_alive_timer.as_mut().reset(now + self.keep_alive);
            if let Some(frames) = self.source.when_silent() {
                return Poll::Ready(frames);
            }
        }
    }
}

impl<S: SseSource> Stream for SseWriter<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let writer = self.get_mut();
        if writer.unsent.is_empty() {
            match ready!(writer.poll_bytes(cx)) {
                Some(bytes) => writer.unsent = bytes,
                None => return Poll::Ready(None),
            }
        }
        let piece_len = writer.unsent.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(writer.unsent.split_to(piece_len))))
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

        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<SseFrames> {
            match self.0.front() {
                Some(Some(_)) => Poll::Ready(self.0.pop_front().flatten().expect("frames")),
                _ => Poll::Pending,
            }
        }

        fn when_silent(&mut self) -> Option<SseFrames> {
            self.0.pop_front();
            Some(SseFrames::keep_alive())
        }
    }

    impl AwaitedSse for Script {
        fn first_id(&self) -> String {
            SseSource::first_id(self)
        }

        async fn next(&mut self) -> SseFrames {
            std::future::poll_fn(|cx| self.poll_next(cx)).await
        }

        async fn next_when_silent(&mut self) -> SseFrames {
            tokio::task::yield_now().await;
            self.when_silent().expect("a keep-alive")
        }
    }

    async fn written(script: fn() -> Vec<Option<SseFrames>>) -> String {
        written_in([StreamSession::endless(), StreamSession::endless()], script).await
    }

    /// What is written, which is the same if the source is awaited.
    async fn written_in(session: [StreamSession; 2], script: fn() -> Vec<Option<SseFrames>>) -> String {
        let [session, other] = session;
        let text = written_by(Script(script().into()), session).await;
        assert_eq!(written_by(AwaitedSource::new(Script(script().into())), other).await, text);
        text
    }

    async fn written_by(source: impl SseSource, session: StreamSession) -> String {
        let writer = SseWriter::new(source, session, Duration::from_secs(15));
        let chunks: Vec<_> = writer.collect().await;
        let text: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.expect("never fails")).collect();
        String::from_utf8(text).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_a_beginning_keep_alives_while_it_is_silent_and_an_end() {
        let mut event = String::new();
        push_event(&mut event, Some(&8), "job.completed", "{}");
        assert_eq!(event, "id: 8\nevent: job.completed\ndata: {}\n\n");
        let script = || {
            let more = SseFrames::More("id: 8\nevent: job.completed\ndata: {}\n\n".into());
            vec![Some(more), None, Some(SseFrames::More(Bytes::new())), None, Some(SseFrames::Last("x".into()))]
        };
        let opening = "retry: 3000\nid: 7\nevent: begin\ndata: {\"after\":\"7\"}\n\n";
        let rest = "id: 8\nevent: job.completed\ndata: {}\n\n: keep-alive\n: keep-alive\nx";
        assert_eq!(written(script).await, [opening, rest].concat());
        assert_eq!(written(|| vec![Some(SseFrames::Last(Bytes::new()))]).await, opening);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_loses_its_rights_ends_with_the_reason_however_much_there_is_to_send() {
        let busy = || vec![Some(SseFrames::More("x".into())), Some(SseFrames::More("y".into()))];
        let ended = || StreamSession::ended_already(AccessEnd::Expired);
        let text = written_in([ended(), ended()], busy).await;
        let (_, end) = text.split_once("event: begin\ndata: {\"after\":\"7\"}\n\n").expect("a beginning");
        assert!(
            end.starts_with("event: access_ended\ndata: {\"reason\":\"expired\",") && end.ends_with("\n\n"),
            "{end}"
        );
    }
}
