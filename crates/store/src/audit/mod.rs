//! The audit: who administered what, when, and how it ended. A capped stream, apart from the events of jobs, because it has
//! other readers and must not be pushed out by them.

use std::{fmt, str::FromStr};

use common::name::NameError;

use crate::{Redis, StoreError, StoreResult, keys};

/// A place in the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditPosition {
    milliseconds: u64,
    sequence: u64,
}

/// One entry: its place, and what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// The place of the entry.
    pub position: AuditPosition,
    /// A JSON object.
    pub json: String,
}

impl FromStr for AuditPosition {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let number = |text: &str| {
            let is_number = (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| text.parse::<u64>().ok()).flatten()
        };
        let parts = text.split_once('-').and_then(|(time, sequence)| Some((number(time)?, number(sequence)?)));
        let refused = || NameError::new("after", "be the id of an entry of the audit, such as 1700000000000-0", text);
        parts.map(|(milliseconds, sequence)| Self { milliseconds, sequence }).ok_or_else(refused)
    }
}

impl fmt::Display for AuditPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl Redis {
    /// Adds an entry, a JSON object, and drops the oldest beyond about `max`.
    ///
    /// # Errors
    /// Redis is unavailable or out of memory.
    pub async fn add_to_audit(&self, json: &str, max: u64) -> StoreResult<()> {
        let mut command = redis::cmd("XADD");
        command.arg(keys::AUDIT).arg("MAXLEN").arg("~").arg(max).arg("*").arg("d").arg(json);
        let _: String = command.query_async(&mut self.clone()).await?;
        Ok(())
    }

    /// The newest entries, or those before one, the newest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn read_audit(&self, before: Option<AuditPosition>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        if before.is_some_and(|before| (before.milliseconds, before.sequence) == (0, 0)) {
            // Redis refuses an interval that ends before the first id
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("XREVRANGE");
        let end = before.map_or_else(|| "+".to_owned(), |before| format!("({before}"));
        command.arg(keys::AUDIT).arg(end).arg("-").arg("COUNT").arg(limit);
        let found: Vec<(String, Vec<(String, String)>)> = command.query_async(&mut self.clone()).await?;
        let entry = |(id, fields): (String, Vec<(String, String)>)| {
            let json = fields.into_iter().find(|(name, _)| name == "d").map(|(_, json)| json);
            let position = id.parse().ok();
            position.zip(json).map(|(position, json)| AuditEntry { position, json })
        };
        let damaged = || StoreError::damaged("an entry of the audit without data");
        found.into_iter().map(|found| entry(found).ok_or_else(damaged)).collect()
    }
}
