//! Channels whose number of readers changed since the last update to Redis.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use common::name::ChannelName;

/// Channels whose local number of readers changed since the last `take`.
#[derive(Debug, Clone, Default)]
pub(super) struct ChangedChannels(Arc<Mutex<HashSet<ChannelName>>>);

impl ChangedChannels {
    pub(super) fn mark(&self, channel: &ChannelName) {
        let mut changed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !changed.contains(channel) {
            changed.insert(channel.clone());
        }
    }

    pub(super) fn take(&self) -> HashSet<ChannelName> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
