//! Which job has a uniqueness, and whether it blocks another.

use super::{EnqueueRefusal, Jobs, LocatedJob};
use crate::{StoreError, StoreResult, keys::QueueKeys};
use common::{
    id::JobId,
    name::QueueName,
    time::{self, Millis},
};
use model::job::{JobState, NewJob, OnConflict, UniquePolicy};

/// Whether a job's uniqueness allows it.
pub(super) enum UniquenessCheck {
    /// Allowed, if this is still the holder, and has still ended if it is a job that had.
    Free(String, Option<JobId>),
    /// Not allowed.
    Conflict(EnqueueRefusal),
    /// It puts this job off and takes its place, unless that one has begun.
    Debounces(JobId, Box<LocatedJob>),
    /// It replaces this job, which is cancelled in the step that creates the new one.
    Replaces(JobId, Box<LocatedJob>),
}

/// The job that has a uniqueness.
pub(super) struct UniquenessHolder {
    /// As stored; empty for none.
    pub(super) stored: String,
    /// It, if it blocks equal jobs; without its data when only its period is left of it.
    pub(super) blocking: Option<(JobId, Option<LocatedJob>)>,
    /// It, if it has ended and can still be looked up.
    pub(super) ended: Option<JobId>,
}

/// How long a uniqueness lasts: for the policy's period, or until the job ends, and no longer than its reservation.
pub(super) fn uniqueness_ttl(unique: &UniquePolicy, reservation_ttl: Millis) -> Millis {
    unique.period.and_then(|period| i64::try_from(period.as_millis()).ok()).unwrap_or(reservation_ttl).max(1)
}

impl Jobs {
    /// The key of a uniqueness. Without a policy it is one that is never touched.
    pub(super) fn uniqueness_key(&self, keys: &QueueKeys, unique: Option<&UniquePolicy>) -> String {
        unique.map_or_else(
            || keys.uniqueness("-"),
            |unique| keys.uniqueness(&self.sealer().fingerprint(&unique.fingerprint)),
        )
    }

    /// The job that has a uniqueness, and whether it blocks others.
    pub(super) async fn uniqueness_holder(
        &self,
        queue: &QueueName,
        unique: &UniquePolicy,
    ) -> StoreResult<UniquenessHolder> {
        let key = self.uniqueness_key(&QueueKeys::new(queue), Some(unique));
        let stored: Option<String> = redis::cmd("GET").arg(key).query_async(&mut self.store.redis.clone()).await?;
        let stored = stored.unwrap_or_default();
        let Ok(id) = stored.parse::<JobId>() else {
            return Ok(UniquenessHolder { stored, blocking: None, ended: None });
        };
        let located = self.locate_in_queue(id, queue).await?;
        let is_blocking = match &located {
            Some(located) => unique.states.contains(&located.state()),
            // The result may be deleted while the uniqueness period continues
            None => unique.period.is_some() && unique.states.iter().any(|state| state.is_terminal()),
        };
        // One that is gone cannot be redriven
        let ended = located.as_ref().filter(|located| located.state().is_terminal()).map(|_| id);
        Ok(UniquenessHolder { stored, blocking: is_blocking.then_some((id, located)), ended })
    }

    /// Which job blocks this one, and what its policy says about that.
    pub(super) async fn resolve_uniqueness(&self, new: &mut NewJob) -> StoreResult<UniquenessCheck> {
        let Some(unique) = new.unique.clone() else { return Ok(UniquenessCheck::Free(String::new(), None)) };
        let holder = self.uniqueness_holder(&new.queue, &unique).await?;
        if let Some(id) = new.id.filter(|id| holder.stored == id.to_string()) {
            // An earlier call created it: the job does not block itself
            return Ok(UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id)));
        }
        let Some((id, located)) = holder.blocking else {
            return Ok(UniquenessCheck::Free(holder.stored, holder.ended));
        };
        let conflict = UniquenessCheck::Conflict(EnqueueRefusal::Duplicate(id));
        let Some(located) = located else { return Ok(conflict) };
        let state = located.state();
        match unique.on_conflict {
            OnConflict::Ignore => {
                Ok(UniquenessCheck::Conflict(EnqueueRefusal::Ignored { id, json: located.to_json() }))
            }
            OnConflict::Reject => Ok(conflict),
            OnConflict::Debounce { .. } => Ok(UniquenessCheck::Debounces(id, Box::new(located))),
            // A running job may have had effects already, and a finished one cannot be replaced
            _ if state == JobState::Active => Ok(conflict),
            _ if state.is_terminal() => Ok(UniquenessCheck::Free(holder.stored, holder.ended)),
            OnConflict::ReplaceExceptSchedule => {
                if let LocatedJob::InRecord { state: JobState::Scheduled, due: Some(due), .. } = located {
                    new.start_at = Some(due);
                    new.envelope = new
                        .envelope
                        .with_start(&time::format(due))
                        .map_err(|error| StoreError::damaged(error.to_string()))?;
                }
                Ok(UniquenessCheck::Replaces(id, Box::new(located)))
            }
            OnConflict::Replace => Ok(UniquenessCheck::Replaces(id, Box::new(located))),
        }
    }

    /// Whether no job blocks this one, or its policy resolves the conflict.
    pub(super) async fn check_uniqueness(&self, job: &NewJob) -> StoreResult<Result<(), EnqueueRefusal>> {
        match self.resolve_uniqueness(&mut job.clone()).await? {
            UniquenessCheck::Conflict(EnqueueRefusal::Ignored { id, .. }) => Ok(Err(EnqueueRefusal::Duplicate(id))),
            UniquenessCheck::Conflict(refused) => Ok(Err(refused)),
            UniquenessCheck::Free(..) | UniquenessCheck::Debounces(..) | UniquenessCheck::Replaces(..) => Ok(Ok(())),
        }
    }
}
