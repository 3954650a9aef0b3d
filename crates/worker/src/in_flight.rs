//! The jobs in this process: each from its claim until its outcome is recorded.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    id::{EntryId, JobId},
    name::{JobType, Priority, QueueName},
    time::{self, Millis},
};
use store::{
    jobs::ClaimedJob,
    workers::{RunningDetails, RunningJob},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A queue's stream of one priority.
pub(crate) type QueueStream = (QueueName, Priority);
/// An entry to renew: its id, the start of its attempt, and the job's own lease in milliseconds if it has one.
pub(crate) type Renewal = (EntryId, Millis, Option<u64>);

#[derive(Default)]
pub(crate) struct InFlightJobs {
    jobs: Mutex<HashMap<(QueueStream, EntryId), InFlightJob>>,
    /// Notified when a job must be renewed now: one with its own lease that arrives, or one that may be cancelled.
    pub(crate) renewal_needed: Notify,
    /// Notified when the last job is removed.
    pub(crate) emptied: Notify,
}

struct InFlightJob {
    id: JobId,
    job_type: JobType,
    attempt: u32,
    started_at: Millis,
    custom_lease: Option<Duration>,
    timeout_ms: Option<u64>,
    /// When its handler may have begun; none while it waits for a permit.
    runs_since: Option<Instant>,
    /// It ran on long after it was stopped: its lease is not renewed any more.
    is_stuck: bool,
    /// None if it must be renewed now.
    renewed_at: Option<Instant>,
    cancellation: CancellationToken,
}

impl InFlightJobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<(QueueStream, EntryId), InFlightJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a claimed job. Returns a token that is cancelled when the attempt becomes stale, or none if the entry is
    /// already here.
    pub(crate) fn insert(&self, claimed: &ClaimedJob, has_permit: bool) -> Option<CancellationToken> {
        let (job, now) = (&claimed.job, Instant::now());
        let own_lease = job.lease_ms.map(Duration::from_millis);
        let cancellation = CancellationToken::new();
        let in_flight = InFlightJob {
            id: job.id,
            job_type: job.summary.job_type.clone(),
            attempt: job.history.current_attempt(),
            started_at: claimed.started_at,
            custom_lease: own_lease,
            timeout_ms: job.timeout_ms,
            runs_since: has_permit.then_some(now),
            is_stuck: false,
            // A job with its own lease is renewed at once, so that Redis learns that lease
            renewed_at: own_lease.is_none().then_some(now),
            cancellation: cancellation.clone(),
        };
        self.add(((job.queue.clone(), job.priority), claimed.entry), in_flight).then_some(cancellation)
    }

    /// False if the entry is already here.
    fn add(&self, key: (QueueStream, EntryId), job: InFlightJob) -> bool {
        let mut held = self.lock();
        if held.contains_key(&key) {
            return false;
        }
        let must_be_renewed = job.renewed_at.is_none();
        held.insert(key, job);
        if must_be_renewed {
            self.renewal_needed.notify_one();
        }
        true
    }

    /// Notes that a job that waited for a permit begins now.
    pub(crate) fn mark_running(&self, claimed: &ClaimedJob) {
        self.mark_entry_running(&(claimed.job.queue.clone(), claimed.job.priority), claimed.entry);
    }

    fn mark_entry_running(&self, stream: &QueueStream, entry: EntryId) {
        if let Some(held) = self.lock().get_mut(&(stream.clone(), entry)) {
            held.runs_since = Some(Instant::now());
        }
    }

    pub(crate) fn contains(&self, queue: &QueueName, priority: Priority, entry: EntryId) -> bool {
        self.lock().contains_key(&((queue.clone(), priority), entry))
    }

    /// Removes a job: its outcome is recorded, or another process has it.
    pub(crate) fn remove(&self, queue: &QueueName, priority: Priority, entry: EntryId) {
        let mut held = self.lock();
        if held.remove(&((queue.clone(), priority), entry)).is_some() && held.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Waits until no job is in flight.
    pub(crate) async fn wait_until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Stops the attempt of an entry that belongs to another process now.
    pub(crate) fn cancel_entry(&self, stream: &QueueStream, entry: EntryId) {
        if let Some(held) = self.lock().get(&(stream.clone(), entry)) {
            held.cancellation.cancel();
        }
    }

    /// Whether an attempt of that job runs here.
    pub(crate) fn contains_job(&self, id: JobId) -> bool {
        self.lock().values().any(|held| held.id == id)
    }

    /// Renews the lease of a job at once, which stops its attempt if it is not ours any more. A hint says that it was
    /// cancelled; only Redis knows.
    pub(crate) fn check_job(&self, id: JobId) {
        for held in self.lock().values_mut().filter(|held| held.id == id) {
            held.renewed_at = None;
            self.renewal_needed.notify_one();
        }
    }

    /// Renews the lease of an entry at once: nobody did since it was claimed.
    pub(crate) fn renew_now(&self, stream: &QueueStream, entry: EntryId) {
        if let Some(held) = self.lock().get_mut(&(stream.clone(), entry)) {
            held.renewed_at = None;
            self.renewal_needed.notify_one();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The longest running jobs, at most `max`.
    pub(crate) fn longest_running(&self, max: usize) -> Vec<RunningJob> {
        let all = self.lock();
        let mut held: Vec<_> = all.iter().collect();
        held.sort_unstable_by_key(|(_, held)| held.started_at);
        let shown = held.into_iter().take(max).map(|(((queue, _), _), held)| RunningJob {
            id: held.id.to_string(),
            details: Some(RunningDetails {
                job_type: held.job_type.to_string(),
                queue: queue.to_string(),
                attempt: held.attempt,
                started_at: time::format(held.started_at),
            }),
        });
        shown.collect()
    }

    /// The shortest of `lease` and the jobs' own leases.
    pub(crate) fn shortest_lease(&self, lease: Duration) -> Duration {
        self.lock().values().filter_map(|held| held.custom_lease).min().map_or(lease, |own| own.min(lease))
    }

    /// Entries that must be renewed now or were last renewed more than a third of their lease ago, by stream. Not those
    /// whose handler still runs a lease after `limit`, when it should have ended: a handler that never yields cannot be
    /// stopped, so its job goes to another worker, and its crash budget counts.
    pub(crate) fn due_for_renewal(
        &self,
        lease: Duration,
        limit: impl Fn(&QueueName, Option<u64>) -> Duration,
    ) -> HashMap<QueueStream, Vec<Renewal>> {
        let mut due: HashMap<QueueStream, Vec<Renewal>> = HashMap::new();
        for ((stream, entry), held) in self.lock().iter_mut() {
            let lease = held.custom_lease.map_or(lease, |own| own.min(lease));
            let is_due = held.renewed_at.is_none_or(|at| at.elapsed() >= lease / 3);
            if is_due
                && !held.is_stuck
                && held.runs_since.is_some_and(|since| since.elapsed() > limit(&stream.0, held.timeout_ms) + lease)
            {
                held.is_stuck = true;
                let (queue, id) = (&stream.0, held.id);
                tracing::error!(event = "attempt.stuck", %queue, %id, "handler does not stop, its lease is given up");
                metrics::counter!("galley_attempts_stuck_total", "queue" => queue.to_string()).increment(1);
            }
            if held.is_stuck {
                continue;
            }
            if is_due {
                let own = held.custom_lease.and_then(|own| u64::try_from(own.as_millis()).ok());
                due.entry(stream.clone()).or_default().push((*entry, held.started_at, own));
            }
        }
        due
    }

    /// Records that entries were renewed.
    pub(crate) fn mark_renewed(&self, stream: &QueueStream, entries: &[Renewal]) {
        let mut all = self.lock();
        for (entry, _, _) in entries {
            if let Some(held) = all.get_mut(&(stream.clone(), *entry)) {
                held.renewed_at = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
impl InFlightJobs {
    /// Adds a job of which only this much matters, as [`InFlightJobs::insert`] does.
    pub(crate) fn insert_entry(
        &self,
        stream: &QueueStream,
        entry: EntryId,
        own_lease: Option<Duration>,
        has_permit: bool,
    ) -> Option<CancellationToken> {
        let (cancellation, now) = (CancellationToken::new(), Instant::now());
        let job = InFlightJob {
            id: JobId::without_address(0, &stream.0),
            job_type: "a".parse().expect("a type"),
            attempt: 1,
            started_at: 0,
            custom_lease: own_lease,
            timeout_ms: None,
            runs_since: has_permit.then_some(now),
            is_stuck: false,
            renewed_at: own_lease.is_none().then_some(now),
            cancellation: cancellation.clone(),
        };
        self.add((stream.clone(), entry), job).then_some(cancellation)
    }

    /// A job that waited for a permit begins.
    pub(crate) fn begin_entry(&self, stream: &QueueStream, entry: EntryId) {
        self.mark_entry_running(stream, entry);
    }
}
