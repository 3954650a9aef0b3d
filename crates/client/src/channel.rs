//! Channels, followed across lost connections by the last id that was seen.

use std::{collections::VecDeque, time::Duration};

use http::{HeaderName, HeaderValue, Method, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    Error,
    delta::DeltaBases,
    sse::{Frame, Parser},
    transport::{Call, Pauses, RequestSender, encode},
};

/// A stream says at least that often that it lives, unless `gateway.event_keep_alive_ms` was raised.
const MAX_SILENCE: Duration = Duration::from_mins(1);
/// The longest pause after a stream that the gateway ended, unless it says otherwise.
const DEFAULT_RETRY: Duration = Duration::from_secs(1);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What happens in channels.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// Messages are missing: they are no longer kept.
    Gap(Gap),
    /// Who is present on a channel: of subscriptions that [ask for it](Subscription::presence).
    Presence(Presence),
}

/// Who is present on a channel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Presence {
    /// All members: first, and again where single events were missed.
    Members {
        /// The channel.
        channel: String,
        /// Its members.
        members: Vec<Member>,
    },
    /// One joined.
    Joined(Member),
    /// One has other info.
    Updated(Member),
    /// One left.
    Left(Member),
}

/// A member of a channel.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Member {
    /// Its channel, in an event.
    #[serde(default)]
    pub channel: String,
    /// Its id.
    pub member: String,
    /// When it joined.
    pub since: String,
    /// What it says of itself; null for nothing.
    #[serde(default)]
    pub info: Value,
}

/// A message of a channel.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// Its position in its channel; none of a message of another Redis client.
    #[serde(default)]
    pub id: Option<String>,
    /// Its channel.
    pub channel: String,
    /// When it was published.
    pub time: String,
    /// Its body: JSON where its content type says so, else text. Null where it is neither.
    #[serde(default)]
    pub data: Value,
    /// Its body in Base64 where it is no text.
    #[serde(default)]
    pub data_base64: Option<String>,
    /// Its content type, if it has one.
    #[serde(default)]
    pub content_type: Option<String>,
    /// Its attributes, if it is a `CloudEvent`.
    #[serde(default)]
    pub attributes: serde_json::Map<String, Value>,
}

/// Messages that are missing, as far as that is known.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// Their channel.
    #[serde(default)]
    pub channel: String,
    /// The last position before them.
    #[serde(default)]
    pub from: Option<String>,
    /// The first message after them.
    #[serde(default)]
    pub to: Option<String>,
    /// How many they are.
    #[serde(default)]
    pub count: Option<u64>,
}

/// Follows channels. See [`Client::subscribe`](crate::Client::subscribe).
pub struct Subscription {
    transport: RequestSender,
    path: String,
    stream: Option<Incoming>,
    parser: Parser,
    /// Events that arrived, each with the id that follows it.
    arrived: VecDeque<(Frame, Option<String>)>,
    /// Where the next connection continues.
    last_id: Option<String>,
    pauses: Pauses,
    bases: DeltaBases,
    /// Why the next connection is needed although this one lives.
    misfit: Option<Error>,
}

impl Subscription {
    pub(crate) fn new(transport: RequestSender, path: String) -> Self {
        let (parser, arrived, pauses) = (Parser::default(), VecDeque::new(), Pauses::default());
        let bases = DeltaBases::default();
        Self { transport, path, stream: None, parser, arrived, last_id: None, pauses, bases, misfit: None }
    }

    /// Begins at a time: RFC 3339, or a duration from now such as `-PT1H`.
    #[must_use]
    pub fn since(mut self, time: &str) -> Self {
        self.path = format!("{}&since={}", self.path, encode(time));
        self
    }

    /// Only messages that match: `{"attributes": {"type": {"prefix": "order."}}, "data": {"/total": {"gte": 100}}}`.
    #[must_use]
    pub fn filter(mut self, filter: &Value) -> Self {
        self.path = format!("{}&filter={}", self.path, encode(&filter.to_string()));
        self
    }

    /// Asks the gateway to send the difference from the message before where that is shorter. The messages that
    /// [`next`](Self::next) gives are whole.
    #[must_use]
    pub fn deltas(mut self) -> Self {
        self.path.push_str("&delta=fossil");
        self.bases.is_wanted = true;
        self
    }

    /// Takes part in the channels as a member, which says `info` of itself: null for nothing. They must be given by name.
    #[must_use]
    pub fn join_as(mut self, member: &str, info: &Value) -> Self {
        self.path = format!("{}&member={}", self.path, encode(member));
        if !info.is_null() {
            self.path = format!("{}&info={}", self.path, encode(&info.to_string()));
        }
        self
    }

    /// Also gives who is present on the channels, which must be given by name: all members first, then each that joins,
    /// changes its info or leaves.
    #[must_use]
    pub fn presence(mut self) -> Self {
        self.path.push_str("&presence=true");
        self
    }

    /// Begins after what [`last_id`](Self::last_id) gave, for the same channels.
    #[must_use]
    pub fn after(mut self, last_id: impl Into<String>) -> Self {
        self.last_id = Some(last_id.into());
        self
    }

    /// What to resume with after the last event that was handed out. Store it with what you did with that event.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Connects, so that nothing is missed from now on. Otherwise the first call of [`next`](Self::next) does it.
    ///
    /// # Errors
    /// The gateway refuses it.
    pub async fn open(&mut self) -> Result<(), Error> {
        while self.last_id.is_none() && self.arrived.is_empty() {
            self.advance().await?;
        }
        Ok(())
    }

    /// The next event. It waits for one, also while the gateway is away. May be dropped while it waits.
    ///
    /// # Errors
    /// The gateway refuses the stream, such as for a key that has expired. Call it again to try once more.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            while let Some((mut frame, id)) = self.arrived.pop_front() {
                if frame.name == "delta" {
                    match self.bases.text(&frame.data) {
                        Ok(text) => frame.data = text,
                        Err(error) => {
                            // Continues after the last message that was handed out, with a whole one
                            self.arrived.clear();
                            self.misfit = Some(Error::Unavailable { message: error.to_string(), retry_after: None });
                            break;
                        }
                    }
                }
                self.last_id = id.or(self.last_id.take());
                match frame.name.as_str() {
                    "message" | "delta" => {
                        let message: Message = serde_json::from_str(&frame.data)?;
                        self.bases.keep(&message.channel, message.id.as_deref(), frame.data);
                        return Ok(Event::Message(message));
                    }
                    "members" | "join" | "update" | "leave" => {
                        return Ok(Event::Presence(presence_of(&frame.name, &frame.data)?));
                    }
                    "gap" => return Ok(Event::Gap(serde_json::from_str(&frame.data)?)),
                    "access_ended" => {
                        self.stream = None;
                        return Err(access_ended(&frame.data));
                    }
                    _ => {}
                }
            }
            self.advance().await?;
        }
    }

    /// Connects if need be, and reads what comes next.
    async fn advance(&mut self) -> Result<(), Error> {
        let error = match self.read().await {
            Ok(Some(piece)) => {
                let mut frames = self.parser.feed(&piece);
                if frames.first().is_some_and(|(frame, _)| frame.name == "begin") {
                    self.last_id = frames.remove(0).1.or(self.last_id.take());
                }
                if !frames.is_empty() {
                    self.pauses = Pauses::default();
                }
                self.arrived.extend(frames);
                return Ok(());
            }
            // The gateway ended the stream: all of its clients should not come back at once
            Ok(None) => None,
            Err(error @ Error::Unavailable { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        self.stream = None;
        let pause = match error {
            None => self.parser.retry.unwrap_or(DEFAULT_RETRY).mul_f64(rand::random()),
            Some(error) => self.pauses.next(&error),
        };
        sleep(pause).await;
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<bytes::Bytes>, Error> {
        if let Some(error) = self.misfit.take() {
            return Err(error);
        }
        if self.stream.is_none() {
            // What came half comes again
            self.parser = Parser::resume(self.last_id.clone(), self.parser.retry);
            let mut call = Call::new(Method::GET, self.path.clone());
            call.headers.push((header::ACCEPT, HeaderValue::from_static("text/event-stream")));
            if let Some(id) = &self.last_id {
                let id =
                    HeaderValue::from_str(id).map_err(|_| Error::Invalid("that is no id of a stream".to_owned()))?;
                call.headers.push((LAST_EVENT_ID, id));
            }
            self.stream = Some(self.transport.open(&call).await?);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        loop {
            match timeout(MAX_SILENCE, stream.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Ok(Some(Err(error))) => return Err(Error::unavailable(&error)),
                Ok(None) => return Ok(None),
                Err(_) => {
                    let message = "the stream is silent".to_owned();
                    return Err(Error::Unavailable { message, retry_after: None });
                }
            }
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("path", &self.path).field("last_id", &self.last_id).finish_non_exhaustive()
    }
}

fn presence_of(name: &str, data: &str) -> Result<Presence, Error> {
    #[derive(Deserialize)]
    struct All {
        channel: String,
        members: Vec<Member>,
    }
    Ok(match name {
        "join" => Presence::Joined(serde_json::from_str(data)?),
        "update" => Presence::Updated(serde_json::from_str(data)?),
        "leave" => Presence::Left(serde_json::from_str(data)?),
        _ => {
            let All { channel, members } = serde_json::from_str(data)?;
            Presence::Members { channel, members }
        }
    })
}

fn access_ended(data: &str) -> Error {
    let told: Value = serde_json::from_str(data).unwrap_or_default();
    let message = told["message"].as_str().unwrap_or("the access has ended").to_owned();
    Error::Refused { status: 401, code: "invalid_key".to_owned(), message }
}
