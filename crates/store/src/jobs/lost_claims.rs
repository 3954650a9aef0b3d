//! Releases jobs that were claimed for a program in an answer that never came. Nobody has their tokens, so they would
//! wait for their leases. A queue-worker asks for its own instead: see [`Jobs::recover_claims`].

use std::{collections::HashSet, time::Duration};

use super::{ActiveAttempt, Attempt, Fence, JobStreamEntry, Jobs};
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    next_reconnect_delay, reconnect_delays,
};
use common::name::QueueName;

/// Active attempts in one read.
const PAGE_SIZE: usize = 500;
/// How long after the first look a claim may still be carried out that Redis had received before.
const SECOND_LOOK: Duration = Duration::from_secs(2);

impl Jobs {
    /// Releases what Redis claimed with these tokens, as soon as it answers again.
    pub(super) fn release_lost_claims(&self, queue: &QueueName, tokens: Vec<String>) {
        let (jobs, queue) = (self.clone(), queue.clone());
        let tokens: HashSet<String> = tokens.into_iter().collect();
        tokio::spawn(async move {
            for pause in [Duration::ZERO, SECOND_LOOK] {
                tokio::time::sleep(pause).await;
                let mut delays = reconnect_delays();
                while let Err(error) = jobs.release_claims_of(&queue, &tokens).await {
                    if !matches!(error, StoreError::Unavailable(_)) {
                        return tracing::warn!(%queue, %error, "jobs of a lost answer wait for their leases");
                    }
                    tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
                }
            }
        });
    }

    async fn release_claims_of(&self, queue: &QueueName, tokens: &HashSet<String>) -> StoreResult<()> {
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(QueueKeys::new(queue).active()).arg(cursor).arg("COUNT").arg(PAGE_SIZE);
            let (next, page): (u64, Vec<(String, String)>) = command.query_async(&mut self.store.redis.clone()).await?;
            for (name, text) in page {
                let attempt = ActiveAttempt::parse(&text).filter(|attempt| tokens.contains(&attempt.token));
                if let (Some(attempt), Some((priority, entry))) = (attempt, keys::parse_attempt_name(&name))
                    && let JobStreamEntry::Job(job) = self.read_entry(queue, priority, entry).await?
                {
                    let fence = Fence::Pull { token: Some(attempt.token), worker: None };
                    self.release(Attempt { job: &job, entry, fence: &fence }).await?;
                    tracing::info!(event = "job.released", %queue, id = %job.id, "job of a lost answer released");
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}
