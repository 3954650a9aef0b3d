//! A WebSocket: channels are subscribed and left while it is open, over the same cursors as the event streams. All frames
//! are JSON text. What the client does not take is not gathered for it.

mod asked;
mod outbox;
mod window;

use std::{future::Future, io, time::Duration};

use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, ProtocolError, Session};
use common::{channel_pattern::ChannelPattern, json::ObjectWriter, name::ChannelName};
use model::message::Position;
use store::channels::{Left, MOST_LEFT, Reader, Start, Told};
use tokio::time::Instant;

use self::{asked::Asked, window::NotSent};
pub(crate) use self::{
    outbox::Outbox,
    window::{LARGEST_WINDOW, Window},
};
use crate::{
    error::{ApiError, Code},
    routes::parse_since,
    sse::retry_after_stop_ms,
    startup::Services,
};

/// Longest frame of a client.
pub(crate) const FRAME_LIMIT_BYTES: usize = 16 * 1024;
/// Pings that may go unanswered.
const SILENT_PINGS: u32 = 2;
/// A window that is full for so long has nothing kept ready for it.
const REST_AFTER: Duration = Duration::from_secs(2);

/// An open connection.
pub(crate) struct MessageSocket {
    pub(crate) services: Services,
    pub(crate) reader: Reader,
    pub(crate) session: Session,
    pub(crate) outbox: Outbox,
    /// None: whatever it takes.
    pub(crate) window: Option<Window>,
}

/// Why it is over.
enum Over {
    /// The client has gone, or takes nothing.
    Gone,
    /// It is told why.
    Closing(CloseCode, &'static str),
}

impl From<Closed> for Over {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

impl MessageSocket {
    /// Serves it until it is over.
    pub(crate) async fn run(mut self, mut frames: AggregatedMessageStream) {
        let every = self.services.settings.gateway.event_keep_alive;
        let ping = tokio::time::sleep(every);
        tokio::pin!(ping);
        let mut silent_pings = 0;
        let stopping = self.services.stopping.clone();
        let rest = tokio::time::sleep(REST_AFTER);
        tokio::pin!(rest);
        let mut was_full = false;
        let over = loop {
            let is_full = self.window.as_ref().is_some_and(Window::is_full);
            if is_full && !was_full {
                rest.as_mut().reset(Instant::now() + REST_AFTER);
            }
            was_full = is_full;
            let result = tokio::select! {
                frame = frames.recv() => {
                    silent_pings = 0;
                    match frame {
                        Some(Ok(frame)) => self.answer(frame).await,
                        Some(Err(error)) => Err(unreadable(&error)),
                        None => Err(Over::Gone),
                    }
                }
                told = self.reader.next(), if !is_full => self.tell(&told).await,
                () = stopping.cancelled(), if is_full => self.tell(&Told::Stopped).await,
                () = &mut rest, if is_full && !rest.is_elapsed() => {
                    self.reader.rest();
                    Ok(())
                }
                () = &mut ping => {
                    ping.as_mut().reset(Instant::now() + every);
                    silent_pings += 1;
                    if silent_pings > SILENT_PINGS {
                        Err(Over::Closing(CloseCode::Policy, "no answer to a ping"))
                    } else {
                        self.send(async |session| session.ping(b"").await).await
                    }
                }
            };
            if let Err(over) = result {
                break over;
            }
        };
        if let Over::Closing(code, why) = over {
            let reason = CloseReason { code, description: Some(why.to_owned()) };
            let _ = tokio::time::timeout(self.services.settings.channels.stall, self.session.close(Some(reason))).await;
        }
    }

    /// Sends something, unless the client takes nothing for too long.
    async fn send(&mut self, send: impl AsyncFnOnce(&mut Session) -> Result<(), Closed>) -> Result<(), Over> {
        let stall = self.services.settings.channels.stall;
        within(stall, send(&mut self.session)).await
    }

    async fn say(&mut self, json: String) -> Result<(), Over> {
        let outbox = self.outbox.clone();
        self.send(async |session| {
            outbox.put(json.len()).await;
            session.text(json).await
        })
        .await
    }

    async fn tell(&mut self, told: &Told) -> Result<(), Over> {
        let mut json = ObjectWriter::default();
        match told {
            Told::Message(message) => {
                json.text("type", "message").splice(message.json());
                if let (Some(window), Some(position)) = (&mut self.window, message.position) {
                    window.sent(&message.channel, position);
                }
            }
            Told::Gap { channel, gap } => {
                json.text("type", "gap").text("channel", channel.as_str());
                gap.write(&mut json);
            }
            Told::LeftOut(channel) => {
                let error = ApiError::from(store::channels::TooManyRead);
                return self.say(refusal(&error, Some(channel.as_str()))).await;
            }
            Told::Stopped => {
                json.text("type", "closing").number("retry_ms", retry_after_stop_ms());
                self.say(json.finish()).await?;
                return Err(Over::Closing(CloseCode::Restart, "the gateway stops"));
            }
        }
        self.say(json.finish()).await
    }

    async fn answer(&mut self, frame: AggregatedMessage) -> Result<(), Over> {
        match frame {
            AggregatedMessage::Text(text) => {
                let Some(answer) = self.carry_out(text.as_bytes()).await else { return Ok(()) };
                self.say(answer).await
            }
            AggregatedMessage::Ping(bytes) => self.send(async |session| session.pong(&bytes).await).await,
            AggregatedMessage::Pong(_) => Ok(()),
            AggregatedMessage::Binary(_) => Err(Over::Closing(CloseCode::Unsupported, "frames must be JSON text")),
            AggregatedMessage::Close(_) => Err(Over::Closing(CloseCode::Normal, "")),
        }
    }

    /// What a client asks for, and the answer to it if there is one.
    async fn carry_out(&mut self, text: &[u8]) -> Option<String> {
        let asked = match Asked::parse(text) {
            Ok(asked) => asked,
            Err(error) => return Some(refusal(&error, None)),
        };
        let result = match asked.action.as_str() {
            "subscribe" => self.subscribe(&asked).await.map(Some),
            "unsubscribe" => self.unsubscribe(&asked.channel).map(Some),
            "ack" => self.acknowledge(&asked).map(|()| None),
            _ => Err(ApiError::invalid("type must be subscribe, unsubscribe or ack")),
        };
        result.unwrap_or_else(|error| Some(refusal(&error, Some(&asked.channel))))
    }

    fn acknowledge(&mut self, asked: &Asked) -> Result<(), ApiError> {
        let (channel, id) = (asked.channel.parse::<ChannelName>()?, asked.id.as_deref());
        let id: Position = id.ok_or_else(|| ApiError::invalid("an ack must have the id of a message"))?.parse()?;
        if !self.reader.positions().contains_key(&channel) {
            return Err(not_subscribed(channel.as_str()));
        }
        let Some(window) = &mut self.window else {
            let message =
                format!("nothing is to be acknowledged without a window: /v1/ws?window=1 to {LARGEST_WINDOW}");
            return Err(ApiError::invalid(message));
        };
        window.acknowledge(&channel, id).map_err(|NotSent| {
            ApiError::invalid(format!("{id} was not sent here, nor anything of that channel that is newer"))
        })
    }

    async fn subscribe(&mut self, asked: &Asked) -> Result<String, ApiError> {
        let start = match (&asked.after, &asked.since) {
            (Some(_), Some(_)) => return Err(ApiError::invalid("give either after or since")),
            (Some(after), None) => Start::After(after.parse::<Position>()?),
            (None, Some(since)) => Start::Since(parse_since(&self.services, since).await?),
            (None, None) => Start::Now,
        };
        let mut json = ObjectWriter::default();
        json.text("type", "subscribed").text("channel", &asked.channel);
        if asked.channel.contains('*') {
            if asked.after.is_some() {
                return Err(ApiError::invalid("after is for one channel: a pattern begins with since, or now"));
            }
            let pattern: ChannelPattern = asked.channel.parse()?;
            self.reader.add_pattern(pattern, start).await??;
        } else {
            let channel: ChannelName = asked.channel.parse()?;
            self.reader.add(&channel, start).await??;
            let after = self.reader.positions().get(&channel).copied().unwrap_or(Position::START);
            json.text("after", &after.to_string());
        }
        Ok(json.finish())
    }

    fn unsubscribe(&mut self, channel: &str) -> Result<String, ApiError> {
        let left = if channel.contains('*') {
            if self.reader.remove_pattern(&channel.parse()?) { Left::Left } else { Left::NotRead }
        } else {
            self.reader.remove(&channel.parse()?)
        };
        match left {
            Left::Left => {}
            Left::NotRead => return Err(not_subscribed(channel)),
            Left::TooMany => {
                let message = format!("at most {MOST_LEFT} channels of patterns may be left: leave the pattern");
                return Err(ApiError::invalid(message));
            }
        }
        if let Some(window) = &mut self.window {
            window.forget(|channel| self.reader.positions().contains_key(channel));
        }
        let mut json = ObjectWriter::default();
        json.text("type", "unsubscribed").text("channel", channel);
        Ok(json.finish())
    }
}

async fn within(stall: Duration, sent: impl Future<Output = Result<(), Closed>>) -> Result<(), Over> {
    Ok(tokio::time::timeout(stall, sent).await.map_err(|_| Over::Gone)??)
}

fn unreadable(error: &ProtocolError) -> Over {
    let too_long = Over::Closing(CloseCode::Size, "a frame must have at most 16 KiB");
    match error {
        ProtocolError::Overflow => too_long,
        // Pieces that are too long together
        ProtocolError::Io(error) if error.kind() == io::ErrorKind::Other => too_long,
        ProtocolError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            Over::Closing(CloseCode::Invalid, "frames must be UTF-8")
        }
        _ => Over::Closing(CloseCode::Protocol, "a frame that cannot be read"),
    }
}

fn not_subscribed(channel: &str) -> ApiError {
    ApiError::new(Code::NotFound, format!("{channel} is not subscribed"))
}

fn refusal(error: &ApiError, channel: Option<&str>) -> String {
    let mut json = ObjectWriter::default();
    json.text("type", "error");
    if let Some(channel) = channel {
        json.text("channel", channel);
    }
    json.raw("error", &error.to_json().to_string());
    json.finish()
}
