//! Reads the next candidates of a source, newest first.

use redis::{FromRedisValue, Value, aio::ConnectionLike};

use super::source::{After, Found, SearchCandidate, Source, SourceKind};
use crate::{
    StoreError, StoreResult,
    connection::clock::score_to_millis,
    jobs::{Jobs, claim::last_delivered_id},
    script,
};
use common::{id::EntryId, name::Priority, time::Millis};

/// Ids that are read at once.
const ID_PAGE_SIZE: usize = 500;
/// Entries of a stream that are read at once: each may be as large as a request body.
const ENTRY_PAGE_SIZE: usize = 20;
/// Running jobs of a stream, and jobs that wait for a key, that a search looks at: those are listed in one read.
const MAX_LISTED: usize = 10_000;
pub(super) const LISTED_PAGE_SIZE: usize = 1000;

/// A claimed entry as Redis lists it: entry, consumer, for how many ms, number of deliveries.
type ListedEntry = (String, String, i64, i64);

impl Jobs {
    /// Reads more candidates of a source.
    pub(super) async fn read_more(
        &self,
        source: &mut Source,
        connection: &mut (impl ConnectionLike + Send),
    ) -> StoreResult<()> {
        while source.buffer.is_empty() && !source.is_exhausted {
            match source.kind {
                SourceKind::Waiting(priority) => read_waiting(source, connection, priority).await?,
                SourceKind::Active(priority) => read_active(source, connection, priority).await?,
                SourceKind::KeyWaiting => read_key_queues(source, connection).await?,
                SourceKind::Completed => read_completed(source, connection).await?,
                _ => read_sorted_set(source, connection).await?,
            }
            source.note_last();
        }
        Ok(())
    }
}

impl Source {
    /// Continues behind what the buffer has.
    pub(super) fn note_last(&mut self) {
        if let Some(last) = self.buffer.back() {
            self.after = After::Candidate { at: last.at, tie: last.tie.clone() };
        }
    }

    /// Takes entries of a stream, newest first.
    pub(super) fn take_entries(&mut self, reply: Value, count: usize) {
        let page = Vec::<(String, Value)>::from_redis_value(reply).unwrap_or_default();
        self.is_exhausted = page.len() < count;
        self.buffer.extend(page.into_iter().filter_map(|(entry, fields)| {
            let at = entry.parse::<EntryId>().ok()?.milliseconds;
            let (at, tie) = (Millis::try_from(at).ok()?, entry.clone());
            Some(SearchCandidate { at, tie, found: Found::Entry(entry, fields) })
        }));
    }

    /// Takes all claimed entries of a stream.
    pub(super) fn take_claimed(&mut self, listed: Vec<ListedEntry>) {
        let mut listed: Vec<(EntryId, SearchCandidate)> = listed
            .into_iter()
            .filter_map(|(entry, consumer, idle, _)| {
                let id: EntryId = entry.parse().ok()?;
                let at = Millis::try_from(id.milliseconds).ok()?;
                Some((id, SearchCandidate { at, tie: entry, found: Found::Claimed(id, consumer, idle) }))
            })
            .collect();
        let after = match &self.after {
            After::Candidate { tie, .. } => tie.parse::<EntryId>().ok(),
            _ => None,
        };
        listed.retain(|(id, candidate)| after.map_or(self.after.admits(candidate.at), |after| *id < after));
        listed.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
        self.buffer.extend(listed.into_iter().map(|(_, candidate)| candidate));
        self.is_exhausted = true;
        self.note_last();
    }
}

/// Adds the command that reads the newest entries of a stream that nobody has claimed.
pub(super) fn add_waiting(pipeline: &mut redis::Pipeline, stream: &str, after: &After, claimed: &str, count: usize) {
    let newest = match after {
        After::Start => "+".to_owned(),
        After::Until(at) => at.to_string(),
        After::Candidate { tie, .. } => format!("({tie}"),
    };
    pipeline.cmd("XREVRANGE").arg(stream).arg(newest).arg(format!("({claimed}")).arg("COUNT").arg(count);
}

/// Adds the command that lists claimed entries of a stream.
pub(super) fn add_claimed(pipeline: &mut redis::Pipeline, stream: &str, start: &str) {
    pipeline.cmd("XPENDING").arg(stream).arg("workers").arg(start).arg("+").arg(LISTED_PAGE_SIZE);
}

async fn read_waiting(
    source: &mut Source,
    connection: &mut (impl ConnectionLike + Send),
    priority: Priority,
) -> StoreResult<()> {
    let stream = source.keys.stream(priority);
    let claimed = match last_delivered_id(connection, &stream).await {
        // The stream is gone, or no stream
        Err(StoreError::Refused(_)) => {
            source.is_exhausted = true;
            return Ok(());
        }
        claimed => claimed?,
    };
    let mut pipeline = redis::pipe();
    add_waiting(&mut pipeline, &stream, &source.after, &claimed, ENTRY_PAGE_SIZE);
    let (page,): (Value,) = pipeline.query_async(connection).await?;
    source.take_entries(page, ENTRY_PAGE_SIZE);
    Ok(())
}

/// Lists the running jobs of a stream. Redis lists them oldest first only.
async fn read_active(
    source: &mut Source,
    connection: &mut (impl ConnectionLike + Send),
    priority: Priority,
) -> StoreResult<()> {
    let stream = source.keys.stream(priority);
    let (mut start, mut listed) = ("-".to_owned(), Vec::new());
    while listed.len() < MAX_LISTED {
        let mut pipeline = redis::pipe();
        add_claimed(&mut pipeline, &stream, &start);
        let page = pipeline.query_async::<(Vec<ListedEntry>,)>(connection).await;
        let (page,) = match page.map_err(StoreError::from) {
            Err(StoreError::Refused(_)) => break,
            page => page?,
        };
        let Some((last, ..)) = page.last() else { break };
        start = format!("({last}");
        let is_last = page.len() < LISTED_PAGE_SIZE;
        listed.extend(page);
        if is_last {
            break;
        }
    }
    source.take_claimed(listed);
    Ok(())
}

/// Lists the jobs that wait for the limit of their key.
async fn read_key_queues(source: &mut Source, connection: &mut (impl ConnectionLike + Send)) -> StoreResult<()> {
    let (mut cursor, mut listed) = (0_u64, Vec::new());
    loop {
        let mut command = redis::cmd("SSCAN");
        command.arg(source.keys.waiting_keys()).arg(cursor).arg("COUNT").arg(ID_PAGE_SIZE);
        let (next, keys): (u64, Vec<String>) = command.query_async(connection).await?;
        let mut pipeline = redis::pipe();
        for key in keys.iter().filter_map(|key| key.parse().ok()) {
            pipeline.cmd("ZREVRANGE").arg(source.keys.key_queue(&key)).arg(0).arg(LISTED_PAGE_SIZE - 1);
        }
        let ids: Vec<Vec<String>> = pipeline.query_async(connection).await?;
        listed.extend(ids.into_iter().flatten().filter_map(|id| SearchCandidate::of_id(id, None)));
        cursor = next;
        if cursor == 0 || listed.len() >= MAX_LISTED {
            break;
        }
    }
    listed.retain(|candidate| source.after.admits_tie(candidate.at, &candidate.tie));
    listed.sort_unstable_by(|a, b| (b.at, &b.tie).cmp(&(a.at, &a.tie)));
    source.buffer.extend(listed);
    source.is_exhausted = true;
    Ok(())
}

/// Reads the index of completed jobs: entries of several jobs each, newest first.
async fn read_completed(source: &mut Source, connection: &mut (impl ConnectionLike + Send)) -> StoreResult<()> {
    let (place, last) = match &source.after {
        After::Start => (String::new(), None),
        After::Until(at) => (format!("until {at}"), None),
        After::Candidate { tie, .. } => {
            let (number, id) = tie.split_once(':').unwrap_or((tie, ""));
            (format!("number {number}"), Some((number.parse::<u64>().unwrap_or(0), id.to_owned())))
        }
    };
    let mut call = script::READ_COMPLETED.key(source.keys.completed_index());
    let entries: Vec<(u64, Millis, String)> = call.arg(place).arg(ID_PAGE_SIZE + 1).invoke_async(connection).await?;
    for (number, at, ids) in entries {
        let number_text = number.to_string();
        let mut candidates = SearchCandidate::of_index_entry(&number_text, at, &ids);
        // The first entry is the one that was read last
        if let Some((_, before)) = last.as_ref().filter(|(last, _)| *last == number) {
            candidates.retain(|candidate| candidate.tie[number_text.len() + 1..] < before[..]);
        }
        source.buffer.extend(candidates);
    }
    source.is_exhausted = source.buffer.is_empty();
    Ok(())
}

async fn read_sorted_set(source: &mut Source, connection: &mut (impl ConnectionLike + Send)) -> StoreResult<()> {
    let set = source.kind.sorted_set(&source.keys);
    if let After::Candidate { at, tie } = source.after.clone() {
        let mut command = redis::cmd("ZRANGE");
        command.arg(&set).arg(at).arg("-inf").arg("BYSCORE").arg("REV");
        command.arg("LIMIT").arg(0).arg(ID_PAGE_SIZE).arg("WITHSCORES");
        let mut page: Vec<(String, f64)> = command.query_async(connection).await?;
        let is_last = page.len() < ID_PAGE_SIZE;
        page.retain(|(id, score)| score_to_millis(*score) < at || *id < tie);
        // Else all of the page have that time: the place is found by its rank
        if is_last || !page.is_empty() {
            source.take_members(page, 1);
            source.is_exhausted = is_last;
            return Ok(());
        }
    }
    let rank = rank_after(connection, &set, &source.after).await?;
    let mut command = redis::cmd("ZREVRANGE");
    command.arg(set).arg(rank).arg(rank + ID_PAGE_SIZE - 1).arg("WITHSCORES");
    let page: Vec<(String, f64)> = command.query_async(connection).await?;
    source.take_members(page, ID_PAGE_SIZE);
    Ok(())
}

/// The rank, newest first, of the first member behind that place.
async fn rank_after(connection: &mut (impl ConnectionLike + Send), set: &str, after: &After) -> StoreResult<usize> {
    let (at, tie) = match after {
        After::Start => return Ok(0),
        After::Until(at) => {
            let mut command = redis::cmd("ZCOUNT");
            command.arg(set).arg(format!("({at}")).arg("+inf");
            return Ok(command.query_async(connection).await?);
        }
        After::Candidate { at, tie } => (at, tie),
    };
    let mut pipeline = redis::pipe();
    pipeline.cmd("ZSCORE").arg(set).arg(tie).cmd("ZREVRANK").arg(set).arg(tie);
    pipeline.cmd("ZCOUNT").arg(set).arg(format!("({at}")).arg("+inf");
    let (score, rank, newer): (Option<f64>, Option<usize>, usize) = pipeline.query_async(connection).await?;
    if let Some(rank) = rank.filter(|_| score.map(score_to_millis) == Some(*at)) {
        return Ok(rank + 1);
    }
    // It is gone, or moved. Members with the same score are in the order of their ids
    let mut same = redis::cmd("ZRANGEBYSCORE");
    same.arg(set).arg(at).arg(at).arg("LIMIT").arg(0).arg(MAX_LISTED);
    let same: Vec<String> = same.query_async(connection).await?;
    Ok(newer + same.iter().filter(|other| *other > tie).count())
}
