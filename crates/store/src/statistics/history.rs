//! Reads the history.

use std::collections::BTreeMap;

use common::{name::QueueName, time::Millis};
use model::statistics::Tally;
use redis::{FromRedisValue, Value};

use super::{
    ALL, DAY_MS, HOUR_DAYS, HOUR_MS, MINUTE_HOURS, MINUTE_MS,
    flushes::{FlushEntry, SeenFlushes},
    folder::decode,
    hours_field, minutes_field,
};
use crate::{
    StoreResult,
    jobs::{Jobs, malformed_reply},
    keys, script,
};

/// Histories that are read in one call.
const HISTORIES_PER_CALL: usize = 50;

/// Reads the history. Cheap to clone.
#[derive(Clone)]
pub struct Statistics {
    jobs: Jobs,
}

/// What a history is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Series {
    /// All queues, also those that were deleted.
    All,
    /// These queues.
    Queues(Vec<QueueName>),
}

/// What happened in one period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatisticsPoint {
    /// Its begin.
    pub at: Millis,
    /// What happened.
    pub tally: Tally,
}

impl Statistics {
    /// The statistics of these jobs.
    #[must_use]
    pub fn new(jobs: &Jobs) -> Self {
        Self { jobs: jobs.clone() }
    }

    /// Queues that have a history of their own, in order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn queues(&self) -> StoreResult<Vec<QueueName>> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(keys::STATISTICS_QUEUES).arg(0).arg(-1);
        let names: Vec<String> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        let mut queues: Vec<QueueName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        queues.sort_unstable();
        Ok(queues)
    }

    /// The earliest begin of a period of that length that is kept.
    #[must_use]
    pub fn kept_since(now: Millis, period: Millis) -> Millis {
        if period < HOUR_MS {
            return (now.div_euclid(HOUR_MS) - Millis::try_from(MINUTE_HOURS).unwrap_or(24)) * HOUR_MS;
        }
        (now.div_euclid(DAY_MS) - Millis::try_from(HOUR_DAYS).unwrap_or(30)) * DAY_MS
    }

    /// Queues in whose history something was noted after a time, the newest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn changed_since(&self, since: Millis, limit: usize) -> StoreResult<Vec<QueueName>> {
        let mut command = redis::cmd("ZREVRANGEBYSCORE");
        command.arg(keys::STATISTICS_QUEUES).arg("+inf").arg(format!("({since}")).arg("LIMIT").arg(0).arg(limit);
        let names: Vec<String> = command.query_async(&mut self.jobs.store.redis.clone()).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Jobs that ended in each of the last minutes, succeeded and failed ones together, of each of these queues.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn ended_by_minute(&self, queues: &[QueueName], minutes: usize) -> StoreResult<Vec<Vec<u64>>> {
        let length = Millis::try_from(minutes).unwrap_or(0) * MINUTE_MS;
        let until = (self.jobs.estimated_now().div_euclid(MINUTE_MS) + 1) * MINUTE_MS;
        let mut ended = Vec::with_capacity(queues.len());
        for some in queues.chunks(HISTORIES_PER_CALL) {
            let names: Vec<&str> = some.iter().map(QueueName::as_str).collect();
            let mut found = vec![vec![0; minutes]; names.len()];
            for (index, at, tally) in self.read(&names, (until - length, until), false).await? {
                let minute = usize::try_from((at - (until - length)) / MINUTE_MS).ok();
                if let Some(count) = minute.and_then(|minute| found.get_mut(index)?.get_mut(minute)) {
                    *count += tally.completed + tally.failed;
                }
            }
            ended.append(&mut found);
        }
        Ok(ended)
    }

    /// What happened in each of these queues in the minutes from one that holds a time on.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn of_each(&self, queues: &[QueueName], since: Millis) -> StoreResult<Vec<Tally>> {
        let since = since.div_euclid(MINUTE_MS) * MINUTE_MS;
        let until = (self.jobs.estimated_now().div_euclid(MINUTE_MS) + 1) * MINUTE_MS;
        let mut tallies = Vec::with_capacity(queues.len());
        for some in queues.chunks(HISTORIES_PER_CALL) {
            let names: Vec<&str> = some.iter().map(QueueName::as_str).collect();
            let mut found = vec![Tally::default(); names.len()];
            for (index, _, tally) in self.read(&names, (since, until), false).await? {
                found[index].merge(&tally);
            }
            tallies.append(&mut found);
        }
        Ok(tallies)
    }

    /// What happened in each period of that length, a divisor of a day in whole minutes, from the one that holds `since` to
    /// the one that holds `until`, also where nothing happened. The times are bounded by what is kept: see
    /// [`Self::kept_since`].
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn history(
        &self,
        series: &Series,
        period: Millis,
        since: Millis,
        until: Millis,
    ) -> StoreResult<Vec<StatisticsPoint>> {
        let now = self.jobs.now().await?;
        let begin_of = |at: Millis| at.div_euclid(period) * period;
        let (first, last) = (begin_of(since.max(Self::kept_since(now, period))), begin_of(until.min(now)));
        let mut points: BTreeMap<Millis, Tally> = BTreeMap::new();
        let mut at = first;
        while at <= last {
            points.insert(at, Tally::default());
            at += period;
        }
        if points.is_empty() {
            return Ok(Vec::new());
        }
        let names = match series {
            Series::All => vec![ALL],
            Series::Queues(queues) => queues.iter().map(QueueName::as_str).collect(),
        };
        for some in names.chunks(HISTORIES_PER_CALL) {
            for (_, at, tally) in self.read(some, (first, last + period), period >= HOUR_MS).await? {
                if let Some(point) = points.get_mut(&begin_of(at)) {
                    point.merge(&tally);
                }
            }
        }
        Ok(points.into_iter().map(|(at, tally)| StatisticsPoint { at, tally }).collect())
    }

    /// What happened in a minute, or in an hour of those that have no minutes any more, from one time to before another: the
    /// index of the series, the time, and what.
    async fn read(
        &self,
        series: &[&str],
        (since, until): (Millis, Millis),
        with_hours: bool,
    ) -> StoreResult<Vec<(usize, Millis, Tally)>> {
        let hour_of = |at: Millis| at.div_euclid(HOUR_MS).unsigned_abs();
        // Minutes may be there a while longer than they must
        let (first_hour, end_hour) = (hour_of(since), hour_of(until + HOUR_MS - 1));
        let now_hour = hour_of(self.jobs.estimated_now());
        let first_with_minutes = first_hour.max(now_hour.saturating_sub(2 * MINUTE_HOURS));
        let mut fields: Vec<(String, u64, Millis)> =
            (first_with_minutes..end_hour).map(|hour| (minutes_field(hour), hour * 60, MINUTE_MS)).collect();
        if with_hours {
            fields.extend((first_hour / 24..=end_hour / 24).map(|day| (hours_field(day), day * 24, HOUR_MS)));
        }
        let mut call = script::READ_STATISTICS.key(keys::STATISTICS_FLUSHES);
        for name in series {
            call.key(keys::statistics_history(name));
        }
        for (field, _, _) in &fields {
            call.arg(field);
        }
        let answer: Vec<Value> = call.invoke_async(&mut self.jobs.store.redis.clone()).await?;
        let mut answer = answer.into_iter();
        let entries =
            Vec::<FlushEntry>::from_redis_value(answer.next().unwrap_or_default()).map_err(malformed_reply)?;
        let mut found = Vec::new();
        let begin = |slot: u64, length: Millis| Millis::try_from(slot).unwrap_or(0).saturating_mul(length);
        for ((index, series), values) in series.iter().enumerate().zip(answer) {
            let values = Vec::<Option<Vec<u8>>>::from_redis_value(values).map_err(malformed_reply)?;
            for ((_, first_slot, length), bytes) in fields.iter().zip(values) {
                for (slot, tally) in decode(series, &bytes.unwrap_or_default()) {
                    found.push((index, begin(first_slot.saturating_add(slot), *length), tally));
                }
            }
        }
        let mut seen = SeenFlushes::default();
        for flushed in entries.iter().flat_map(|entry| seen.read(entry)) {
            let index = series.iter().position(|name| *name == ALL || *name == flushed.queue);
            found.extend(index.map(|index| (index, begin(flushed.minute, MINUTE_MS), flushed.tally)));
        }
        found.retain(|(_, at, _)| (since..until).contains(at));
        Ok(found)
    }
}
