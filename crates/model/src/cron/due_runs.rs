//! What is to be done with an entry at some moment, and what becomes of it.

use super::{Entry, schedule::ScheduleError};
use common::{id::JobId, time::Millis};

/// Missed runs that are counted in one go; the rest is for the next turn.
const MOST_IN_A_TURN: usize = 500;

/// How late a run may be.
#[derive(Debug, Clone, Copy)]
pub struct CatchUp {
    /// The newest so many that are due are run.
    pub most: usize,
    /// None that is older than this.
    pub window_ms: Millis,
}

/// What is to be done with an entry now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Make the job of this run.
    pub run: Option<Millis>,
    /// It has waited for the last job to end.
    pub has_waited: bool,
    /// Runs that are given up.
    pub missed: u64,
    /// What comes next: in the past when there is more to do at once.
    pub next: Option<Millis>,
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It made this job.
    Fired(JobId),
    /// It makes none.
    Skipped,
    /// It waits for the last job to end.
    Waits,
    /// There was no run.
    Nothing,
}

impl Entry {
    /// What is to be done at that moment. One run at most, and a bounded number of missed ones.
    ///
    /// # Errors
    /// The stored schedule is damaged.
    pub fn turn(&self, now: Millis, limits: CatchUp) -> Result<Turn, ScheduleError> {
        let waits = self.waiting.first().copied();
        let idle = Turn { run: waits, has_waited: waits.is_some(), missed: 0, next: self.next_run_at };
        let Some(due) = self.next_run_at.filter(|due| *due <= now && self.enabled) else { return Ok(idle) };
        let schedule = self.schedule(now)?;
        let after = |at: Millis| schedule.next(at, self.anchor);
        let oldest = now.saturating_sub(limits.window_ms);
        // A run that was due before the window is not made up for; nor are those between it and the window
        let missed = std::iter::successors(Some(due), |at| after(*at));
        let missed = missed.take_while(|at| *at < oldest).take(MOST_IN_A_TURN).count();
        let first = if due < oldest { after(oldest - 1) } else { Some(due) };
        let runs: Vec<Millis> = std::iter::successors(first, |at| after(*at))
            .take_while(|at| *at <= now)
            .take(limits.most + MOST_IN_A_TURN)
            .collect();
        let given_up = runs.len().saturating_sub(limits.most);
        let missed = (missed + given_up) as u64;
        if runs.len() == limits.most + MOST_IN_A_TURN {
            // Perhaps not the newest yet: the next turn goes on from here
            return Ok(Turn { run: None, has_waited: false, missed, next: runs.get(given_up).copied() });
        }
        let run = runs.get(given_up).copied();
        let next = runs.get(given_up + 1).copied().or_else(|| after(now));
        Ok(Turn { run, has_waited: false, missed, next })
    }

    /// The entry after a turn.
    #[must_use]
    pub fn after(&self, turn: Turn, outcome: Outcome) -> Self {
        let mut entry = self.clone();
        entry.missed_count += turn.missed;
        entry.next_run_at = turn.next;
        if turn.has_waited && outcome != Outcome::Waits {
            entry.waiting.remove(0);
        }
        match (outcome, turn.run) {
            (Outcome::Fired(id), Some(run)) => {
                (entry.last_run_at, entry.last_job_id) = (Some(run), Some(id));
                entry.run_count += 1;
            }
            (Outcome::Waits, Some(run)) if !turn.has_waited => entry.waiting.push(run),
            (Outcome::Skipped, _) => entry.skipped_count += 1,
            _ => {}
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cron::Definition;

    const HOUR: Millis = 3_600_000;
    const LIMITS: CatchUp = CatchUp { most: 1, window_ms: HOUR };

    fn id() -> JobId {
        "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id")
    }

    fn definition(more: &str, now: Millis) -> Definition {
        let json = format!(r#"{{"name":"n","type":"a","cron":"@hourly"{more}}}"#);
        Definition::parse(&serde_json::from_str(&json).expect("an object"), now).expect("allowed")
    }

    fn every_second() -> Entry {
        let json = r#"{"name":"n","type":"a","cron":"* * * * * *"}"#;
        let definition = Definition::parse(&serde_json::from_str(json).expect("an object"), 0).expect("allowed");
        Entry::new(definition, 0)
    }

    #[test]
    fn a_run_that_is_due_is_run_and_the_next_is_set() {
        let entry = Entry::new(definition("", 5), 5);
        assert_eq!(entry.next_run_at, Some(HOUR));
        let early = entry.turn(HOUR - 1, LIMITS).expect("a schedule");
        assert_eq!((early.run, early.next), (None, Some(HOUR)));
        let turn = entry.turn(HOUR + 3, LIMITS).expect("a schedule");
        assert_eq!(turn, Turn { run: Some(HOUR), has_waited: false, missed: 0, next: Some(2 * HOUR) });
        let entry = entry.after(turn, Outcome::Fired(id()));
        assert_eq!((entry.run_count, entry.last_run_at, entry.last_job_id), (1, Some(HOUR), Some(id())));
        assert_eq!(entry.look_at(HOUR + 3), Some(2 * HOUR));
    }

    #[test]
    fn after_an_absence_the_newest_runs_within_the_window_are_run_and_the_rest_counted() {
        let entry = Entry::new(definition("", 0), 0);
        let turn = entry.turn(10 * HOUR + 5, LIMITS).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(10 * HOUR), 9, Some(11 * HOUR)));
        let three = CatchUp { most: 3, window_ms: 24 * HOUR };
        let turn = entry.turn(10 * HOUR + 5, three).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(8 * HOUR), 7, Some(9 * HOUR)));
        let turn = entry.after(turn, Outcome::Fired(id())).turn(10 * HOUR + 9, three).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (Some(9 * HOUR), 0, Some(10 * HOUR)));
        let narrow = CatchUp { most: 3, window_ms: HOUR / 2 };
        let turn = entry.turn(10 * HOUR + HOUR / 2 + 1, narrow).expect("a schedule");
        assert_eq!((turn.run, turn.missed, turn.next), (None, 10, Some(11 * HOUR)));
    }

    #[test]
    fn a_turn_counts_a_bounded_number_of_missed_runs_and_the_next_goes_on() {
        let mut entry = every_second();
        let now = 2 * HOUR + 500;
        let mut turns = 0;
        loop {
            let turn = entry.turn(now, LIMITS).expect("a schedule");
            assert!(turn.missed <= 2 * MOST_IN_A_TURN as u64);
            entry = entry.after(turn, turn.run.map_or(Outcome::Nothing, |_| Outcome::Fired(id())));
            turns += 1;
            if turn.run.is_some() {
                break;
            }
        }
        assert_eq!((turns, entry.last_run_at, entry.next_run_at), (8, Some(2 * HOUR), Some(2 * HOUR + 1000)));
        assert_eq!(
            entry.missed_count,
            3599 + MOST_IN_A_TURN as u64,
            "those before the window are counted up to a bound"
        );
    }

    #[test]
    fn a_run_that_waits_is_looked_at_again_before_the_next_run() {
        let entry = Entry::new(definition(r#","overlap_policy":"enqueue""#, 0), 0);
        let turn = entry.turn(HOUR, LIMITS).expect("a schedule");
        let entry = entry.after(turn, Outcome::Waits);
        assert_eq!((entry.look_at(HOUR), entry.next_run_at), (Some(HOUR + 1000), Some(2 * HOUR)));
        let turn = entry.turn(HOUR + 1000, LIMITS).expect("a schedule");
        assert_eq!((turn.run, turn.has_waited), (Some(HOUR), true));
        assert!(entry.after(turn, Outcome::Waits).has_waiting());
        let entry = entry.after(turn, Outcome::Fired(id()));
        assert_eq!((entry.has_waiting(), entry.run_count, entry.look_at(HOUR)), (false, 1, Some(2 * HOUR)));
    }
}
