//! Creates exactly one job for each due run, whichever process does it.
//!
//! First the job: its id is derived from the entry's name, the run and the queue, so a second one is a duplicate. Then
//! the entry advances, if it is still what was read. After a crash in between, another process creates the same job
//! again, gets a duplicate, and advances the entry.

use futures_util::future::join_all;
use serde_json::json;

use super::{Cron, CronSaveOutcome, damaged_error};
use crate::{StoreError, StoreResult, events::JobEvent, jobs::EnqueueRefusal, keys};
use common::{
    id::JobId,
    name::{CronName, quoted},
    time::{self, Millis},
    trace_context::TraceContext,
};
use model::cron::{CatchUpLimits, CronEntry, CronRunOutcome, CronTick, OverlapPolicy, template::run_job_id};

/// Maximum number of entries in one turn.
const BATCH: usize = 64;
/// Entries handled concurrently: their commands pipeline on the shared connection.
const MAX_CONCURRENT_RUNS: usize = 16;
/// Maximum number of attempts for one entry, each after another process changed it.
const MAX_FIRE_ATTEMPTS: usize = 8;

/// The outcome of a run and the reason.
struct CronDecision(CronRunOutcome, &'static str);

impl Cron<'_> {
    /// Creates the jobs of due runs, for a bounded number of entries; returns how many entries failed.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn fire_due(&self) -> StoreResult<usize> {
        let now = self.jobs.now().await?;
        let names = self.jobs.store.redis.due_members(keys::CRON_NEXT, now, BATCH).await?;
        let mut troubled = 0;
        for some in names.chunks(MAX_CONCURRENT_RUNS) {
            for result in join_all(some.iter().map(|name| self.fire(name, now))).await {
                match result {
                    Ok(()) => {}
                    Err(error @ StoreError::Unavailable(_)) => return Err(error),
                    Err(error) => {
                        tracing::error!(%error, "a cron entry failed");
                        troubled += 1;
                    }
                }
            }
            // Counting missed runs takes time, and other tasks share this thread
            tokio::task::yield_now().await;
        }
        Ok(troubled)
    }

    async fn fire(&self, name: &str, now: Millis) -> StoreResult<()> {
        let Ok(name) = name.parse::<CronName>() else {
            // Not Galley's, and it would be due for ever
            tracing::error!(cron = quoted(name), "not a name among the cron entries, removed");
            return self.unschedule(name).await;
        };
        let mut made: Option<(Millis, JobId, CronEntry)> = None;
        for _ in 0..MAX_FIRE_ATTEMPTS {
            let Some(raw) = self.read_raw(&name).await? else {
                self.remove_if_unchanged(name.as_str(), "").await?;
                return Ok(());
            };
            let entry = self.parse_entry(name.as_str(), &raw).ok().flatten();
            let turn = entry.map(|entry| (entry.tick(now, self.catch_up_limits()), entry));
            let Some((Ok(turn), entry)) = turn else {
                // It would be due for ever. Registering the entry again revives it
                self.unschedule(name.as_str()).await?;
                return Err(damaged_error(&name));
            };
            let (turn, decision) = match &made {
                // The job exists, but the entry was changed before it could advance: this run is no longer its next
                Some((run, id, of)) if turn.run != Some(*run) => {
                    if entry.is_after(of) || entry.last_run_at.is_some_and(|last| last >= *run) {
                        return Ok(());
                    }
                    let turn = CronTick { run: Some(*run), has_waited: false, missed: 0, next: entry.next_run_at };
                    (turn, CronDecision(CronRunOutcome::Fired(*id), ""))
                }
                _ => (turn, self.decide(&entry, turn, now).await?),
            };
            let after = entry.after_tick(turn, decision.0);
            match self.save_if_unchanged(&after, Some(&raw), now).await? {
                CronSaveOutcome::Saved => {
                    self.log_decision(&after, turn, &decision);
                    // A run that waited longer may be due now
                    if decision.0 != CronRunOutcome::Waiting || turn.has_waited || !entry.has_waiting_runs() {
                        return Ok(());
                    }
                }
                CronSaveOutcome::AlreadySaved => return Ok(()),
                CronSaveOutcome::Changed | CronSaveOutcome::Full => {}
            }
            if let (CronRunOutcome::Fired(id), Some(run)) = (decision.0, turn.run) {
                made = Some((run, id, entry));
            }
        }
        // Other processes change it; it stays due if they do not finish
        Ok(())
    }

    fn catch_up_limits(&self) -> CatchUpLimits {
        let settings = &self.jobs.store.settings.cron;
        let window_ms = Millis::try_from(settings.catch_up_window.as_millis()).unwrap_or(Millis::MAX);
        CatchUpLimits { max_runs: settings.catch_up_max, window_ms }
    }

    /// Creates the job of a run, if there is one and the overlap policy allows it.
    async fn decide(&self, entry: &CronEntry, turn: CronTick, now: Millis) -> StoreResult<CronDecision> {
        let Some(run) = turn.run else { return Ok(CronDecision(CronRunOutcome::NotDue, "")) };
        let mut new = match entry.template.new_job(&entry.name, run, now) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(cron = %entry.name, %error, "the job of a cron entry is not allowed any more");
                return Ok(CronDecision(CronRunOutcome::Skipped, "invalid_template"));
            }
        };
        let id = run_job_id(&entry.name, run, &new.queue);
        if let Some(decision) = self.apply_overlap_policy(entry, turn, id).await? {
            return Ok(decision);
        }
        new.id = Some(id);
        match self.jobs.enqueue(new, TraceContext::default(), now).await? {
            Ok(_) => self.finish_fire(entry, id).await,
            Err(EnqueueRefusal::Duplicate(known)) if known == id => self.finish_fire(entry, id).await,
            Err(EnqueueRefusal::Duplicate(_) | EnqueueRefusal::Ignored { .. }) => {
                Ok(CronDecision(CronRunOutcome::Skipped, "unique"))
            }
            Err(refused) => {
                tracing::warn!(cron = %entry.name, ?refused, "no room for the job of a cron entry");
                Ok(CronDecision(CronRunOutcome::Skipped, "queue_full"))
            }
        }
    }

    /// The job of a run exists: cancels the previous one if the overlap policy says so.
    async fn finish_fire(&self, entry: &CronEntry, id: JobId) -> StoreResult<CronDecision> {
        if let Some(last) = entry.last_job_id.filter(|last| *last != id)
            && entry.overlap_policy == OverlapPolicy::CancelPrevious
        {
            // If it has just ended, there is nothing to cancel
            let _ = self.jobs.cancel(last).await?;
        }
        Ok(CronDecision(CronRunOutcome::Fired(id), ""))
    }

    /// What the overlap policy says instead of creating the job; none if it allows the job.
    async fn apply_overlap_policy(
        &self,
        entry: &CronEntry,
        turn: CronTick,
        id: JobId,
    ) -> StoreResult<Option<CronDecision>> {
        let Some(last) = entry.last_job_id.filter(|last| *last != id) else { return Ok(None) };
        if entry.overlap_policy == OverlapPolicy::Allow {
            return Ok(None);
        }
        let queues_up = entry.overlap_policy == OverlapPolicy::Enqueue && !turn.has_waited && entry.has_waiting_runs();
        // A job that cannot be found ended long ago
        let runs = queues_up || self.jobs.locate(last).await?.is_some_and(|located| !located.state().is_terminal());
        Ok(match entry.overlap_policy {
            _ if !runs => None,
            OverlapPolicy::Allow => None,
            OverlapPolicy::Skip => Some(CronDecision(CronRunOutcome::Skipped, "overlap_skip")),
            // Cancelled once the new job exists
            OverlapPolicy::CancelPrevious => None,
            OverlapPolicy::Enqueue if turn.has_waited || entry.has_room_to_wait() => {
                Some(CronDecision(CronRunOutcome::Waiting, ""))
            }
            OverlapPolicy::Enqueue => Some(CronDecision(CronRunOutcome::Skipped, "too_many_waiting")),
        })
    }

    /// Removes the next check of an entry that cannot be read.
    async fn unschedule(&self, name: &str) -> StoreResult<()> {
        let mut command = redis::cmd("ZREM");
        Ok(command.arg(keys::CRON_NEXT).arg(name).exec_async(&mut self.jobs.store.redis.clone()).await?)
    }

    /// Logs the decision; only the process that advanced the entry does.
    fn log_decision(&self, entry: &CronEntry, turn: CronTick, decision: &CronDecision) {
        if turn.missed > 0 {
            metrics::counter!("galley_cron_missed_total").increment(turn.missed);
            tracing::warn!(cron = %entry.name, missed = turn.missed, "runs of a cron entry were missed");
        }
        let Some(run) = turn.run else { return };
        let mut data = json!({
            "cron_name": entry.name, "cron_expression": entry.expression(), "timezone": entry.timezone(),
            "scheduled_time": time::format(run),
        });
        let now = self.jobs.estimated_now();
        let kind = match decision {
            CronDecision(CronRunOutcome::Fired(id), _) => {
                metrics::counter!("galley_cron_fired_total").increment(1);
                data["job_id"] = json!(id);
                data["job_type"] = json!(entry.template.member("type"));
                data["run_count"] = json!(entry.run_count);
                data["actual_time"] = json!(time::format(now));
                "cron.triggered"
            }
            CronDecision(CronRunOutcome::Skipped, reason) => {
                metrics::counter!("galley_cron_skipped_total").increment(1);
                data["reason"] = json!(reason);
                data["active_job_id"] = json!(entry.last_job_id);
                "cron.skipped"
            }
            CronDecision(CronRunOutcome::Waiting | CronRunOutcome::NotDue, _) => return,
        };
        self.jobs.record_event(JobEvent::new(kind, now, data.to_string()));
    }
}
