//! The keys that requests used lately, so that a key costs no round trip: each is read again in the background while it is
//! in use, and at the latest when it is [`MAX_CACHE_AGE`] old. A change is heard at once.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::time::Millis;
use model::access::{Access, ApiKeyRecord, KeyId};
use tokio::sync::watch;

use super::ApiKeys;
use crate::{
    StoreError, StoreResult,
    connection::{
        notification::Notification,
        notifier::{EventReceiver, Notifier, SubscriberEvent, Topics},
    },
};

/// The oldest copy of a key that is used.
pub const MAX_CACHE_AGE: Duration = Duration::from_secs(5);
/// A copy in use that is this old is read again in the background.
const REFRESH_AGE: Duration = Duration::from_secs(3);
/// The most copies. Strangers can ask for ids that do not exist, so those are not kept.
const MAX_CACHED_KEYS: usize = 10_000;
/// How often the use of a key is recorded.
const USE_INTERVAL_MS: Millis = 60_000;
/// Unread notifications. What does not fit is noticed when the copy is old.
const NOTIFICATION_BUFFER: usize = 1024;

/// The keys that requests used lately. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeyCache(Arc<CacheState>);

struct CacheState {
    keys: ApiKeys,
    cached: RwLock<HashMap<Box<str>, Arc<CachedKey>>>,
    /// Grows with each change that is heard: what was read before it is not kept.
    changes: AtomicU64,
    /// Tells those that depend on a key, such as open streams.
    changed: watch::Sender<()>,
}

/// A copy of a key.
pub struct CachedKey {
    /// The key.
    pub record: ApiKeyRecord,
    /// What it may do.
    pub access: Arc<Access>,
    read_at: Instant,
    is_refreshing: AtomicBool,
    use_noted_at: AtomicI64,
}

impl ApiKeyCache {
    /// Starts to listen for changes, until the notifier stops.
    #[must_use]
    pub fn start(keys: &ApiKeys, notifier: &Notifier) -> Self {
        let cache = Self(Arc::new(CacheState {
            keys: keys.clone(),
            cached: RwLock::default(),
            changes: AtomicU64::new(0),
            changed: watch::Sender::default(),
        }));
        let (topics, events) = notifier.subscribe(NOTIFICATION_BUFFER);
        topics.add(notifier.topic_names().notifications());
        tokio::spawn(listen(cache.clone(), topics, events));
        cache
    }

    /// A key, from memory if a copy is young enough. None if it does not exist.
    ///
    /// # Errors
    /// Redis is unavailable, and there is no young copy.
    pub async fn get(&self, id: &str) -> StoreResult<Option<Arc<CachedKey>>> {
        if let Some(found) = self.young_copy(id) {
            return Ok(Some(found));
        }
        let Ok(id) = id.parse::<KeyId>() else { return Ok(None) };
        self.read(&id).await
    }

    fn young_copy(&self, id: &str) -> Option<Arc<CachedKey>> {
        let found = self.0.cached.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()?;
        let age = found.read_at.elapsed();
        if age >= MAX_CACHE_AGE {
            return None;
        }
        if age >= REFRESH_AGE && !found.is_refreshing.swap(true, Ordering::Relaxed) {
            let (cache, id) = (self.clone(), found.record.id.clone());
            tokio::spawn(async move {
                // A failure shows when the copy is too old
                let _: Result<_, StoreError> = cache.read(&id).await;
            });
        }
        Some(found)
    }

    async fn read(&self, id: &KeyId) -> StoreResult<Option<Arc<CachedKey>>> {
        let before = self.0.changes.load(Ordering::Acquire);
        let read_at = Instant::now();
        let found = self.0.keys.get(id).await?;
        let mut cached = self.0.cached.write().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = found else {
            cached.remove(id.as_str());
            return Ok(None);
        };
        let noted = cached.get(id.as_str()).map_or(0, |known| known.use_noted_at.load(Ordering::Relaxed));
        let access = Arc::new(record.access.clone());
        let is_refreshing = AtomicBool::new(false);
        let copy = Arc::new(CachedKey { record, access, read_at, is_refreshing, use_noted_at: AtomicI64::new(noted) });
        // Compared under the lock: a change that is heard later removes the copy
        if self.0.changes.load(Ordering::Acquire) == before {
            if cached.len() >= MAX_CACHED_KEYS && !cached.contains_key(id.as_str()) {
                cached.clear();
            }
            cached.insert(id.as_str().into(), copy.clone());
        }
        Ok(Some(copy))
    }

    /// Records in the background that a valid key was used, at most once a minute.
    pub fn note_use(&self, key: &CachedKey, now: Millis) {
        let last = key.use_noted_at.load(Ordering::Relaxed);
        let is_due = now - last >= USE_INTERVAL_MS || now < last;
        if is_due && key.use_noted_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let (keys, id) = (self.0.keys.clone(), key.record.id.clone());
            tokio::spawn(async move {
                if let Err(error) = keys.note_use(id.as_str(), now).await {
                    tracing::debug!(%error, key = %id, "the use of a key was not recorded");
                }
            });
        }
    }

    /// Drops the copy of a key that this process changed, before its own notification arrives.
    pub fn forget_key(&self, id: &KeyId) {
        self.forget(Some(id.as_str()));
    }

    /// Returns at the next change of a key that is heard. From this call on, before the future is polled, none is missed.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut changed = self.0.changed.subscribe();
        async move {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn forget(&self, id: Option<&str>) {
        let mut cached = self.0.cached.write().unwrap_or_else(PoisonError::into_inner);
        self.0.changes.fetch_add(1, Ordering::Release);
        match id {
            Some(id) => drop(cached.remove(id)),
            None => cached.clear(),
        }
        drop(cached);
        self.0.changed.send_replace(());
    }
}

async fn listen(cache: ApiKeyCache, _topics: Topics, mut events: EventReceiver) {
    while let Some(event) = events.recv().await {
        match event {
            SubscriberEvent::Message { payload, .. } => {
                if let Some(Notification::ApiKeyChanged(id)) = Notification::decode(&payload) {
                    cache.forget(Some(id.as_str()));
                }
            }
            // Changes may have been missed
            SubscriberEvent::Subscribed(_) => cache.forget(None),
            SubscriberEvent::ConnectionLost => {}
        }
    }
}
