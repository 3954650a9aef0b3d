//! Releases jobs that were claimed for a program in an answer that never came. Nobody has their tokens, so they would
//! wait for their leases. A queue-worker asks for its own instead: see [`Jobs::recover_claims`].

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

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
/// Tokens that are remembered. Jobs of more lost claims wait for their leases.
const MAX_TOKENS: usize = 10_000;

/// Tokens of claims that were not answered, by queue, and whether a task looks for them.
#[derive(Debug, Default)]
pub(super) struct LostClaims(Mutex<(HashMap<QueueName, HashSet<String>>, bool)>);

impl LostClaims {
    /// Remembers tokens; true if the caller must start the task.
    fn add(&self, queue: &QueueName, tokens: Vec<String>) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known: usize = state.0.values().map(HashSet::len).sum();
        if known + tokens.len() <= MAX_TOKENS {
            state.0.entry(queue.clone()).or_default().extend(tokens);
        }
        !std::mem::replace(&mut state.1, true)
    }

    /// All tokens; the task ends when there are none.
    fn take(&self) -> Option<HashMap<QueueName, HashSet<String>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = !state.0.is_empty();
        state.1.then(|| std::mem::take(&mut state.0))
    }
}

impl Jobs {
    /// Releases what Redis claimed with these tokens, as soon as it answers again.
    pub(super) fn release_lost_claims(&self, queue: &QueueName, tokens: Vec<String>) {
        if !self.lost_claims.add(queue, tokens) {
            return;
        }
        let jobs = self.clone();
        tokio::spawn(async move {
            while let Some(lost) = jobs.lost_claims.take() {
                for pause in [Duration::ZERO, SECOND_LOOK] {
                    tokio::time::sleep(pause).await;
                    for (queue, tokens) in &lost {
                        jobs.release_when_available(queue, tokens).await;
                    }
                }
            }
        });
    }

    async fn release_when_available(&self, queue: &QueueName, tokens: &HashSet<String>) {
        let mut delays = reconnect_delays();
        while let Err(error) = self.release_claims_of(queue, tokens).await {
            if !matches!(error, StoreError::Unavailable(_)) {
                return tracing::warn!(%queue, %error, "jobs of a lost answer wait for their leases");
            }
            tokio::time::sleep(next_reconnect_delay(&mut delays)).await;
        }
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
                    job.work_scope().within(|| {
                        tracing::info!(event = "job.released", %queue, id = %job.id, "job of a lost answer released");
                    });
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_task_looks_for_the_tokens_of_all_lost_claims_and_their_number_is_bounded() {
        let (lost, queue) = (LostClaims::default(), "q".parse::<QueueName>().expect("a name"));
        assert!(lost.add(&queue, vec!["a".to_owned()]), "the first starts it");
        assert!(!lost.add(&queue, vec!["b".to_owned()]), "it is there");
        assert_eq!(lost.take().expect("some")[&queue].len(), 2);
        for number in 0..MAX_TOKENS + 10 {
            assert!(!lost.add(&queue, vec![number.to_string()]));
        }
        assert_eq!(lost.take().expect("some")[&queue].len(), MAX_TOKENS);
        assert_eq!(lost.take(), None);
        assert!(lost.add(&queue, vec!["c".to_owned()]), "it ended");
    }
}
