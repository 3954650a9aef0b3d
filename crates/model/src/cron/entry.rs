//! A cron entry as it is stored and shown, and its changes.

use serde::{Deserialize, Serialize};

use super::{CronDefinition, CronSchedule, JobTemplate, OverlapPolicy, schedule::CronScheduleError};
use common::{
    id::JobId,
    json::ObjectWriter,
    name::CronName,
    time::{self, Millis},
};

/// Runs that may wait for the previous job to finish; later ones are skipped.
pub const MAX_WAITING_RUNS: usize = 100;
/// Pause between two checks whether the job that a run waits for is finished. Nothing notifies of its end.
const WAITING_CHECK_INTERVAL_MS: Millis = 1000;

/// A cron entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CronEntry {
    /// Its name.
    pub name: CronName,
    expression: String,
    timezone: String,
    /// What happens when runs overlap.
    pub overlap_policy: OverlapPolicy,
    /// Whether it is switched on.
    pub enabled: bool,
    description: Option<String>,
    /// The job that it creates.
    pub template: JobTemplate,
    created_at: Millis,
    /// The time that `@every` counts from.
    pub(super) anchor: Millis,
    /// The next run, or one that is due; none if the entry is switched off.
    pub next_run_at: Option<Millis>,
    /// Runs that wait for the last job to finish, the oldest first.
    pub(super) waiting: Vec<Millis>,
    /// The last run that created a job.
    pub last_run_at: Option<Millis>,
    /// That job.
    pub last_job_id: Option<JobId>,
    /// Runs that created a job.
    pub run_count: u64,
    /// Runs that created no job, because of the overlap policy or because the queue was full.
    pub skipped_count: u64,
    /// Missed runs: no maintenance leader was running.
    pub missed_count: u64,
}

impl CronEntry {
    /// An entry that is registered for the first time.
    #[must_use]
    pub fn new(definition: CronDefinition, now: Millis) -> Self {
        let mut entry = Self {
            name: definition.name,
            expression: definition.expression,
            timezone: definition.timezone,
            overlap_policy: definition.overlap_policy,
            enabled: definition.enabled,
            description: definition.description,
            template: definition.template,
            created_at: now,
            anchor: now,
            next_run_at: None,
            waiting: Vec::new(),
            last_run_at: None,
            last_job_id: None,
            run_count: 0,
            skipped_count: 0,
            missed_count: 0,
        };
        entry.next_run_at = definition.schedule.next(now, now).filter(|_| entry.enabled);
        entry
    }

    /// The entry after it is registered again. Programs do that at every start, so its anchor and its next run stay if
    /// the schedule is the same.
    #[must_use]
    pub fn with_definition(&self, definition: CronDefinition, now: Millis) -> Self {
        let definition_schedule = definition.schedule.clone();
        let mut entry = Self::new(definition, now);
        entry.created_at = self.created_at.min(now);
        (entry.last_run_at, entry.last_job_id) = (self.last_run_at, self.last_job_id);
        (entry.run_count, entry.skipped_count) = (self.run_count, self.skipped_count);
        entry.missed_count = self.missed_count;
        let is_same = entry.expression == self.expression && entry.timezone == self.timezone;
        // A run that is later than the next one is from before Redis's clock was set back
        let next = definition_schedule.next(now, self.anchor.min(now));
        let is_next = self.next_run_at.is_some() && (next.is_none() || self.next_run_at <= next);
        if is_same && entry.enabled && is_next && self.anchor <= now {
            (entry.anchor, entry.next_run_at) = (self.anchor, self.next_run_at);
            if entry.overlap_policy == OverlapPolicy::Enqueue {
                entry.waiting.clone_from(&self.waiting);
            }
        }
        entry
    }

    /// Whether it was registered after `earlier`, the entry of its name until then, was deleted.
    #[must_use]
    pub fn is_after(&self, earlier: &Self) -> bool {
        // To register an entry that is there keeps this time, or moves it back with the clock
        self.created_at > earlier.created_at
    }

    /// The entry after it is switched on or off. An entry that is off has no runs, so it misses none.
    ///
    /// # Errors
    /// The stored schedule is damaged.
    pub fn with_enabled(&self, enabled: bool, now: Millis) -> Result<Self, CronScheduleError> {
        let mut entry = self.clone();
        if entry.enabled != enabled {
            entry.enabled = enabled;
            entry.waiting.clear();
            entry.next_run_at = if enabled { self.schedule(now)?.next(now, self.anchor) } else { None };
        }
        Ok(entry)
    }

    /// The entry after Redis's clock was set back: no run is later than the next one by the clock.
    ///
    /// # Errors
    /// The stored schedule is damaged.
    pub fn after_clock_set_back(&self, now: Millis) -> Result<Self, CronScheduleError> {
        let mut entry = self.clone();
        entry.anchor = self.anchor.min(now);
        let next = if self.enabled { self.schedule(now)?.next(now, entry.anchor) } else { None };
        if next.is_some() && self.next_run_at.is_none_or(|at| Some(at) > next) {
            entry.next_run_at = next;
        }
        Ok(entry)
    }

    /// Its schedule.
    ///
    /// # Errors
    /// The stored schedule is damaged, or no time matches it any more.
    pub fn schedule(&self, now: Millis) -> Result<CronSchedule, CronScheduleError> {
        CronSchedule::parse(&self.expression, &self.timezone, now)
    }

    /// The next `count` runs after a time.
    ///
    /// # Errors
    /// The stored schedule is damaged.
    pub fn next_runs(&self, now: Millis, count: usize) -> Result<Vec<String>, CronScheduleError> {
        let schedule = self.schedule(now)?;
        let runs = std::iter::successors(schedule.next(now, self.anchor), |at| schedule.next(*at, self.anchor));
        Ok(runs.take(count).map(|at| schedule.format_local(at)).collect())
    }

    /// When to check the entry again: at its next run, or sooner if a run waits.
    #[must_use]
    pub fn next_check_at(&self, now: Millis) -> Option<Millis> {
        let soon = (!self.waiting.is_empty()).then_some(now + WAITING_CHECK_INTERVAL_MS);
        self.next_run_at.into_iter().chain(soon).min()
    }

    /// Whether another run may wait.
    #[must_use]
    pub fn has_room_to_wait(&self) -> bool {
        self.waiting.len() < MAX_WAITING_RUNS
    }

    /// Whether runs wait already: the next run is queued behind them.
    #[must_use]
    pub fn has_waiting_runs(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The entry as clients see it, each thing once, with the names of the conformance suites.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = ObjectWriter::with_capacity(self.template.as_str().len() + 512);
        out.text("name", self.name.as_str()).text("expression", &self.expression);
        out.text("timezone", &self.timezone);
        out.raw("overlap_policy", &serde_json::to_string(&self.overlap_policy).unwrap_or_default());
        out.raw("enabled", if self.enabled { "true" } else { "false" });
        match &self.description {
            Some(text) => out.text("description", text),
            None => out.raw("description", "null"),
        };
        out.raw("job_template", self.template.as_str());
        for (name, at) in [("next_run_at", self.next_run_at), ("last_run_at", self.last_run_at)] {
            match at {
                Some(at) => out.text(name, &time::format(at)),
                None => out.raw(name, "null"),
            };
        }
        match self.last_job_id {
            Some(id) => out.text("last_job_id", &id.to_string()),
            None => out.raw("last_job_id", "null"),
        };
        out.number("run_count", self.run_count).number("skipped_count", self.skipped_count);
        out.number("missed_count", self.missed_count).number("waiting_count", self.waiting.len() as u64);
        out.text("created_at", &time::format(self.created_at));
        out.finish()
    }

    /// Its expression, for events.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Its time zone, for people.
    #[must_use]
    pub fn timezone(&self) -> &str {
        &self.timezone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Millis = 3_600_000;

    fn definition(more: &str, now: Millis) -> CronDefinition {
        let json = format!(r#"{{"name":"n","type":"a","cron":"@hourly"{more}}}"#);
        CronDefinition::parse(&serde_json::from_str(&json).expect("an object"), now).expect("allowed")
    }

    #[test]
    fn registering_again_keeps_what_was_counted_and_an_unchanged_schedule_its_next_run() {
        let mut entry = CronEntry::new(definition("", 5), 5);
        entry.run_count = 7;
        let again = entry.with_definition(definition("", 3 * HOUR), 3 * HOUR);
        assert_eq!((again.run_count, again.created_at, again.next_run_at), (7, 5, Some(HOUR)));
        let moved = entry.with_definition(definition(r#","timezone":"Asia/Kathmandu""#, 3 * HOUR), 3 * HOUR);
        // In 1970 Nepal was five hours and a half ahead
        assert_eq!((moved.run_count, moved.next_run_at), (7, Some(3 * HOUR + HOUR / 2)));
    }

    #[test]
    fn runs_from_before_the_clock_was_set_back_are_brought_forward() {
        for cron in ["@hourly", "@every 3600s"] {
            let definition = |now| {
                let json = format!(r#"{{"name":"n","type":"a","cron":"{cron}"}}"#);
                CronDefinition::parse(&serde_json::from_str(&json).expect("an object"), now).expect("allowed")
            };
            let ahead = CronEntry::new(definition(24 * HOUR), 24 * HOUR);
            let healed = ahead.after_clock_set_back(10).expect("a schedule");
            let first = healed.next_run_at.expect("it is on");
            assert!(first > 10 && first <= HOUR + 10, "{cron}: {first}");
            let again = ahead.with_definition(definition(10), 10);
            assert_eq!(again.next_run_at, Some(first), "{cron}: registering it again heals it, too");
            let same = healed.after_clock_set_back(10).expect("a schedule");
            assert_eq!((same.next_run_at, same.anchor), (Some(first), healed.anchor), "{cron}: once is enough");
        }
    }

    #[test]
    fn an_entry_that_is_off_has_no_next_run_and_misses_none() {
        let off = CronEntry::new(definition("", 5), 5).with_enabled(false, 9).expect("a schedule");
        assert_eq!((off.enabled, off.next_run_at, off.next_check_at(9)), (false, None, None));
        let on = off.with_enabled(true, 10 * HOUR).expect("a schedule");
        assert_eq!((on.enabled, on.next_run_at, on.missed_count), (true, Some(11 * HOUR), 0));
    }

    #[test]
    fn what_is_shown_says_each_thing_once_and_can_be_sent_back() {
        let entry = CronEntry::new(definition(r#","options":{"queue":"q"}"#, 5), 5);
        let json = entry.to_json();
        let shown: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&shown["expression"], &shown["job_template"]["type"]), (&"@hourly".into(), &"a".into()));
        assert_eq!(shown["job_template"]["options"]["queue"], "q");
        for again in ["cron", "type", "args", "options"] {
            assert_eq!(shown.get(again), None, "{again} is in expression or job_template");
        }
        assert_eq!(
            (&shown["overlap_policy"], &shown["next_run_at"]),
            (&"skip".into(), &"1970-01-01T01:00:00.000Z".into())
        );
        let again = CronDefinition::parse(&serde_json::from_str(&json).expect("an object"), 5).expect("allowed");
        assert_eq!(again.template.as_str(), entry.template.as_str());
        let stored: CronEntry = serde_json::from_str(&serde_json::to_string(&entry).expect("JSON")).expect("an entry");
        assert_eq!(stored.to_json(), json);
    }
}
