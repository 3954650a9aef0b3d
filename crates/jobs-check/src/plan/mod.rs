//! What a run does and when: a pure function of a seed.

mod faults;
mod jobs;

pub use self::{
    faults::{CheckLink, FaultGroup, LinkDisturbance, PlannedFault, PlannedFaultKind},
    jobs::{JobBehaviour, JobRunner, PlannedJob, PlannedJobKind, PlannedRequest},
};

pub(crate) use self::faults::LEASE_MS;
use rand::{SeedableRng, rngs::StdRng};
use testkit::RedisKind;

/// How much of everything there is.
#[derive(Debug, Clone)]
pub struct JobsCheckOptions {
    /// What everything is stored in.
    pub redis: RedisKind,
    /// Where the plan comes from.
    pub seed: u64,
    /// For how long producers send. It is longer if the faults take longer.
    pub seconds: u32,
    /// Requests per second.
    pub rate: u32,
    /// Which faults strike.
    pub faults: Vec<PlannedFaultKind>,
    /// How often each of them, at least.
    pub times: u32,
    /// What is sent.
    pub load: CheckLoad,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLoad {
    /// Jobs of every kind, at random times.
    Mixed,
    /// Plain jobs at even times, and pauses between faults: it is judged how soon as many end again as before.
    Steady,
}

/// What is sent and what breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsPlan {
    /// In the order of their times.
    pub requests: Vec<PlannedRequest>,
    /// One after the other.
    pub faults: Vec<PlannedFault>,
    /// Until when requests are sent, in ms from the start.
    pub length_ms: u64,
    /// What is sent.
    pub load: CheckLoad,
}

impl JobsPlan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(options: &JobsCheckOptions) -> Self {
        let mut random = StdRng::seed_from_u64(options.seed);
        let faults = faults::plan_faults(&mut random, options);
        let faults_end = faults.last().map_or(0, |fault| fault.at_ms + fault.duration_ms + faults::QUIET_MS);
        let mut length_ms = faults_end.max(u64::from(options.seconds) * 1000);
        let requests = match options.load {
            CheckLoad::Mixed => jobs::plan_requests(&mut random, options.rate, length_ms),
            CheckLoad::Steady => {
                length_ms += faults::STEADY_PAUSE_MS;
                jobs::plan_steady_requests(&mut random, options.rate, length_ms)
            }
        };
        Self { requests, faults, length_ms, load: options.load }
    }

    /// Every planned job.
    pub fn jobs(&self) -> impl Iterator<Item = (&PlannedRequest, &PlannedJob)> {
        self.requests.iter().flat_map(|request| request.jobs.iter().map(move |job| (request, job)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn options(seed: u64) -> JobsCheckOptions {
        let faults = PlannedFaultKind::all();
        let redis = RedisKind::Server;
        JobsCheckOptions { redis, seed, seconds: 60, rate: 20, faults, times: 1, load: CheckLoad::Mixed }
    }

    #[test]
    fn a_seed_is_a_plan_and_another_seed_is_another() {
        assert_eq!(JobsPlan::of(&options(7)), JobsPlan::of(&options(7)));
        assert_ne!(JobsPlan::of(&options(7)), JobsPlan::of(&options(8)));
    }

    #[test]
    fn every_kind_of_job_every_runner_and_every_fault_are_in_a_plan() {
        for seed in 0..20 {
            let plan = JobsPlan::of(&options(seed));
            let kinds: BTreeSet<_> = plan.requests.iter().map(|request| request.kind).collect();
            assert_eq!(kinds, PlannedJobKind::ALL.into_iter().collect());
            let runners: BTreeSet<_> = plan.jobs().map(|(_, job)| job.runner).collect();
            assert_eq!(runners, JobRunner::ALL.into_iter().collect());
            let struck: BTreeSet<_> = plan.faults.iter().map(|fault| fault.kind).collect();
            assert!(PlannedFaultKind::all().iter().all(|kind| struck.contains(kind)), "{struck:?}");
            let keys: BTreeSet<_> = plan.jobs().map(|(_, job)| job.key).collect();
            assert_eq!(keys.len(), plan.jobs().count(), "no two jobs share a key");
        }
    }

    #[test]
    fn each_fault_has_an_option_and_strikes_as_often_as_is_asked_for() {
        for kind in PlannedFaultKind::all() {
            assert_eq!(PlannedFaultKind::parse(&kind.option()), Some(kind));
        }
        let faults = vec![PlannedFaultKind::KillRedis];
        let options = JobsCheckOptions { seconds: 1, faults, times: 20, load: CheckLoad::Steady, ..options(1) };
        let plan = JobsPlan::of(&options);
        assert_eq!(plan.faults.len(), 20);
        assert!(plan.requests.iter().all(|request| request.kind == PlannedJobKind::Plain));
    }

    #[test]
    fn faults_follow_one_another_and_end_before_the_requests_do() {
        let plan = JobsPlan::of(&options(3));
        assert!(plan.faults.is_sorted_by(|a, b| a.at_ms + a.duration_ms < b.at_ms));
        assert!(plan.faults.iter().all(|fault| fault.at_ms + fault.duration_ms < plan.length_ms));
        assert!(plan.requests.is_sorted_by_key(|request| request.at_ms));
    }
}
