//! Leader election: who does the maintenance.

use std::time::Duration;

use crate::{StoreResult, jobs::Jobs, keys, script};
use common::time::Millis;

/// The answer to who asked for the leader lease.
pub(super) struct Leadership {
    pub(super) is_held: bool,
    /// The time since a leader last read Redis's clock, by that clock: negative if it was set back.
    pub(super) since_last_leader: Millis,
}

pub(super) async fn acquire_leadership(jobs: &Jobs, leader_id: &str, lease: Duration) -> StoreResult<Leadership> {
    let (held, since_last_leader): (i64, Millis) = script::ACQUIRE_LEADERSHIP
        .key(keys::LEADER)
        .key(keys::CLOCK)
        .arg(leader_id)
        .arg(lease.as_millis().to_string())
        .invoke_async(&mut jobs.store.redis.clone())
        .await?;
    Ok(Leadership { is_held: held == 1, since_last_leader })
}

/// Frees the leader lease for the next process, which would otherwise wait until it expires.
pub(super) async fn resign_leadership(jobs: &Jobs, leader_id: &str) {
    let mut call = script::DELETE_IF_EQUAL.key(keys::LEADER);
    let _ = call.arg(leader_id).invoke_async::<i64>(&mut jobs.store.redis.clone()).await;
}
