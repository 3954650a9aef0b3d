//! The time by Redis's clock, and sorted sets of due times: their scores are whole milliseconds.

use super::notification::Notification;
use crate::{Redis, StoreResult, script};
use common::time::{Millis, local_now};

/// Maximum number of members in one script call.
const MAX_MOVED_PER_CALL: usize = 200;

/// Which due times change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MoveDue {
    /// Every one.
    Always,
    /// Only those that are later.
    OnlyEarlier,
}

impl Redis {
    /// The time by Redis's clock, which decides what is due.
    pub(crate) async fn now(&self) -> StoreResult<Millis> {
        self.clock().read(&mut self.clone()).await
    }

    /// The time by Redis's clock, from the last reading and the time since: never ahead of Redis's clock unless that was
    /// set back since. For times that are stored or shown, and where a script checks again. Before the first reading it
    /// is this process's clock.
    #[must_use]
    pub fn estimated_now(&self) -> Millis {
        self.clock().estimate().or_else(|| self.time_at_nodes()).unwrap_or_else(local_now)
    }

    /// At most `max` members of a set that are due at `now`, earliest first.
    pub(crate) async fn due_members(&self, set: &str, now: Millis, max: usize) -> StoreResult<Vec<String>> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(set).arg("-inf").arg(now).arg("LIMIT").arg(0).arg(max);
        Ok(command.query_async(&mut self.clone()).await?)
    }

    /// The same, each with when it is due.
    pub(crate) async fn due_members_with_times(
        &self,
        set: &str,
        now: Millis,
        max: usize,
    ) -> StoreResult<Vec<(String, Millis)>> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(set).arg("-inf").arg(now).arg("WITHSCORES").arg("LIMIT").arg(0).arg(max);
        let members: Vec<(String, f64)> = command.query_async(&mut self.clone()).await?;
        Ok(members.into_iter().map(|(member, score)| (member, score_to_millis(score))).collect())
    }

    /// Changes when members of a set are due that are in it, even when Redis is out of memory, and notifies the leader of
    /// what the set is about.
    pub(crate) async fn move_due(
        &self,
        set: &str,
        members: &[String],
        (at, order): (Millis, MoveDue),
        about: &Notification,
    ) -> StoreResult<()> {
        for members in members.chunks(MAX_MOVED_PER_CALL) {
            let mut call = script::MOVE_DUE.key(set);
            call.arg(at).arg(if order == MoveDue::OnlyEarlier { "LT" } else { "XX" });
            call.arg(self.topics().notifications()).arg(about.encode()).arg(members);
            let _: i64 = call.invoke_async(&mut self.clone()).await?;
        }
        Ok(())
    }
}

/// The time of a score.
#[expect(clippy::cast_possible_truncation, reason = "scores are whole milliseconds that we wrote")]
pub(crate) fn score_to_millis(score: f64) -> Millis {
    score as Millis
}

/// The time of the first member.
pub(crate) fn first_due_at(head: &[(redis::Value, f64)]) -> Option<Millis> {
    head.first().map(|(_, score)| score_to_millis(*score))
}
