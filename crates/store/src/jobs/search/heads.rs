//! Reads the first candidates of all places of a group at once: a few commands for each place, many in a round trip.

use redis::{FromRedisValue, RedisResult, Value, aio::ConnectionLike};

use super::{
    PIPELINE_SIZE,
    candidates::{LISTED_PAGE_SIZE, add_claimed, add_waiting},
    source::{After, Found, SearchCandidate, Source, SourceKind},
    sources::read_count,
};
use crate::{
    StoreResult,
    connection::clock::score_to_millis,
    jobs::{Jobs, claim::last_delivered_of},
};
use common::time::Millis;

/// First candidates of all places together, about: few of each of many places, more of each of a few.
const MAX_HEADS: usize = 1000;
const MAX_HEAD_IDS: usize = 50;
/// An entry of a stream may be as large as a request body.
const MAX_HEAD_ENTRIES: usize = 2;

impl Jobs {
    /// Reads the first candidates of places, and drops those that have none.
    pub(super) async fn read_heads(
        &self,
        sources: &mut Vec<Source>,
        connection: &mut (impl ConnectionLike + Send),
    ) -> StoreResult<()> {
        let ids = (MAX_HEADS / sources.len().max(1)).clamp(1, MAX_HEAD_IDS);
        for chunk in sources.chunks_mut(PIPELINE_SIZE) {
            let claimed = last_delivered(chunk, connection).await?;
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for (source, claimed) in chunk.iter().zip(&claimed) {
                add_head(&mut pipeline, source, claimed.as_deref(), ids);
            }
            let replies: Vec<RedisResult<Value>> = pipeline.query_async(connection).await?;
            for (source, reply) in chunk.iter_mut().zip(replies) {
                let reply = match (source.kind, reply) {
                    // The stream is gone, or no stream
                    (SourceKind::Waiting(_) | SourceKind::Active(_), Err(_)) => Value::Nil,
                    (_, reply) => reply?,
                };
                if !take_head(source, reply, ids) {
                    self.read_more(source, connection).await?;
                }
            }
        }
        sources.retain(|source| !source.buffer.is_empty());
        Ok(())
    }
}

/// Up to which entry workers have claimed the jobs of each stream of waiting jobs.
async fn last_delivered(
    sources: &[Source],
    connection: &mut (impl ConnectionLike + Send),
) -> StoreResult<Vec<Option<String>>> {
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors();
    for source in sources {
        if let SourceKind::Waiting(priority) = source.kind {
            pipeline.cmd("XINFO").arg("GROUPS").arg(source.keys.stream(priority));
        }
    }
    let mut replies = Vec::new().into_iter();
    if !pipeline.is_empty() {
        replies = pipeline.query_async::<Vec<RedisResult<Value>>>(connection).await?.into_iter();
    }
    let mut next = |source: &Source| {
        let SourceKind::Waiting(_) = source.kind else { return Ok(None) };
        // The stream is gone, or no stream
        let Some(Ok(groups)) = replies.next() else { return Ok(None) };
        last_delivered_of(groups).map(Some)
    };
    sources.iter().map(&mut next).collect()
}

/// Adds the one command that reads the first candidates of a place, or tells whether there are any.
fn add_head(pipeline: &mut redis::Pipeline, source: &Source, claimed: Option<&str>, ids: usize) {
    let keys = &source.keys;
    match source.kind {
        SourceKind::Waiting(priority) => {
            // Nothing is newer than the last entry of all
            let claimed = claimed.unwrap_or("18446744073709551615-18446744073709551615");
            add_waiting(pipeline, &keys.stream(priority), &source.after, claimed, ids.min(MAX_HEAD_ENTRIES));
        }
        SourceKind::Active(priority) => add_claimed(pipeline, &keys.stream(priority), "-"),
        SourceKind::KeyWaiting => {
            pipeline.cmd("SCARD").arg(keys.waiting_keys());
        }
        SourceKind::Completed => {
            pipeline.cmd("XREVRANGE").arg(keys.completed_index()).arg("+").arg("-").arg("COUNT").arg(1);
        }
        set => {
            let newest = match source.after {
                After::Until(at) => at.to_string(),
                After::Start | After::Candidate { .. } => "+inf".to_owned(),
            };
            pipeline.cmd("ZRANGE").arg(set.sorted_set(keys)).arg(newest).arg("-inf").arg("BYSCORE").arg("REV");
            pipeline.arg("LIMIT").arg(0).arg(ids).arg("WITHSCORES");
        }
    }
}

/// Takes what was read of a place; false if more must be read to know its first candidates.
fn take_head(source: &mut Source, reply: Value, ids: usize) -> bool {
    match source.kind {
        SourceKind::Waiting(_) => {
            source.take_entries(reply, ids.min(MAX_HEAD_ENTRIES));
            source.note_last();
            true
        }
        SourceKind::Active(_) => {
            let Ok(listed) = Vec::<(String, String, i64, i64)>::from_redis_value(reply) else { return true };
            if listed.len() >= LISTED_PAGE_SIZE {
                return false;
            }
            source.take_claimed(listed);
            true
        }
        SourceKind::KeyWaiting => read_count(reply) == 0,
        // Where these continue is found by reading more than one place
        _ if matches!(source.after, After::Candidate { .. }) => false,
        SourceKind::Completed => take_newest_completed(source, reply),
        _ => {
            let page = Vec::<(String, f64)>::from_redis_value(reply).unwrap_or_default();
            source.take_members(page, ids);
            true
        }
    }
}

/// Takes the newest entry of an index of completed jobs; false if it is too new.
fn take_newest_completed(source: &mut Source, reply: Value) -> bool {
    let entries = Vec::<(String, Vec<String>)>::from_redis_value(reply).unwrap_or_default();
    let Some((entry, fields)) = entries.into_iter().next() else { return true };
    let (Some(number), [at, ids]) = (entry.split('-').next(), &fields[..]) else { return true };
    let Ok(at) = at.parse::<Millis>() else { return true };
    if !source.after.admits(at) {
        return false;
    }
    let tie = number.to_owned();
    source.after = After::Candidate { at, tie: format!("{tie}:") };
    source.buffer.push_back(SearchCandidate { at, tie, found: Found::CompletedJobs(ids.clone()) });
    true
}

impl Source {
    /// Takes members of a sorted set with their scores.
    pub(super) fn take_members(&mut self, page: Vec<(String, f64)>, count: usize) {
        self.is_exhausted = page.len() < count;
        if let Some((id, score)) = page.last() {
            self.after = After::Candidate { at: score_to_millis(*score), tie: id.clone() };
        }
        self.buffer.extend(
            page.into_iter().filter_map(|(id, score)| SearchCandidate::of_id(id, Some(score_to_millis(score)))),
        );
    }
}
