//! Making jobs available that waited for their time, or to be activated.

use std::collections::BTreeMap;

use super::{JobTransitionError, Jobs, LocatedJob};
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    script,
};
use crate::{connection::notification::Notification, rate_limits::WaitSet};
use common::{
    id::JobId,
    name::{Priority, QueueName},
};
use model::job::{JobTransition, KeyLimit};

/// Jobs in one script call, each some seven commands: fewer than what holds up others noticeably.
const MAX_PROMOTED_PER_CALL: usize = 20;

impl Jobs {
    /// Lets a pending job go; its JSON.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been let go all the same.
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
        // One call after the other: sent together they would be carried out together, and everybody else wait for all
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
        call.key(from.key(&keys)).key(keys.priorities()).key(keys.stream(priority));
        for id in ids {
            call.key(keys.record(id));
        }
        call.arg(from.as_str())
            .arg(priority.get())
            .arg(keys::NOTIFICATIONS)
            .arg(Notification::StreamCreated(queue.clone()).encode());
        for id in ids {
            call.arg(id.to_string());
        }
        Ok(call.invoke_async(&mut self.store.redis.clone()).await?)
    }
}
