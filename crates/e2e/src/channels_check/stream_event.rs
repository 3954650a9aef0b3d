//! What a gateway sends to readers of channels, and what a message of a run has as its body.

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::reader_check::MessageTag;

/// Something that came.
pub(super) enum CheckedStreamEvent {
    Message(CheckedMessage),
    Gap(CheckedGap),
    /// The position from which a channel is read: the same as the id of a stream that begins.
    Subscribed {
        channel: usize,
        id: String,
    },
    KeepAlive,
}

/// A message as gateways show it.
#[derive(Deserialize)]
pub(super) struct CheckedMessage {
    pub(super) id: String,
    pub(super) channel: String,
    pub(super) data: String,
    /// The id that an event stream comes back with.
    #[serde(skip)]
    pub(super) stream_id: Option<String>,
}

/// A gap as gateways show it.
#[derive(Deserialize)]
pub(super) struct CheckedGap {
    pub(super) channel: String,
    pub(super) from: String,
    pub(super) to: Option<String>,
}

/// The body of a message.
pub(super) fn message_body(channel: &str, mark: MessageTag) -> String {
    format!("{channel} {} {}", mark.publisher, mark.number)
}

/// Who published it, of what a message of that channel has as its body.
pub(super) fn parse_tag(channel: &str, body: &str) -> anyhow::Result<MessageTag> {
    let mut parts = body.split(' ');
    let (of, publisher, number) = (parts.next(), parts.next(), parts.next());
    ensure!(of == Some(channel), "{body:?} is in {channel}");
    let number = number.with_context(|| format!("{body:?} is no message of this run"))?;
    Ok(MessageTag { publisher: publisher.context("a publisher")?.parse()?, number: number.parse()? })
}
