//! Completes many jobs that a queue-worker ran in one script call, whatever they hold: what a job's uniqueness, deadline and
//! key need is done in the script. Only what follows in other keys is left to the caller: the next jobs of a key, and
//! workflows. The script sets timers for these, so that the leader does it if the caller dies.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use futures_util::{StreamExt, stream};
use redis::ScriptInvocation;

use super::{
    ClaimedJob, Consumer, JobRecord, Jobs, MemberEnd, Settled, finished_job::FinishedJob, follow_up::MIN_FOLLOW_UP_TTL,
    settle::NOTE_TTL_MS,
};
use crate::{StoreResult, connection::notification::Notification, keys::QueueKeys, script, sealing::Sealer};
use common::{
    name::{LimitKey, Priority, QueueName},
    time::Millis,
};

/// Follow-ups that run at the same time.
const MAX_CONCURRENT_FOLLOW_UPS: usize = 32;

/// A successful result, to be recorded in a batch.
#[derive(Debug)]
pub struct Completion {
    /// The job and its attempt.
    pub claimed: Arc<ClaimedJob>,
    /// What remains of it.
    pub finished: FinishedJob,
    /// When it ended, by this process's clock.
    pub ended_at: Millis,
}

/// What a completed batch leaves to do: [`Jobs::run_follow_ups`].
#[derive(Debug)]
pub struct FollowUps {
    queue: QueueName,
    /// Keys that jobs wait for, and how many jobs of each have ended.
    keys: Vec<(LimitKey, usize)>,
    /// Jobs of workflows.
    members: Vec<WorkflowFollowUp>,
}

#[derive(Debug)]
struct WorkflowFollowUp {
    claimed: Arc<ClaimedJob>,
    /// None if an earlier call ended the job: it may have recorded another end.
    finished: Option<FinishedJob>,
}

impl FollowUps {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.members.is_empty()
    }
}

/// What jobs hold beside their entries: keys, and the numbers of the jobs, from 1.
#[derive(Default)]
struct HeldKeys {
    /// Records, checkpoints and signals: deleted.
    records: Vec<(usize, String)>,
    uniqueness: Vec<(usize, String)>,
    admitted: Vec<(usize, String)>,
    expiring: Vec<usize>,
    members: Vec<usize>,
    chosen_ids: Vec<usize>,
}

impl HeldKeys {
    fn of(keys: &QueueKeys, sealer: &Sealer, batch: &[Completion]) -> Self {
        let mut held = Self::default();
        for (number, claimed) in (1..).zip(batch.iter().map(|completion| &completion.claimed)) {
            let job = &claimed.job;
            if claimed.may_have_checkpoint() {
                held.records.push((number, keys.checkpoint(&job.id)));
            }
            if job.wait.is_some() {
                held.records.push((number, keys.signals(&job.id)));
            }
            if job.has_record {
                held.records.push((number, keys.record(&job.id)));
            }
            if let Some(fingerprint) = releasable_fingerprint(job) {
                held.uniqueness.push((number, keys.uniqueness(&sealer.fingerprint(&fingerprint))));
            }
            if let Some(key) = job.limit_key() {
                held.admitted.push((number, keys.admitted(key)));
            }
            if job.expiry_timer().is_some() {
                held.expiring.push(number);
            }
            if job.workflow.is_some() {
                held.members.push(number);
            }
            if job.has_chosen_id() {
                held.chosen_ids.push(number);
            }
        }
        held
    }

    fn add_keys(&self, call: &mut ScriptInvocation<'_>) {
        for (_, key) in self.records.iter().chain(&self.uniqueness).chain(&self.admitted) {
            call.key(key);
        }
    }

    fn add_counts(&self, call: &mut ScriptInvocation<'_>) {
        for count in [self.records.len(), self.uniqueness.len(), self.admitted.len()] {
            call.arg(count);
        }
        call.arg(self.expiring.len()).arg(self.members.len());
    }

    fn add_numbers(&self, call: &mut ScriptInvocation<'_>) {
        for (number, _) in self.records.iter().chain(&self.uniqueness).chain(&self.admitted) {
            call.arg(*number);
        }
        call.arg(&self.expiring[..]).arg(&self.members[..]).arg(&self.chosen_ids[..]);
    }
}

/// The fingerprint that a job frees when it succeeds. One that blocks equal jobs in a final state too keeps it.
fn releasable_fingerprint(job: &JobRecord) -> Option<String> {
    if !job.summary.is_unique {
        return None;
    }
    let unique = job.envelope.fields().ok()?.unique(&job.queue)?;
    let is_kept = unique.states.iter().any(|state| state.is_terminal());
    (!is_kept).then_some(unique.fingerprint)
}

impl Jobs {
    /// Records the results of jobs of one stream that a queue-worker ran.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same jobs.
    pub async fn complete_batch(
        &self,
        queue: &QueueName,
        priority: Priority,
        consumer: &Consumer,
        batch: &[Completion],
    ) -> StoreResult<(Vec<Settled>, FollowUps)> {
        let Some(first) = batch.first() else { return Ok((Vec::new(), follow_ups(queue, &[], &[]))) };
        let keys = QueueKeys::new(queue);
        let held = HeldKeys::of(&keys, self.sealer(), batch);
        let mut call = script::COMPLETE_BATCH.prepare_invoke();
        call.key(keys.stream(priority)).key(keys.active()).key(keys.leases()).key(keys.stats());
        call.key(keys.completed_batch(priority, first.claimed.entry, batch.len()));
        call.key(keys.timers()).key(keys.waiting_keys()).key(keys.completed_index());
        let mut ids = String::with_capacity(batch.len() * 23);
        for completion in batch {
            call.key(keys.result(&completion.claimed.job.id));
            let _ = write!(ids, "{} ", completion.claimed.job.id.to_base64());
        }
        held.add_keys(&mut call);
        let bytes = batch.iter().map(|completion| completion.finished.size()).sum();
        let ttl = self.stored_result_ttl(self.settings().result_ttl, batch.len(), bytes);
        call.arg(consumer.name()).arg(priority.get());
        call.arg(ttl.as_millis().to_string()).arg(self.follow_up_result_ttl().as_millis().to_string());
        let topics = self.store.redis.topics();
        call.arg(NOTE_TTL_MS).arg(topics.for_script(topics.finished_jobs(queue))).arg(ids.trim_end());
        call.arg(topics.notifications()).arg(Notification::DueChanged(queue.clone()).encode()).arg(batch.len());
        held.add_counts(&mut call);
        call.arg(self.settings().completed_max);
        call.arg(held.chosen_ids.len()).arg(self.chosen_id_ttl(ttl).as_millis().to_string());
        for completion in batch {
            call.arg(completion.claimed.entry.to_string());
        }
        for Completion { claimed, finished, .. } in batch {
            let (job, ttl) = (&claimed.job, if claimed.job.workflow.is_some() { MIN_FOLLOW_UP_TTL } else { ttl });
            let text = finished.to_text(self.sealer(), job, claimed.entry);
            let stored = self.stored_end(job, finished, text, ttl);
            call.arg(if stored.known_for().is_zero() { "" } else { stored.text.as_str() });
        }
        held.add_numbers(&mut call);
        let outcomes: Vec<i64> = call.invoke_async(&mut self.store.redis.clone()).await?;
        for (completion, _) in batch.iter().zip(&outcomes).filter(|(_, outcome)| **outcome != 0) {
            self.shorten_client_job_id(&completion.claimed.job, self.chosen_id_ttl(ttl)).await;
        }
        self.expire_logs(batch, &outcomes, ttl).await;
        let follow_ups = follow_ups(queue, batch, &outcomes);
        let settled = outcomes.into_iter().map(|code| match code {
            1 | 3 => Settled::Done,
            2 => Settled::AlreadyDone,
            _ => Settled::Stale,
        });
        Ok((settled.collect(), follow_ups))
    }

    /// Does what a completed batch left to do. What fails is left to maintenance.
    pub async fn run_follow_ups(&self, follow_ups: FollowUps) {
        let FollowUps { queue, keys, members } = follow_ups;
        self.admit_after(&queue, keys).await;
        let (ended, lost): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.finished.is_some());
        let ends = ended.into_iter().filter_map(|WorkflowFollowUp { claimed, finished }| {
            let job = &claimed.job;
            Some(MemberEnd {
                membership: job.workflow?,
                job: job.id,
                json: finished.as_ref()?.json(),
                span: job.span(),
            })
        });
        self.continue_workflows(&queue, ends.collect()).await;
        for WorkflowFollowUp { claimed, .. } in lost {
            self.repeat_follow_up(&queue, claimed.job.id).await;
        }
    }

    /// Admits the next jobs of keys. If that fails for all together, it is tried for each: one may have a damaged limit.
    async fn admit_after(&self, queue: &QueueName, keys: Vec<(LimitKey, usize)>) {
        if keys.is_empty() || self.admit_next(queue, keys.clone()).await.is_ok() {
            return;
        }
        let admit = async |(key, count): (LimitKey, usize)| {
            if let Err(error) = self.admit_next(queue, vec![(key, count)]).await {
                tracing::debug!(%error, %queue, "next job of a key not admitted, left to maintenance");
            }
        };
        stream::iter(keys).for_each_concurrent(MAX_CONCURRENT_FOLLOW_UPS, admit).await;
    }
}

fn follow_ups(queue: &QueueName, batch: &[Completion], outcomes: &[i64]) -> FollowUps {
    let mut follow_ups = FollowUps { queue: queue.clone(), keys: Vec::new(), members: Vec::new() };
    let mut ended = BTreeMap::<&LimitKey, usize>::new();
    for (completion, outcome) in batch.iter().zip(outcomes) {
        let claimed = &completion.claimed;
        if *outcome >= 2 {
            claimed.job.limit_key().into_iter().for_each(|key| *ended.entry(key).or_default() += 1);
        }
        if *outcome >= 1 && claimed.job.workflow.is_some() {
            let finished = (*outcome != 2).then(|| completion.finished.clone());
            follow_ups.members.push(WorkflowFollowUp { claimed: claimed.clone(), finished });
        }
    }
    follow_ups.keys = ended.into_iter().map(|(key, count)| (key.clone(), count)).collect();
    follow_ups
}
