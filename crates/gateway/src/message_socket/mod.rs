//! A WebSocket. The client subscribes to channels, leaves them and publishes while it is open; the readers are those of
//! the event streams. All frames are JSON text. A slow client makes the gateway buffer only a bounded number of bytes.

mod client_frame;
mod frame_guard;
mod frame_heads;
mod outbound_bytes;
mod publishing;
mod window;

use std::{
    future::{Future, poll_fn},
    io,
    str::Utf8Error,
    time::Duration,
};

use actix_web::error::PayloadError;
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, ProtocolError, Session};
use common::{channel_pattern::ChannelPattern, json::ObjectWriter, name::ChannelName};
use model::{access::Scope, message::Position};
use store::channels::{ChannelReader, MAX_EXCLUDED, PresenceEvent, ReaderEvent, ReaderStart, RemoveChannelResult};
use tokio::time::Instant;

use self::{client_frame::ClientFrame, window::UnknownAck};
pub(crate) use self::{
    frame_guard::FrameGuard,
    outbound_bytes::{OutboundBytes, SharedOutbound},
    publishing::{SocketPublisher, is_stranger},
    window::{AckWindow, MAX_WINDOW},
};
use crate::{
    auth::{AccessEnd, Caller, StreamSession},
    client_presence::{ClientPresence, PresenceRequest, next_presence},
    error::{ApiError, ErrorCode},
    routes::{filters_too_long, parse_delta, parse_filter, parse_since},
    services::Services,
    sse::reconnect_delay_ms,
    wake_relay::RelayedWaker,
};

/// The longest frame from a client, in bytes.
pub(crate) const FRAME_LIMIT_BYTES: usize = 16 * 1024;
/// What the frame of a message begins with, in place of the first bracket of the message.
pub(crate) const MESSAGE_HEAD: &str = r#"{"type":"message","#;
/// The most pings without an answer.
const MAX_UNANSWERED_PINGS: u32 = 2;
/// After a window has been full this long, its reader drops the pages that it holds and reads them again later.
const PAUSE_READER_AFTER: Duration = Duration::from_secs(2);

/// An open connection.
pub(crate) struct MessageSocket {
    pub(crate) services: Services,
    pub(crate) reader: ChannelReader,
    pub(crate) session: Session,
    pub(crate) outbound: OutboundBytes,
    pub(crate) caller: Caller,
    pub(crate) rights: StreamSession,
    pub(crate) publisher: SocketPublisher,
    /// None if the client did not ask for a window.
    pub(crate) window: Option<AckWindow>,
    /// None as long as the client takes no part and watches nothing. In a box, because few do.
    pub(crate) presence: Option<Box<ClientPresence>>,
}

/// Why the connection ends.
enum SocketClose {
    /// The client has gone, or reads nothing.
    Disconnected,
    /// The gateway closes it with a reason.
    CloseFrame(CloseCode, &'static str),
}

impl From<Closed> for SocketClose {
    fn from(_: Closed) -> Self {
        Self::Disconnected
    }
}

impl MessageSocket {
    /// Serves the connection until it ends.
    pub(crate) async fn run(mut self, mut frames: AggregatedMessageStream) {
        let every = self.services.settings.gateway.event_keep_alive;
        let ping = tokio::time::sleep(every);
        tokio::pin!(ping);
        let mut silent_pings = 0;
        let stopping = self.services.stopping.clone();
        let rest = tokio::time::sleep(PAUSE_READER_AFTER);
        tokio::pin!(rest);
        let mut was_full = false;
        let mut waker = RelayedWaker::default();
        let over = loop {
            let is_full = self.window.as_ref().is_some_and(AckWindow::is_full);
            if is_full && !was_full {
                rest.as_mut().reset(Instant::now() + PAUSE_READER_AFTER);
            }
            was_full = is_full;
            let result = tokio::select! {
                why = self.rights.ended() => self.end_access(why).await,
                frame = frames.recv() => {
                    silent_pings = 0;
                    match frame {
                        Some(Ok(frame)) => self.handle_frame(frame).await,
                        Some(Err(error)) => Err(close_for_protocol_error(&error)),
                        None => Err(SocketClose::Disconnected),
                    }
                }
                event = next_presence(&mut self.presence) => self.send_presence(&event).await,
                event = poll_fn(|cx| waker.poll(cx, |cx| self.reader.poll_next(cx))), if !is_full => self.send_event(&event).await,
                () = stopping.cancelled(), if is_full => self.send_event(&ReaderEvent::Stopped).await,
                () = &mut rest, if is_full && !rest.is_elapsed() => {
                    self.reader.discard_pending();
                    Ok(())
                }
                () = &mut ping => {
                    ping.as_mut().reset(Instant::now() + every);
                    silent_pings += 1;
                    if silent_pings > MAX_UNANSWERED_PINGS {
                        Err(SocketClose::CloseFrame(CloseCode::Policy, "no answer to a ping"))
                    } else {
                        self.ping().await
                    }
                }
            };
            if let Err(over) = result {
                break over;
            }
        };
        if let SocketClose::CloseFrame(code, why) = over {
            let reason = CloseReason { code, description: Some(why.to_owned()) };
            let _ =
                tokio::time::timeout(self.services.settings.channels.stall_timeout, self.session.close(Some(reason)))
                    .await;
        }
    }

    /// Sends a frame, unless the client reads nothing for too long.
    async fn send(&mut self, send: impl AsyncFnOnce(&mut Session) -> Result<(), Closed>) -> Result<(), SocketClose> {
        let stall = self.services.settings.channels.stall_timeout;
        with_stall_timeout(stall, send(&mut self.session)).await
    }

    async fn send_text(&mut self, json: String) -> Result<(), SocketClose> {
        let outbox = self.outbound.clone();
        self.send(async |session| {
            outbox.reserve(json.len()).await;
            session.text(json).await
        })
        .await
    }

    /// Asks for a sign of life. A client that gets none of the messages learns how far they have been read.
    async fn ping(&mut self) -> Result<(), SocketClose> {
        while let Some(skipped) = self.reader.take_skipped() {
            self.send_event(&skipped).await?;
        }
        self.send(async |session| session.ping(b"").await).await
    }

    async fn send_presence(&mut self, event: &PresenceEvent) -> Result<(), SocketClose> {
        self.outbound.reserve_shared(event.json.len()).await;
        let mut json = ObjectWriter::default();
        json.text("type", event.kind).splice(&event.json);
        self.send_text(json.finish()).await
    }

    async fn send_event(&mut self, event: &ReaderEvent) -> Result<(), SocketClose> {
        let mut json = ObjectWriter::default();
        match event {
            ReaderEvent::Message(message) => {
                self.outbound.reserve_shared(message.json().len()).await;
                json.text("type", message.kind()).splice(message.json());
                if let (Some(window), Some(position)) = (&mut self.window, message.position) {
                    window.record_sent(&message.channel, position);
                }
            }
            ReaderEvent::Gap { channel, gap } => {
                json.text("type", "gap").text("channel", channel.as_str());
                gap.write(&mut json);
            }
            ReaderEvent::Skipped { channel, position, count } => {
                json.text("type", "skipped").text("channel", channel.as_str());
                json.text("id", &position.to_string()).number("count", *count);
            }
            ReaderEvent::ChannelSkipped(channel) => {
                let error = ApiError::from(store::channels::ReaderLimitExceeded);
                return self.send_text(error_frame(&error, Some(channel.as_str())).finish()).await;
            }
            ReaderEvent::Stopped => {
                json.text("type", "closing").number("retry_ms", reconnect_delay_ms());
                self.send_text(json.finish()).await?;
                return Err(SocketClose::CloseFrame(CloseCode::Restart, "the gateway stops"));
            }
        }
        self.send_text(json.finish()).await
    }

    /// Says why the client's rights have ended, and closes.
    async fn end_access(&mut self, why: AccessEnd) -> Result<(), SocketClose> {
        let mut json = ObjectWriter::default();
        json.text("type", "access_ended");
        why.write(&mut json);
        self.send_text(json.finish()).await?;
        Err(SocketClose::CloseFrame(CloseCode::Policy, why.message()))
    }

    async fn handle_frame(&mut self, frame: AggregatedMessage) -> Result<(), SocketClose> {
        match frame {
            AggregatedMessage::Text(text) => {
                let Some(answer) = self.handle_request(text.as_bytes()).await else { return Ok(()) };
                self.send_text(answer).await
            }
            AggregatedMessage::Ping(bytes) => self.send(async |session| session.pong(&bytes).await).await,
            AggregatedMessage::Pong(_) => Ok(()),
            AggregatedMessage::Binary(_) => {
                Err(SocketClose::CloseFrame(CloseCode::Unsupported, "frames must be JSON text"))
            }
            AggregatedMessage::Close(_) => Err(SocketClose::CloseFrame(CloseCode::Normal, "")),
        }
    }

    /// Handles a request and returns the answer, if it has one.
    async fn handle_request(&mut self, text: &[u8]) -> Option<String> {
        let frame = match ClientFrame::parse(text, self.services.settings.gateway.json_depth_limit) {
            Ok(frame) => frame,
            Err(error) => return Some(error_frame(&error, None).finish()),
        };
        let result = match frame.action.as_str() {
            "subscribe" => self.subscribe(&frame).await.map(Some),
            "unsubscribe" => self.unsubscribe(&frame.channel).map(Some),
            "ack" => self.acknowledge(&frame).map(|()| None),
            "publish" => self.publisher.publish(&self.services, &self.caller, &frame).await.map(Some),
            _ => Err(ApiError::invalid("type must be subscribe, unsubscribe, ack or publish")),
        };
        let mut answer = result.unwrap_or_else(|error| Some(error_frame(&error, Some(&frame.channel))))?;
        if let Some(reference) = &frame.reference {
            answer.text("ref", reference);
        }
        Some(answer.finish())
    }

    fn acknowledge(&mut self, frame: &ClientFrame) -> Result<(), ApiError> {
        let (channel, id) = (frame.channel.parse::<ChannelName>()?, frame.id.as_deref());
        let id: Position = id.ok_or_else(|| ApiError::invalid("an ack must have the id of a message"))?.parse()?;
        if !self.reader.reads(&channel) {
            return Err(not_subscribed(channel.as_str()));
        }
        let Some(window) = &mut self.window else {
            let message = format!("nothing is to be acknowledged without a window: /v1/ws?window=1 to {MAX_WINDOW}");
            return Err(ApiError::invalid(message));
        };
        window.acknowledge(&channel, id).map_err(|UnknownAck| {
            ApiError::invalid(format!("{id} was not sent here, nor anything of that channel that is newer"))
        })
    }

    async fn subscribe(&mut self, frame: &ClientFrame) -> Result<ObjectWriter, ApiError> {
        let start = match (&frame.after, &frame.since) {
            (Some(_), Some(_)) => return Err(ApiError::invalid("give either after or since")),
            (Some(after), None) => ReaderStart::After(after.parse::<Position>()?),
            (None, Some(since)) => ReaderStart::Since(parse_since(&self.services, since).await?),
            (None, None) => ReaderStart::Now,
        };
        let filter = frame.filter.as_ref().map(|filter| parse_filter(&self.services, filter.get())).transpose()?;
        let (filter, asked) = (
            filter.flatten(),
            PresenceRequest::parse(&self.caller, self.publisher.is_stranger, frame.presence, frame.join.as_deref())?,
        );
        let wants_delta = parse_delta(frame.delta.as_deref())?;
        if !self.reader.has_room_for_filter(&frame.channel, filter.as_ref()) {
            return Err(filters_too_long());
        }
        let mut json = ObjectWriter::default();
        json.text("type", "subscribed").text("channel", &frame.channel);
        if frame.channel.contains('*') {
            if frame.after.is_some() {
                return Err(ApiError::invalid("after is for one channel: a pattern begins with since, or now"));
            }
            let pattern: ChannelPattern = frame.channel.parse()?;
            self.caller.check_channel_pattern(Scope::ChannelsSubscribe, &frame.channel)?;
            if !asked.is_empty() {
                return Err(ApiError::invalid("presence is for a channel by its name, not for a pattern"));
            }
            self.reader.add_pattern(pattern.clone(), start).await??;
            self.reader.filter_pattern(&pattern, filter);
            self.reader.set_pattern_delta(&pattern, wants_delta);
        } else {
            let channel: ChannelName = frame.channel.parse()?;
            self.caller.check_channel(Scope::ChannelsSubscribe, &channel)?;
            let is_new = !self.reader.reads(&channel);
            self.reader.add_channel(&channel, start).await??;
            if let Err(refused) = self.set_presence(&channel, asked, frame.after.is_some()).await {
                // A refused subscription changes nothing
                if is_new {
                    self.reader.remove_channel(&channel);
                }
                return Err(refused);
            }
            self.reader.filter_channel(&channel, filter);
            self.reader.set_channel_delta(&channel, wants_delta);
            let after = self.reader.position(&channel).unwrap_or(Position::START);
            json.text("after", &after.to_string());
        }
        Ok(json)
    }

    async fn set_presence(
        &mut self,
        channel: &ChannelName,
        asked: PresenceRequest,
        may_wait: bool,
    ) -> Result<(), ApiError> {
        if self.presence.is_none() && asked.is_empty() {
            return Ok(());
        }
        let new = || Box::new(ClientPresence::new(&self.services.presence));
        self.presence.get_or_insert_with(new).set(channel, asked, may_wait).await
    }

    fn unsubscribe(&mut self, channel: &str) -> Result<ObjectWriter, ApiError> {
        let left = if channel.contains('*') {
            if self.reader.remove_pattern(&channel.parse()?) {
                RemoveChannelResult::Removed
            } else {
                RemoveChannelResult::NotRead
            }
        } else {
            self.reader.remove_channel(&channel.parse()?)
        };
        match left {
            RemoveChannelResult::Removed => {}
            RemoveChannelResult::NotRead => return Err(not_subscribed(channel)),
            RemoveChannelResult::TooManyExcluded => {
                let message = format!("at most {MAX_EXCLUDED} channels of patterns may be left: leave the pattern");
                return Err(ApiError::invalid(message));
            }
        }
        if let Some(window) = &mut self.window {
            window.retain_channels(|channel| self.reader.reads(channel));
        }
        if let Some(presence) = &mut self.presence {
            presence.retain_channels(|channel| self.reader.reads(channel));
        }
        let mut json = ObjectWriter::default();
        json.text("type", "unsubscribed").text("channel", channel);
        Ok(json)
    }
}

async fn with_stall_timeout(
    stall: Duration,
    sent: impl Future<Output = Result<(), Closed>>,
) -> Result<(), SocketClose> {
    Ok(tokio::time::timeout(stall, sent).await.map_err(|_| SocketClose::Disconnected)??)
}

fn close_for_protocol_error(error: &ProtocolError) -> SocketClose {
    let too_long = SocketClose::CloseFrame(CloseCode::Size, "a frame must have at most 16 KiB");
    match error {
        ProtocolError::Overflow => too_long,
        ProtocolError::Io(error) => {
            let cause = error.get_ref();
            let payload_error = cause.and_then(|cause| cause.downcast_ref::<PayloadError>());
            let is_gone = payload_error.is_some_and(|error| !matches!(error, PayloadError::Overflow));
            let is_no_text = cause.and_then(|cause| cause.downcast_ref::<Utf8Error>()).is_some();
            match error.kind() {
                _ if is_gone => SocketClose::Disconnected,
                _ if is_no_text => SocketClose::CloseFrame(CloseCode::Invalid, "frames must be UTF-8"),
                // A frame, or fragments together
                io::ErrorKind::Other => too_long,
                _ => SocketClose::CloseFrame(CloseCode::Protocol, "a frame with reserved bits"),
            }
        }
        _ => SocketClose::CloseFrame(CloseCode::Protocol, "a frame that cannot be read"),
    }
}

fn not_subscribed(channel: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("{channel} is not subscribed"))
}

fn error_frame(error: &ApiError, channel: Option<&str>) -> ObjectWriter {
    let mut json = ObjectWriter::default();
    json.text("type", "error");
    if let Some(channel) = channel {
        json.text("channel", channel);
    }
    json.raw("error", &error.to_json().to_string());
    json
}
