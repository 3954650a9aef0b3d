//! A model of how jobs change in Redis: every state that a few jobs, workers, programs, leaders and clients can reach is
//! visited, and the [rules](JobModel#rules) are checked in each.
//!
//! The model knows what the scripts of `crates/store` check and write, and nothing else of them: each function in `scripts.rs`
//! is one script, and each [`Action`] is named as the script that it runs. Between the steps of one process, anything that the
//! others can do may happen: a process that does nothing for a while is a frozen one, and what it does later is what a zombie
//! does. Time is not modelled: a lease may expire and a job may be due at any moment.
//!
//! A [`Scenario`] says who takes part and what may go wrong. Everything that does not lead to an end is limited by the scenario
//! (lost answers, crashes, renewals, releases), so no run is endless and all of its states can be visited. A
//! [`PlantedBug`] changes one script, to see that the check finds it.
//!
//! Not modelled: a full Redis, limits of keys and queues, workflows, deadlines of jobs, results that expire, leases that a job
//! brings along, and steps of the clock. Tests of the store cover these on a real Redis.

mod actions;
mod planted;
mod redis;
mod rules;
mod scripts;
mod state;
mod steps;
mod witness;

use stateright::{Model, Property};

pub use self::{
    actions::{Action, AttemptCaller},
    planted::PlantedBug,
    rules::ModelRule,
    state::ModelState,
    witness::Witness,
};
use self::{
    redis::RedisState,
    state::{CancelStep, CreatorStep, FaultsLeft, FollowUpStep, JobAudit, RedriveStep, WorkerProcess},
    steps::Step,
    witness::Witnesses,
};

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// A plain job: it has no record at first.
    Plain,
    /// A job that is due later.
    Scheduled,
    /// A unique job; all of a scenario are equal. It is refused while another one lives.
    Unique,
    /// A unique job that replaces one that waits.
    Replacing,
}

/// Who takes part, and what may go wrong.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The jobs that clients create, in any order.
    pub jobs: &'static [JobKind],
    /// Processes of queue-workers.
    pub processes: u8,
    /// Jobs that a process runs at once.
    pub slots: usize,
    /// Jobs that programs fetch over HTTP at once.
    pub programs: usize,
    /// Leaders that reclaim at once: one that is over and does not know it is one of two.
    pub leaders: usize,
    /// Attempts of a job that fail, before it is discarded.
    pub max_attempts: u8,
    /// Workers that may die with a job.
    pub crash_budget: u8,
    /// Whether attempts fail.
    pub fails: bool,
    /// How many of the first jobs a client cancels.
    pub cancels: usize,
    /// How many of the first jobs a client redrives, if they end without success.
    pub redrives: usize,
    /// Answers that are lost.
    pub lost_answers: u8,
    /// Processes and programs that die.
    pub crashes: u8,
    /// Renewals and heartbeats.
    pub renewals: u8,
    /// Jobs that a worker releases because it stops.
    pub releases: u8,
    /// Attempts that are handed to the holder of a token.
    pub handovers: u8,
}

impl Scenario {
    /// One queue-worker process with one slot, one leader, and nothing that goes wrong.
    #[must_use]
    pub fn new(jobs: &'static [JobKind]) -> Self {
        Self {
            jobs,
            processes: 1,
            slots: 1,
            programs: 0,
            leaders: 1,
            max_attempts: 2,
            crash_budget: 1,
            fails: false,
            cancels: 0,
            redrives: 0,
            lost_answers: 0,
            crashes: 0,
            renewals: 0,
            releases: 0,
            handovers: 0,
        }
    }

    pub(crate) fn job_count(&self) -> u8 {
        u8::try_from(self.jobs.len()).unwrap_or(u8::MAX)
    }

    pub(crate) fn kind(&self, job: u8) -> JobKind {
        self.jobs[usize::from(job)]
    }
}

/// A scenario, perhaps with a bug in it.
///
/// # Rules
/// See [`ModelRule`].
#[derive(Debug)]
pub struct JobModel {
    scenario: Scenario,
    bug: Option<PlantedBug>,
    witnesses: Witnesses,
}

impl JobModel {
    /// A scenario as Galley is.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        Self { scenario, bug: None, witnesses: Witnesses::default() }
    }

    /// A scenario with a bug.
    #[must_use]
    pub fn with_bug(scenario: Scenario, bug: PlantedBug) -> Self {
        Self { bug: Some(bug), ..Self::new(scenario) }
    }

    /// Whether this has happened in the states that were visited.
    #[must_use]
    pub fn has_seen(&self, witness: Witness) -> bool {
        self.witnesses.has(witness)
    }
}

impl Model for JobModel {
    type State = ModelState;
    type Action = Action;

    fn init_states(&self) -> Vec<ModelState> {
        let scenario = &self.scenario;
        let jobs = scenario.jobs.len();
        vec![ModelState {
            redis: RedisState::new(scenario.job_count(), self.bug),
            processes: (0..scenario.processes).map(|name| WorkerProcess { name, attempts: Vec::new() }).collect(),
            next_name: scenario.processes,
            pulled: Vec::new(),
            lost_claims: Vec::new(),
            silent: Vec::new(),
            creators: vec![CreatorStep::Unsent; jobs],
            cancellers: vec![CancelStep::Unasked; scenario.cancels],
            redrivers: vec![RedriveStep::Unasked; scenario.redrives],
            follow_up: FollowUpStep::None,
            left: FaultsLeft {
                lost_answers: scenario.lost_answers,
                crashes: scenario.crashes,
                renewals: scenario.renewals,
                releases: scenario.releases,
                handovers: scenario.handovers,
            },
            audit: vec![JobAudit::default(); jobs],
            problem: None,
        }]
    }

    fn actions(&self, state: &ModelState, found: &mut Vec<Action>) {
        actions::list(&self.scenario, state, found);
    }

    fn next_state(&self, state: &ModelState, action: Action) -> Option<ModelState> {
        let step = Step { scenario: &self.scenario, witnesses: &self.witnesses, state: state.clone() };
        Some(step.take(action)).filter(|next| next != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        rules::properties()
    }
}
