//! Everything that is due in a queue, once.

use super::{OutageGrace, lease_reaper, scheduler, silence_watch::SilenceWatch, timers, worker_reaper};
use crate::{StoreResult, jobs::Jobs};
use common::name::QueueName;

/// Handles everything that is due in a queue now, at most a batch of each kind: for tests that need it finished on
/// return.
///
/// # Errors
/// Redis is unavailable.
pub async fn run_once(jobs: &Jobs, queue: &QueueName) -> StoreResult<()> {
    run_once_watching(jobs, queue, &mut SilenceWatch::off()).await
}

/// The same, as a leader does that has seen what `watch` knows.
///
/// # Errors
/// Redis is unavailable.
pub async fn run_once_watching(jobs: &Jobs, queue: &QueueName, watch: &mut SilenceWatch) -> StoreResult<()> {
    let mut outage_grace = OutageGrace::new(jobs.store.settings.jobs.lease / 2);
    lease_reaper::reap_expired(jobs, queue, &mut outage_grace).await?;
    worker_reaper::reap_queue(jobs, queue, &mut outage_grace, watch).await?;
    worker_reaper::prune_queue(jobs, queue).await?;
    timers::run(jobs, queue).await?;
    scheduler::promote(jobs, queue, jobs.now().await?).await
}
