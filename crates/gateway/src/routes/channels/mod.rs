//! Channels: messages and their readers.

mod delta;
mod filter;
mod history;
mod list;
mod members;
mod publish;
mod stream;
mod ws;

pub(crate) use delta::parse_delta;
pub(crate) use filter::{filters_too_long, parse_filter};
pub(super) use history::history;
pub(super) use list::{list, show};
pub(super) use members::members;
pub(super) use publish::{publish, publish_batch};
pub(super) use stream::{stream_channel, stream_channels};
pub(super) use ws::connect;

use common::{
    name::ChannelName,
    time::{self, Millis},
};
use store::{
    TooManyReaders,
    channels::{ChannelReader, MAX_CHANNELS, MAX_PATTERNS, ReaderLimitExceeded},
};

use crate::{
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The moment that `since` means.
pub(crate) async fn parse_since(services: &Services, since: &str) -> Result<Millis, ApiError> {
    let now = services.channels.server_time().await?;
    time::parse_time(since, now).map(|time| time.at).map_err(|error| ApiError::invalid(format!("since {error}")))
}

/// A reader, unless the gateway has as many as it may have.
pub(crate) fn open_reader(services: &Services) -> Result<ChannelReader, ApiError> {
    services.channel_hub.open_reader().map_err(|TooManyReaders { max }| {
        ApiError::new(
            ErrorCode::TooManyReaders,
            format!("{max} streams of messages are open, which is channels.max_readers"),
        )
    })
}

impl From<ReaderLimitExceeded> for ApiError {
    fn from(_: ReaderLimitExceeded) -> Self {
        Self::invalid(format!("a stream may have at most {MAX_CHANNELS} channels and {MAX_PATTERNS} patterns"))
    }
}

/// The error for a position of another channel, or of a lost history.
pub(super) fn unknown_position(channel: &ChannelName, given: &str) -> ApiError {
    let given = common::name::quoted(given);
    let message = format!(
        "{given} is not the id of a message of {channel}: it is of another channel, or of messages that redis has lost"
    );
    ApiError::new(ErrorCode::UnknownPosition, message)
}
