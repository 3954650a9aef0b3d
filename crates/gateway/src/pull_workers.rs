//! Reports programs that fetch over HTTP to the list of workers: at intervals, not with each request.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{name::WorkerId, time};
use store::{
    StoreResult,
    workers::{Directive, IssuedDirective, RunningJob, WorkerAction, WorkerKey, WorkerRecord, WorkerState, Workers},
};

/// The shortest time between two reports of a program's fetches, and of its heartbeats.
const MIN_REPORT_INTERVAL: Duration = Duration::from_secs(3);
/// How long a program stays on the list after its last report.
const REPORT_TTL: Duration = Duration::from_mins(1);
/// The most programs remembered here. Beyond it those that sent nothing lately are forgotten.
const MAX_TRACKED_WORKERS: usize = 10_000;
/// The most queues reported for a fetch.
const MAX_REPORTED_QUEUES: usize = 10;
/// The most jobs reported for a heartbeat.
const MAX_REPORTED_JOBS: usize = 50;

/// What this gateway has reported lately.
#[derive(Default)]
pub(crate) struct PullWorkers(Mutex<PullWorkerTable>);

#[derive(Default)]
struct PullWorkerTable {
    workers: HashMap<WorkerId, PullWorkerEntry>,
    swept_at: Option<Instant>,
    /// When programs were last forgotten because there were too many.
    evicted_at: Option<Instant>,
}

#[derive(Default)]
struct PullWorkerEntry {
    fetch_reported_at: Option<Instant>,
    heartbeat_reported_at: Option<Instant>,
    queues: Vec<String>,
    heartbeat: PullHeartbeat,
    /// Whether it learned that it must terminate: what follows may come from another process with its id.
    is_terminated: bool,
}

/// What a program reports in a heartbeat.
#[derive(Debug, Clone, Default)]
pub(crate) struct PullHeartbeat {
    pub(crate) state: Option<WorkerState>,
    pub(crate) hostname: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) active_jobs: usize,
    pub(crate) jobs: Vec<RunningJob>,
}

impl PullWorkers {
    /// Notes a fetch. That it is not noted is no reason not to fetch.
    pub(crate) async fn record_fetch(&self, workers: &Workers, most: u64, worker: &WorkerId, queues: &[String]) {
        let record = self.update_if_due(worker, |entry| {
            let is_due = mark_if_due(&mut entry.fetch_reported_at, MIN_REPORT_INTERVAL)
                || std::mem::take(&mut entry.is_terminated);
            if is_due {
                entry.queues = queues.iter().take(MAX_REPORTED_QUEUES).cloned().collect();
            }
            is_due
        });
        if let Some(record) = record
            && let Err(error) = report(workers, most, worker, &record, WorkerAction::Fetch).await
        {
            tracing::debug!(%error, %worker, "fetch not reported");
        }
    }

    /// Reports a heartbeat and returns the directive for the program.
    pub(crate) async fn record_heartbeat(
        &self,
        workers: &Workers,
        most: u64,
        worker: &WorkerId,
        mut beat: PullHeartbeat,
    ) -> StoreResult<Option<IssuedDirective>> {
        beat.jobs.truncate(MAX_REPORTED_JOBS);
        let mut record = PullWorkerEntry { heartbeat: beat.clone(), ..PullWorkerEntry::default() };
        let due = self.update_if_due(worker, |entry| {
            record.queues.clone_from(&entry.queues);
            let is_due = mark_if_due(&mut entry.heartbeat_reported_at, MIN_REPORT_INTERVAL);
            if is_due {
                entry.heartbeat = beat;
            }
            is_due
        });
        let mut issued = None;
        if due.is_none() {
            issued = workers.directive_for(&WorkerKey::for_pull_worker(worker)).await?;
        }
        // Its report decides whether a directive to terminate is for this process
        let is_terminate = issued.is_some_and(|issued| issued.directive == Directive::Terminate);
        if let Some(record) = due.or_else(|| is_terminate.then(|| record.to_record(worker))) {
            issued = report(workers, most, worker, &record, WorkerAction::Heartbeat).await?;
        }
        if issued.is_some_and(|issued| issued.directive == Directive::Terminate) {
            self.update_if_due(worker, |entry| {
                entry.is_terminated = true;
                false
            });
        }
        Ok(issued)
    }

    /// The report to send, if one is due.
    fn update_if_due(
        &self,
        worker: &WorkerId,
        change: impl FnOnce(&mut PullWorkerEntry) -> bool,
    ) -> Option<WorkerRecord> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Visiting all programs takes long, so a flood of new names must not cause it more often
        if mark_if_due(&mut all.swept_at, REPORT_TTL) {
            all.retain_recent(REPORT_TTL);
        }
        if all.workers.len() >= MAX_TRACKED_WORKERS && !all.workers.contains_key(worker) {
            if mark_if_due(&mut all.evicted_at, MIN_REPORT_INTERVAL) {
                all.retain_recent(MIN_REPORT_INTERVAL);
            }
            if all.workers.len() >= MAX_TRACKED_WORKERS {
                return None;
            }
        }
        let entry = all.workers.entry(worker.clone()).or_default();
        change(entry).then(|| entry.to_record(worker))
    }
}

async fn report(
    workers: &Workers,
    most: u64,
    worker: &WorkerId,
    record: &WorkerRecord,
    action: WorkerAction,
) -> StoreResult<Option<IssuedDirective>> {
    let record = &WorkerRecord { last_seen_at: time::format(workers.estimated_now()), ..record.clone() };
    workers.report_worker(&WorkerKey::for_pull_worker(worker), record, REPORT_TTL, Some(most), action).await
}

impl PullWorkerTable {
    fn retain_recent(&mut self, time: Duration) {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < time);
        self.workers.retain(|_, entry| is_recent(entry.fetch_reported_at) || is_recent(entry.heartbeat_reported_at));
    }
}

fn mark_if_due(at: &mut Option<Instant>, every: Duration) -> bool {
    let is_due = at.is_none_or(|at| at.elapsed() >= every);
    if is_due {
        *at = Some(Instant::now());
    }
    is_due
}

impl PullWorkerEntry {
    fn to_record(&self, worker: &WorkerId) -> WorkerRecord {
        let beat = self.heartbeat.clone();
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
            // Set when it is sent
            last_seen_at: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_reported_at_intervals_and_a_bounded_number_is_remembered() {
        let workers = PullWorkers::default();
        let note = |name: &str| {
            let worker: WorkerId = name.parse().expect("a name");
            // An interval that no pause of the machine reaches
            let interval = Duration::from_hours(1);
            workers.update_if_due(&worker, |entry| mark_if_due(&mut entry.fetch_reported_at, interval)).is_some()
        };
        assert!(note("w"));
        assert!(!note("w"), "again at once");
        for number in 0..MAX_TRACKED_WORKERS * 2 {
            note(&number.to_string());
        }
        assert!(workers.0.lock().expect("no panic").workers.len() <= MAX_TRACKED_WORKERS);
    }

    #[test]
    fn programs_that_sent_nothing_for_long_are_forgotten() {
        let Some(long_ago) = Instant::now().checked_sub(REPORT_TTL) else { return };
        let mut all = PullWorkerTable::default();
        let entry = |at| PullWorkerEntry { fetch_reported_at: Some(at), ..PullWorkerEntry::default() };
        all.workers.insert("gone".parse().expect("a name"), entry(long_ago));
        all.workers.insert("here".parse().expect("a name"), entry(Instant::now()));
        all.retain_recent(REPORT_TTL);
        assert_eq!(all.workers.keys().map(WorkerId::as_str).collect::<Vec<_>>(), ["here"]);
    }
}
