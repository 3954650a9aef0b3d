//! The leader's part of the history. It adds the sums that processes sent to the history of each queue, several times a
//! minute; while nothing happens that is one command. And it looks at each history once an hour: minutes older than a day
//! become hours, what is older than thirty days is removed.
//!
//! Two leaders, or one that dies in between, do no harm: every step is a script that changes nothing if somebody else did
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use common::time::Millis;
use model::statistics::{Tally, decode_slots, encode_slots};

use super::{
    ALL, DAY_MS, HOUR_DAYS, HOUR_MS, MINUTE_HOURS, MINUTE_MS, OTHER,
    busy_queues::BusyQueues,
    flushes::{FlushEntry, SeenFlushes},
    hours_field, minutes_field,
};
use crate::{StoreResult, jobs::Jobs, keys, log_interruption, script};

/// Entries that are folded in one call, and histories.
const MAX_ENTRIES: usize = 64;
const MAX_HISTORIES: usize = 1000;
/// Calls for one round; the next one continues.
const MAX_CALLS: usize = 64;
/// Histories that are looked at in one round.
const TIDIED_PER_ROUND: usize = 25;
/// Rounds in an interval of the processes: what they send is folded soon after.
const FLUSHES_PER_ROUND: u32 = 3;
/// How long a history is kept after its last change.
const HISTORY_TTL_MS: Millis = HOUR_DAYS.cast_signed() * DAY_MS + 2 * DAY_MS;

/// Folds and tidies until it is dropped. An error must not end the rest of maintenance.
pub(crate) async fn run(jobs: &Jobs, busy: &BusyQueues) -> Infallible {
    let mut round = tokio::time::interval(jobs.store.settings.statistics.flush_interval * FLUSHES_PER_ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first one is over at once
    round.tick().await;
    let mut folder = StatisticsFolder::default();
    loop {
        round.tick().await;
        if let Err(error) = folder.run_round_noting(jobs, busy).await {
            log_interruption("history of statistics", &error);
        }
    }
}

/// Makes hours of old minutes in every history, and removes what is too old: for tests that need it finished on return.
///
/// # Errors
/// Redis is unavailable.
pub async fn tidy_all(jobs: &Jobs) -> StoreResult<()> {
    let now = jobs.now().await?;
    for series in known_series(jobs).await? {
        tidy(jobs, &series, now).await?;
    }
    Ok(())
}

/// What the leader remembers between rounds.
#[derive(Debug, Default)]
pub struct StatisticsFolder {
    seen: SeenFlushes,
    /// The hour of the last look at histories, which of them it came to, and whether it came to all.
    tidied_hour: u64,
    tidied: BTreeSet<String>,
    has_tidied_all: bool,
}

/// The sums of a call: by series and hour, then by minute of the hour.
type Sums = BTreeMap<(String, u64), BTreeMap<u64, Tally>>;

impl StatisticsFolder {
    /// Folds everything that processes sent, and looks at some histories.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn run_round(&mut self, jobs: &Jobs) -> StoreResult<()> {
        self.run_round_noting(jobs, &BusyQueues::default()).await
    }

    /// The same, and notes in which queues something happened.
    async fn run_round_noting(&mut self, jobs: &Jobs, busy: &BusyQueues) -> StoreResult<()> {
        for _ in 0..MAX_CALLS {
            if !self.fold_some(jobs, busy).await? {
                break;
            }
        }
        self.tidy_some(jobs).await
    }

    /// Folds a number of entries; false if there are none.
    async fn fold_some(&mut self, jobs: &Jobs, busy: &BusyQueues) -> StoreResult<bool> {
        let mut redis = jobs.store.redis.clone();
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::STATISTICS_FLUSHES).arg("-").arg("+").arg("COUNT").arg(MAX_ENTRIES);
        let entries: Vec<FlushEntry> = command.query_async(&mut redis).await?;
        let Some(first) = entries.first() else { return Ok(false) };
        busy.note(&entries);
        let now = jobs.now().await?;
        let mut known: BTreeSet<String> =
            redis::cmd("ZRANGE").arg(keys::STATISTICS_QUEUES).arg(0).arg(-1).query_async(&mut redis).await?;
        let (mut sums, mut seen, mut last) = (Sums::new(), self.seen.clone(), &first.id);
        for entry in &entries {
            last = &entry.id;
            for flushed in seen.read(entry) {
                // A process may have sent it while the clock was ahead
                let minute = flushed.minute.min(now.div_euclid(MINUTE_MS).unsigned_abs());
                let series = series_of(jobs, &flushed.queue, &mut known);
                for series in [series, ALL] {
                    let minutes = sums.entry((series.to_owned(), minute / 60)).or_default();
                    minutes.entry(minute % 60).or_default().merge(&flushed.tally);
                }
            }
            if sums.len() >= MAX_HISTORIES {
                break;
            }
        }
        let mut call = script::FOLD_STATISTICS.key(keys::STATISTICS_FLUSHES);
        call.key(keys::STATISTICS_QUEUES).arg(&first.id).arg(id_after(last)).arg(now).arg(HISTORY_TTL_MS);
        for ((series, hour), minutes) in &sums {
            call.key(keys::statistics_history(series)).arg(series).arg(minutes_field(*hour));
            call.arg(encode_slots(minutes.iter().map(|(minute, tally)| (*minute, tally))));
        }
        let folded: i64 = call.invoke_async(&mut redis).await?;
        if folded == 1 {
            self.seen = seen;
        }
        Ok(folded == 1)
    }

    /// Looks at some histories at which nobody looked in this hour.
    async fn tidy_some(&mut self, jobs: &Jobs) -> StoreResult<()> {
        let hour = jobs.estimated_now().div_euclid(HOUR_MS).unsigned_abs();
        if self.tidied_hour != hour {
            (self.tidied_hour, self.has_tidied_all) = (hour, false);
            self.tidied.clear();
        }
        if self.has_tidied_all {
            return Ok(());
        }
        let (known, now) = (known_series(jobs).await?, jobs.now().await?);
        let waiting: Vec<String> = known.into_iter().filter(|series| !self.tidied.contains(series)).collect();
        self.has_tidied_all = waiting.len() <= TIDIED_PER_ROUND;
        for series in waiting.into_iter().take(TIDIED_PER_ROUND) {
            tidy(jobs, &series, now).await?;
            self.tidied.insert(series);
        }
        Ok(())
    }
}

/// The series of a queue: its own, unless as many others have one as may.
fn series_of<'a>(jobs: &Jobs, queue: &'a str, known: &mut BTreeSet<String>) -> &'a str {
    let max =
        jobs.store.settings.statistics.max_queues + [ALL, OTHER].iter().filter(|sum| known.contains(**sum)).count();
    if queue == OTHER || (known.len() >= max && !known.contains(queue)) {
        return OTHER;
    }
    known.insert(queue.to_owned());
    queue
}

/// All series, the sums first.
async fn known_series(jobs: &Jobs) -> StoreResult<Vec<String>> {
    let mut command = redis::cmd("ZRANGE");
    command.arg(keys::STATISTICS_QUEUES).arg(0).arg(-1);
    let mut known: Vec<String> = command.query_async(&mut jobs.store.redis.clone()).await?;
    known.sort_unstable_by_key(|series| ![ALL, OTHER].contains(&series.as_str()));
    Ok(known)
}

/// Brings one history in order.
async fn tidy(jobs: &Jobs, series: &str, now: Millis) -> StoreResult<()> {
    let mut redis = jobs.store.redis.clone();
    let key = keys::statistics_history(series);
    let fields: Vec<String> = redis::cmd("HKEYS").arg(&key).query_async(&mut redis).await?;
    if fields.is_empty() {
        let mut command = redis::cmd("ZREM");
        command.arg(keys::STATISTICS_QUEUES).arg(series);
        return Ok(command.exec_async(&mut redis).await?);
    }
    let this_hour = now.div_euclid(HOUR_MS).unsigned_abs();
    for field in fields {
        let number = |prefix: char| field.strip_prefix(prefix).and_then(|number| number.parse::<u64>().ok());
        match (number('m'), number('d')) {
            (Some(hour), _) if hour == this_hour => {}
            (Some(hour), _) if hour > this_hour || hour + MINUTE_HOURS >= this_hour => {
                compact(jobs, &key, &field).await?;
            }
            (Some(hour), _) => make_hour(jobs, &key, hour).await?,
            (None, Some(day)) if day <= this_hour / 24 && day + HOUR_DAYS >= this_hour / 24 => {}
            _ => redis::cmd("HDEL").arg(&key).arg(&field).exec_async(&mut redis).await?,
        }
    }
    Ok(())
}

/// Joins what was appended to the minutes of an hour that is over.
async fn compact(jobs: &Jobs, key: &str, field: &str) -> StoreResult<()> {
    let bytes = read_field(jobs, key, field).await?;
    let compacted = encode(&decode(key, &bytes));
    if compacted.len() >= bytes.len() {
        return Ok(());
    }
    replace(jobs, key, &[(field, &bytes, &compacted)]).await
}

/// Adds the minutes of an hour to the hours of its day.
async fn make_hour(jobs: &Jobs, key: &str, hour: u64) -> StoreResult<()> {
    let (minutes_name, hours_name) = (minutes_field(hour), hours_field(hour / 24));
    let (minutes, hours) = (read_field(jobs, key, &minutes_name).await?, read_field(jobs, key, &hours_name).await?);
    let mut day = decode(key, &hours);
    let of_hour = day.entry(hour % 24).or_default();
    for tally in decode(key, &minutes).values() {
        of_hour.merge(tally);
    }
    replace(jobs, key, &[(&minutes_name, &minutes, &[]), (&hours_name, &hours, &encode(&day))]).await
}

async fn read_field(jobs: &Jobs, key: &str, field: &str) -> StoreResult<Vec<u8>> {
    let mut command = redis::cmd("HGET");
    let bytes: Option<Vec<u8>> = command.arg(key).arg(field).query_async(&mut jobs.store.redis.clone()).await?;
    Ok(bytes.unwrap_or_default())
}

/// What somebody else changed meanwhile is left to the next look.
async fn replace(jobs: &Jobs, key: &str, fields: &[(&str, &[u8], &[u8])]) -> StoreResult<()> {
    let mut call = script::REPLACE_STATISTICS.key(key);
    for (field, expected, new) in fields {
        call.arg(*field).arg(*expected).arg(*new);
    }
    let _: i64 = call.invoke_async(&mut jobs.store.redis.clone()).await?;
    Ok(())
}

/// The periods in a field. What is damaged is lost, and said so.
pub(super) fn decode(key: &str, bytes: &[u8]) -> BTreeMap<u64, Tally> {
    let (slots, whole) = decode_slots(bytes);
    if let Err(error) = whole {
        tracing::warn!(key, %error, "a part of the history of statistics is damaged");
    }
    slots
}

fn encode(slots: &BTreeMap<u64, Tally>) -> Vec<u8> {
    encode_slots(slots.iter().map(|(slot, tally)| (*slot, tally)))
}

/// The id after that of an entry.
fn id_after(entry: &str) -> String {
    let after = entry.split_once('-').and_then(|(time, sequence)| Some((time, sequence.parse::<u64>().ok()?)));
    after.map_or_else(|| entry.to_owned(), |(time, sequence)| format!("{time}-{}", sequence.saturating_add(1)))
}

impl Jobs {
    /// Removes the history of a queue that was deleted.
    pub(crate) async fn forget_statistics(&self, queue: &common::name::QueueName) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::statistics_history(queue.as_str())).ignore();
        pipeline.cmd("ZREM").arg(keys::STATISTICS_QUEUES).arg(queue.as_str()).ignore();
        Ok(pipeline.exec_async(&mut self.store.redis.clone()).await?)
    }
}
