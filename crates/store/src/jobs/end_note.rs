//! What is stored of a job that ends, however full Redis is. A job that nobody makes again needs nothing. One with a chosen
//! id may be made again by a repetition of the request that made it: its end stays known in a line, for which its own record
//! makes room.

use std::time::Duration;

use super::{
    JobRecord, Jobs,
    claim::duration_millis,
    finished_job::FinishedJob,
    follow_up::{MIN_FOLLOW_UP_TTL, RESULT_OVERHEAD_BYTES},
};
use crate::{connection::budgets::DataKind, keys::QueueKeys, script};

/// How long the end of a job with a chosen id is known at least, unless results are kept for less: what makes it comes again
/// within minutes.
const MIN_CHOSEN_ID_TTL: Duration = Duration::from_mins(10);

/// How the end of a job is stored.
#[derive(Debug, Default)]
pub(super) struct StoredEnd {
    /// What is stored: the result, or a note without it.
    pub(super) text: String,
    /// TTL of the result; zero if Redis is too full for it.
    pub(super) ttl: Duration,
    /// TTL of the note in its place; zero if there is none.
    pub(super) note_ttl: Duration,
}

impl StoredEnd {
    /// How long the job is known.
    pub(super) fn known_for(&self) -> Duration {
        self.ttl.max(self.note_ttl)
    }
}

impl Jobs {
    /// How the end of a job is stored whose result would have this text and this TTL, zero if Redis is too full for it.
    pub(super) fn stored_end(&self, job: &JobRecord, ended: &FinishedJob, text: String, ttl: Duration) -> StoredEnd {
        if !ttl.is_zero() {
            return StoredEnd { text, ttl, note_ttl: Duration::ZERO };
        }
        let mut note = text.split_inclusive('\n').next().unwrap_or_default().to_owned();
        if !job.has_chosen_id() {
            return StoredEnd { text: note, ttl, note_ttl: Duration::ZERO };
        }
        note += &ended.note(self.sealer(), job, self.estimated_now());
        self.store.redis.memory().note_stored(DataKind::Results, note.len() + RESULT_OVERHEAD_BYTES);
        StoredEnd { text: note, ttl, note_ttl: self.chosen_id_ttl(Duration::ZERO) }
    }

    /// TTL of a result, of which Redis has room for this one, or for none.
    pub(super) fn own_result_ttl(&self, job: &JobRecord, ttl: Duration) -> Duration {
        if ttl.is_zero() || !job.has_chosen_id() { ttl } else { self.chosen_id_ttl(ttl) }
    }

    /// How long the end of a job with a chosen id is known when results have this TTL, or none.
    pub(super) fn chosen_id_ttl(&self, ttl: Duration) -> Duration {
        ttl.max(self.settings().result_ttl.min(MIN_CHOSEN_ID_TTL))
    }

    /// Shortens the life of a result that was stored only for its follow-up, as the fill level asks. Where this fails its own
    /// TTL applies.
    pub(super) async fn shorten_result(&self, job: &JobRecord, ended: &FinishedJob) {
        let ttl = self.store.redis.memory().result_retention().limit(self.settings().result_ttl);
        if !job.has_chosen_id() {
            return self.shorten_results(&job.queue, &[job.id]).await;
        }
        let (key, mut redis) = (QueueKeys::new(&job.queue).result(&job.id), self.store.redis.clone());
        if ttl.is_zero() {
            metrics::counter!("galley_results_dropped_total").increment(1);
            let mut call = script::NOTE_END.key(key);
            call.arg(ended.note(self.sealer(), job, self.estimated_now()));
            let _ = call.arg(duration_millis(self.chosen_id_ttl(Duration::ZERO))).invoke_async::<i64>(&mut redis).await;
        } else if ttl < MIN_FOLLOW_UP_TTL && ttl < self.settings().result_ttl {
            let ttl = duration_millis(self.own_result_ttl(job, ttl));
            let _ = redis::cmd("PEXPIRE").arg(key).arg(ttl).exec_async(&mut redis).await;
        }
    }
}
