//! Finds the places that have candidates of a search.

use std::collections::VecDeque;

use redis::{FromRedisValue, Value};

use super::source::{After, Source, SourceGroup, SourceKind};
use crate::{
    StoreResult,
    jobs::{Jobs, claim::malformed_reply, sorted_priorities},
    keys::QueueKeys,
};
use common::name::QueueName;
use model::job::JobFilter;

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
                    let all = [SourceKind::Due, SourceKind::Pending, SourceKind::Discarded, SourceKind::DeadLetters];
                    let of_group = all.into_iter().filter(|kind| kind.group() == group);
                    (0..queues.len()).flat_map(|number| of_group.clone().map(move |kind| (number, kind))).collect()
                }
            };
            let wanted: Vec<(usize, SourceKind)> =
                kinds.into_iter().filter(|(_, kind)| kind.is_wanted_by(filter)).collect();
            let counts = self.count_sources(&wanted, &keys).await?;
            for ((number, kind), count) in wanted.into_iter().zip(counts) {
                let (queue, keys) = (queues[number].clone(), keys[number].clone());
                let (buffer, after) = (VecDeque::new(), After::Start);
                if count > 0 {
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

    /// How many jobs each place has. Of a stream that was removed meanwhile: none.
    async fn count_sources(&self, kinds: &[(usize, SourceKind)], keys: &[QueueKeys]) -> StoreResult<Vec<u64>> {
        let mut counts = Vec::with_capacity(kinds.len());
        for kinds in kinds.chunks(QUEUE_PAGE_SIZE) {
            let mut pipeline = redis::pipe();
            pipeline.ignore_errors();
            for (number, kind) in kinds {
                let keys = &keys[*number];
                match kind {
                    SourceKind::Active(priority) | SourceKind::Waiting(priority) => {
                        let stream = keys.stream(*priority);
                        pipeline.cmd("XLEN").arg(&stream).cmd("XPENDING").arg(stream).arg("workers")
                    }
                    SourceKind::KeyWaiting => pipeline.cmd("HGET").arg(keys.stats()).arg("key_waiting"),
                    set => pipeline.cmd("ZCARD").arg(set.sorted_set(keys)),
                };
            }
            let mut replies = pipeline
                .query_async::<Vec<redis::RedisResult<Value>>>(&mut self.store.redis.clone())
                .await?
                .into_iter();
            let mut next_reply = || replies.next().and_then(Result::ok);
            for (_, kind) in kinds {
                let first = next_reply().and_then(read_count).unwrap_or_default();
                counts.push(match kind {
                    SourceKind::Active(_) => next_reply().and_then(read_pending_count).unwrap_or_default(),
                    SourceKind::Waiting(_) => {
                        first.saturating_sub(next_reply().and_then(read_pending_count).unwrap_or_default())
                    }
                    _ => first,
                });
            }
        }
        Ok(counts)
    }
}

fn read_count(reply: Value) -> Option<u64> {
    Option::<u64>::from_redis_value(reply).map_err(malformed_reply).ok().flatten()
}

fn read_pending_count(reply: Value) -> Option<u64> {
    let summary = Vec::<Value>::from_redis_value(reply).ok()?;
    summary.into_iter().next().and_then(read_count)
}
