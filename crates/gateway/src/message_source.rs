//! Messages of channels for a stream of Server-Sent Events.
//!
//! A browser's `EventSource` reconnects to any gateway with the last id it saw and misses nothing that is still kept.
//! What is no longer kept is an event `gap`.

use std::task::{Context, Poll, ready};

use actix_web::web::Bytes;
use common::json::ObjectWriter;
use model::message::Position;
use store::channels::{ChannelReader, ReaderEvent};

use crate::{
    client_presence::ClientPresence,
    sse::{self, SseFrames, SseSource},
};

/// The messages that a reader reads.
pub(crate) struct MessageSource {
    reader: ChannelReader,
    /// Ids are positions in the channel. Otherwise they hold the positions in all channels.
    is_single_channel: bool,
    /// The rest of a message whose id was handed out. It is a message that all readers share: a copy for each reader that
    /// takes nothing would have no bound.
    rest: Option<Bytes>,
    /// In a box, because few streams have it.
    presence: Option<Box<ClientPresence>>,
}

impl MessageSource {
    pub(crate) fn of_one_channel(reader: ChannelReader) -> Self {
        Self { reader, is_single_channel: true, rest: None, presence: None }
    }

    pub(crate) fn of_many_channels(reader: ChannelReader) -> Self {
        Self { reader, is_single_channel: false, rest: None, presence: None }
    }

    /// The stream takes part in channels, or tells who does.
    pub(crate) fn with_presence(self, presence: Option<ClientPresence>) -> Self {
        Self { presence: presence.map(Box::new), ..self }
    }

    fn last_event_id(&self) -> String {
        if self.is_single_channel {
            self.reader.positions().next().map_or(Position::START, |(_, position)| position).to_string()
        } else {
            self.reader.resume_id()
        }
    }

    fn encode(&mut self, event: &ReaderEvent) -> Bytes {
        let mut data = ObjectWriter::default();
        let (name, channel, gap) = match event {
            // One without a position does not move the reader: the id of the one before it still holds
            ReaderEvent::Message(message) if self.is_single_channel || message.position.is_none() => {
                return message.event();
            }
            ReaderEvent::Message(message) => {
                self.rest = Some(message.event_without_id());
                return format!("id: {}\n", self.last_event_id()).into();
            }
            ReaderEvent::Stopped => return sse::retry_line(sse::reconnect_delay_ms()).into(),
            ReaderEvent::Gap { channel, gap } => ("gap", channel, Some(gap)),
            ReaderEvent::ChannelSkipped(channel) => ("left_out", channel, None),
            // An event with data, because many clients keep the id of no other
            ReaderEvent::Skipped { channel, count, .. } => {
                data.text("channel", channel.as_str()).number("count", *count);
                let mut frame = String::new();
                sse::push_event(&mut frame, Some(&self.last_event_id()), "skipped", &data.finish());
                return frame.into();
            }
        };
        data.text("channel", channel.as_str());
        match gap {
            Some(gap) => gap.write(&mut data),
            None => {
                data.text("message", "this stream has as many channels as it may have: open another for this one");
            }
        }
        let mut frame = String::new();
        sse::push_event(&mut frame, None, name, &data.finish());
        frame.into()
    }
}

impl SseSource for MessageSource {
    fn first_id(&self) -> String {
        self.last_event_id()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<SseFrames> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(SseFrames::More(rest));
        }
        if let Some(presence) = &mut self.presence
            && let Poll::Ready(event) = presence.poll_next(cx)
        {
            let mut frame = String::new();
            sse::push_event(&mut frame, None, event.kind, &event.json);
            return Poll::Ready(SseFrames::More(frame.into()));
        }
        let event = ready!(self.reader.poll_next(cx));
        let bytes = self.encode(&event);
        let is_last = matches!(event, ReaderEvent::Stopped);
        Poll::Ready(if is_last { SseFrames::Last(bytes) } else { SseFrames::More(bytes) })
    }

    /// A client that gets none of the messages learns how far they have been read.
    fn when_silent(&mut self) -> Option<SseFrames> {
        let skipped = self.reader.take_skipped();
        Some(skipped.map_or_else(SseFrames::keep_alive, |skipped| SseFrames::More(self.encode(&skipped))))
    }
}
