//! Measures what each kind of data takes of Redis's memory, a bounded amount of work at a time.
//!
//! Streams are measured, a few queues and channels in turn. Small keys, of which there may be millions, are sampled: a
//! scan that goes on where the last one stopped sees keys in no order, so their mean size and the share of each kind
//! among them hold for the others. Nothing is measured while Redis is nearly empty: idle servers cost nothing.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use redis::{InfoDict, Pipeline, aio::ConnectionLike};

use crate::{
    Redis, StoreError, StoreResult,
    channels::Channels,
    connection::budgets::{BUDGETS, DataKind},
    events::stream_count,
    jobs::Jobs,
    keys::{self, QueueKeys},
};
use common::{
    id::JobId,
    name::{ChannelName, Priority, QueueName},
    rotation::Rotation,
};

/// Queues that are measured in one survey, and channels.
const ITEMS_PER_SURVEY: usize = 64;
/// Keys that one survey samples, about.
const SAMPLED_KEYS: usize = 128;
/// Surveys whose samples count.
const SAMPLE_WINDOW: usize = 6;
/// Dead letters of a queue that are measured in one survey.
const SAMPLED_DEAD_LETTERS: usize = 3;
/// About what an attempt of a job takes beside the job: its place in the pending list.
const ATTEMPT_BYTES: u64 = 100;
/// Surveys after which the list of channels is read again.
const CHANNEL_LIST_AGE: u32 = 10;

/// What is known of a queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueueSize {
    /// Its streams, with room for an attempt of each job.
    streams: u64,
    pub(super) dead_letters: u64,
    /// Mean bytes of a dead letter.
    dead_letter_bytes: u64,
}

/// Bytes of sampled keys by kind, and how many there were of all kinds.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    bytes: [u64; BUDGETS.len()],
    count: u64,
}

/// The state of the surveys.
#[derive(Debug, Default)]
pub(super) struct MemorySurvey {
    rotation: Rotation,
    pub(super) queues: HashMap<QueueName, QueueSize>,
    channels: Arc<Vec<ChannelName>>,
    channel_list_age: u32,
    next_channel: usize,
    histories: HashMap<ChannelName, u64>,
    scan_cursor: u64,
    samples: VecDeque<Sample>,
}

impl MemorySurvey {
    /// Measures some more, and stores what is known now in the process's state of memory.
    pub(super) async fn run(&mut self, jobs: &Jobs) -> StoreResult<()> {
        let state = jobs.store.redis.memory();
        let added_before = state.usage().added();
        self.measure_queues(jobs).await?;
        self.measure_channels(jobs).await?;
        let mut measured = self.sample_keys(jobs).await?;
        let dead_letters: u64 = self.queues.values().map(|queue| queue.dead_letters * queue.dead_letter_bytes).sum();
        measured[DataKind::WaitingJobs as usize] = self.queues.values().map(|queue| queue.streams).sum();
        measured[DataKind::DeadLetters as usize] = dead_letters;
        // Both are results; those that are no dead letters are sampled with them
        let results = &mut measured[DataKind::Results as usize];
        *results = results.saturating_sub(dead_letters);
        measured[DataKind::Histories as usize] = self.histories.values().sum();
        let mut names = vec![Cow::Borrowed(keys::SUBSCRIPTIONS), Cow::Borrowed(keys::CRON_ENTRIES)];
        names.extend((0..stream_count(&jobs.store.redis)).map(keys::events));
        let used = memory_usage(jobs, &names).await?;
        let [subscriptions, cron, events @ ..] = &used[..] else {
            return Err(StoreError::damaged("a pipeline with too few answers"));
        };
        measured[DataKind::Events as usize] = events.iter().sum();
        measured[DataKind::Definitions as usize] = subscriptions + cron;
        state.usage().set(&measured, &added_before);
        for (budget, used, share) in state.usage_of_kinds() {
            metrics::gauge!("galley_memory_used_bytes", "kind" => budget.name).set(to_f64(used));
            metrics::gauge!("galley_memory_budget_bytes", "kind" => budget.name).set(to_f64(share));
        }
        Ok(())
    }

    async fn measure_queues(&mut self, jobs: &Jobs) -> StoreResult<()> {
        let mut redis = jobs.store.redis.clone();
        let all = jobs.list_partitions().await?;
        self.queues.retain(|queue, _| all.contains(queue));
        let chosen = self.rotation.next(&all, ITEMS_PER_SURVEY);
        if chosen.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for queue in &chosen {
            pipeline.cmd("SMEMBERS").arg(QueueKeys::new(queue).priorities());
            pipeline.cmd("ZCARD").arg(QueueKeys::new(queue).dead_letters());
            let last = SAMPLED_DEAD_LETTERS - 1;
            pipeline.cmd("ZRANGE").arg(QueueKeys::new(queue).dead_letters()).arg(0).arg(last);
        }
        let answers: Vec<(Vec<String>, u64, Vec<String>)> = query_groups(&pipeline, &mut redis).await?;
        let (mut names, mut lengths) = (Vec::new(), redis::pipe());
        for (queue, (priorities, _, dead_letters)) in chosen.iter().zip(&answers) {
            let keys = QueueKeys::new(queue);
            for priority in priorities.iter().filter_map(|text| Priority::from_text(text)) {
                lengths.cmd("XLEN").arg(keys.stream(priority));
                names.push((queue, true, keys.stream(priority)));
            }
            let ids = dead_letters.iter().filter_map(|id| id.parse::<JobId>().ok());
            names.extend(ids.map(|id| (queue, false, keys.result(&id))));
        }
        let lengths: Vec<u64> = lengths.query_async(&mut redis).await?;
        let mut lengths = lengths.into_iter();
        let used = memory_usage(jobs, &names.iter().map(|(_, _, key)| key).collect::<Vec<_>>()).await?;
        let mut sizes: HashMap<&QueueName, (QueueSize, u64)> = HashMap::new();
        for ((queue, is_stream, _), bytes) in names.iter().zip(used) {
            let (size, sampled) = sizes.entry(queue).or_default();
            if *is_stream {
                size.streams += bytes + lengths.next().unwrap_or(0) * ATTEMPT_BYTES;
            } else {
                size.dead_letter_bytes += bytes;
                *sampled += 1;
            }
        }
        for (queue, (_, dead_letters, _)) in chosen.iter().zip(answers) {
            let (mut size, sampled) = sizes.remove(queue).unwrap_or_default();
            size.dead_letters = dead_letters;
            size.dead_letter_bytes = size.dead_letter_bytes.checked_div(sampled).unwrap_or(0);
            self.queues.insert(queue.clone(), size);
        }
        Ok(())
    }

    async fn measure_channels(&mut self, jobs: &Jobs) -> StoreResult<()> {
        if self.channel_list_age == 0 {
            self.channels = Channels::new(&jobs.store.redis, &jobs.store.settings.channels).all_channels().await?;
            self.histories.retain(|channel, _| self.channels.contains(channel));
            self.channel_list_age = CHANNEL_LIST_AGE;
        }
        self.channel_list_age -= 1;
        let count = self.channels.len();
        let chosen: Vec<ChannelName> =
            (0..count.min(ITEMS_PER_SURVEY)).map(|n| self.channels[(self.next_channel + n) % count].clone()).collect();
        self.next_channel = (self.next_channel + chosen.len()).checked_rem(count).unwrap_or(0);
        let names: Vec<String> = chosen.iter().map(keys::channel_history).collect();
        let used = memory_usage(jobs, &names).await?;
        self.histories.extend(chosen.into_iter().zip(used));
        Ok(())
    }

    /// What kinds of small keys take.
    async fn sample_keys(&mut self, jobs: &Jobs) -> StoreResult<[u64; BUDGETS.len()]> {
        let options = |command: &mut redis::Cmd| {
            command.arg("COUNT").arg(SAMPLED_KEYS);
        };
        let (next, names) = jobs.store.redis.scan(self.scan_cursor, options).await?;
        self.scan_cursor = next;
        let known: Vec<(&String, DataKind)> =
            names.iter().filter_map(|name| kind_of_key(name).map(|kind| (name, kind))).collect();
        let used = memory_usage(jobs, &known.iter().map(|(name, _)| *name).collect::<Vec<_>>()).await?;
        let mut sample = Sample { count: names.len() as u64, ..Sample::default() };
        for ((_, kind), bytes) in known.iter().zip(used) {
            sample.bytes[*kind as usize] += bytes;
        }
        self.samples.push_back(sample);
        if self.samples.len() > SAMPLE_WINDOW {
            self.samples.pop_front();
        }
        let all = key_count(jobs).await?;
        let sampled: u64 = self.samples.iter().map(|sample| sample.count).sum();
        Ok(std::array::from_fn(|kind| {
            let bytes: u64 = self.samples.iter().map(|sample| sample.bytes[kind]).sum();
            bytes.saturating_mul(all).checked_div(sampled).unwrap_or(0)
        }))
    }
}

/// The kind of a key of which there may be many; none of those that are measured otherwise, or are no data of a client.
fn kind_of_key(name: &str) -> Option<DataKind> {
    let rest = name.strip_prefix("galley:")?;
    if rest.starts_with("idempotency:") {
        return Some(DataKind::IdempotencyKeys);
    }
    if rest.starts_with("id:") {
        return Some(DataKind::JobRecords);
    }
    let (tag, key) = rest.strip_prefix('{')?.split_once("}:")?;
    match key.split(':').next() {
        Some("once") => Some(DataKind::IdempotencyKeys),
        Some("w") if tag.starts_with("wf:") => Some(DataKind::Workflows),
        Some("r") => Some(DataKind::Results),
        Some("j" | "unique" | "key_queue" | "admitted" | "limit" | "due" | "pending" | "timers" | "starts") => {
            Some(DataKind::JobRecords)
        }
        _ => None,
    }
}

/// How many keys the database has.
async fn key_count(jobs: &Jobs) -> StoreResult<u64> {
    let count_of = |mut redis: Redis| async move {
        let info: InfoDict = redis::cmd("INFO").arg("keyspace").query_async(&mut redis).await?;
        let database: Option<String> = info.get(&format!("db{}", redis.get_db()));
        let count = database.as_deref().and_then(|text| text.strip_prefix("keys=")?.split(',').next()?.parse().ok());
        Ok(count.unwrap_or(0_u64))
    };
    Ok(jobs.store.redis.ask_each(count_of).await?.into_iter().sum())
}

/// The bytes of each key, 0 for one that does not exist.
async fn memory_usage<K: redis::ToRedisArgs>(jobs: &Jobs, names: &[K]) -> StoreResult<Vec<u64>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for name in names {
        pipeline.cmd("MEMORY").arg("USAGE").arg(name);
    }
    let used: Vec<Option<u64>> = pipeline.query_async(&mut jobs.store.redis.clone()).await?;
    Ok(used.into_iter().map(Option::unwrap_or_default).collect())
}

/// Runs a pipeline whose answers come in groups of three.
async fn query_groups<T: redis::FromRedisValue>(pipeline: &Pipeline, redis: &mut crate::Redis) -> StoreResult<Vec<T>> {
    let answers: Vec<redis::Value> = pipeline.query_async(redis).await?;
    let groups = answers.chunks(3).map(|group| redis::from_redis_value(redis::Value::Array(group.to_vec())));
    groups.map(|group| group.map_err(|error| StoreError::damaged(error.to_string()))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of bytes")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_clients_data_have_a_kind() {
        for (name, kind) in [
            ("galley:idempotency:ab", Some(DataKind::IdempotencyKeys)),
            ("galley:{ch:orders}:once:00-1", Some(DataKind::IdempotencyKeys)),
            ("galley:id:x", Some(DataKind::JobRecords)),
            ("galley:{default}:j:x", Some(DataKind::JobRecords)),
            ("galley:{default}:key_queue:a:b", Some(DataKind::JobRecords)),
            ("galley:{default}:r:x", Some(DataKind::Results)),
            ("galley:{wf:x}:w", Some(DataKind::Workflows)),
            ("galley:{default}:s:0", None),
            ("galley:{ch:orders}:m", None),
            ("galley:events", None),
            ("another", None),
        ] {
            assert_eq!(kind_of_key(name), kind, "{name}");
        }
    }
}
