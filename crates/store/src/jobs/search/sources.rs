//! Finds the places that have candidates of a search.

use std::collections::VecDeque;

use redis::{FromRedisValue, Value};

use super::source::{After, Source, SourceGroup, SourceKind};
use crate::{
    StoreResult,
    jobs::{Jobs, sorted_priorities},
    keys::QueueKeys,
};
use common::name::QueueName;
use model::job::{JobFilter, JobState};

/// Queues that are looked at in one read.
const QUEUE_PAGE_SIZE: usize = 500;

impl Jobs {
    /// The places of a group that have jobs.
    pub(super) async fn sources(
        &self,
        group: SourceGroup,
        filter: &JobFilter,
        queues: &[QueueName],
    ) -> StoreResult<Vec<Source>> {
        let mut sources = Vec::new();
        for queues in queues.chunks(QUEUE_PAGE_SIZE) {
            let keys: Vec<QueueKeys> = queues.iter().map(QueueKeys::new).collect();
            let kinds = match group {
                SourceGroup::Active | SourceGroup::Available => self.stream_kinds(group, queues, &keys).await?,
                SourceGroup::Delayed | SourceGroup::Over => {
                    let of_group = SourceKind::OF_QUEUES.into_iter().filter(|kind| kind.group() == group);
                    (0..queues.len()).flat_map(|number| of_group.clone().map(move |kind| (number, kind))).collect()
                }
            };
            let wanted: Vec<(usize, SourceKind)> =
                kinds.into_iter().filter(|(_, kind)| kind.is_wanted_by(filter)).collect();
            let counts = self.count_sources(&wanted, &keys, filter).await?;
            for ((number, kind), (count, is_there)) in wanted.into_iter().zip(counts) {
                let (queue, keys) = (queues[number].clone(), keys[number].clone());
                let (buffer, after) = (VecDeque::new(), After::Start);
                if is_there {
                    sources.push(Source { queue, keys, kind, count, buffer, after, is_exhausted: false });
                }
            }
        }
        Ok(sources)
    }

    /// The streams of queues, and their jobs that wait for a key.
    async fn stream_kinds(
        &self,
        group: SourceGroup,
        queues: &[QueueName],
        keys: &[QueueKeys],
    ) -> StoreResult<Vec<(usize, SourceKind)>> {
        let mut pipeline = redis::pipe();
        for keys in keys {
            pipeline.cmd("SMEMBERS").arg(keys.priorities());
        }
        let priorities: Vec<Vec<String>> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        let mut kinds = Vec::new();
        for (number, priorities) in (0..queues.len()).zip(priorities) {
            for priority in sorted_priorities(&priorities) {
                kinds.push(match group {
                    SourceGroup::Active => (number, SourceKind::Active(priority)),
                    _ => (number, SourceKind::Waiting(priority)),
                });
            }
            if group == SourceGroup::Available {
                kinds.push((number, SourceKind::KeyWaiting));
            }
        }
        Ok(kinds)
    }

    /// How many jobs of the filter's states each place has, and whether it has any. Of a stream that was removed meanwhile:
    /// none.
    async fn count_sources(
        &self,
        kinds: &[(usize, SourceKind)],
        keys: &[QueueKeys],
        filter: &JobFilter,
    ) -> StoreResult<Vec<(u64, bool)>> {
        let mut counts = Vec::with_capacity(kinds.len());
        for kinds in kinds.chunks(QUEUE_PAGE_SIZE) {
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for (number, kind) in kinds {
                add_counts(&mut pipeline, *kind, &keys[*number]);
            }
            let replies: Vec<redis::RedisResult<Value>> = pipeline.query_async(&mut self.store.redis.clone()).await?;
            let mut replies = replies.into_iter();
            let mut next = || replies.next().and_then(Result::ok).unwrap_or_default();
            for (_, kind) in kinds {
                let (first, second) = (next(), next());
                counts.push(count_of(*kind, filter, first, second));
            }
        }
        Ok(counts)
    }
}

/// Adds the two commands that count the jobs of a place.
fn add_counts(pipeline: &mut redis::Pipeline, kind: SourceKind, keys: &QueueKeys) {
    match kind {
        SourceKind::Active(priority) | SourceKind::Waiting(priority) => {
            let stream = keys.stream(priority);
            pipeline.cmd("XLEN").arg(&stream).cmd("XPENDING").arg(stream).arg("workers");
        }
        SourceKind::Completed => {
            let index = keys.completed_index();
            pipeline.cmd("XRANGE").arg(&index).arg("-").arg("+").arg("COUNT").arg(1);
            pipeline.cmd("XREVRANGE").arg(index).arg("+").arg("-").arg("COUNT").arg(1);
        }
        SourceKind::KeyWaiting => {
            pipeline.cmd("HGET").arg(keys.stats()).arg("key_waiting").cmd("SCARD").arg(keys.waiting_keys());
        }
        set => {
            pipeline.cmd("ZCARD").arg(set.sorted_set(keys)).cmd("HGET").arg(keys.stats()).arg("retryable");
        }
    }
}

fn count_of(kind: SourceKind, filter: &JobFilter, first: Value, second: Value) -> (u64, bool) {
    match kind {
        SourceKind::Active(_) => {
            let claimed = read_pending_count(second);
            (claimed, claimed > 0)
        }
        SourceKind::Waiting(_) => {
            let waiting = read_count(first).saturating_sub(read_pending_count(second));
            (waiting, waiting > 0)
        }
        SourceKind::Completed => {
            let numbers = read_index_entry(first).zip(read_index_entry(second));
            let count = numbers.map_or(0, |((oldest, jobs), (newest, _))| newest.saturating_sub(oldest) + jobs);
            (count, count > 0)
        }
        SourceKind::KeyWaiting => (read_count(first), read_count(second) > 0),
        SourceKind::Due => {
            let (all, retryable) = (read_count(first), read_count(second));
            let retryable = retryable.min(all);
            let wanted = |state, count| if filter.has_state(state) { count } else { 0 };
            let scheduled = wanted(JobState::Scheduled, all - retryable);
            (scheduled + wanted(JobState::Retryable, retryable), all > 0)
        }
        _ => {
            let count = read_count(first);
            (count, count > 0)
        }
    }
}

fn read_count(reply: Value) -> u64 {
    Option::<i64>::from_redis_value(reply).ok().flatten().and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}

fn read_pending_count(reply: Value) -> u64 {
    Vec::<Value>::from_redis_value(reply).ok().and_then(|summary| summary.into_iter().next()).map_or(0, read_count)
}

/// The number of an entry of the index of completed jobs, and how many jobs it has.
fn read_index_entry(reply: Value) -> Option<(u64, u64)> {
    let entries = Vec::<(String, Vec<String>)>::from_redis_value(reply).ok()?;
    let (number, fields) = entries.into_iter().next()?;
    let number = number.split('-').next()?.parse().ok()?;
    Some((number, fields.get(1)?.split(' ').count() as u64))
}
