//! Counts what a process delivered. The counters of a subscription are not in the slot of its channels, so a script that
//! acknowledges messages cannot count them too: the process adds its counts to the counters once a second.
//!
//! A process that dies loses the counts of its last second. Messages do not depend on them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Subscriptions;
use crate::{StoreResult, keys, log_interruption, script};
use common::name::SubscriptionName;

/// How often counts are written.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The counts of a process that are not written yet, for each of its subscriptions.
#[derive(Default)]
pub(super) struct UnwrittenCounts(Mutex<HashMap<SubscriptionName, MessageCounts>>);

/// How many messages were processed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MessageCounts {
    pub(super) delivered: u64,
    pub(super) filtered: u64,
}

impl MessageCounts {
    pub(super) fn add(&mut self, more: Self) {
        self.delivered += more.delivered;
        self.filtered += more.filtered;
    }
}

impl UnwrittenCounts {
    fn add(&self, name: &SubscriptionName, counts: MessageCounts) {
        if counts == MessageCounts::default() {
            return;
        }
        let mut unwritten = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.entry(name.clone()).or_default().add(counts);
    }

    fn take(&self, name: &SubscriptionName) -> Option<MessageCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    fn names(&self) -> Vec<SubscriptionName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Subscriptions {
    /// Counts messages of a subscription; they are written within a second.
    pub(super) fn count_messages(&self, name: &SubscriptionName, counts: MessageCounts) {
        self.unwritten.add(name, counts);
    }

    /// Adds what this process counted to the counters of that subscription.
    pub(super) async fn write_counts_of(&self, name: &SubscriptionName) -> StoreResult<()> {
        let Some(counts) = self.unwritten.take(name) else { return Ok(()) };
        let mut call = script::COUNT_MESSAGES.key(keys::subscription_counters(name));
        call.arg(counts.delivered).arg(counts.filtered);
        let written = call.invoke_async::<i64>(&mut self.redis().clone()).await;
        if written.is_err() {
            self.unwritten.add(name, counts);
        }
        Ok(written.map(drop)?)
    }

    /// Drops what this process counted for a subscription that is deleted.
    pub(super) fn forget_counts(&self, name: &SubscriptionName) {
        let _forgotten = self.unwritten.take(name);
    }

    /// Writes what this process counted, of all subscriptions.
    ///
    /// # Errors
    /// Redis is unavailable: the next call writes the rest.
    pub async fn write_counts(&self) -> StoreResult<()> {
        for name in self.unwritten.names() {
            self.write_counts_of(&name).await?;
        }
        Ok(())
    }

    /// Writes them regularly until `stop` is cancelled; then call [`Subscriptions::write_counts`] once more.
    pub async fn write_counts_regularly(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(WRITE_INTERVAL)).await.is_some() {
            if let Err(error) = self.write_counts().await {
                log_interruption("counting delivered messages", &error);
            }
        }
    }
}
