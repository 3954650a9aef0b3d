//! Cron entries: a hash with their JSON by name, and a sorted set with the time of each one's next check.
//!
//! A change reads an entry, computes the new one and stores it only if the stored entry is unchanged
//! (`cron_save.lua`). All state of an entry is in Redis, none in a process.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | registers, shows, enables and removes entries; triggers a job by hand |
//! | `next_runs` | restores next runs that are missing |
//! | `runs` | creates the jobs of due runs |

mod next_runs;
mod runs;

use redis::Value;

use crate::{
    StoreError, StoreResult,
    connection::{clock::MoveDue, notification::Notification},
    jobs::{EnqueueRefusal, EnqueuedJob, Jobs},
    keys, script,
    sealing::Sealer,
};
use common::{
    name::{CronName, quoted},
    time::Millis,
    trace_context::TraceContext,
};
use model::{
    cron::{CronDefinition, CronEntry, definition::MAX_ENTRY_BYTES},
    job::NewJob,
};

/// Maximum number of attempts to change an entry that others change at the same time.
const MAX_SAVE_ATTEMPTS: usize = 16;
/// Maximum number of entries in one read.
const READ_BATCH: usize = 100;

/// The cron entries in the Redis of a job store.
pub struct Cron<'a> {
    jobs: &'a Jobs,
}

/// A registered entry.
#[derive(Debug, Clone)]
pub struct RegisteredCronEntry {
    /// The entry.
    pub entry: CronEntry,
    /// Whether no entry had that name before.
    pub is_new: bool,
}

/// Why an entry was not registered; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterCronError {
    /// The maximum number of entries is reached.
    TooMany {
        /// The maximum.
        max_entries: u64,
    },
    /// The entry is too large.
    TooLarge {
        /// Its maximum size in bytes.
        max_bytes: usize,
    },
}

/// A page of entries, by name.
#[derive(Debug, Clone, Default)]
pub struct CronPage {
    /// The entries.
    pub entries: Vec<CronEntry>,
    /// Total number of entries.
    pub total: usize,
    /// The name after which the next page starts; none on the last page.
    pub next: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CronSaveOutcome {
    Saved,
    AlreadySaved,
    Changed,
    Full,
}

impl Jobs {
    /// The cron entries.
    #[must_use]
    pub fn cron(&self) -> Cron<'_> {
        Cron { jobs: self }
    }
}

impl Cron<'_> {
    /// Registers an entry or replaces the one with that name.
    ///
    /// # Errors
    /// Redis is unavailable or full.
    pub async fn register(
        &self,
        definition: &CronDefinition,
        now: Millis,
    ) -> StoreResult<Result<RegisteredCronEntry, RegisterCronError>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let raw = self.read_raw(&definition.name).await?;
            // An entry that cannot be parsed is replaced like a missing one
            let known = raw.as_deref().map(|raw| self.parse_entry(definition.name.as_str(), raw)).transpose()?;
            let entry = match known.flatten() {
                Some(known) => known.with_definition(definition.clone(), now),
                None => CronEntry::new(definition.clone(), now),
            };
            if encode_entry(&entry)?.len() > MAX_ENTRY_BYTES {
                return Ok(Err(RegisterCronError::TooLarge { max_bytes: MAX_ENTRY_BYTES }));
            }
            match self.save_if_unchanged(&entry, raw.as_deref(), now).await? {
                CronSaveOutcome::Saved | CronSaveOutcome::AlreadySaved => {
                    return Ok(Ok(RegisteredCronEntry { entry, is_new: raw.is_none() }));
                }
                CronSaveOutcome::Full => {
                    return Ok(Err(RegisterCronError::TooMany {
                        max_entries: self.jobs.store.settings.cron.max_entries,
                    }));
                }
                CronSaveOutcome::Changed => {}
            }
        }
        Err(conflict_error(&definition.name))
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// Redis is unavailable or the entry is damaged.
    pub async fn get(&self, name: &CronName) -> StoreResult<Option<CronEntry>> {
        let Some(raw) = self.read_raw(name).await? else { return Ok(None) };
        self.parse_entry(name.as_str(), &raw)?.ok_or_else(|| damaged_error(name)).map(Some)
    }

    /// At most `limit` entries by name, after `after`. `is_wanted` chooses among them; `total` counts all.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        is_wanted: impl Fn(&CronEntry) -> bool,
    ) -> StoreResult<CronPage> {
        let mut connection = self.jobs.store.redis.pooled_connection().await?;
        let mut names: Vec<String> = redis::cmd("HKEYS").arg(keys::CRON_ENTRIES).query_async(&mut connection).await?;
        names.sort_unstable();
        let total = names.len();
        let mut page = CronPage { total, ..CronPage::default() };
        let rest = names.split_off(after.map_or(0, |after| names.partition_point(|name| name.as_str() <= after)));
        for some in rest.chunks(READ_BATCH) {
            let mut command = redis::cmd("HMGET");
            let found: Vec<Option<String>> =
                command.arg(keys::CRON_ENTRIES).arg(some).query_async(&mut connection).await?;
            for (name, raw) in some.iter().zip(found) {
                let Some(raw) = raw else { continue };
                match self.parse_entry(name, &raw).ok().flatten() {
                    Some(entry) if is_wanted(&entry) => {
                        if page.entries.len() == limit {
                            page.next = page.entries.last().map(|last| last.name.to_string());
                            return Ok(page);
                        }
                        page.entries.push(entry);
                    }
                    Some(_) => {}
                    None => tracing::error!(cron = quoted(name), "a cron entry that cannot be read"),
                }
            }
        }
        Ok(page)
    }

    /// Removes an entry; false if there is none. Its jobs are unaffected.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn remove(&self, name: &CronName) -> StoreResult<bool> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let Some(raw) = self.read_raw(name).await? else { return Ok(false) };
            if self.remove_if_unchanged(name.as_str(), &raw).await? {
                return Ok(true);
            }
        }
        Err(conflict_error(name))
    }

    /// Enables or disables an entry; none if there is none.
    ///
    /// # Errors
    /// Redis is unavailable or the entry is damaged.
    pub async fn set_enabled(&self, name: &CronName, enabled: bool) -> StoreResult<Option<CronEntry>> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let now = self.jobs.now().await?;
            let Some(raw) = self.read_raw(name).await? else { return Ok(None) };
            let entry = self.parse_entry(name.as_str(), &raw)?.ok_or_else(|| damaged_error(name))?;
            let entry = entry.with_enabled(enabled, now).map_err(|error| StoreError::damaged(error.to_string()))?;
            match self.save_if_unchanged(&entry, Some(&raw), now).await? {
                CronSaveOutcome::Saved | CronSaveOutcome::AlreadySaved => return Ok(Some(entry)),
                CronSaveOutcome::Changed | CronSaveOutcome::Full => {}
            }
        }
        Err(conflict_error(name))
    }

    /// Creates a job of an entry now, outside its schedule: it is not counted and no run waits for it. None if there
    /// is no such entry.
    ///
    /// # Errors
    /// As [`Jobs::enqueue`], or the entry is damaged.
    pub async fn trigger(
        &self,
        name: &CronName,
        trace: TraceContext,
    ) -> StoreResult<Option<Result<EnqueuedJob, EnqueueRefusal>>> {
        let Some((new, now)) = self.new_manual_job(name).await? else { return Ok(None) };
        self.jobs.enqueue(new, trace, now).await.map(Some)
    }

    /// The job that [`Cron::trigger`] would create now, and the time.
    ///
    /// # Errors
    /// Redis is unavailable, or the entry is damaged.
    pub async fn new_manual_job(&self, name: &CronName) -> StoreResult<Option<(NewJob, Millis)>> {
        let Some(entry) = self.get(name).await? else { return Ok(None) };
        let now = self.jobs.now().await?;
        let new = entry.template.new_job(name, now, now).map_err(|error| StoreError::damaged(error.to_string()))?;
        Ok(Some((new, now)))
    }

    /// Brings forward runs that are later than the next one by the clock, after Redis's clock was set back.
    pub(crate) async fn heal_clock_set_back(&self) -> StoreResult<()> {
        let mut command = redis::cmd("HKEYS");
        let names: Vec<String> =
            command.arg(keys::CRON_ENTRIES).query_async(&mut self.jobs.store.redis.clone()).await?;
        for name in names.iter().filter_map(|name| name.parse::<CronName>().ok()) {
            self.heal_entry(&name).await?;
        }
        Ok(())
    }

    async fn heal_entry(&self, name: &CronName) -> StoreResult<()> {
        for _ in 0..MAX_SAVE_ATTEMPTS {
            let (now, raw) = (self.jobs.now().await?, self.read_raw(name).await);
            // A damaged entry is reported when it is due
            let Ok(Some(raw)) = raw else { return raw.map(drop).or_else(ignore_damaged) };
            let Ok(Some(entry)) = self.parse_entry(name.as_str(), &raw) else { return Ok(()) };
            let Ok(healed) = entry.after_clock_set_back(now) else { return Ok(()) };
            match self.save_if_unchanged(&healed, Some(&raw), now).await? {
                CronSaveOutcome::Saved | CronSaveOutcome::AlreadySaved => {
                    if let Some(at) = healed.next_check_at(now) {
                        let (name, at) = ([name.to_string()], (at, MoveDue::Always));
                        let redis = &self.jobs.store.redis;
                        redis.move_due(keys::CRON_NEXT, &name, at, &Notification::CronChanged).await?;
                    }
                    return Ok(());
                }
                CronSaveOutcome::Changed | CronSaveOutcome::Full => {}
            }
        }
        Ok(())
    }

    /// Parses a stored entry; none if it is none.
    fn parse_entry(&self, name: &str, raw: &str) -> StoreResult<Option<CronEntry>> {
        if !Sealer::is_sealed(raw) && !self.jobs.sealer().is_on() {
            return Ok(serde_json::from_str(raw).ok());
        }
        let opened = self.jobs.sealer().open(&["cron", name], raw.to_owned())?;
        Ok(serde_json::from_str(&opened).ok())
    }

    async fn read_raw(&self, name: &CronName) -> StoreResult<Option<String>> {
        let mut command = redis::cmd("HGET");
        let raw: Value =
            command.arg(keys::CRON_ENTRIES).arg(name.as_str()).query_async(&mut self.jobs.store.redis.clone()).await?;
        match raw {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| damaged_error(name)),
            _ => Err(damaged_error(name)),
        }
    }

    /// Stores an entry if the stored one is still `known`.
    async fn save_if_unchanged(
        &self,
        entry: &CronEntry,
        known: Option<&str>,
        now: Millis,
    ) -> StoreResult<CronSaveOutcome> {
        let answer: String = script::SAVE_CRON_ENTRY
            .key(keys::CRON_ENTRIES)
            .key(keys::CRON_NEXT)
            .arg(entry.name.as_str())
            .arg(known.unwrap_or_default())
            .arg(&*self.jobs.sealer().seal(&["cron", entry.name.as_str()], &encode_entry(entry)?))
            .arg(entry.next_check_at(now).map(|at| at.to_string()).unwrap_or_default())
            .arg(self.jobs.store.settings.cron.max_entries)
            .arg(self.jobs.store.redis.topics().notifications())
            .arg(Notification::CronChanged.encode())
            .invoke_async(&mut self.jobs.store.redis.clone())
            .await?;
        match answer.as_str() {
            "saved" => Ok(CronSaveOutcome::Saved),
            "already_saved" => Ok(CronSaveOutcome::AlreadySaved),
            "full" => Ok(CronSaveOutcome::Full),
            _ => Ok(CronSaveOutcome::Changed),
        }
    }

    /// Removes an entry if the stored one is still `known`; `""` for a time without an entry.
    async fn remove_if_unchanged(&self, name: &str, known: &str) -> StoreResult<bool> {
        let removed: i64 = script::REMOVE_CRON_ENTRY
            .key(keys::CRON_ENTRIES)
            .key(keys::CRON_NEXT)
            .arg(name)
            .arg(known)
            .invoke_async(&mut self.jobs.store.redis.clone())
            .await?;
        Ok(removed == 1)
    }
}

fn ignore_damaged(error: StoreError) -> StoreResult<()> {
    if matches!(error, StoreError::Damaged(_)) { Ok(()) } else { Err(error) }
}

fn encode_entry(entry: &CronEntry) -> StoreResult<String> {
    serde_json::to_string(entry).map_err(|error| StoreError::damaged(error.to_string()))
}

fn damaged_error(name: &CronName) -> StoreError {
    StoreError::damaged(format!("cron entry {name} cannot be read"))
}

fn conflict_error(name: &CronName) -> StoreError {
    StoreError::damaged(format!("cron entry {name} keeps changing"))
}
