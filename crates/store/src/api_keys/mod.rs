//! API keys in Redis: a hash of JSON by id, without secrets, and a hash of the time each was last used.
//!
//! A change reads a key, computes the new one and stores it only if the stored key is unchanged (`save_key.lua`). Every
//! change is announced, so that a revoked key ends at once wherever it is cached (`cache`).

mod cache;

use common::time::{self, Millis};
use model::access::{ApiKeyRecord, KeyId, KeyText};

pub use self::cache::{ApiKeyCache, CachedKey, MAX_CACHE_AGE};
use crate::{Redis, StoreError, StoreResult, connection::notification::Notification, keys, script};

/// The most keys in Redis.
pub const MAX_API_KEYS: usize = 10_000;
/// Maximum number of attempts to change a key that others change at the same time.
const MAX_SAVE_ATTEMPTS: usize = 16;
/// Maximum number of keys in one read.
const READ_BATCH: usize = 100;

/// The keys in a Redis. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeys {
    redis: Redis,
}

/// A key and when it was last used.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedKey {
    /// The key.
    pub record: ApiKeyRecord,
    /// When it was last used, within a minute.
    pub last_used_at: Option<Millis>,
}

/// A page of keys, by id.
#[derive(Debug, Clone, Default)]
pub struct ApiKeyPage {
    /// The keys.
    pub keys: Vec<ListedKey>,
    /// The id after which the next page starts; none on the last page.
    pub next: Option<KeyId>,
}

/// There are [`MAX_API_KEYS`] keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyApiKeys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SaveOutcome {
    Saved,
    Changed,
    Full,
}

impl ApiKeys {
    /// The keys in this Redis.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self { redis: redis.clone() }
    }

    /// Stores a new key.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn create(&self, record: &ApiKeyRecord) -> StoreResult<Result<(), TooManyApiKeys>> {
        match self.save(&record.id, None, Some(record)).await? {
            SaveOutcome::Saved => Ok(Ok(())),
            SaveOutcome::Full => Ok(Err(TooManyApiKeys)),
            SaveOutcome::Changed => Err(StoreError::damaged(format!("key {} exists", record.id))),
        }
    }

    /// A key.
    ///
    /// # Errors
    /// Redis is unavailable, or the key is damaged.
    pub async fn get(&self, id: &KeyId) -> StoreResult<Option<ApiKeyRecord>> {
        self.read_raw(id).await?.map(|raw| parse_record(id.as_str(), &raw)).transpose()
    }

    /// A key and when it was last used.
    ///
    /// # Errors
    /// As [`ApiKeys::get`].
    pub async fn get_listed(&self, id: &KeyId) -> StoreResult<Option<ListedKey>> {
        let Some(record) = self.get(id).await? else { return Ok(None) };
        let mut command = redis::cmd("HGET");
        let used: Option<Millis> =
            command.arg(keys::API_KEY_USES).arg(id.as_str()).query_async(&mut self.redis.clone()).await?;
        Ok(Some(ListedKey { record, last_used_at: used }))
    }

    /// Keys after an id, in the order of their ids. `is_wanted` chooses among them.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn list(
        &self,
        after: Option<&KeyId>,
        limit: usize,
        is_wanted: impl Fn(&ApiKeyRecord) -> bool,
    ) -> StoreResult<ApiKeyPage> {
        let mut connection = self.redis.pooled_connection().await?;
        let mut ids: Vec<String> = redis::cmd("HKEYS").arg(keys::API_KEYS).query_async(&mut connection).await?;
        ids.retain(|id| after.is_none_or(|after| id.as_str() > after.as_str()));
        ids.sort_unstable();
        let mut page = ApiKeyPage::default();
        for some in ids.chunks(READ_BATCH) {
            let mut pipeline = redis::pipe();
            pipeline.cmd("HMGET").arg(keys::API_KEYS).arg(some);
            pipeline.cmd("HMGET").arg(keys::API_KEY_USES).arg(some);
            let (raws, uses): (Vec<Option<String>>, Vec<Option<Millis>>) =
                pipeline.query_async(&mut connection).await?;
            for ((id, raw), last_used_at) in some.iter().zip(raws).zip(uses) {
                let Some(raw) = raw else { continue };
                match parse_record(id, &raw) {
                    Ok(record) if is_wanted(&record) => {
                        if page.keys.len() == limit {
                            page.next = page.keys.last().map(|last| last.record.id.clone());
                            return Ok(page);
                        }
                        page.keys.push(ListedKey { record, last_used_at });
                    }
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, "an API key that cannot be read"),
                }
            }
        }
        Ok(page)
    }

    /// Changes a key; none if there is none. `change` runs again if somebody else changed the key meanwhile.
    ///
    /// # Errors
    /// Redis is unavailable, or the key is damaged.
    pub async fn update(&self, id: &KeyId, change: impl Fn(&mut ApiKeyRecord)) -> StoreResult<Option<ApiKeyRecord>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(id).await? else { return Ok(None) };
            let mut record = parse_record(id.as_str(), &raw)?;
            change(&mut record);
            if self.save(id, Some(&raw), Some(&record)).await? == SaveOutcome::Saved {
                return Ok(Some(record));
            }
        }
        Err(StoreError::damaged(format!("key {id} keeps changing")))
    }

    /// Revokes a key; false if there is none.
    ///
    /// # Errors
    /// Redis is unavailable: the key may have been revoked nevertheless.
    pub async fn revoke(&self, id: &KeyId) -> StoreResult<bool> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(id).await? else { return Ok(false) };
            if self.save(id, Some(&raw), None).await? == SaveOutcome::Saved {
                return Ok(true);
            }
        }
        Err(StoreError::damaged(format!("key {id} keeps changing")))
    }

    /// Records that a key was used.
    ///
    /// # Errors
    /// Redis is unavailable or full.
    pub async fn note_use(&self, id: &str, at: Millis) -> StoreResult<()> {
        let mut call = script::NOTE_KEY_USE.key(keys::API_KEYS);
        let _: i64 = call.key(keys::API_KEY_USES).arg(id).arg(at).invoke_async(&mut self.redis.clone()).await?;
        Ok(())
    }

    async fn read_raw(&self, id: &KeyId) -> StoreResult<Option<String>> {
        let mut command = redis::cmd("HGET");
        Ok(command.arg(keys::API_KEYS).arg(id.as_str()).query_async(&mut self.redis.clone()).await?)
    }

    async fn save(&self, id: &KeyId, known: Option<&str>, record: Option<&ApiKeyRecord>) -> StoreResult<SaveOutcome> {
        let text = record.map(|record| serde_json::to_string(&KeyText::of(record))).transpose();
        let text = text.map_err(|error| StoreError::damaged(error.to_string()))?.unwrap_or_default();
        let answer: String = script::SAVE_API_KEY
            .key(keys::API_KEYS)
            .key(keys::API_KEY_USES)
            .arg(id.as_str())
            .arg(known.unwrap_or_default())
            .arg(text)
            .arg(MAX_API_KEYS)
            .arg(self.redis.topics().notifications())
            .arg(Notification::ApiKeyChanged(id.clone()).encode())
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok(match answer.as_str() {
            "saved" | "already_saved" => SaveOutcome::Saved,
            "full" => SaveOutcome::Full,
            _ => SaveOutcome::Changed,
        })
    }
}

fn parse_record(id: &str, raw: &str) -> StoreResult<ApiKeyRecord> {
    let text: Result<KeyText, _> = serde_json::from_str(raw);
    let record = text.map_err(|_| "it is no JSON of a key".to_owned()).and_then(|text| text.parse());
    // The text is not shown: it holds hashes
    record.map_err(|problem| StoreError::damaged(format!("API key {}: {problem}", common::name::quoted(id))))
}

/// What clients may see of a key.
#[must_use]
pub fn key_json(ListedKey { record, last_used_at }: &ListedKey) -> serde_json::Value {
    let mut shown = serde_json::to_value(KeyText::of(record)).unwrap_or_default();
    if let Some(members) = shown.as_object_mut() {
        for secret in ["hash", "previous_hash"] {
            members.remove(secret);
        }
        members.insert("last_used_at".to_owned(), last_used_at.map(time::format).into());
    }
    shown
}
