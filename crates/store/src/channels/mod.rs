//! Channels. `publish` appends a message to the channel's history, announces its position to all gateways, which
//! read it there, and publishes it unchanged on the plain channel name for any Redis client.
//!
//! Subscribers may miss messages; readers detect that by positions, which are contiguous within an epoch, and read
//! missing messages from the history.
//!
//! | module | what it does |
//! |---|---|
//! | `publish` | publishes messages, most of them without a script |
//! | `registry`, `shared_read` | the list of channels; one read for all who ask at the same moment |
//! | `history` | reads a channel's history page by page |
//! | `hub`, `catch_up`, `catch_up_state`, `message_ring`, `encoded_message` | one subscription for many readers; reads what is new; the newest messages in memory |
//! | `reader`, `cursor`, `page_budget` | one reader of many channels; its position in each; memory for what it has read |
//! | `reader_counts`, `changed_channels` | how many readers each channel has, over all gateways |
//! | `shared_filter` | which messages readers want |
//! | `shared_deltas` | differences between messages, for readers that asked for them |
//! | `presence` | who is on a channel: members, and those who watch them |
//! | `plain_messages` | messages of plain Redis publishers, without the copies of Galley's own |
//! | `sealed_message` | messages as they are stored when there are keys |
//! | `retention` | trims histories |
//! | `subscription_groups`, `new_channel_groups` | consumer groups of subscriptions: for new channels, and orphans |

mod catch_up;
mod catch_up_state;
mod changed_channels;
mod cursor;
mod encoded_message;
mod history;
mod hub;
mod message_ring;
mod new_channel_groups;
mod page_budget;
mod page_read;
mod plain_messages;
mod presence;
mod publish;
mod reader;
mod reader_counts;
mod registry;
mod retention;
mod sealed_message;
mod shared_deltas;
mod shared_events;
mod shared_filter;
mod shared_pages;
mod shared_read;
mod subscription_groups;

pub use cursor::ReaderEvent;
pub use encoded_message::EncodedMessage;
pub(super) use history::parse_stored_message;
pub use history::{ChannelInfo, ChannelPage, MAX_PAGE_BYTES};
pub use hub::ChannelHub;
pub(crate) use new_channel_groups::cursor_ttl_ms;
pub use presence::{ChannelMember, ChannelPresence, MemberGuard, PresenceEvent, TooManyMembers, WatchGuard};
pub use reader::{
    ChannelReader, MAX_CHANNELS, MAX_EXCLUDED, MAX_FILTERS_BYTES, MAX_PATTERNS, ReaderLimitExceeded, ReaderStart,
    RemoveChannelResult,
};
pub use retention::{Backlog, SubscriptionLoss, TrimmedChannel};
pub use shared_filter::SharedFilter;
pub(crate) use subscription_groups::{ExpectedGroups, OrphanGroups};

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use self::shared_read::SharedRead;
use crate::Redis;
use common::{name::ChannelName, settings::ChannelSettings};
use model::message::Position;

/// A published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedMessage {
    /// Its position in the channel's history.
    pub position: Position,
    /// Number of Redis clients subscribed to the plain channel name that received it.
    pub plain_subscribers: u64,
}

/// Identifies a message when its request is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageDedup {
    /// The request's seed.
    pub seed: u128,
    /// The index of the message in the request.
    pub nth: usize,
    /// How long the message is remembered.
    pub ttl: Duration,
}

/// The channel would be new, and the maximum number of channels is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyChannels {
    /// The limit `channels.max_channels`.
    pub max: u64,
}

/// The channels in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Channels {
    pub(crate) redis: Redis,
    pub(crate) settings: Arc<ChannelSettings>,
    known_histories: Arc<publish::KnownHistories>,
    listing: SharedRead<Arc<Vec<ChannelName>>>,
    /// The runtime for shared reads: the threads of requests come and go.
    runtime: Handle,
}

impl Channels {
    pub(crate) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// The channels in this Redis.
    ///
    /// # Panics
    /// Outside a tokio runtime. The runtime must outlive every clone.
    #[must_use]
    pub fn new(redis: &Redis, settings: &ChannelSettings) -> Self {
        Self {
            redis: redis.clone(),
            settings: Arc::new(settings.clone()),
            known_histories: Arc::default(),
            listing: SharedRead::default(),
            runtime: Handle::current(),
        }
    }
}
