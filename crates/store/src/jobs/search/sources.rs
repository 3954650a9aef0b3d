//! Finds the places that may have candidates of a search, and counts jobs by their places.

use redis::{FromRedisValue, Value, aio::ConnectionLike};

use super::{
    PIPELINE_SIZE,
    source::{Source, SourceGroup, SourceKind},
};
use crate::{
    StoreResult,
    jobs::{Jobs, sorted_priorities},
    keys::QueueKeys,
};
use common::name::{Priority, QueueName};
use model::job::{JobFilter, JobState};

/// Queues, with their streams that have jobs.
pub(super) struct SearchedQueues {
    queues: Vec<(QueueName, QueueKeys)>,
    /// Each with the number of its queue.
    streams: Vec<(usize, Priority)>,
}

impl SearchedQueues {
    /// Asks which streams have jobs.
    pub(super) async fn read(
        queues: Vec<QueueName>,
        connection: &mut (impl ConnectionLike + Send),
    ) -> StoreResult<Self> {
        let queues: Vec<(QueueName, QueueKeys)> =
            queues.into_iter().map(|queue| (queue.clone(), QueueKeys::new(&queue))).collect();
        let mut streams = Vec::new();
        for (first, chunk) in (0..).step_by(PIPELINE_SIZE).zip(queues.chunks(PIPELINE_SIZE)) {
            let mut pipeline = redis::pipe();
            for (_, keys) in chunk {
                pipeline.cmd("SMEMBERS").arg(keys.priorities());
            }
            let priorities: Vec<Vec<String>> = pipeline.query_async(connection).await?;
            for (number, members) in (first..).zip(priorities) {
                streams.extend(sorted_priorities(&members).into_iter().map(|priority| (number, priority)));
            }
        }
        let mut lengths = Vec::with_capacity(streams.len());
        for chunk in streams.chunks(PIPELINE_SIZE) {
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for (number, priority) in chunk {
                pipeline.cmd("XLEN").arg(queues[*number].1.stream(*priority));
            }
            lengths.extend(pipeline.query_async::<Vec<redis::RedisResult<Value>>>(connection).await?);
        }
        let mut lengths = lengths.into_iter();
        // A job that is in progress has its entry still
        streams.retain(|_| lengths.next().is_some_and(|length| length.is_ok_and(|length| read_count(length) > 0)));
        Ok(Self { queues, streams })
    }

    /// The places of a group that may have jobs in the states of a filter, in the order of sources.
    pub(super) fn sources(&self, group: SourceGroup, filter: &JobFilter) -> Vec<Source> {
        let of_streams = self.streams.iter().filter_map(|(number, priority)| match group {
            SourceGroup::Active => Some((*number, SourceKind::Active(*priority))),
            SourceGroup::Available => Some((*number, SourceKind::Waiting(*priority))),
            SourceGroup::Delayed | SourceGroup::Over => None,
        });
        let of_queues = SourceKind::OF_QUEUES.into_iter().filter(|kind| kind.group() == group);
        let of_queues = (0..self.queues.len()).flat_map(|number| of_queues.clone().map(move |kind| (number, kind)));
        let wanted = of_streams.chain(of_queues).filter(|(_, kind)| kind.is_wanted_by(filter));
        let source = |(number, kind): (usize, SourceKind)| {
            let (queue, keys) = &self.queues[number];
            Source::new(queue.clone(), keys.clone(), kind)
        };
        let mut sources: Vec<Source> = wanted.map(source).collect();
        sources.sort_by(|a, b| a.order().cmp(&b.order()));
        sources
    }
}

impl Jobs {
    /// How many jobs of the filter's states the places have. Of a stream that was removed meanwhile: none.
    pub(super) async fn count_in(
        &self,
        sources: &[Source],
        filter: &JobFilter,
        connection: &mut (impl ConnectionLike + Send),
    ) -> StoreResult<u64> {
        let mut total = 0;
        for sources in sources.chunks(PIPELINE_SIZE / 2) {
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for source in sources {
                add_counts(&mut pipeline, source.kind, &source.keys);
            }
            let replies: Vec<redis::RedisResult<Value>> = pipeline.query_async(connection).await?;
            let mut replies = replies.into_iter();
            let mut next = || replies.next().and_then(Result::ok).unwrap_or_default();
            for source in sources {
                let first = next();
                let second = if has_second_count(source.kind) { next() } else { Value::Nil };
                total += count_of(source.kind, filter, first, second);
            }
        }
        Ok(total)
    }
}

/// Whether it takes two commands to count the jobs of a place.
fn has_second_count(kind: SourceKind) -> bool {
    matches!(kind, SourceKind::Waiting(_) | SourceKind::Completed | SourceKind::Due)
}

/// Adds the commands that count the jobs of a place.
fn add_counts(pipeline: &mut redis::Pipeline, kind: SourceKind, keys: &QueueKeys) {
    match kind {
        SourceKind::Active(priority) => {
            pipeline.cmd("XPENDING").arg(keys.stream(priority)).arg("workers");
        }
        SourceKind::Waiting(priority) => {
            let stream = keys.stream(priority);
            pipeline.cmd("XLEN").arg(&stream).cmd("XPENDING").arg(stream).arg("workers");
        }
        SourceKind::Completed => {
            let index = keys.completed_index();
            pipeline.cmd("XRANGE").arg(&index).arg("-").arg("+").arg("COUNT").arg(1);
            pipeline.cmd("XREVRANGE").arg(index).arg("+").arg("-").arg("COUNT").arg(1);
        }
        SourceKind::KeyWaiting => {
            pipeline.cmd("HGET").arg(keys.stats()).arg("key_waiting");
        }
        SourceKind::Due => {
            pipeline.cmd("ZCARD").arg(keys.due()).cmd("HGET").arg(keys.stats()).arg("retryable");
        }
        set => {
            pipeline.cmd("ZCARD").arg(set.sorted_set(keys));
        }
    }
}

fn count_of(kind: SourceKind, filter: &JobFilter, first: Value, second: Value) -> u64 {
    match kind {
        SourceKind::Active(_) => read_pending_count(first),
        SourceKind::Waiting(_) => read_count(first).saturating_sub(read_pending_count(second)),
        SourceKind::Completed => {
            let numbers = read_index_entry(first).zip(read_index_entry(second));
            numbers.map_or(0, |((oldest, jobs), (newest, _))| newest.saturating_sub(oldest) + jobs)
        }
        SourceKind::Due => {
            let all = read_count(first);
            let retryable = read_count(second).min(all);
            let wanted = |state, count| if filter.has_state(state) { count } else { 0 };
            wanted(JobState::Scheduled, all - retryable) + wanted(JobState::Retryable, retryable)
        }
        _ => read_count(first),
    }
}

pub(super) fn read_count(reply: Value) -> u64 {
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
