//! How soon as many jobs end as before, under a steady load.

use serde::Serialize;

use super::{JobsVerdict, JobsViolation, RunFacts};
use crate::plan::JobsPlan;

/// How long before a fault is looked at.
const BEFORE_MS: u64 = 4000;
/// Jobs that end within such a time are counted.
const WINDOW_MS: u64 = 1000;
/// Between two looks.
const STEP_MS: u64 = 100;
/// What docs/guarantees.md promises, in ms: a lease and two seconds.
pub(super) const MAX_RECOVERY_MS: u64 = 5000;

/// What became of the throughput.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecoveredThroughput {
    /// Jobs that ended in the four seconds before the fault.
    pub before: u64,
    /// From the end of the fault until a second had 90 % of the jobs of a second before, and all of the time from there to
    /// the next fault had as many on average, in ms. None if that never came.
    pub after_ms: Option<u64>,
}

/// Each fault needs a second of as many jobs as before, soon.
pub(super) fn judge_recovery(verdict: &mut JobsVerdict, plan: &JobsPlan, facts: &RunFacts<'_>) {
    let mut ends: Vec<u64> =
        facts.runs.iter().filter(|run| run.is_success()).filter_map(|run| run.ended).map(|(at, _)| at).collect();
    ends.sort_unstable();
    let count =
        |from: u64, to: u64| (ends.partition_point(|at| *at < to) - ends.partition_point(|at| *at < from)) as u64;
    for struck in &facts.struck {
        let Some(fault) = plan.faults.get(struck.fault) else { continue };
        let next = facts.struck.iter().find(|other| other.fault == struck.fault + 1);
        let end = next.map_or_else(|| facts.last_sent, |next| next.from);
        let before = count(struck.from.saturating_sub(BEFORE_MS), struck.from);
        let is_slow = |at: u64| count(at, at + WINDOW_MS) * 10 * BEFORE_MS < before * 9 * WINDOW_MS;
        let is_slow_from = |at: u64| count(at, end) * 10 * BEFORE_MS < before * 9 * end.saturating_sub(at);
        let mut looks = (struck.to..end.saturating_sub(WINDOW_MS)).step_by(usize::try_from(STEP_MS).unwrap_or(1));
        let after_ms = looks.find(|at| !is_slow(*at) && !is_slow_from(*at)).map(|at| at - struck.to);
        let found = RecoveredThroughput { before, after_ms };
        if after_ms.is_none_or(|after_ms| after_ms > MAX_RECOVERY_MS) {
            let (fault, after_ms) = (fault.kind.name(), after_ms.unwrap_or(end.saturating_sub(struck.to)));
            verdict.violations.push(JobsViolation::SlowRecovery { fault, after_ms });
        }
        let entry = verdict.recovered.entry(fault.kind.name()).or_insert_with(|| found.clone());
        if entry.after_ms.is_some_and(|known| found.after_ms.is_none_or(|new| new > known)) {
            *entry = found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{judge, tests::WrittenRun},
        *,
    };
    use crate::{
        history::HistoryEvent,
        plan::{CheckLoad, PlannedFaultKind, PlannedJobKind},
    };

    /// Ten jobs a second for twenty seconds, and a fault from second 8 to 9; none of them end in the seconds that are told.
    fn steady(is_idle: impl Fn(u64) -> bool) -> WrittenRun {
        let mut run = WrittenRun::new();
        run.plan.load = CheckLoad::Steady;
        for number in 0..200 {
            let at = u64::from(number) * 100;
            let id = number.to_string();
            let end = (at..).step_by(1000).take(100).find(|at| !is_idle(at / 1000)).unwrap_or(at + 200_000);
            run.plan(number, PlannedJobKind::Plain, 1);
            run.add(at, "producer", HistoryEvent::Sent { request: number });
            run.add(
                at,
                "producer",
                HistoryEvent::Acknowledged { request: number, ids: vec![id.clone()], is_created: true },
            );
            run.start(end, &id, number, 1);
            run.end(end, &id, 1, true);
            run.finish(&id, "completed", 1);
        }
        run.strike(PlannedFaultKind::KillRedis, "redis", 8000, 9000, 1);
        run
    }

    #[test]
    fn under_a_steady_load_as_many_jobs_end_again_soon_after_a_fault() {
        let run = steady(|second| (8..11).contains(&second));
        let verdict = judge(&run.plan, &run.history);
        assert_eq!(verdict.violations, []);
        let recovered = &verdict.recovered["kill -9 of Redis"];
        assert_eq!(
            (recovered.before, recovered.after_ms),
            (40, Some(1300)),
            "nine jobs are in the second from 10.3 on"
        );
        let run = steady(|second| (8..15).contains(&second));
        assert!(
            matches!(run.violations()[..], [JobsViolation::SlowRecovery { after_ms: 5200, .. }]),
            "{:?}",
            run.violations()
        );
        let run = steady(|second| second >= 8);
        assert!(run.violations().iter().any(|violation| matches!(violation, JobsViolation::SlowRecovery { .. })));
    }
}
