//! Reads what a queue has stored, a page at a time, and checks each item.

use std::{collections::HashMap, fmt};

use redis::Value;

use super::check_cursor::{CheckCursor, CheckPhase};
use crate::{
    StoreResult,
    connection::notification::Notification,
    jobs::{Jobs, malformed_reply, parse_id_field},
    keys::{self, QueueKeys},
    script,
};
use common::{
    id::{EntryId, JobId},
    name::{LimitKey, Priority, QueueName},
};
use model::job::KeyLimit;

/// An item to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Candidate {
    Due(JobId),
    Pending(JobId),
    KeyQueue(LimitKey, JobId),
    Admitted(LimitKey, JobId),
    Expire(JobId),
    Record(JobId),
    /// An entry, its job, and whether that has a record.
    Entry(Priority, EntryId, JobId, bool),
    Attempt(Priority, EntryId),
}

impl Candidate {
    fn kind(&self) -> &'static str {
        match self {
            Self::Due(_) => "due",
            Self::Pending(_) => "pending",
            Self::KeyQueue(..) => "key_queue",
            Self::Admitted(..) => "admitted",
            Self::Expire(_) => "expire",
            Self::Record(_) => "record",
            Self::Entry(..) => "entry",
            Self::Attempt(..) => "attempt",
        }
    }

    fn id(&self) -> Option<JobId> {
        match self {
            Self::Due(id) | Self::Pending(id) | Self::KeyQueue(_, id) | Self::Admitted(_, id) => Some(*id),
            Self::Expire(id) | Self::Record(id) | Self::Entry(_, _, id, _) => Some(*id),
            Self::Attempt(..) => None,
        }
    }

    fn stream_entry(&self) -> Option<(Priority, EntryId)> {
        match self {
            Self::Entry(priority, entry, ..) | Self::Attempt(priority, entry) => Some((*priority, *entry)),
            _ => None,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        if let Some((priority, entry)) = self.stream_entry() {
            write!(f, " {}", keys::attempt_name(priority, entry))?;
        }
        self.id().map_or(Ok(()), |id| write!(f, " {id}"))
    }
}

type CandidatePage = (Vec<Candidate>, Option<CheckCursor>);

impl Jobs {
    /// About `limit` items from a position on, and the position after them.
    pub(super) async fn read_candidates(
        &self,
        queue: &QueueName,
        from: &CheckCursor,
        limit: usize,
    ) -> StoreResult<CandidatePage> {
        let keys = QueueKeys::new(queue);
        let ids = |members: Vec<String>, candidate: fn(JobId) -> Candidate| {
            members.iter().filter_map(|id| id.parse().ok()).map(candidate).collect::<Vec<Candidate>>()
        };
        let attempts = |members: Vec<String>| {
            members
                .iter()
                .filter_map(|member| keys::parse_attempt_name(member))
                .map(|(p, e)| Candidate::Attempt(p, e))
                .collect()
        };
        let (found, at) = match from.phase {
            CheckPhase::Streams => self.stream_candidates(queue, &from.position, limit).await?,
            CheckPhase::Due => self
                .scan_members("ZSCAN", &keys.due(), from, limit)
                .await
                .map(|(m, at)| (ids(m, Candidate::Due), at))?,
            CheckPhase::Pending => self
                .scan_members("ZSCAN", &keys.pending(), from, limit)
                .await
                .map(|(m, at)| (ids(m, Candidate::Pending), at))?,
            CheckPhase::Leases => {
                self.scan_members("ZSCAN", &keys.leases(), from, limit).await.map(|(m, at)| (attempts(m), at))?
            }
            CheckPhase::Active => {
                self.scan_members("HSCAN", &keys.active(), from, limit).await.map(|(m, at)| (attempts(m), at))?
            }
            CheckPhase::Timers => {
                let (mut members, at) = self.scan_members("ZSCAN", &keys.timers(), from, limit).await?;
                members = members.iter().filter_map(|timer| timer.strip_prefix("expire ").map(str::to_owned)).collect();
                (ids(members, Candidate::Expire), at)
            }
            CheckPhase::Keys => self.key_candidates(&keys, from, limit).await?,
        };
        Ok((found, CheckCursor::after(from.phase, at)))
    }

    /// Members of a sorted set or a hash, without their values.
    async fn scan_members(
        &self,
        command: &str,
        key: &str,
        from: &CheckCursor,
        limit: usize,
    ) -> StoreResult<(Vec<String>, Option<String>)> {
        let mut scan = redis::cmd(command);
        scan.arg(key).arg(if from.position.is_empty() { "0" } else { &from.position }).arg("COUNT").arg(limit);
        let (next, found): (String, Vec<String>) = scan.query_async(&mut self.store.redis.clone()).await?;
        let members = found.into_iter().step_by(2).collect();
        Ok((members, Some(next).filter(|next| next != "0")))
    }

    /// Entries of the queue's streams, highest priority first.
    async fn stream_candidates(
        &self,
        queue: &QueueName,
        at: &str,
        limit: usize,
    ) -> StoreResult<(Vec<Candidate>, Option<String>)> {
        let after = keys::parse_attempt_name(at);
        let (keys, mut found) = (QueueKeys::new(queue), Vec::new());
        let rest = self.priorities(queue).await?;
        for priority in rest.into_iter().filter(|priority| after.is_none_or(|(last, _)| *priority <= last)) {
            let start = match after {
                Some((last, entry)) if last == priority => format!("({entry}"),
                _ => "-".to_owned(),
            };
            let max = limit - found.len();
            let listed: Vec<(String, String)> = script::LIST_ENTRIES
                .key(keys.stream(priority))
                .arg(start)
                .arg(max)
                .invoke_async(&mut self.store.redis.clone())
                .await?;
            let last = listed.last().map(|(entry, _)| format!("{priority}:{entry}"));
            let is_full = listed.len() == max;
            found
                .extend(listed.iter().filter_map(|(entry, marker)| candidate_of_entry(queue, priority, entry, marker)));
            if is_full {
                return Ok((found, last));
            }
        }
        Ok((found, None))
    }

    /// Records, and the front of key queues and of admitted jobs: what does not belong there stays when others leave, so it
    /// comes to the front.
    async fn key_candidates(
        &self,
        keys: &QueueKeys,
        from: &CheckCursor,
        limit: usize,
    ) -> StoreResult<(Vec<Candidate>, Option<String>)> {
        let prefix = keys.prefix();
        let mut redis = self.store.redis.server_of(prefix).await?;
        let mut scan = redis::cmd("SCAN");
        scan.arg(if from.position.is_empty() { "0" } else { &from.position }).arg("MATCH").arg(format!("{prefix}*"));
        let (next, names): (String, Vec<String>) = scan.arg("COUNT").arg(limit).query_async(&mut redis).await?;
        let mut found = Vec::new();
        for name in names.iter().filter_map(|name| name.strip_prefix(prefix)) {
            let (set, candidate): (String, fn(LimitKey, JobId) -> Candidate) = match name.split_once(':') {
                Some(("j", id)) => {
                    found.extend(id.parse().ok().map(Candidate::Record));
                    continue;
                }
                Some(("key_queue", key)) => (key.to_owned(), Candidate::KeyQueue),
                Some(("admitted", key)) => (key.to_owned(), Candidate::Admitted),
                _ => continue,
            };
            let Ok(key) = set.parse::<LimitKey>() else { continue };
            let mut front = redis::cmd("ZRANGE");
            front.arg([prefix, name].concat()).arg(0).arg(limit.saturating_sub(1));
            let ids: Vec<String> = front.query_async(&mut redis).await?;
            found.extend(ids.iter().filter_map(|id| id.parse().ok()).map(|id| candidate(key.clone(), id)));
        }
        Ok((found, Some(next).filter(|next| next != "0")))
    }

    /// What is wrong with an item, and whether it was repaired.
    pub(super) async fn check_one(
        &self,
        queue: &QueueName,
        candidate: &Candidate,
        repair: bool,
    ) -> StoreResult<Option<(String, bool)>> {
        let keys = QueueKeys::new(queue);
        let mut redis = self.store.redis.clone();
        let mut record = HashMap::new();
        if let Some(id) = candidate.id() {
            let mut command = redis::cmd("HMGET");
            command.arg(keys.record(&id)).arg(&["s", "p", "x", "l"]);
            let fields: Vec<Option<String>> = command.query_async(&mut redis).await?;
            record = ["s", "p", "x", "l"].into_iter().zip(fields).filter_map(|(n, v)| Some((n, v?))).collect();
        }
        let said = |name: &str| record.get(name).map_or("", String::as_str);
        let key = match candidate {
            Candidate::KeyQueue(key, _) | Candidate::Admitted(key, _) => Some(key.clone()),
            _ => KeyLimit::split_field(said("l")).ok().map(|(key, _)| key),
        };
        let lane = LimitKey::or_placeholder(key.as_ref());
        let priority = Priority::from_text(said("p"));
        let id = candidate.id();
        let none = || keys.priorities();
        let address = candidate.stream_entry();
        let answer: Vec<Value> = script::CHECK_ONE
            .key(id.map_or_else(none, |id| keys.record(&id)))
            .key(id.map_or_else(none, |id| keys.result(&id)))
            .key(keys.due())
            .key(keys.pending())
            .key(keys.timers())
            .key(keys.stats())
            .key(keys.key_queue(&lane))
            .key(keys.waiting_keys())
            .key(keys.admitted(&lane))
            .key(keys.key_limit(&lane))
            .key(keys.active())
            .key(keys.leases())
            .key(keys.stream(priority.unwrap_or_default()))
            .key(keys.stream(address.map(|(priority, _)| priority).unwrap_or_default()))
            .arg(candidate.kind())
            .arg(u8::from(repair))
            .arg(id.map(|id| id.to_string()).unwrap_or_default())
            .arg(key.as_ref().map_or("", LimitKey::as_str))
            .arg(&[said("s"), said("p"), said("x")])
            .arg(address.map(|(_, entry)| entry.to_string()).unwrap_or_default())
            .arg(address.map(|(priority, entry)| keys::attempt_name(priority, entry)).unwrap_or_default())
            .arg(u8::from(matches!(candidate, Candidate::Entry(.., true))))
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(queue.clone()).encode())
            .invoke_async(&mut redis)
            .await?;
        let mut parts = answer.into_iter();
        let Some(kind) = parts.next() else { return Ok(None) };
        let kind: String = redis::from_redis_value(kind).map_err(malformed_reply)?;
        let mended: i64 = redis::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)?;
        Ok(Some((kind, mended == 1)))
    }
}

/// An entry without a job is another program's: the claim logs it.
fn candidate_of_entry(queue: &QueueName, priority: Priority, entry: &str, marker: &str) -> Option<Candidate> {
    let entry: EntryId = entry.parse().ok()?;
    let (id, has_record) = parse_id_field(queue, priority, entry, marker)?;
    Some(Candidate::Entry(priority, entry, id, has_record))
}
