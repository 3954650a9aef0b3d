//! Plays an operation in Redis and in the model, and compares what came of it.

use std::collections::HashMap;

use model::job::{Advice, State};
use redis::Script;
use store::{
    jobs::{Claim, Claimed, Consumer, Ended, Fence, Located, NotMoved, Purge, Recorded, Refused, Settled, local_now},
    maintenance,
};

use super::{
    facts,
    plan::{By, Late, Op, Spec},
    world::{Outcome, World},
};
use crate::kit::{Kit, consumer, failure, queue};

/// An attempt, as whoever has it knows it.
#[derive(Clone)]
struct Attempt {
    job: usize,
    by: By,
    claimed: Claimed,
}

pub(super) struct Play<'a> {
    kit: &'a Kit,
    world: World,
    workers: [Consumer; 2],
    current: HashMap<usize, Attempt>,
    over: Vec<Attempt>,
    dump: Script,
}

impl<'a> Play<'a> {
    pub(super) async fn new(kit: &'a Kit) -> Self {
        kit.command(&["FLUSHDB"]).await;
        let workers = [consumer(), consumer()];
        let (current, over) = (HashMap::new(), Vec::new());
        Self { kit, world: World::default(), workers, current, over, dump: Script::new(facts::DUMP) }
    }

    /// Does it and compares everything.
    pub(super) async fn play(&mut self, op: &Op) {
        let touched = self.apply(op).await;
        // Attempts of jobs that do not run any more can only come late
        let world = &self.world;
        let ended = self.current.extract_if(|job, _| world.jobs[*job].state != State::Active);
        self.over.extend(ended.map(|(_, attempt)| attempt));
        self.compare(touched).await;
    }

    async fn apply(&mut self, op: &Op) -> Option<usize> {
        match op {
            Op::Nothing => None,
            Op::Enqueue(spec) => self.enqueue(spec).await,
            Op::Claim { by, most } => self.claim(*by, *most).await,
            Op::Complete(which) => self.complete(*which).await,
            Op::Fail(which, advice) => self.fail(*which, *advice).await,
            Op::Requeue(which) => self.requeue(*which).await,
            Op::Crash(which) => self.crash(*which).await,
            Op::Cancel(which) => self.cancel(*which).await,
            Op::Due(which) => self.due(*which).await,
            Op::Activate(which) => self.activate(*which).await,
            Op::Redrive(which) => self.redrive(*which).await,
            Op::DeleteDeadLetter(which) => self.delete_dead_letter(*which).await,
            Op::Stale(which, late) => self.come_late(*which, *late).await,
            Op::Pause(paused) => {
                self.kit.jobs.pause(&queue(), *paused).await.expect("redis runs").expect("room for a queue");
                self.world.is_paused = *paused;
                None
            }
            Op::Purge(states) => self.purge(states).await,
            Op::Upkeep => {
                self.upkeep().await;
                let report = self.kit.jobs.check(&queue(), true, maintenance::Cursor::start(), 100_000).await;
                let report = report.expect("redis runs");
                assert!(report.violations.is_empty() && report.next.is_none(), "{report:?}");
                None
            }
        }
    }

    async fn enqueue(&mut self, spec: &Spec) -> Option<usize> {
        let expected = self.world.enqueue(spec, None);
        match (self.kit.try_enqueue(&spec.body()).await, expected) {
            (Ok(enqueued), Outcome::Stored(state)) => {
                assert_eq!(enqueued.state, state);
                self.world.enqueue(spec, Some(enqueued.job.id));
                Some(self.world.jobs.len() - 1)
            }
            (Err(Refused::Duplicate(id)), Outcome::Duplicate(expected)) if id == expected => None,
            (Err(Refused::Ignored { id, .. }), Outcome::Ignored(expected)) if id == expected => None,
            (outcome, expected) => panic!("{:?}, expected {expected:?}", outcome.map(|enqueued| enqueued.state)),
        }
    }

    async fn claim(&mut self, by: By, most: usize) -> Option<usize> {
        let name = "model".parse().expect("a name");
        let claim = match by {
            By::Worker(number) => Claim::Worker { consumer: &self.workers[number], worker: &name },
            By::Pull => Claim::Pull { worker: None, lease: None },
        };
        let batch = self.kit.jobs.claim(&queue(), &mut Vec::new(), most, claim).await.expect("redis runs");
        let expected = self.world.claim(most, by == By::Pull);
        let order: Vec<_> = expected.iter().map(|job| self.world.jobs[*job].id).collect();
        assert_eq!(batch.jobs.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), order, "order of claims");
        for (job, claimed) in expected.iter().zip(batch.jobs) {
            self.current.insert(*job, Attempt { job: *job, by, claimed });
        }
        expected.last().copied()
    }

    /// One of the attempts that run.
    fn attempt(&self, which: usize) -> Option<Attempt> {
        let mut running: Vec<&Attempt> = self.current.values().collect();
        running.sort_by_key(|attempt| attempt.job);
        running.get(which.checked_rem(running.len())?).copied().cloned()
    }

    /// One of the jobs in these states, or of all.
    fn job(&self, which: usize, states: &[State]) -> Option<usize> {
        let fits = |job: &super::world::Job| !job.is_gone && (states.is_empty() || states.contains(&job.state));
        let jobs: Vec<usize> = (0..self.world.jobs.len()).filter(|job| fits(&self.world.jobs[*job])).collect();
        jobs.get(which.checked_rem(jobs.len())?).copied()
    }

    fn fence(&self, attempt: &Attempt) -> Fence {
        match attempt.by {
            By::Worker(number) => Fence::of(&self.workers[number]),
            By::Pull => Fence::Pull { token: attempt.claimed.token.clone(), worker: None },
        }
    }

    async fn settle_complete(&self, attempt: &Attempt) -> Settled {
        let claimed = &attempt.claimed;
        match attempt.by {
            By::Worker(number) => self.kit.complete(&self.workers[number], claimed, "1").await,
            By::Pull => {
                let ended = Ended::completed(&claimed.job, Some("1"), Some(claimed.started_at), local_now());
                let fence = self.fence(attempt);
                self.kit.jobs.finish(&claimed.job, claimed.entry, &fence, &ended, false).await.expect("redis runs")
            }
        }
    }

    async fn settle_fail(&self, attempt: &Attempt, fence: &Fence, advice: Advice) -> Recorded {
        self.kit.jobs.fail(&attempt.claimed, fence, failure(1), advice).await.expect("redis runs")
    }

    async fn complete(&mut self, which: usize) -> Option<usize> {
        let attempt = self.attempt(which)?;
        assert_eq!(self.settle_complete(&attempt).await, Settled::Done);
        self.world.complete(attempt.job);
        Some(attempt.job)
    }

    async fn fail(&mut self, which: usize, advice: Advice) -> Option<usize> {
        let attempt = self.attempt(which)?;
        let recorded = self.settle_fail(&attempt, &self.fence(&attempt), advice).await;
        self.world.fail(attempt.job, advice);
        assert_eq!(recorded.as_str(), self.world.jobs[attempt.job].state.as_str());
        Some(attempt.job)
    }

    async fn requeue(&mut self, which: usize) -> Option<usize> {
        let attempt = self.attempt(which)?;
        let claimed = &attempt.claimed;
        let fence = self.fence(&attempt);
        let settled = self.kit.jobs.requeue(&claimed.job, claimed.entry, &fence).await.expect("redis runs");
        assert_eq!(settled, Settled::Done);
        self.world.requeue(attempt.job);
        self.over.extend(self.current.remove(&attempt.job));
        Some(attempt.job)
    }

    async fn crash(&mut self, which: usize) -> Option<usize> {
        let attempt = self.attempt(which)?;
        let (priority, entry) = (attempt.claimed.job.priority, attempt.claimed.entry.to_string());
        match attempt.by {
            By::Worker(number) => {
                let (stream, name) = (format!("galley:{{default}}:s:{priority}"), self.workers[number].name());
                self.kit.command(&["XCLAIM", &stream, "workers", name, "0", &entry, "IDLE", "100000", "JUSTID"]).await;
            }
            By::Pull => {
                self.kit.command(&["ZADD", "galley:{default}:leases", "1", &format!("{priority}:{entry}")]).await;
            }
        }
        self.upkeep().await;
        self.world.crash(attempt.job);
        self.over.extend(self.current.remove(&attempt.job));
        Some(attempt.job)
    }

    async fn upkeep(&self) {
        maintenance::step(&self.kit.jobs, &queue()).await.expect("redis runs");
    }

    async fn cancel(&mut self, which: usize) -> Option<usize> {
        let job = self.job(which, &[])?;
        let outcome = self.kit.jobs.cancel(self.world.jobs[job].id).await.expect("redis runs");
        assert!(!matches!(outcome, Err(NotMoved::Unknown)), "the job is there");
        assert_eq!(outcome.is_ok(), self.world.cancel(job));
        Some(job)
    }

    async fn due(&mut self, which: usize) -> Option<usize> {
        let job = self.job(which, &[State::Scheduled, State::Retryable])?;
        self.kit.command(&["ZADD", "galley:{default}:due", "1", &self.world.jobs[job].id.to_string()]).await;
        self.upkeep().await;
        self.world.due(job);
        Some(job)
    }

    async fn activate(&mut self, which: usize) -> Option<usize> {
        let pending = self.job(which, &[State::Pending]);
        let job = pending.filter(|_| !which.is_multiple_of(4)).or_else(|| self.job(which, &[]))?;
        let outcome = self.kit.jobs.activate(self.world.jobs[job].id).await.expect("redis runs");
        assert_eq!(outcome.is_ok(), self.world.activate(job));
        Some(job)
    }

    async fn redrive(&mut self, which: usize) -> Option<usize> {
        let job = self.job(which, &[State::Discarded])?;
        let outcome = self.kit.jobs.redrive(self.world.jobs[job].id).await.expect("redis runs");
        assert_eq!(outcome.is_some(), self.world.redrive(job));
        Some(job)
    }

    async fn delete_dead_letter(&mut self, which: usize) -> Option<usize> {
        let job = self.job(which, &[State::Discarded])?;
        let outcome = self.kit.jobs.delete_dead_letter(self.world.jobs[job].id).await.expect("redis runs");
        assert_eq!(outcome, self.world.delete_dead_letter(job));
        None
    }

    async fn purge(&mut self, names: &[&str]) -> Option<usize> {
        let states: Vec<State> = names.iter().filter_map(|name| State::from_name(name)).collect();
        let purge = Purge { states: states.clone(), limit: 1000 };
        let purged = self.kit.jobs.purge(&queue(), &purge).await.expect("redis runs");
        assert_eq!(purged.count, self.world.purge(&states));
        None
    }

    /// Nothing of this changes anything: what is compared afterwards shows it.
    async fn come_late(&mut self, which: usize, late: Late) -> Option<usize> {
        if matches!(late, Late::NotMine) {
            return self.interfere(which).await;
        }
        let attempt = self.over.get(which.checked_rem(self.over.len())?)?.clone();
        let (claimed, fence) = (&attempt.claimed, self.fence(&attempt));
        let settled = match late {
            Late::Complete => Some(self.settle_complete(&attempt).await),
            Late::Requeue => {
                Some(self.kit.jobs.requeue(&claimed.job, claimed.entry, &fence).await.expect("redis runs"))
            }
            Late::Crash => Some(self.kit.jobs.crash(claimed, &fence).await.expect("redis runs")),
            Late::Fail | Late::NotMine => {
                self.settle_fail(&attempt, &fence, Advice::ByPolicy).await;
                None
            }
        };
        assert_ne!(settled, Some(Settled::Done));
        Some(attempt.job)
    }

    async fn interfere(&mut self, which: usize) -> Option<usize> {
        let attempt = self.attempt(which)?;
        let fence = match attempt.by {
            By::Worker(number) => Fence::of(&self.workers[1 - number]),
            By::Pull => Fence::Pull { token: Some("guessed".to_owned()), worker: None },
        };
        assert_eq!(self.settle_fail(&attempt, &fence, Advice::ByPolicy).await.as_str(), "stale");
        Some(attempt.job)
    }

    async fn compare(&self, touched: Option<usize>) {
        let touched = touched.map(|job| &self.world.jobs[job]).filter(|job| !job.is_gone);
        let (mut redis, queue) = (self.kit.redis.clone(), queue());
        let locate = async {
            match touched {
                Some(job) => self.kit.jobs.locate(job.id).await,
                None => Ok(None),
            }
        };
        let dumped = self.dump.invoke_async(&mut redis);
        let (rows, stats, located) = tokio::join!(dumped, self.kit.jobs.stats(&queue), locate);
        let rows: Vec<Vec<String>> = rows.expect("redis runs");
        let (found, expected) = (facts::found(&rows), facts::expected(&self.world));
        if found != expected {
            let missing: Vec<&String> = expected.iter().filter(|fact| !found.contains(fact)).collect();
            let extra: Vec<&String> = found.iter().filter(|fact| !expected.contains(fact)).collect();
            panic!("missing {missing:#?}, too many {extra:#?}");
        }
        assert_eq!(stats.expect("redis runs"), self.world.stats());
        let Some(job) = touched else { return };
        let located = located.expect("redis runs").expect("the job is there");
        assert_eq!(located.state(), job.state);
        match &located {
            Located::Ended(json) => {
                let shown: serde_json::Value = serde_json::from_str(json).expect("JSON");
                assert_eq!(shown["attempt"], job.last_attempt);
            }
            Located::Parked { job: stored, .. } | Located::Queued { job: stored, .. } => {
                let history = &stored.history;
                let counted = (history.attempts, history.failures, history.crashes);
                assert_eq!(counted, (job.attempts, job.failures, job.crashes));
            }
        }
    }
}
