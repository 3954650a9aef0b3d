//! Reads the jobs that candidates stand for.

use redis::{FromRedisValue, Value};

use super::{
    NextCandidate,
    source::{Found, SearchCandidate, Source, SourceKind},
};
use crate::{
    StoreResult,
    connection::pool::PooledConnection,
    jobs::{
        ActiveAttempt, JobHolder, Jobs, LocatedJob,
        claim::{malformed_reply, read_job_entry},
        finished_job::FinishedJob,
        locate::locate_in_record,
        record::JobFields,
    },
    keys::attempt_name,
};
use common::{id::JobId, name::Priority};
use model::job::JobState;

/// A job that was read.
pub(super) struct ReadJob {
    pub(super) id: JobId,
    pub(super) state: JobState,
    pub(super) json: String,
}

impl ReadJob {
    fn of(id: JobId, located: &LocatedJob) -> Self {
        Self { id, state: located.state(), json: located.to_json() }
    }
}

impl Jobs {
    /// Reads the jobs of candidates; none for one that is gone or cannot be read.
    pub(super) async fn read_found(
        &self,
        sources: &[Source],
        candidates: &[NextCandidate],
        connection: &mut PooledConnection,
    ) -> StoreResult<Vec<Option<ReadJob>>> {
        let mut pipeline = redis::pipe();
        for next in candidates.iter().filter(|next| !next.is_passed_over) {
            add_reads(&mut pipeline, &sources[next.source], &next.candidate);
        }
        let mut replies = Vec::new().into_iter();
        if !pipeline.is_empty() {
            replies = pipeline.query_async::<Vec<Value>>(connection).await?.into_iter();
        }
        let mut jobs = Vec::with_capacity(candidates.len());
        for next in candidates {
            jobs.push(if next.is_passed_over {
                None
            } else {
                self.read_candidate(&sources[next.source], &next.candidate, &mut replies)?
            });
        }
        Ok(jobs)
    }

    fn read_candidate(
        &self,
        source: &Source,
        candidate: &SearchCandidate,
        replies: &mut impl Iterator<Item = Value>,
    ) -> StoreResult<Option<ReadJob>> {
        let mut next = || replies.next().unwrap_or_default();
        match (&candidate.found, source.kind) {
            (Found::Id(id), kind) if kind.is_over() => {
                let Ok(Some(text)) = Option::<String>::from_redis_value(next()) else { return Ok(None) };
                let json = FinishedJob::json_of(self.sealer(), &text, *id, &source.queue)?;
                Ok(json.map(|json| ReadJob::of(*id, &LocatedJob::Finished(json))))
            }
            (Found::Id(id), _) => {
                let Ok(fields) = JobFields::from_redis_value(next()) else { return Ok(None) };
                if fields.get("s").is_none_or(|state| state == "queued") {
                    return Ok(None);
                }
                let located = locate_in_record(self.sealer(), *id, &source.queue, fields);
                // It must not hide the others
                let located = located.inspect_err(|error| tracing::error!(%error, "a job cannot be read"));
                Ok(located.ok().map(|located| ReadJob::of(*id, &located)))
            }
            (Found::Entry(entry, fields), SourceKind::Waiting(priority)) => {
                let read = read_job_entry(self.sealer(), &source.queue, priority, entry, fields.clone());
                Ok(read.map(|(job, entry)| ReadJob::of(job.id, &LocatedJob::InStream { job, entry, holder: None })))
            }
            (Found::Claimed(_, consumer, idle), SourceKind::Active(priority)) => {
                let (entries, attempt) = (next(), next());
                self.read_claimed_job(source, priority, (consumer, *idle), (entries, attempt))
            }
            _ => Ok(None),
        }
    }

    fn read_claimed_job(
        &self,
        source: &Source,
        priority: Priority,
        (consumer, idle): (&str, i64),
        (entries, attempt): (Value, Value),
    ) -> StoreResult<Option<ReadJob>> {
        let entries = Vec::<(String, Value)>::from_redis_value(entries).map_err(malformed_reply)?;
        let Some((entry, fields)) = entries.into_iter().next() else { return Ok(None) };
        let Some((job, entry)) = read_job_entry(self.sealer(), &source.queue, priority, &entry, fields) else {
            return Ok(None);
        };
        let (attempt, progress) =
            <(Option<String>, Option<String>)>::from_redis_value(attempt).map_err(malformed_reply)?;
        let progress = self.open_progress(&source.queue, priority, entry, progress.unwrap_or_default())?;
        let holder = JobHolder {
            consumer: consumer.to_owned(),
            idle_since: self.estimated_now() - idle,
            attempt: attempt.and_then(|text| ActiveAttempt::parse(&text)),
            progress,
        };
        Ok(Some(ReadJob::of(job.id, &LocatedJob::InStream { job, entry, holder: Some(holder) })))
    }
}

fn add_reads(pipeline: &mut redis::Pipeline, source: &Source, candidate: &SearchCandidate) {
    let keys = &source.keys;
    match (&candidate.found, source.kind) {
        (Found::Id(id), kind) if kind.is_over() => {
            pipeline.cmd("GET").arg(keys.result(id));
        }
        (Found::Id(id), _) => {
            pipeline.cmd("HGETALL").arg(keys.record(id));
        }
        (Found::Claimed(entry, ..), SourceKind::Active(priority)) => {
            let (entry_text, attempt) = (entry.to_string(), attempt_name(priority, *entry));
            pipeline.cmd("XRANGE").arg(keys.stream(priority)).arg(&entry_text).arg(&entry_text);
            pipeline.cmd("HMGET").arg(keys.active()).arg(&attempt).arg(format!("p:{attempt}"));
        }
        _ => {}
    }
}
