//! Events as they happen: Server-Sent Events, one stream for each client.
//!
//! The browser's `EventSource` comes back by itself and says which event it saw last, so that nothing is missed or sent
//! twice. Whatever is missing nevertheless, because it is no longer kept, is told as an event `gap`.

use std::{convert::Infallible, time::Duration};

use actix_web::{HttpResponse, HttpResponseBuilder, http::header, web::Bytes};
use futures_util::{Stream, stream};
use serde_json::json;
use store::{
    events::{EventFilter, EventPosition, EventReader, EventReaderItem, ReadEvent, is_terminal_kind},
    jobs::Jobs,
};
use tokio::time::Instant;

use crate::job_event::TerminalJobEvent;

/// How soon a client should come back, in milliseconds.
const RETRY_FIELD: &str = "retry: 3000\n\n";

/// How soon clients should come back when the gateway stops, in milliseconds: spread, so that not all come to another one
/// at once.
pub(crate) fn reconnect_delay_ms() -> u64 {
    rand::random_range(500..=5000)
}

/// A stream on its way to a client.
pub(crate) struct JobEventStream {
    reader: EventReader,
    filter: EventFilter,
    keep_alive: Duration,
    /// Of one job: ends with it.
    job: Option<(Jobs, common::id::JobId)>,
    grace: Duration,
    last_sent_at: Instant,
    phase: JobEventStreamPhase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JobEventStreamPhase {
    Opening,
    Open,
    Closed,
}

/// The head of every answer with events in it.
pub(crate) fn response_builder() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // nginx would collect the answer until it is over
        .insert_header(("X-Accel-Buffering", "no"));
    response
}

/// A whole answer: these events, and that is all.
pub(crate) fn complete_response<'a>(
    events: impl Iterator<Item = &'a ReadEvent>,
    last: Option<&TerminalJobEvent>,
) -> HttpResponse {
    let mut text = RETRY_FIELD.to_owned();
    for event in events {
        push_event(&mut text, event);
    }
    if let Some(ending) = last {
        push_terminal_event(&mut text, ending);
    }
    response_builder().body(text)
}

impl JobEventStream {
    pub(crate) fn new(reader: EventReader, filter: EventFilter, keep_alive: Duration, grace: Duration) -> Self {
        Self {
            reader,
            filter,
            keep_alive,
            job: None,
            grace,
            last_sent_at: Instant::now(),
            phase: JobEventStreamPhase::Opening,
        }
    }

    /// Ends when that job is over.
    pub(crate) fn until_job_ends(mut self, jobs: Jobs, id: common::id::JobId) -> Self {
        self.job = Some((jobs, id));
        self
    }

    pub(crate) fn into_response(self) -> HttpResponse {
        response_builder().streaming(self.into_stream())
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut stream| async move {
            let text = stream.next().await?;
            Some((Ok(Bytes::from(text)), stream))
        })
    }

    async fn next(&mut self) -> Option<String> {
        if self.phase == JobEventStreamPhase::Closed {
            return None;
        }
        if self.phase == JobEventStreamPhase::Opening {
            self.phase = JobEventStreamPhase::Open;
            return Some(RETRY_FIELD.to_owned());
        }
        loop {
            let silent_until = self.last_sent_at + self.keep_alive;
            let text = match tokio::time::timeout_at(silent_until, self.reader.next()).await {
                Ok(told) => self.encode(&told),
                Err(_) => self.keep_alive_or_terminal_event().await,
            };
            if !text.is_empty() || self.phase == JobEventStreamPhase::Closed {
                self.last_sent_at = Instant::now();
                return Some(text).filter(|text| !text.is_empty());
            }
        }
    }

    fn encode(&mut self, told: &EventReaderItem) -> String {
        let mut text = String::new();
        match told {
            EventReaderItem::Events(..) => {
                for event in told.events().filter(|event| self.filter.job.is_none_or(|job| event.job == Some(job))) {
                    if self.filter.matches(event) {
                        push_event(&mut text, event);
                    }
                    if self.job.is_some() && is_terminal_kind(&event.kind) {
                        self.phase = JobEventStreamPhase::Closed;
                        break;
                    }
                }
            }
            EventReaderItem::Gap(after) => push_gap(&mut text, *after),
            EventReaderItem::Stopped => {
                let data = json!({ "reason": "shutdown", "grace_period_ms": self.grace.as_millis() });
                push_fields(&mut text, None, "server.shutdown", &data.to_string());
                self.phase = JobEventStreamPhase::Closed;
            }
        }
        text
    }

    /// A comment, unless the job of this stream has ended unheard: then that.
    async fn keep_alive_or_terminal_event(&mut self) -> String {
        if let Some((jobs, id)) = &self.job
            && let Ok(located) = jobs.locate(*id).await
            && let Some(ending) =
                located.as_ref().map_or_else(|| Some(TerminalJobEvent::forgotten(*id)), TerminalJobEvent::for_job)
        {
            self.phase = JobEventStreamPhase::Closed;
            let mut text = String::new();
            push_terminal_event(&mut text, &ending);
            return text;
        }
        ": keep-alive\n\n".to_owned()
    }
}

fn push_event(text: &mut String, event: &ReadEvent) {
    push_fields(text, Some(event.position), &event.kind, &event.json);
}

/// With a position by which we know a browser again that comes back although there is no more.
fn push_terminal_event(text: &mut String, ending: &TerminalJobEvent) {
    push_fields(text, Some(EventPosition::END), ending.kind, &ending.json);
}

fn push_gap(text: &mut String, after: EventPosition) {
    let message = "events after this position are missing: they are not kept any more";
    let data = json!({ "type": "gap", "after": after.to_string(), "message": message });
    push_fields(text, None, "gap", &data.to_string());
}

/// One message. Nothing given here holds the end of a line.
fn push_fields(text: &mut String, position: Option<EventPosition>, kind: &str, data: &str) {
    if let Some(position) = position {
        text.push_str("id: ");
        text.push_str(&position.to_string());
        text.push('\n');
    }
    for part in ["event: ", kind, "\ndata: ", data, "\n\n"] {
        text.push_str(part);
    }
}
