//! Jobs in Redis.
//!
//! An ordinary job is one stream entry and nothing else until it is over: its id is its address (see [`common::id`]).
//! A job has a record only when it is not simply waiting for, or in, its first attempt: scheduled, retried, handed
//! back, or with an id that the client chose. The record is the truth when it exists. A job that is over is one
//! string with a TTL.
//!
//! | file | what it does |
//! |---|---|
//! | `enqueue` | new jobs: an ordinary one is a stream entry |
//! | `closed_queues` | queues that take no new jobs |
//! | `enqueue_all` | many new jobs, all or none |
//! | `enqueue_each` | many new jobs, each on its own |
//! | `create` | new jobs with a record: scheduled, pending, unique, limited, with an id or a deadline |
//! | `client_ids` | ids that clients chose |
//! | `rate_limits` | jobs that wait for the limit of their key |
//! | `queues` | the queues there are |
//! | `claim` | hands jobs out, to queue-workers and over HTTP |
//! | `arrivals` | waits for jobs without taking them |
//! | `settle` | ends attempts: finish, retry, requeue |
//! | `fence` | which attempt a call is about |
//! | `lease` | keeps attempts alive |
//! | `locate` | finds a job by its id |
//! | `cancel` | ends jobs from outside |
//! | `expire` | ends jobs whose time is over |
//! | `promote` | jobs whose time has come, or that are activated |
//! | `follow_up` | what the end of a job sets off |
//! | `dead_letter` | jobs that used up their attempts |
//! | `purge` | cancels what waits in a queue |
//! | `dead_letters` | many of them at once |
//! | `stats` | how a queue is doing |
//! | `record` | a job as it is stored, and as it is shown when it is over |
//! | `wake` | wake-up calls between processes |

mod attempt;
mod cancel;
mod claim;
mod client_ids;
mod closed_queues;
pub(crate) mod consumer;
mod create;
mod dead_letter;
mod dead_letters;
mod enqueue;
mod enqueue_all;
mod enqueue_each;
mod expire;
mod fence;
mod follow_up;
mod job_events;
mod lease;
mod locate;
mod promote;
mod purge;
mod queues;
mod record;
mod settle;
mod stats;

use std::{future::Future, pin::Pin, sync::Arc};

use common::{id::JobId, json::Object, name::WorkerId, settings::JobSettings, time::Millis};
use model::{job::NewJob, workflow::Membership};

pub use attempt::Attempt;
pub use cancel::JobTransitionError;
pub use claim::{ClaimAvailability, ClaimBatch, Claimant, ClaimedJob};
pub(crate) use claim::{duration_millis, malformed_reply, parse_streams_reply};
pub use consumer::{Consumer, PULL_CONSUMER};
pub use dead_letters::{DeadLetterCursor, DeadLetterFilter, DeadLetterPage, DeadLetterStats};
pub(super) use enqueue::new_job_record;
pub use enqueue::{EnqueueRefusal, EnqueuedJob};
pub use enqueue_all::BatchRefusal;
pub use fence::Fence;
pub(super) use locate::JobStreamEntry;
pub use locate::{ActiveAttempt, JobHolder, LocatedJob};
pub use purge::{PurgeRequest, PurgeResult};
pub use queues::QueueControl;
pub(crate) use queues::sorted_priorities;
pub use record::{FinishedJob, JobRecord};
pub(super) use record::{new_entry_fields, parse_id_field};
pub use settle::{Completion, FailureOutcome, Settled};
pub use stats::QueueStats;

use crate::{Redis, Store, StoreResult, connection::clock::local_now, events::JobEvent};

/// Carries on with a workflow when one of its jobs ended: `workflows` sets it, because it builds on jobs.
pub(crate) type MemberEnded =
    for<'a> fn(&'a Jobs, Membership, JobId, &'a str) -> Pin<Box<dyn Future<Output = StoreResult<()>> + Send + 'a>>;

/// The jobs in Redis. Clone it freely.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) store: Store,
    closed_queues: Arc<closed_queues::ClosedQueueCache>,
    member_ended: MemberEnded,
}

impl Jobs {
    pub(crate) fn new(store: &Store, member_ended: MemberEnded) -> Self {
        Self { store: store.clone(), closed_queues: Arc::default(), member_ended }
    }

    /// What jobs share with the rest of the store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What applies to all jobs.
    #[must_use]
    pub fn settings(&self) -> &JobSettings {
        &self.store.settings.jobs
    }

    /// The Redis it is all in.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.store.redis
    }

    /// Notes something that happened to a job.
    pub fn record_event(&self, event: JobEvent) {
        self.store.events.record(event);
    }

    /// Notes that an attempt begins, if that is wanted.
    pub fn record_started(&self, claimed: &ClaimedJob, worker: Option<&WorkerId>) {
        if self.store.settings.jobs.started_events {
            self.store.events.record(JobEvent::started(claimed, worker));
        }
    }

    /// The time on Redis's clock, which decides what is due.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn now(&self) -> StoreResult<Millis> {
        self.store.redis.now().await
    }
}

/// The time that the times in requests are reckoned from, which belong together: asked once, and only if one has any.
pub struct RequestClock<'a> {
    jobs: &'a Jobs,
    now: Option<Millis>,
}

impl<'a> RequestClock<'a> {
    /// Of requests that follow at once.
    #[must_use]
    pub fn new(jobs: &'a Jobs) -> Self {
        Self { jobs, now: None }
    }

    /// The time for a request. Start times are reckoned on Redis's clock, which decides when they have come; for a request
    /// without any the clock of this process will do.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn now_for(&mut self, body: &Object<'_>) -> StoreResult<Millis> {
        match self.now {
            Some(now) => Ok(now),
            None if NewJob::mentions_time(body) => Ok(*self.now.insert(self.jobs.now().await?)),
            None => Ok(local_now()),
        }
    }
}
