//! Job events for a stream of Server-Sent Events.
//!
//! A browser's `EventSource` reconnects with the last id it saw and misses nothing that is still kept. What is no
//! longer kept is an event `gap`.

use std::time::Duration;

use common::id::JobId;
use serde_json::json;
use store::{
    events::{
        EventCursor, EventFilter, EventPosition, EventReader, EventReaderItem, NewEvents, ReadEvent, is_terminal_kind,
    },
    jobs::Jobs,
};

use crate::{
    job_event::TerminalJobEvent,
    sse::{self, AwaitedSse, SseFrames},
};

/// The events that match a filter.
pub(crate) struct JobEventSource {
    reader: EventReader,
    filter: EventFilter,
    /// The job whose end is the end of the stream.
    job: Option<(Jobs, JobId)>,
    shutdown_grace: Duration,
}

/// Events, and the end of their job if none of them is.
pub(crate) fn encode<'a>(events: impl Iterator<Item = &'a ReadEvent>, ending: Option<&TerminalJobEvent>) -> String {
    let mut frames = String::new();
    events.for_each(|event| push_event(&mut frames, &event.id(), event));
    if let Some(ending) = ending {
        push_terminal_event(&mut frames, ending);
    }
    frames
}

impl JobEventSource {
    pub(crate) fn new(reader: EventReader, filter: EventFilter, shutdown_grace: Duration) -> Self {
        Self { reader, filter, job: None, shutdown_grace }
    }

    /// Ends the stream when that job ends.
    pub(crate) fn until_job_ends(mut self, jobs: Jobs, id: JobId) -> Self {
        self.job = Some((jobs, id));
        self
    }

    fn encode_events(&self, events: &NewEvents) -> SseFrames {
        let mut frames = String::new();
        for event in events.iter().filter(|event| self.filter.job.is_none_or(|job| event.job == Some(job))) {
            if self.filter.matches(event) {
                push_event(&mut frames, &events.cursor(event), event);
            }
            if self.job.is_some() && is_terminal_kind(&event.kind) {
                return SseFrames::Last(frames.into());
            }
        }
        SseFrames::More(frames.into())
    }

    /// How the job ended, if it ended without an event.
    async fn missed_ending(&self) -> Option<TerminalJobEvent> {
        let (jobs, id) = self.job.as_ref()?;
        match jobs.locate(*id).await.ok()? {
            Some(located) => TerminalJobEvent::for_job(&located),
            None => Some(TerminalJobEvent::forgotten(*id, jobs.estimated_now())),
        }
    }
}

impl AwaitedSse for JobEventSource {
    fn first_id(&self) -> String {
        self.reader.cursor().to_string()
    }

    async fn next(&mut self) -> SseFrames {
        let item = self.reader.next().await;
        match &item {
            EventReaderItem::Events(events) => self.encode_events(events),
            EventReaderItem::Gap(after) => SseFrames::More(gap_frame(*after).into()),
            EventReaderItem::Stopped => SseFrames::Last(shutdown_frame(self.shutdown_grace).into()),
        }
    }

    async fn next_when_silent(&mut self) -> SseFrames {
        match self.missed_ending().await {
            Some(ending) => SseFrames::Last(encode(std::iter::empty(), Some(&ending)).into()),
            None => SseFrames::keep_alive(),
        }
    }
}

fn push_event(frames: &mut String, id: &str, event: &ReadEvent) {
    sse::push_event(frames, Some(&id), &event.kind, &event.json);
}

/// Its id tells a browser that reconnects behind the end from one that has not seen the end.
fn push_terminal_event(frames: &mut String, ending: &TerminalJobEvent) {
    sse::push_event(frames, Some(&EventCursor::END), ending.kind, &ending.json);
}

fn gap_frame(after: EventPosition) -> String {
    let message = "events after this position are missing: they are not kept any more";
    let data = json!({ "type": "gap", "after": after.to_string(), "message": message });
    let mut frame = String::new();
    sse::push_event(&mut frame, None, "gap", &data.to_string());
    frame
}

/// The end of a stream because the gateway stops.
pub(crate) fn shutdown_frame(grace: Duration) -> String {
    let data = json!({ "reason": "shutdown", "grace_period_ms": grace.as_millis() });
    let mut frame = String::new();
    sse::push_event(&mut frame, None, "server.shutdown", &data.to_string());
    frame
}
