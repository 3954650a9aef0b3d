//! Plays an operation in Redis and in the model, and compares what came of it.

use std::collections::HashMap;

use model::job::{JobState, RetryAdvice};
use redis::Script;
use store::jobs::Attempt;
use store::local_now;
use store::{
    jobs::{
        Claimant, ClaimedJob, Consumer, EnqueueRefusal, FailureOutcome, Fence, FinishedJob, JobTransitionError,
        LocatedJob, PurgeRequest, Settled,
    },
    maintenance,
};

use super::{
    facts,
    operations::{ModelClaimer, ModelJobSpec, ModelOp, StaleAction},
    state::{ModelEnqueueOutcome, ModelState},
};
use crate::kit::{StoreKit, consumer, failure, queue};

/// An attempt, as a client that has it knows it.
#[derive(Clone)]
struct ModelAttempt {
    job: usize,
    claimer: ModelClaimer,
    claimed: ClaimedJob,
}

pub(super) struct ModelRun<'a> {
    kit: &'a StoreKit,
    model: ModelState,
    workers: [Consumer; 2],
    current_attempts: HashMap<usize, ModelAttempt>,
    stale_attempts: Vec<ModelAttempt>,
    dump_script: Script,
}

impl<'a> ModelRun<'a> {
    pub(super) async fn new(kit: &'a StoreKit) -> Self {
        kit.redis_command(&["FLUSHDB"]).await;
        let workers = [consumer(), consumer()];
        let (current, over) = (HashMap::new(), Vec::new());
        Self {
            kit,
            model: ModelState::default(),
            workers,
            current_attempts: current,
            stale_attempts: over,
            dump_script: Script::new(facts::DUMP_SCRIPT),
        }
    }

    /// Does it and compares everything.
    pub(super) async fn run(&mut self, op: &ModelOp) {
        let touched = self.apply(op).await;
        // Attempts of jobs that do not run any more can only come late
        let world = &self.model;
        let ended = self.current_attempts.extract_if(|job, _| world.jobs[*job].state != JobState::Active);
        self.stale_attempts.extend(ended.map(|(_, attempt)| attempt));
        self.compare(touched).await;
    }

    async fn apply(&mut self, op: &ModelOp) -> Option<usize> {
        match op {
            ModelOp::Noop => None,
            ModelOp::Enqueue(spec) => self.enqueue(spec).await,
            ModelOp::Claim { by, max: most } => self.claim(*by, *most).await,
            ModelOp::Complete(which) => self.complete(*which).await,
            ModelOp::Fail(which, advice) => self.fail(*which, *advice).await,
            ModelOp::Release(which) => self.release(*which).await,
            ModelOp::WorkerLost(which) => self.lose_worker(*which).await,
            ModelOp::Cancel(which) => self.cancel(*which).await,
            ModelOp::MakeDue(which) => self.make_due(*which).await,
            ModelOp::Activate(which) => self.activate(*which).await,
            ModelOp::Redrive(which) => self.redrive(*which).await,
            ModelOp::DeleteDeadLetter(which) => self.delete_dead_letter(*which).await,
            ModelOp::Stale(which, late) => self.act_stale(*which, *late).await,
            ModelOp::Pause(paused) => {
                self.kit.jobs.set_queue_paused(&queue(), *paused).await.expect("redis runs").expect("room for a queue");
                self.model.is_paused = *paused;
                None
            }
            ModelOp::Purge(states) => self.purge(states).await,
            ModelOp::Maintenance => {
                self.run_maintenance().await;
                let report =
                    self.kit.jobs.check_queue(&queue(), true, maintenance::CheckCursor::start(), 100_000).await;
                let report = report.expect("redis runs");
                assert!(report.violations.is_empty() && report.next.is_none(), "{report:?}");
                None
            }
        }
    }

    async fn enqueue(&mut self, spec: &ModelJobSpec) -> Option<usize> {
        let expected = self.model.enqueue(spec, None);
        match (self.kit.try_enqueue(&spec.body()).await, expected) {
            (Ok(enqueued), ModelEnqueueOutcome::Stored(state)) => {
                assert_eq!(enqueued.state, state);
                self.model.enqueue(spec, Some(enqueued.job.id));
                Some(self.model.jobs.len() - 1)
            }
            (Err(EnqueueRefusal::Duplicate(id)), ModelEnqueueOutcome::Duplicate(expected)) if id == expected => None,
            (Err(EnqueueRefusal::Ignored { id, .. }), ModelEnqueueOutcome::Ignored(expected)) if id == expected => None,
            (outcome, expected) => panic!("{:?}, expected {expected:?}", outcome.map(|enqueued| enqueued.state)),
        }
    }

    async fn claim(&mut self, by: ModelClaimer, most: usize) -> Option<usize> {
        let name = "model".parse().expect("a name");
        let claim = match by {
            ModelClaimer::Worker(number) => Claimant::Worker { consumer: &self.workers[number], worker: &name },
            ModelClaimer::Pull => Claimant::Pull { worker: None, lease: None },
        };
        let batch = self.kit.jobs.claim(&queue(), &mut Vec::new(), most, claim).await.expect("redis runs");
        let expected = self.model.claim(most, by == ModelClaimer::Pull);
        let order: Vec<_> = expected.iter().map(|job| self.model.jobs[*job].id).collect();
        assert_eq!(batch.jobs.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), order, "order of claims");
        for (job, claimed) in expected.iter().zip(batch.jobs) {
            self.current_attempts.insert(*job, ModelAttempt { job: *job, claimer: by, claimed });
        }
        expected.last().copied()
    }

    /// One of the attempts that run.
    fn pick_attempt(&self, which: usize) -> Option<ModelAttempt> {
        let mut running: Vec<&ModelAttempt> = self.current_attempts.values().collect();
        running.sort_by_key(|attempt| attempt.job);
        running.get(which.checked_rem(running.len())?).copied().cloned()
    }

    /// One of the jobs in these states, or of all.
    fn pick_job(&self, which: usize, states: &[JobState]) -> Option<usize> {
        let fits = |job: &super::state::ModelJob| !job.is_deleted && (states.is_empty() || states.contains(&job.state));
        let jobs: Vec<usize> = (0..self.model.jobs.len()).filter(|job| fits(&self.model.jobs[*job])).collect();
        jobs.get(which.checked_rem(jobs.len())?).copied()
    }

    fn fence(&self, attempt: &ModelAttempt) -> Fence {
        match attempt.claimer {
            ModelClaimer::Worker(number) => Fence::for_worker(&self.workers[number]),
            ModelClaimer::Pull => Fence::Pull { token: attempt.claimed.token.clone(), worker: None },
        }
    }

    async fn settle_complete(&self, attempt: &ModelAttempt) -> Settled {
        let claimed = &attempt.claimed;
        match attempt.claimer {
            ModelClaimer::Worker(number) => self.kit.complete(&self.workers[number], claimed, "1").await,
            ModelClaimer::Pull => {
                let ended = FinishedJob::completed(&claimed.job, Some("1"), Some(claimed.started_at), local_now());
                let fence = self.fence(attempt);
                self.kit.jobs.finish(Attempt::of(claimed, &fence), &ended, false).await.expect("redis runs")
            }
        }
    }

    async fn settle_fail(&self, attempt: &ModelAttempt, fence: &Fence, advice: RetryAdvice) -> FailureOutcome {
        self.kit.jobs.fail(&attempt.claimed, fence, failure(1), advice).await.expect("redis runs")
    }

    async fn complete(&mut self, which: usize) -> Option<usize> {
        let attempt = self.pick_attempt(which)?;
        assert_eq!(self.settle_complete(&attempt).await, Settled::Done);
        self.model.complete(attempt.job);
        Some(attempt.job)
    }

    async fn fail(&mut self, which: usize, advice: RetryAdvice) -> Option<usize> {
        let attempt = self.pick_attempt(which)?;
        let recorded = self.settle_fail(&attempt, &self.fence(&attempt), advice).await;
        self.model.fail(attempt.job, advice);
        assert_eq!(recorded.as_str(), self.model.jobs[attempt.job].state.as_str());
        Some(attempt.job)
    }

    async fn release(&mut self, which: usize) -> Option<usize> {
        let attempt = self.pick_attempt(which)?;
        let claimed = &attempt.claimed;
        let fence = self.fence(&attempt);
        let settled = self.kit.jobs.release(Attempt::of(claimed, &fence)).await.expect("redis runs");
        assert_eq!(settled, Settled::Done);
        self.model.release(attempt.job);
        self.stale_attempts.extend(self.current_attempts.remove(&attempt.job));
        Some(attempt.job)
    }

    async fn lose_worker(&mut self, which: usize) -> Option<usize> {
        let attempt = self.pick_attempt(which)?;
        let (priority, entry) = (attempt.claimed.job.priority, attempt.claimed.entry.to_string());
        match attempt.claimer {
            ModelClaimer::Worker(number) => {
                let (stream, name) = (format!("galley:{{default}}:s:{priority}"), self.workers[number].name());
                self.kit
                    .redis_command(&["XCLAIM", &stream, "workers", name, "0", &entry, "IDLE", "100000", "JUSTID"])
                    .await;
            }
            ModelClaimer::Pull => {
                self.kit.redis_command(&["ZADD", "galley:{default}:leases", "1", &format!("{priority}:{entry}")]).await;
            }
        }
        self.run_maintenance().await;
        self.model.lose_worker(attempt.job);
        self.stale_attempts.extend(self.current_attempts.remove(&attempt.job));
        Some(attempt.job)
    }

    async fn run_maintenance(&self) {
        maintenance::run_once(&self.kit.jobs, &queue()).await.expect("redis runs");
    }

    async fn cancel(&mut self, which: usize) -> Option<usize> {
        let job = self.pick_job(which, &[])?;
        let outcome = self.kit.jobs.cancel(self.model.jobs[job].id).await.expect("redis runs");
        assert!(!matches!(outcome, Err(JobTransitionError::NotFound)), "the job is there");
        assert_eq!(outcome.is_ok(), self.model.cancel(job));
        Some(job)
    }

    async fn make_due(&mut self, which: usize) -> Option<usize> {
        let job = self.pick_job(which, &[JobState::Scheduled, JobState::Retryable])?;
        self.kit.redis_command(&["ZADD", "galley:{default}:due", "1", &self.model.jobs[job].id.to_string()]).await;
        self.run_maintenance().await;
        self.model.make_due(job);
        Some(job)
    }

    async fn activate(&mut self, which: usize) -> Option<usize> {
        let pending = self.pick_job(which, &[JobState::Pending]);
        let job = pending.filter(|_| !which.is_multiple_of(4)).or_else(|| self.pick_job(which, &[]))?;
        let outcome = self.kit.jobs.activate(self.model.jobs[job].id).await.expect("redis runs");
        assert_eq!(outcome.is_ok(), self.model.activate(job));
        Some(job)
    }

    async fn redrive(&mut self, which: usize) -> Option<usize> {
        let job = self.pick_job(which, &[JobState::Discarded, JobState::Cancelled])?;
        let outcome = self.kit.jobs.redrive(self.model.jobs[job].id).await.expect("redis runs");
        match self.model.blocker(job) {
            Some(other) => {
                assert_eq!(outcome.err(), Some(JobTransitionError::Duplicate(self.model.jobs[other].id)));
            }
            None => assert_eq!(outcome.is_ok(), self.model.redrive(job)),
        }
        Some(job)
    }

    async fn delete_dead_letter(&mut self, which: usize) -> Option<usize> {
        let job = self.pick_job(which, &[JobState::Discarded])?;
        let outcome = self.kit.jobs.delete_dead_letter(self.model.jobs[job].id).await.expect("redis runs");
        assert_eq!(outcome, self.model.delete_dead_letter(job));
        None
    }

    async fn purge(&mut self, names: &[&str]) -> Option<usize> {
        let states: Vec<JobState> = names.iter().filter_map(|name| JobState::from_name(name)).collect();
        let purge = PurgeRequest { states: states.clone(), limit: 1000, after: None };
        let purged = self.kit.jobs.purge(&queue(), &purge).await.expect("redis runs");
        assert_eq!(purged.count, self.model.purge(&states));
        None
    }

    /// Nothing of this changes anything: what is compared afterwards shows it.
    async fn act_stale(&mut self, which: usize, late: StaleAction) -> Option<usize> {
        if matches!(late, StaleAction::WrongFence) {
            return self.act_with_wrong_fence(which).await;
        }
        let attempt = self.stale_attempts.get(which.checked_rem(self.stale_attempts.len())?)?.clone();
        let (claimed, fence) = (&attempt.claimed, self.fence(&attempt));
        let settled = match late {
            StaleAction::Complete => Some(self.settle_complete(&attempt).await),
            StaleAction::Release => {
                Some(self.kit.jobs.release(Attempt::of(claimed, &fence)).await.expect("redis runs"))
            }
            StaleAction::WorkerLost => Some(self.kit.jobs.worker_lost(claimed, &fence).await.expect("redis runs")),
            StaleAction::Fail | StaleAction::WrongFence => {
                self.settle_fail(&attempt, &fence, RetryAdvice::ByPolicy).await;
                None
            }
        };
        assert_ne!(settled, Some(Settled::Done));
        Some(attempt.job)
    }

    async fn act_with_wrong_fence(&mut self, which: usize) -> Option<usize> {
        let attempt = self.pick_attempt(which)?;
        let fence = match attempt.claimer {
            ModelClaimer::Worker(number) => Fence::for_worker(&self.workers[1 - number]),
            ModelClaimer::Pull => Fence::Pull { token: Some("guessed".to_owned()), worker: None },
        };
        assert_eq!(self.settle_fail(&attempt, &fence, RetryAdvice::ByPolicy).await.as_str(), "stale");
        Some(attempt.job)
    }

    async fn compare(&self, touched: Option<usize>) {
        let touched = touched.map(|job| &self.model.jobs[job]).filter(|job| !job.is_deleted);
        let (mut redis, queue) = (self.kit.redis.clone(), queue());
        let locate = async {
            match touched {
                Some(job) => self.kit.jobs.locate(job.id).await,
                None => Ok(None),
            }
        };
        let dumped = self.dump_script.invoke_async(&mut redis);
        let (rows, stats, located) = tokio::join!(dumped, self.kit.jobs.queue_stats(&queue), locate);
        let rows: Vec<Vec<String>> = rows.expect("redis runs");
        let (found, expected) = (facts::stored_facts(&rows), facts::expected_facts(&self.model));
        if found != expected {
            let missing: Vec<&String> = expected.iter().filter(|fact| !found.contains(fact)).collect();
            let extra: Vec<&String> = found.iter().filter(|fact| !expected.contains(fact)).collect();
            panic!("missing {missing:#?}, too many {extra:#?}");
        }
        assert_eq!(stats.expect("redis runs"), self.model.stats());
        let Some(job) = touched else { return };
        let located = located.expect("redis runs").expect("the job is there");
        assert_eq!(located.state(), job.state);
        match &located {
            LocatedJob::Finished(json) => {
                let shown: serde_json::Value = serde_json::from_str(json).expect("JSON");
                assert_eq!(shown["attempt"], job.last_attempt);
            }
            LocatedJob::InRecord { job: stored, .. } | LocatedJob::InStream { job: stored, .. } => {
                let history = &stored.history;
                let counted = (history.attempts, history.failures, history.crashes);
                assert_eq!(counted, (job.attempts, job.failures, job.crashes));
            }
        }
    }
}
