//! Rebuilds the lists by which queues, priorities, workflows, channels and cron runs are found. No list is trusted: what
//! exists is what has data.
//!
//! A queue that this process or a worker knows comes back at once. For all others a bounded number of keys is looked at
//! every few sweeps.

use std::{collections::HashSet, time::Duration};

use super::consistency_checker::{RECHECK_DELAY, Violation, log_violation};
use crate::{
    StoreResult,
    channels::Channels,
    jobs::Jobs,
    keys::{self, QueueKeys, StoredKey},
    workflows::Workflows,
};
use common::{
    id::WorkflowId,
    name::{ChannelName, Priority, QueueName},
};

/// About how many keys one slice looks at.
const KEYS_PER_SLICE: usize = 1000;
/// Maximum number of missing queues in one slice.
const MAX_MISSING_QUEUES: usize = 500;

/// After this number of sweeps a slice of all keys is looked at again.
const SWEEPS_PER_SLICE: u64 = 5;

/// The position of the round over all keys.
#[derive(Default)]
pub(super) struct IndexChecker {
    sweeps: u64,
    keys_cursor: u64,
    cron_cursor: u64,
    /// The queues of the last slice.
    known: HashSet<QueueName>,
}

impl IndexChecker {
    /// Looks for queues that were listed before or that workers have, and at one slice of all keys.
    pub(super) async fn check_slice(
        &mut self,
        jobs: &Jobs,
        listed: &[QueueName],
        worker_queues: impl Iterator<Item = &QueueName>,
    ) -> StoreResult<()> {
        let is_listed: HashSet<&QueueName> = listed.iter().collect();
        let mut missing: HashSet<QueueName> = self.known.iter().cloned().chain(worker_queues.cloned()).collect();
        missing.retain(|queue| !is_listed.contains(queue));
        let missing: Vec<QueueName> = missing.into_iter().take(MAX_MISSING_QUEUES).collect();
        log_all(&jobs.check_queues_listed(&missing, true).await?);
        // What was missing and was not found is gone
        self.known.retain(|queue| !missing.contains(queue));
        self.known.extend(listed.iter().cloned());
        self.sweeps += 1;
        if self.sweeps % SWEEPS_PER_SLICE != 1 {
            return Ok(());
        }
        let (next, found) = jobs.scan_stored_keys(self.keys_cursor, KEYS_PER_SLICE).await?;
        self.keys_cursor = next;
        jobs.check_lists_have(found).await?;
        self.cron_cursor = jobs.cron().restore_next_runs(self.cron_cursor).await?;
        Ok(())
    }
}

impl Jobs {
    /// Looks at about `limit` keys for what is on no list, and lists it; returns where to continue, 0 at the end.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn check_lists(&self, from: u64, limit: usize) -> StoreResult<(u64, Vec<Violation>)> {
        let (next, found) = self.scan_stored_keys(from, limit).await?;
        Ok((next, self.check_lists_have(found).await?))
    }

    async fn scan_stored_keys(&self, from: u64, limit: usize) -> StoreResult<(u64, Vec<StoredKey>)> {
        let options = |command: &mut redis::Cmd| {
            command.arg("MATCH").arg(StoredKey::PATTERN).arg("COUNT").arg(limit);
        };
        let (next, names) = self.store.redis.scan(from, options).await?;
        Ok((next, names.iter().filter_map(|name| StoredKey::parse(name)).collect()))
    }

    async fn check_lists_have(&self, found: Vec<StoredKey>) -> StoreResult<Vec<Violation>> {
        let (mut queues, mut workflows, mut channels) = (HashSet::new(), Vec::new(), Vec::new());
        for key in found {
            match key {
                StoredKey::Queue(queue) => drop(queues.insert(queue)),
                StoredKey::Workflow(id) => workflows.push(id),
                StoredKey::History(channel) => channels.push(channel),
            }
        }
        let queues: Vec<QueueName> = queues.into_iter().collect();
        let mut violations = self.check_queues_listed(&queues, true).await?;
        violations.extend(self.check_workflows_listed(&workflows).await?);
        violations.extend(self.check_channels_listed(&channels).await?);
        log_all(&violations);
        Ok(violations)
    }

    /// Queues that have data but are on no list are invisible to everything else.
    pub(super) async fn check_queues_listed(&self, queues: &[QueueName], repair: bool) -> StoreResult<Vec<Violation>> {
        let mut unlisted = self.unlisted_queues(queues).await?;
        if !unlisted.is_empty() {
            // One may just be created or deleted
            tokio::time::sleep(RECHECK_DELAY).await;
            unlisted = self.unlisted_queues(&unlisted).await?;
        }
        let mut violations = Vec::new();
        for queue in unlisted {
            if repair {
                self.add_to_registry(&queue).await?;
            }
            violations.push(unlisted_violation("queue_unregistered", queue.to_string(), repair));
        }
        Ok(violations)
    }

    /// Those of the names that a sorted set lacks.
    async fn missing_members(&self, list: &str, names: &[String]) -> StoreResult<HashSet<String>> {
        if names.is_empty() {
            return Ok(HashSet::new());
        }
        let mut command = redis::cmd("ZMSCORE");
        let scores: Vec<Option<f64>> = command.arg(list).arg(names).query_async(&mut self.store.redis.clone()).await?;
        let missing = names.iter().zip(scores).filter(|(_, score)| score.is_none());
        Ok(missing.map(|(name, _)| name.clone()).collect())
    }

    async fn unlisted_queues(&self, queues: &[QueueName]) -> StoreResult<Vec<QueueName>> {
        let names: Vec<String> = queues.iter().map(|queue| queue.stored().into_owned()).collect();
        let missing = self.missing_members(keys::QUEUES, &names).await?;
        let unlisted: Vec<&QueueName> = queues.iter().filter(|queue| missing.contains(&*queue.stored())).collect();
        if unlisted.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for queue in &unlisted {
            pipeline.cmd("EXISTS").arg(QueueKeys::new(queue).lasting());
        }
        let held: Vec<u64> = pipeline.query_async(&mut self.store.redis.clone()).await?;
        Ok(unlisted.into_iter().zip(held).filter(|(_, held)| *held > 0).map(|(queue, _)| queue.clone()).collect())
    }

    /// No worker reads a stream whose priority is on no list.
    pub(super) async fn check_streams_listed(&self, queue: &QueueName) -> StoreResult<()> {
        if !self.has_unlisted_stream(queue).await? {
            return Ok(());
        }
        tokio::time::sleep(RECHECK_DELAY).await;
        if self.has_unlisted_stream(queue).await? {
            self.open_queue(queue).await?;
            log_violation(queue.as_str(), &unlisted_violation("stream_unlisted", queue.to_string(), true));
        }
        Ok(())
    }

    async fn has_unlisted_stream(&self, queue: &QueueName) -> StoreResult<bool> {
        let keys = QueueKeys::new(queue);
        let mut command = redis::cmd("EXISTS");
        command.arg(Priority::all().map(|priority| keys.stream(priority)).collect::<Vec<_>>());
        let streams: usize = command.query_async(&mut self.store.redis.clone()).await?;
        Ok(streams > self.priorities(queue).await?.len())
    }

    /// Maintenance goes on with a workflow only if it is on the list.
    async fn check_workflows_listed(&self, found: &[WorkflowId]) -> StoreResult<Vec<Violation>> {
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        let (mut violations, missing) = (Vec::new(), self.missing_members(keys::WORKFLOWS, &names).await?);
        for (id, name) in found.iter().zip(&names).filter(|(_, name)| missing.contains(*name)) {
            let mut command = redis::cmd("HMGET");
            command.arg(keys::workflow(id)).arg(&["t", "s"]);
            let (members, end): (Option<String>, Option<String>) =
                command.query_async(&mut self.store.redis.clone()).await?;
            // It ended, or is gone
            if members.is_none() || end.is_some() {
                continue;
            }
            Workflows::new(self).reschedule_workflow(*id, Duration::ZERO).await?;
            violations.push(unlisted_violation("workflow_unlisted", name.clone(), true));
        }
        Ok(violations)
    }

    /// A channel that is on no list is neither shown nor trimmed.
    async fn check_channels_listed(&self, found: &[ChannelName]) -> StoreResult<Vec<Violation>> {
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        let channels = Channels::new(&self.store.redis, &self.store.settings.channels);
        let (mut violations, missing) = (Vec::new(), self.missing_members(keys::CHANNELS, &names).await?);
        for (channel, name) in found.iter().zip(&names).filter(|(_, name)| missing.contains(*name)) {
            let is_listed = channels.register_channel(channel).await?;
            violations.push(unlisted_violation("channel_unlisted", name.clone(), is_listed));
        }
        Ok(violations)
    }
}

fn unlisted_violation(kind: &str, location: String, is_repaired: bool) -> Violation {
    Violation { kind: kind.to_owned(), location, is_repaired }
}

fn log_all(violations: &[Violation]) {
    for violation in violations {
        let queue = if violation.kind == "queue_unregistered" { violation.location.as_str() } else { "" };
        log_violation(queue, violation);
    }
}
