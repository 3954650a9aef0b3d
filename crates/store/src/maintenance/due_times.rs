//! What is due next in each queue, by Redis's clock.

use std::collections::HashMap;

use crate::{StoreError, StoreResult, connection::clock::first_due_at, jobs::Jobs, keys::QueueKeys};
use common::{name::QueueName, time::Millis};

/// The kinds of due times in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueTask {
    /// Scheduled and retryable jobs.
    Due,
    /// Leases and time limits of attempts.
    ExpiredLease,
    /// Everything else.
    Timer,
}

impl QueueTask {
    pub(super) const ALL: [Self; 3] = [Self::ExpiredLease, Self::Timer, Self::Due];

    fn key(self, keys: &QueueKeys) -> String {
        match self {
            Self::Due => keys.due(),
            Self::ExpiredLease => keys.leases(),
            Self::Timer => keys.timers(),
        }
    }
}

/// The next due times of a queue, by Redis's clock: for each task its time, and a time before which it is not handled.
#[derive(Default)]
pub(super) struct NextDue([(Option<Millis>, Millis); QueueTask::ALL.len()]);

impl NextDue {
    pub(super) fn task_at(&self, task: QueueTask) -> Option<Millis> {
        let (at, not_before) = self.0[task as usize];
        at.map(|at| at.max(not_before))
    }

    pub(super) fn earliest(&self) -> Option<Millis> {
        QueueTask::ALL.into_iter().filter_map(|task| self.task_at(task)).min()
    }

    /// Leaves a task alone before that time.
    pub(super) fn pause_until(&mut self, task: QueueTask, not_before: Millis) {
        self.0[task as usize].1 = not_before;
    }
}

/// Reads the next due times of these queues.
pub(super) async fn read_next_due(
    jobs: &Jobs,
    queues: &[QueueName],
    next: &mut HashMap<QueueName, NextDue>,
) -> StoreResult<()> {
    for some in queues.chunks(500) {
        let mut pipeline = redis::pipe();
        // A key of another type in one queue must not stop the others
        pipeline.ignore_errors();
        for keys in some.iter().map(QueueKeys::new) {
            for task in QueueTask::ALL {
                pipeline.cmd("ZRANGE").arg(task.key(&keys)).arg(0).arg(0).arg("WITHSCORES");
            }
        }
        let heads: Vec<redis::RedisResult<Vec<(redis::Value, f64)>>> =
            pipeline.query_async(&mut jobs.store.redis.clone()).await?;
        for (queue, heads) in some.iter().zip(heads.chunks(QueueTask::ALL.len())) {
            let times = next.entry(queue.clone()).or_default();
            for (task, head) in QueueTask::ALL.into_iter().zip(heads) {
                let head = match head.as_deref().map_err(|error| StoreError::from(error.clone())) {
                    Err(error @ StoreError::Unavailable(_)) => return Err(error),
                    // The sweep reports it
                    Err(_) => &[],
                    Ok(head) => head,
                };
                times.0[task as usize].0 = first_due_at(head);
            }
        }
    }
    Ok(())
}
