//! Server-Sent Events as a client reads them: it reconnects by itself with the id of the last event.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, PathWithQuery},
    session::Session,
};

/// The longest event: messages are much shorter.
const MAX_EVENT_BYTES: usize = 64 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A stream that sends not even a keep-alive is gone.
const SILENCE: Duration = Duration::from_mins(1);

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub(crate) id: String,
    /// `message` if the stream does not say.
    pub(crate) name: String,
    pub(crate) data: String,
}

/// A stream that goes on after a lost connection.
pub(crate) struct EventStream {
    path: String,
    parser: EventParser,
    body: Option<Incoming>,
    /// Whether it was open once: what fails before is an error of the request.
    was_open: bool,
    /// Whether it says that the connection is lost.
    is_silent: bool,
    pause: Duration,
}

impl EventStream {
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            parser: EventParser::default(),
            body: None,
            was_open: false,
            is_silent: false,
            pause: FIRST_PAUSE,
        }
    }

    /// Begins behind this id.
    pub(crate) fn after(mut self, id: Option<String>) -> Self {
        self.parser.last_id = id.unwrap_or_default();
        self
    }

    /// Without a word about lost connections: its events are not what matters.
    pub(crate) fn silent(mut self) -> Self {
        self.is_silent = true;
        self
    }

    /// The id with which a later command continues.
    pub(crate) fn last_id(&self) -> &str {
        &self.parser.last_id
    }

    /// The next event. While the gateway is away it tries again and again.
    pub(crate) async fn next(&mut self, session: &Session) -> CliResult<ServerEvent> {
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Ok(event);
            }
            match self.read(session).await {
                Ok(()) => {}
                Err(problem) if self.was_open && is_passing(&problem) => {
                    self.body = None;
                    self.parser.forget_half_an_event();
                    if !self.is_silent {
                        let note = format!("the connection is lost; trying again behind {:?}", self.last_id());
                        session.terminal.note(&note);
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(MAX_PAUSE);
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    async fn read(&mut self, session: &Session) -> CliResult {
        let body = if let Some(body) = &mut self.body {
            body
        } else {
            let call =
                GatewayCall::get(PathWithQuery::new(self.path.clone()).text()).header("Accept", "text/event-stream");
            let call = match self.last_id() {
                "" => call,
                id => call.header("Last-Event-ID", id),
            };
            let opened = tokio::time::timeout(SILENCE, session.gateway.open(call)).await;
            let response = opened.map_err(|_| session.gateway.silent())??;
            self.was_open = true;
            self.body.insert(response.into_body())
        };
        match tokio::time::timeout(SILENCE, body.frame()).await {
            Err(_) => Err(session.gateway.silent()),
            Ok(None) => Err(session.gateway.ended()),
            Ok(Some(Err(error))) => Err(session.gateway.unreachable(&error)),
            Ok(Some(Ok(frame))) => {
                self.pause = FIRST_PAUSE;
                if let Ok(bytes) = frame.into_data() {
                    self.parser.push(&bytes)?;
                }
                Ok(())
            }
        }
    }
}

/// What may be over soon: no connection, a gateway that stops or has no Redis, too many readers.
fn is_passing(problem: &CliError) -> bool {
    match problem {
        CliError::Unreachable { .. } => true,
        CliError::Refused(refusal) => refusal.status >= 500 || refusal.status == 429,
        _ => false,
    }
}

/// Takes bytes as they come and gives whole events.
#[derive(Default)]
struct EventParser {
    buffer: Vec<u8>,
    /// What of the buffer has no line end.
    searched: usize,
    event: ServerEvent,
    has_data: bool,
    last_id: String,
    events: VecDeque<ServerEvent>,
}

impl EventParser {
    fn push(&mut self, bytes: &[u8]) -> CliResult {
        self.buffer.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + end;
            let line = String::from_utf8_lossy(&self.buffer[start..end]).trim_end_matches('\r').to_owned();
            self.line(&line);
            start = end + 1;
            self.searched = start;
        }
        self.buffer.drain(..start);
        self.searched = self.buffer.len();
        if self.buffer.len() + self.event.data.len() > MAX_EVENT_BYTES {
            return Err(CliError::failed(format!("an event is longer than {MAX_EVENT_BYTES} bytes")));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            self.dispatch();
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data += value;
                self.has_data = true;
            }
            "event" => value.clone_into(&mut self.event.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.event.id),
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let mut event = std::mem::take(&mut self.event);
        if !event.id.is_empty() {
            self.last_id.clone_from(&event.id);
        }
        if std::mem::take(&mut self.has_data) {
            if event.name.is_empty() {
                "message".clone_into(&mut event.name);
            }
            self.events.push_back(event);
        }
    }

    fn forget_half_an_event(&mut self) {
        self.buffer.clear();
        self.searched = 0;
        self.event = ServerEvent::default();
        self.has_data = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_the_bytes_are_cut() {
        let text = ": keep-alive\nretry: 3000\nevent: begin\nid: 1-0\n\nid: 1-1\ndata: a\ndata: b: c\n\n\
                    event: gap\r\ndata: {\"count\":2}\r\n\r\nid: 1-2\ndata: half";
        for size in [1, 3, text.len()] {
            let mut parser = EventParser::default();
            for piece in text.as_bytes().chunks(size) {
                parser.push(piece).expect("not too long");
            }
            let seen: Vec<_> =
                parser.events.iter().map(|e| (e.id.as_str(), e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(seen, [("1-1", "message", "a\nb: c"), ("", "gap", "{\"count\":2}")], "{size}");
            assert_eq!(parser.last_id, "1-1", "half an event does not count");
            parser.forget_half_an_event();
            parser.push(b"id: 1-2\ndata: x\n\n").expect("not too long");
            assert_eq!(parser.events.back().map(|event| event.data.as_str()), Some("x"));
        }
    }
}
