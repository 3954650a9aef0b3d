//! The log of deliveries: the newest attempts of each subscription and of each rule that sends jobs to an endpoint, with
//! what was answered. People look there why nothing arrives. Delivered and failed attempts are kept apart, so that many of
//! one kind do not push out the other.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | what an attempt is; reads the log |
//! | `recorder` | collects attempts in this process and writes them in batches |
//!
//! The log is for observing: a process that dies loses what it collected in the last half second.

mod recorder;

use std::{fmt, str::FromStr};

use common::{
    id::{EntryId, JobId},
    json::ObjectWriter,
    name::{NameError, SubscriptionName},
    time::{self, Millis},
};

pub use recorder::DeliveryRecorder;

use crate::{Redis, StoreResult, keys};

type StreamEntries = Vec<(String, Vec<(String, String)>)>;

/// Bytes of an error, and of an answer, that are kept of an attempt.
const MAX_TEXT_BYTES: usize = 1024;

/// Whose attempts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeliveryOwner {
    /// Those of a subscription.
    Subscription(SubscriptionName),
    /// Those of a rule of queue-workers that sends jobs to an endpoint, by its pattern of job types.
    Rule(String),
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeliveryOutcome {
    /// The target took it.
    Delivered,
    /// It failed, or was not tried because the target is left alone.
    Failed,
}

impl DeliveryOutcome {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Delivered, Self::Failed];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// What was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveredItem {
    /// A message of a channel.
    Message {
        /// The channel.
        channel: String,
        /// The position of the message.
        id: String,
        /// When the subscription was created: a later one of that name has another log.
        subscription_created_at: Millis,
    },
    /// A job.
    Job(JobId),
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRecord {
    /// What was delivered.
    pub item: DeliveredItem,
    /// What receivers recognize it by; empty for targets that are no endpoints.
    pub webhook_id: String,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// When it began.
    pub at: Millis,
    /// How long it took.
    pub duration_ms: u64,
    /// How it ended.
    pub outcome: DeliveryOutcome,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// The beginning of the answer, without secrets.
    pub response: String,
    /// Code and message of a failure.
    pub error: Option<(String, String)>,
}

impl DeliveryRecord {
    fn to_json(&self) -> String {
        let mut json = ObjectWriter::with_capacity(256 + self.response.len());
        json.text("at", &time::format(self.at)).text("outcome", self.outcome.as_str());
        json.number("attempt", self.attempt).number("duration_ms", self.duration_ms);
        match &self.item {
            DeliveredItem::Message { channel, id, subscription_created_at } => {
                json.text("channel", channel).text("message_id", id);
                json.number("subscription_created_ms", *subscription_created_at);
            }
            DeliveredItem::Job(id) => drop(json.text("job_id", &id.to_string())),
        }
        if !self.webhook_id.is_empty() {
            json.text("webhook_id", &self.webhook_id);
        }
        if let Some(status) = self.status {
            json.number("status", status);
        }
        if !self.response.is_empty() {
            json.text("response", cut(&self.response));
        }
        if let Some((code, message)) = &self.error {
            let mut error = ObjectWriter::default();
            error.text("code", code).text("message", cut(message));
            json.raw("error", &error.finish());
        }
        json.finish()
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// The place of an attempt in the log: its outcome, and its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryId {
    outcome: DeliveryOutcome,
    entry: EntryId,
}

impl FromStr for DeliveryId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parse = || {
            let (outcome, entry) = text.split_at_checked(1)?;
            let outcome = match outcome {
                "d" => DeliveryOutcome::Delivered,
                "f" => DeliveryOutcome::Failed,
                _ => return None,
            };
            Some(Self { outcome, entry: entry.parse().ok()? })
        };
        parse().ok_or_else(|| NameError::new("attempt", "be the id of an attempt, such as f1700000000000-0", text))
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", &self.outcome.as_str()[..1], self.entry)
    }
}

impl DeliveryOwner {
    fn kind(&self) -> &'static str {
        match self {
            Self::Subscription(_) => "subscription",
            Self::Rule(_) => "rule",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Subscription(name) => name.as_str(),
            Self::Rule(pattern) => pattern,
        }
    }

    fn key(&self, outcome: DeliveryOutcome) -> String {
        match self {
            Self::Subscription(name) => keys::subscription_attempts(name, outcome.as_str()),
            Self::Rule(pattern) => keys::rule_attempts(pattern, outcome.as_str()),
        }
    }
}

impl Redis {
    /// Attempts before one, or the newest, the newest first, each as a JSON object. Redis keeps few of each owner.
    ///
    /// # Errors
    /// Redis is unavailable, or an attempt cannot be opened.
    pub async fn read_deliveries(
        &self,
        owner: &DeliveryOwner,
        outcomes: &[DeliveryOutcome],
        before: Option<DeliveryId>,
        limit: usize,
    ) -> StoreResult<Vec<(DeliveryId, String)>> {
        let mut pipeline = redis::pipe();
        for outcome in outcomes {
            // Two attempts may have the same entry in their logs: by outcome, delivered comes first
            let end = before.map_or_else(
                || "+".to_owned(),
                |before| {
                    let is_after = *outcome > before.outcome;
                    format!("{}{}", if is_after { "" } else { "(" }, before.entry)
                },
            );
            pipeline.cmd("XREVRANGE").arg(owner.key(*outcome)).arg(end).arg("-").arg("COUNT").arg(limit);
        }
        let found: Vec<StreamEntries> = pipeline.query_async(&mut self.clone()).await?;
        let mut attempts = Vec::new();
        for (outcome, entries) in outcomes.iter().zip(found) {
            for (entry, fields) in entries {
                let (Ok(entry), Some((_, stored))) = (entry.parse(), fields.into_iter().find(|(name, _)| name == "d"))
                else {
                    continue;
                };
                let json = self.sealer().open(&["delivery", owner.kind(), owner.name()], stored)?;
                attempts.push((DeliveryId { outcome: *outcome, entry }, json));
            }
        }
        attempts.sort_by_key(|(id, _)| (std::cmp::Reverse((id.entry.milliseconds, id.entry.sequence)), id.outcome));
        attempts.truncate(limit);
        Ok(attempts)
    }

    /// One attempt.
    ///
    /// # Errors
    /// Redis is unavailable, or the attempt cannot be opened.
    pub async fn find_delivery(&self, owner: &DeliveryOwner, id: DeliveryId) -> StoreResult<Option<String>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(owner.key(id.outcome)).arg(id.entry.to_string()).arg(id.entry.to_string());
        let found: StreamEntries = command.query_async(&mut self.clone()).await?;
        let stored = found.into_iter().next().and_then(|(_, fields)| fields.into_iter().find(|(name, _)| name == "d"));
        let open = |(_, stored)| self.sealer().open(&["delivery", owner.kind(), owner.name()], stored);
        stored.map(open).transpose()
    }

    /// Rules with attempts, by their patterns, each with the time of its last attempt; the last one first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn push_rules(&self) -> StoreResult<Vec<(String, Millis)>> {
        let mut command = redis::cmd("ZREVRANGE");
        command.arg(keys::PUSH_RULES).arg(0).arg(-1).arg("WITHSCORES");
        let found: Vec<(String, f64)> = command.query_async(&mut self.clone()).await?;
        #[expect(clippy::cast_possible_truncation, reason = "scores are milliseconds")]
        Ok(found.into_iter().map(|(pattern, at)| (pattern, at as Millis)).collect())
    }

    /// How many attempts of each of these rules are kept that delivered their job, and that failed.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn count_rule_deliveries(&self, patterns: &[&str]) -> StoreResult<Vec<(u64, u64)>> {
        if patterns.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for pattern in patterns {
            let owner = DeliveryOwner::Rule((*pattern).to_owned());
            for outcome in [DeliveryOutcome::Delivered, DeliveryOutcome::Failed] {
                pipeline.cmd("XLEN").arg(owner.key(outcome));
            }
        }
        let counts: Vec<u64> = pipeline.query_async(&mut self.clone()).await?;
        Ok(counts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// Removes the log of an owner that was deleted.
    pub(crate) async fn forget_deliveries(&self, owner: &DeliveryOwner) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        for outcome in DeliveryOutcome::ALL {
            pipeline.cmd("DEL").arg(owner.key(outcome));
        }
        Ok(pipeline.exec_async(&mut self.clone()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_nothing_else_is_one() {
        for text in ["d1700000000000-0", "f1-18"] {
            assert_eq!(text.parse::<DeliveryId>().map(|id| id.to_string()).as_deref(), Ok(text));
        }
        for wrong in ["", "d", "x1-1", "1-1", "d1", "f-1", "d1-1-1", "é1-1"] {
            assert!(wrong.parse::<DeliveryId>().is_err(), "{wrong}");
        }
    }
}
