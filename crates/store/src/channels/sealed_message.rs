//! Messages as they are stored when there are keys: field `z` has the sealed body in place of `b`, and `h` and `r` are sealed.
//!
//! A message is bound to its channel. Its position is not known when it is sealed, because Redis chooses it.

use std::collections::HashMap;

use common::name::ChannelName;
use model::message::NewMessage;

use crate::{StoreResult, sealing::Sealer};

/// What of a message is sealed.
pub(super) struct SealedMessage {
    pub(super) body: Vec<u8>,
    pub(super) attributes: Option<String>,
    /// `tracestate` and `baggage`.
    pub(super) trace_rest: Option<String>,
}

/// Seals a message; none without keys.
pub(super) fn seal(sealer: &Sealer, channel: &ChannelName, message: &NewMessage<'_>) -> Option<SealedMessage> {
    let body = sealer.seal_bytes(&["message", channel.as_str()], &message.body)?;
    let attributes = message.attributes.as_deref().filter(|text| !text.is_empty());
    let seal = |text| sealer.seal(&["attributes", channel.as_str()], text).into_owned();
    let seal_trace = |text: String| sealer.seal(&["trace", channel.as_str()], &text).into_owned();
    let trace_rest = message.trace.stored_rest().map(seal_trace);
    Some(SealedMessage { body, attributes: attributes.map(seal), trace_rest })
}

/// Opens the fields of an entry.
pub(super) fn open(sealer: &Sealer, channel: &ChannelName, fields: &mut HashMap<String, Vec<u8>>) -> StoreResult<()> {
    let Some(sealed) = fields.remove("z") else { return sealer.accept_plain(()) };
    fields.insert("b".to_owned(), sealer.open_bytes(&["message", channel.as_str()], &sealed)?);
    if let Some(attributes) = fields.get_mut("h") {
        let stored = String::from_utf8_lossy(attributes).into_owned();
        *attributes = sealer.open(&["attributes", channel.as_str()], stored)?.into_bytes();
    }
    if let Some(trace) = fields.get_mut("r") {
        let stored = String::from_utf8_lossy(trace).into_owned();
        *trace = sealer.open(&["trace", channel.as_str()], stored)?.into_bytes();
    }
    Ok(())
}
