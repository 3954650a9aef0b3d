//! Makes jobs available that are due or activated.

use std::collections::BTreeMap;

use super::{JobTransitionError, Jobs, LocatedJob};
use crate::{StoreError, StoreResult, keys::QueueKeys, script};
use crate::{
    connection::{clock::MoveDue, notification::Notification},
    rate_limits::WaitSet,
};
use common::{
    id::JobId,
    name::{Priority, QueueName},
    time::Millis,
};
use model::job::{JobTransition, KeyLimit};

/// Maximum number of jobs in one script call, about seven commands each: few enough to delay no other client
/// noticeably.
const MAX_PROMOTED_PER_CALL: usize = 20;
/// Jobs that become due in one call.
const MAX_MADE_DUE_PER_PAGE: usize = 200;

impl Jobs {
    /// Activates a pending job and returns its JSON.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been activated nevertheless.
    pub async fn activate(&self, id: JobId) -> StoreResult<Result<String, JobTransitionError>> {
        let Some((located, queue)) = self.locate_with_queue(id).await? else {
            return Ok(Err(JobTransitionError::NotFound));
        };
        if let Err(conflict) = located.state().after(JobTransition::Activate) {
            return Ok(Err(JobTransitionError::Conflict(conflict)));
        }
        self.make_available(&queue, &[id], WaitSet::Pending).await?;
        let located: Option<LocatedJob> = self.locate(id).await?;
        Ok(located.map(|located| located.to_json()).ok_or(JobTransitionError::NotFound))
    }

    /// Changes when members of one of a queue's sets are due.
    pub(crate) async fn move_due(
        &self,
        queue: &QueueName,
        set: &str,
        members: &[String],
        at: (Millis, MoveDue),
    ) -> StoreResult<()> {
        self.store.redis.move_due(set, members, at, &Notification::DueChanged(queue.clone())).await
    }

    /// Makes the jobs of a queue that wait for a time available now. Jobs that begin to wait meanwhile may stay.
    pub(crate) async fn make_all_due(&self, queue: &QueueName) -> StoreResult<()> {
        let (due, redis) = (QueueKeys::new(queue).due(), &self.store.redis);
        let mut left: usize = redis::cmd("ZCARD").arg(&due).query_async(&mut redis.clone()).await?;
        while left > 0 {
            let now = self.now().await?;
            let mut command = redis::cmd("ZRANGE");
            command.arg(&due).arg(0).arg(MAX_MADE_DUE_PER_PAGE - 1);
            let members: Vec<String> = command.query_async(&mut redis.clone()).await?;
            if members.is_empty() {
                return Ok(());
            }
            self.move_due(queue, &due, &members, (now, MoveDue::OnlyEarlier)).await?;
            let ids: Vec<JobId> = members.iter().filter_map(|member| member.parse().ok()).collect();
            self.make_available(queue, &ids, WaitSet::Due).await?;
            left = left.saturating_sub(members.len());
        }
        Ok(())
    }

    /// Moves those of the jobs that wait there into their streams, or into the queues of their keys; how many it moved.
    /// For at most a few hundred jobs: they are asked about in one round trip.
    pub(crate) async fn make_available(&self, queue: &QueueName, ids: &[JobId], from: WaitSet) -> StoreResult<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        let keys = QueueKeys::new(queue);
        let mut pipeline = redis::pipe();
        for id in ids {
            pipeline.cmd("HMGET").arg(keys.record(id)).arg("p").arg("l");
        }
        let records: Vec<(Option<i64>, Option<String>)> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        let (mut moved, mut streams) = (0, BTreeMap::<Priority, Vec<JobId>>::new());
        for (id, (priority, limit)) in ids.iter().zip(records) {
            let priority = priority.and_then(|number| Priority::try_from(number).ok()).unwrap_or_default();
            let Some(limit) = limit else {
                streams.entry(priority).or_default().push(*id);
                continue;
            };
            let (key, policy) = KeyLimit::split_field(&limit)
                .map_err(|error| StoreError::damaged(format!("record of {id}: {error}")))?;
            moved += u64::from(self.enqueue_for_key(queue, (*id, priority), (&key, policy), from).await?);
        }
        // One call after the other: pipelined they would run together and block all other clients
        for (priority, ids) in streams {
            for some in ids.chunks(MAX_PROMOTED_PER_CALL) {
                moved += self.promote_to_stream(queue, priority, some, from).await?;
            }
        }
        Ok(moved)
    }

    async fn promote_to_stream(
        &self,
        queue: &QueueName,
        priority: Priority,
        ids: &[JobId],
        from: WaitSet,
    ) -> StoreResult<u64> {
        let keys = QueueKeys::new(queue);
        let mut call = script::PROMOTE.prepare_invoke();
        call.key(from.key(&keys)).key(keys.priorities()).key(keys.stream(priority)).key(keys.stats());
        for id in ids {
            call.key(keys.record(id));
        }
        call.arg(from.as_str())
            .arg(priority.get())
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::StreamCreated(queue.clone()).encode());
        for id in ids {
            call.arg(id.to_string());
        }
        Ok(call.invoke_async(&mut self.store.redis.clone()).await?)
    }
}
