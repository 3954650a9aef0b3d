//! What to do with an entry at a time, and the entry afterwards.

use super::{CronEntry, schedule::CronScheduleError};
use common::{id::JobId, time::Millis};

/// Missed runs that one call counts; the next call counts the rest.
const MAX_MISSED_PER_TICK: usize = 500;

/// Limits of runs that are late.
#[derive(Debug, Clone, Copy)]
pub struct CatchUpLimits {
    /// Due runs that are run: the newest ones, up to this number.
    pub max_runs: usize,
    /// Age of the oldest run that is run.
    pub window_ms: Millis,
}

/// What to do with an entry now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CronTick {
    /// Create the job of this run.
    pub run: Option<Millis>,
    /// Whether the run waited for the last job to finish.
    pub has_waited: bool,
    /// Runs that are skipped because they are too late.
    pub missed: u64,
    /// The next run. It is in the past if another call is needed at once.
    pub next: Option<Millis>,
}

/// The outcome of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CronRunOutcome {
    /// It created this job.
    Fired(JobId),
    /// It creates no job.
    Skipped,
    /// It waits for the last job to finish.
    Waiting,
    /// No run was due.
    NotDue,
}

impl CronEntry {
    /// What to do at a time: one run at most, and a bounded number of missed ones.
    ///
    /// # Errors
    /// The stored schedule is damaged.
    pub fn tick(&self, now: Millis, limits: CatchUpLimits) -> Result<CronTick, CronScheduleError> {
        let waits = self.waiting.first().copied();
        let idle = CronTick { run: waits, has_waited: waits.is_some(), missed: 0, next: self.next_run_at };
        let Some(due) = self.next_run_at.filter(|due| *due <= now && self.enabled) else { return Ok(idle) };
        let schedule = self.schedule(now)?;
        let after = |at: Millis| schedule.next(at, self.anchor);
        let oldest = now.saturating_sub(limits.window_ms);
        // A run that was due before the window is missed, and so are those between it and the window
        let missed = std::iter::successors(Some(due), |at| after(*at));
        let missed = missed.take_while(|at| *at < oldest).take(MAX_MISSED_PER_TICK).count();
        let first = if due < oldest { after(oldest - 1) } else { Some(due) };
        let runs: Vec<Millis> = std::iter::successors(first, |at| after(*at))
            .take_while(|at| *at <= now)
            .take(limits.max_runs + MAX_MISSED_PER_TICK)
            .collect();
        let given_up = runs.len().saturating_sub(limits.max_runs);
        let missed = (missed + given_up) as u64;
        if runs.len() == limits.max_runs + MAX_MISSED_PER_TICK {
            // Perhaps not the newest yet: the next call continues from here
            return Ok(CronTick { run: None, has_waited: false, missed, next: runs.get(given_up).copied() });
        }
        let run = runs.get(given_up).copied();
        let next = runs.get(given_up + 1).copied().or_else(|| after(now));
        Ok(CronTick { run, has_waited: false, missed, next })
    }

    /// The entry after a call.
    #[must_use]
    pub fn after_tick(&self, turn: CronTick, outcome: CronRunOutcome) -> Self {
        let mut entry = self.clone();
        entry.missed_count += turn.missed;
        entry.next_run_at = turn.next;
        if turn.has_waited && outcome != CronRunOutcome::Waiting {
            entry.waiting.remove(0);
        }
        match (outcome, turn.run) {
            (CronRunOutcome::Fired(id), Some(run)) => {
                (entry.last_run_at, entry.last_job_id) = (Some(run), Some(id));
                entry.run_count += 1;
            }
            (CronRunOutcome::Waiting, Some(run)) if !turn.has_waited => entry.waiting.push(run),
            (CronRunOutcome::Skipped, _) => entry.skipped_count += 1,
            _ => {}
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cron::CronDefinition;

    const HOUR: Millis = 3_600_000;
    const LIMITS: CatchUpLimits = CatchUpLimits { max_runs: 1, window_ms: HOUR };

    fn id() -> JobId {
        "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id")
    }

    fn definition(more: &str, now: Millis) -> CronDefinition {
        let json = format!(r#"{{"name":"n","type":"a","cron":"@hourly"{more}}}"#);
        CronDefinition::parse(&serde_json::from_str(&json).expect("an object"), now).expect("allowed")
    }

    fn every_second() -> CronEntry {
        let json = r#"{"name":"n","type":"a","cron":"* * * * * *"}"#;
        let definition = CronDefinition::parse(&serde_json::from_str(json).expect("an object"), 0).expect("allowed");
        CronEntry::new(definition, 0)
    }

    #[test]
    fn a_run_that_is_due_is_run_and_the_next_is_set() {
        let entry = CronEntry::new(definition("", 5), 5);
        assert_eq!(entry.next_run_at, Some(HOUR));
        let early = entry.tick(HOUR - 1, LIMITS).expect("a schedule");
        assert_eq!((early.run, early.next), (None, Some(HOUR)));
        let turn = entry.tick(HOUR + 3, LIMITS).expect("a schedule");
        assert_eq!(turn, CronTick { run: Some(HOUR), has_waited: false, missed: 0, next: Some(2 * HOUR) });
        let entry = entry.after_tick(turn, CronRunOutcome::Fired(id()));
        assert_eq!((entry.run_count, entry.last_run_at, entry.last_job_id), (1, Some(HOUR), Some(id())));
        assert_eq!(entry.next_check_at(HOUR + 3), Some(2 * HOUR));
    }

    #[test]
    fn after_an_absence_the_newest_runs_within_the_window_are_run_and_the_rest_counted() {
        let entry = CronEntry::new(definition("", 0), 0);
        let turn = entry.tick(10 * HOUR + 5, LIMITS).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(10 * HOUR), 9, Some(11 * HOUR)));
        let three = CatchUpLimits { max_runs: 3, window_ms: 24 * HOUR };
        let turn = entry.tick(10 * HOUR + 5, three).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(8 * HOUR), 7, Some(9 * HOUR)));
        let turn = entry.after_tick(turn, CronRunOutcome::Fired(id())).tick(10 * HOUR + 9, three).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(9 * HOUR), 0, Some(10 * HOUR)));
        let narrow = CatchUpLimits { max_runs: 3, window_ms: HOUR / 2 };
        let turn = entry.tick(10 * HOUR + HOUR / 2 + 1, narrow).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (None, 10, Some(11 * HOUR)));
    }

    #[test]
    fn a_turn_counts_a_bounded_number_of_missed_runs_and_the_next_goes_on() {
        let mut entry = every_second();
        let now = 2 * HOUR + 500;
        let mut turns = 0;
        loop {
            let turn = entry.tick(now, LIMITS).expect("a schedule");
            assert!(turn.missed <= 2 * MAX_MISSED_PER_TICK as u64);
            entry = entry.after_tick(turn, turn.run.map_or(CronRunOutcome::NotDue, |_| CronRunOutcome::Fired(id())));
            turns += 1;
            if turn.run.is_some() {
                break;
            }
        }
        assert_eq!((turns, entry.last_run_at, entry.next_run_at), (8, Some(2 * HOUR), Some(2 * HOUR + 1000)));
        assert_eq!(
            entry.missed_count,
            3599 + MAX_MISSED_PER_TICK as u64,
            "those before the window are counted up to a bound"
        );
    }

    #[test]
    fn a_run_that_waits_is_looked_at_again_before_the_next_run() {
        let entry = CronEntry::new(definition(r#","overlap_policy":"enqueue""#, 0), 0);
        let turn = entry.tick(HOUR, LIMITS).expect("a schedule");
        let entry = entry.after_tick(turn, CronRunOutcome::Waiting);
        assert_eq!((entry.next_check_at(HOUR), entry.next_run_at), (Some(HOUR + 1000), Some(2 * HOUR)));
        let turn = entry.tick(HOUR + 1000, LIMITS).expect("a schedule");
        assert_eq!((turn.run, turn.has_waited), (Some(HOUR), true));
        assert!(entry.after_tick(turn, CronRunOutcome::Waiting).has_waiting_runs());
        let entry = entry.after_tick(turn, CronRunOutcome::Fired(id()));
        assert_eq!((entry.has_waiting_runs(), entry.run_count, entry.next_check_at(HOUR)), (false, 1, Some(2 * HOUR)));
    }
}
