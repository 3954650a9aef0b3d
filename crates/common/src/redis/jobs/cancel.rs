//! Ending jobs from outside, wherever they are.

use super::{Jobs, Located, local_now, stored::Ended, wake::Wake};
use crate::{
    id::JobId,
    job::{Event, State, state::Conflict},
    redis::{StoreError, StoreResult, events::Happened, keys, keys::QueueKeys, script},
};

/// A job that was cancelled: its JSON.
#[derive(Debug, Clone)]
pub struct Cancelled(pub String);

/// A job that was not cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCancelled {
    /// There is none with that id.
    Unknown,
    /// It is over already.
    Conflict(Conflict),
}

impl Jobs {
    /// Cancels a job that is not over. A worker that runs it is told to stop, and cannot record an outcome any more.
    ///
    /// # Errors
    /// Redis is unavailable: the job may have been cancelled all the same.
    pub async fn cancel(&self, id: JobId) -> StoreResult<Result<Cancelled, NotCancelled>> {
        // The job may move between the look and the script, which then changes nothing
        for _ in 0..8 {
            let Some(located) = self.locate(id).await? else { return Ok(Err(NotCancelled::Unknown)) };
            if let Err(conflict) = located.state().after(Event::Cancel) {
                return Ok(Err(NotCancelled::Conflict(conflict)));
            }
            if let Some(cancelled) = self.cancel_located(&located).await? {
                return Ok(Ok(cancelled));
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    async fn cancel_located(&self, located: &Located) -> StoreResult<Option<Cancelled>> {
        let now = local_now();
        let (job, kind, place, started_at) = match located {
            Located::Ended(_) => return Ok(None),
            Located::Parked { job, state, .. } => (job, "record", vec![state.to_string()], None),
            Located::Queued { job, entry, holder } => {
                let consumer = holder.as_ref().map(|holder| holder.consumer.clone()).unwrap_or_default();
                let place = vec![entry.to_string(), keys::attempt(job.priority, *entry), consumer];
                (job, "entry", place, holder.as_ref().map(super::Holder::started_at))
            }
        };
        let ended = Ended::cancelled(job, started_at, now);
        let keys = QueueKeys::new(&job.queue);
        let answer: String = script::CANCEL
            .key(keys.stream(job.priority))
            .key(keys.active())
            .key(keys.leases())
            .key(keys.record(&job.id))
            .key(keys.result(&job.id))
            .key(keys.due())
            .key(keys.stats())
            .arg(kind)
            .arg(job.id.to_string())
            .arg(State::Cancelled.as_str())
            .arg(ended.to_text_without_attempt())
            .arg(self.settings.result_ttl.as_millis().to_string())
            .arg(keys::WAKE)
            .arg(Wake::Cancelled(job.id).encode())
            .arg(place)
            .invoke_async(&mut self.redis.clone())
            .await?;
        if answer != "done" {
            return Ok(None);
        }
        self.shorten_chosen_id(job, self.settings.result_ttl).await;
        self.events.record(Happened::ended(job, State::Cancelled, now));
        self.after_end(job, &ended.json).await;
        Ok(Some(Cancelled(ended.json)))
    }
}
