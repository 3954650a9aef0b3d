//! Leader election: who does the maintenance.

use std::{collections::HashMap, time::Duration};

use crate::{Redis, StoreResult, connection::redis_clock::ClockSteps, jobs::Jobs, keys, script};
use common::{settings::hostname, time::Millis};

/// A difference between Redis's clock and what a process expects that is no step.
const CLOCK_TOLERANCE_MS: Millis = 1_000;

/// The answer to who asked for the leader lease.
pub(super) struct Leadership {
    pub(super) is_held: bool,
    /// The time since a leader last read Redis's clock, by that clock: negative if it was set back.
    pub(super) since_last_leader: Millis,
    /// The latest time up to which a leader healed what steps of the clock left behind; 0 if none did.
    pub(super) healed_until: Millis,
}

/// What a process that waits for the leader lease knows of the steps of Redis's clock that no leader has healed.
#[derive(Default)]
pub(super) struct UnhealedSteps {
    last: Option<LastLook>,
}

struct LastLook {
    healed_until: Millis,
    /// The steps that this process had seen by then.
    seen: ClockSteps,
    /// Those of them that are healed.
    healed: ClockSteps,
}

impl UnhealedSteps {
    /// What a leader knows when its period ends: it has healed these steps, and may lead again with nobody in between.
    pub(super) fn after_leading(healed: ClockSteps) -> Self {
        Self { last: Some(LastLook { healed_until: 0, seen: healed, healed }) }
    }

    /// Notes up to when a leader has healed and the steps that this process saw before it asked for that; returns those
    /// that are healed. When the time has moved on, a leader lived after the last look and has healed what was seen by
    /// then. At the first look nobody can tell: then all count as healed.
    pub(super) fn look(&mut self, healed_until: Millis, seen: ClockSteps) -> ClockSteps {
        let healed = match &self.last {
            None => seen,
            Some(last) if last.healed_until == healed_until => last.healed,
            Some(last) => last.seen,
        };
        self.last = Some(LastLook { healed_until, seen, healed });
        healed
    }
}

/// The process that does the maintenance. A version before told nothing of itself: then the texts are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaderDetails {
    /// The name of its program: `gateway`.
    pub service: String,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub process_id: String,
    /// Its version of Galley.
    pub version: String,
    /// Since when it leads.
    pub since: Option<Millis>,
}

impl Redis {
    /// The leader, if there is one.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn leader(&self) -> StoreResult<Option<LeaderDetails>> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(keys::LEADER).cmd("HGETALL").arg(keys::LEADER_DETAILS);
        let (leader, mut details): (Option<String>, HashMap<String, String>) =
            pipeline.query_async(&mut self.clone()).await?;
        let Some(leader) = leader else { return Ok(None) };
        // Of one before
        if details.get("id") != Some(&leader) {
            return Ok(Some(LeaderDetails::default()));
        }
        let mut text = |name: &str| details.remove(name).unwrap_or_default();
        let (service, host, process_id) = (text("service"), text("host"), text("process_id"));
        let (version, since) = (text("version"), text("since").parse().ok());
        Ok(Some(LeaderDetails { service, host, process_id, version, since }))
    }

    /// Whether some process is the leader.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn has_leader(&self) -> StoreResult<bool> {
        Ok(redis::cmd("EXISTS").arg(keys::LEADER).query_async(&mut self.clone()).await?)
    }
}

/// Asks for the leader lease, or extends it. `expected_now` is for a leader without unhealed steps of the clock.
pub(super) async fn acquire_leadership(
    jobs: &Jobs,
    leader_id: &str,
    lease: Duration,
    expected_now: Option<Millis>,
) -> StoreResult<Leadership> {
    let (held, since_last_leader, healed_until): (i64, Millis, Millis) = script::ACQUIRE_LEADERSHIP
        .key(keys::LEADER)
        .key(keys::CLOCK)
        .arg(leader_id)
        .arg(lease.as_millis().to_string())
        .arg(expected_now.map(|now| now.to_string()).unwrap_or_default())
        .arg(CLOCK_TOLERANCE_MS)
        .invoke_async(&mut jobs.store.redis.clone())
        .await?;
    Ok(Leadership { is_held: held == 1, since_last_leader, healed_until })
}

/// Tells others who leads from now on. Nothing depends on it.
pub(super) async fn tell_details(redis: &Redis, leader_id: &str) {
    let program = std::env::current_exe().ok();
    let service = program.as_deref().and_then(|program| program.file_name()?.to_str()).unwrap_or("unknown");
    let mut command = redis::cmd("HSET");
    command.arg(keys::LEADER_DETAILS).arg("id").arg(leader_id).arg("service").arg(service);
    command.arg("host").arg(hostname()).arg("process_id").arg(std::process::id());
    command.arg("version").arg(env!("CARGO_PKG_VERSION")).arg("since").arg(redis.estimated_now());
    if let Err(error) = command.exec_async(&mut redis.clone()).await {
        tracing::debug!(%error, "nobody learns who the leader is");
    }
}

/// Frees the leader lease for the next process, which would otherwise wait until it expires.
pub(super) async fn resign_leadership(jobs: &Jobs, leader_id: &str) {
    let mut call = script::DELETE_IF_EQUAL.key(keys::LEADER);
    let _ = call.arg(leader_id).invoke_async::<i64>(&mut jobs.store.redis.clone()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(count: u64, total_ms: Millis) -> ClockSteps {
        ClockSteps { count, total_ms, last_seen: None }
    }

    #[test]
    fn a_step_is_healed_when_a_leader_has_moved_on_since_it_was_seen() {
        let mut unhealed = UnhealedSteps::default();
        assert_eq!(unhealed.look(10, steps(1, 50)), steps(1, 50), "nobody can tell");
        assert_eq!(unhealed.look(10, steps(2, 70)), steps(1, 50), "no leader has moved on since");
        assert_eq!(unhealed.look(20, steps(3, 90)), steps(2, 70), "the third may have come after");
        assert_eq!(unhealed.look(20, steps(3, 90)), steps(2, 70));
        assert_eq!(unhealed.look(30, steps(3, 90)), steps(3, 90));
    }

    #[test]
    fn a_step_that_a_leader_sees_after_its_period_is_not_healed() {
        let mut unhealed = UnhealedSteps::after_leading(steps(1, 50));
        assert_eq!(unhealed.look(10, steps(2, 70)), steps(1, 50));
        assert_eq!(unhealed.look(10, steps(2, 70)), steps(1, 50));
        assert_eq!(unhealed.look(20, steps(2, 70)), steps(2, 70), "another leader has moved on since");
    }
}
