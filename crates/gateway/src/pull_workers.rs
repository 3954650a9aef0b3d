//! Programs that fetch over HTTP, as the list of workers has them: noted now and then, not with every request.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{name::WorkerId, time};
use store::{
    Redis, StoreResult,
    jobs::local_now,
    workers::{Order, RunningJob, WorkerKey, WorkerRecord, WorkerState},
};

/// Each program's fetches, and its heartbeats, are noted no more often than this.
const EVERY: Duration = Duration::from_secs(3);
/// How long it stays on the list after the last one.
const TTL: Duration = Duration::from_mins(1);
/// Programs remembered here; beyond that those are forgotten that were not heard of for a moment.
const MOST_REMEMBERED: usize = 10_000;
/// Queues kept of a fetch.
const MOST_QUEUES: usize = 10;
/// Jobs kept of a heartbeat.
const MOST_JOBS: usize = 50;

/// What this gateway has noted lately.
#[derive(Default)]
pub(crate) struct PullWorkers(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    workers: HashMap<WorkerId, Noted>,
    swept_at: Option<Instant>,
    /// When room was made last because there were too many.
    squeezed_at: Option<Instant>,
}

#[derive(Default)]
struct Noted {
    fetch_at: Option<Instant>,
    beat_at: Option<Instant>,
    queues: Vec<String>,
    beat: Beat,
}

/// What a program says of itself in a heartbeat.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beat {
    pub(crate) state: Option<WorkerState>,
    pub(crate) hostname: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) active_jobs: usize,
    pub(crate) jobs: Vec<RunningJob>,
}

impl PullWorkers {
    /// Notes a fetch. That it is not noted is no reason not to fetch.
    pub(crate) async fn fetched(&self, redis: &Redis, most: u64, worker: &WorkerId, queues: &[String]) {
        let noted = self.note(worker, |noted| {
            let is_due = is_due(&mut noted.fetch_at, EVERY);
            if is_due {
                noted.queues = queues.iter().take(MOST_QUEUES).cloned().collect();
            }
            is_due
        });
        if let Some(record) = noted
            && let Err(error) = redis.report_worker(&WorkerKey::pull(worker), &record, TTL, Some(most)).await
        {
            tracing::debug!(%error, %worker, "fetch not noted");
        }
    }

    /// Notes a heartbeat; answers with what is asked of the program.
    pub(crate) async fn beat(
        &self,
        redis: &Redis,
        most: u64,
        worker: &WorkerId,
        mut beat: Beat,
    ) -> StoreResult<Option<Order>> {
        beat.jobs.truncate(MOST_JOBS);
        let noted = self.note(worker, |noted| {
            let is_due = is_due(&mut noted.beat_at, EVERY);
            if is_due {
                noted.beat = beat;
            }
            is_due
        });
        let key = WorkerKey::pull(worker);
        match noted {
            Some(record) => redis.report_worker(&key, &record, TTL, Some(most)).await,
            None => redis.order_for(&key).await,
        }
    }

    /// The report to send, if one is due.
    fn note(&self, worker: &WorkerId, change: impl FnOnce(&mut Noted) -> bool) -> Option<WorkerRecord> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A look at all of them takes long, and however many new names come it is not taken more often
        if is_due(&mut all.swept_at, TTL) {
            all.keep_heard_within(TTL);
        }
        if all.workers.len() >= MOST_REMEMBERED && !all.workers.contains_key(worker) {
            if is_due(&mut all.squeezed_at, EVERY) {
                all.keep_heard_within(EVERY);
            }
            if all.workers.len() >= MOST_REMEMBERED {
                return None;
            }
        }
        let noted = all.workers.entry(worker.clone()).or_default();
        change(noted).then(|| noted.record(worker))
    }
}

impl Remembered {
    fn keep_heard_within(&mut self, time: Duration) {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < time);
        self.workers.retain(|_, noted| is_recent(noted.fetch_at) || is_recent(noted.beat_at));
    }
}

fn is_due(at: &mut Option<Instant>, every: Duration) -> bool {
    let is_due = at.is_none_or(|at| at.elapsed() >= every);
    if is_due {
        *at = Some(Instant::now());
    }
    is_due
}

impl Noted {
    fn record(&self, worker: &WorkerId) -> WorkerRecord {
        let beat = self.beat.clone();
        WorkerRecord {
            name: worker.to_string(),
            hostname: beat.hostname,
            pid: beat.pid,
            version: None,
            state: beat.state.unwrap_or(WorkerState::Running),
            queues: self.queues.clone(),
            concurrency: beat.concurrency,
            active_jobs: beat.active_jobs,
            jobs: beat.jobs,
            started_at: None,
            last_seen_at: time::format(local_now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_noted_now_and_then_and_only_so_many_are_remembered() {
        let workers = PullWorkers::default();
        let note = |name: &str| {
            let worker: WorkerId = name.parse().expect("a name");
            workers.note(&worker, |noted| is_due(&mut noted.fetch_at, EVERY)).is_some()
        };
        assert!(note("w"));
        assert!(!note("w"), "again at once");
        for number in 0..MOST_REMEMBERED * 2 {
            note(&number.to_string());
        }
        assert!(workers.0.lock().expect("no panic").workers.len() <= MOST_REMEMBERED);
    }

    #[test]
    fn programs_that_were_not_heard_of_for_long_are_forgotten() {
        let Some(long_ago) = Instant::now().checked_sub(TTL) else { return };
        let mut all = Remembered::default();
        let noted = |at| Noted { fetch_at: Some(at), ..Noted::default() };
        all.workers.insert("gone".parse().expect("a name"), noted(long_ago));
        all.workers.insert("here".parse().expect("a name"), noted(Instant::now()));
        all.keep_heard_within(TTL);
        assert_eq!(all.workers.keys().map(WorkerId::as_str).collect::<Vec<_>>(), ["here"]);
    }
}
