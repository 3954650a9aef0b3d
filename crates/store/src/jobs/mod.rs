//! Jobs in Redis.
//!
//! An ordinary job is one stream entry until it is finished: its id is its address (see [`common::id`]). A job has a
//! record only when it is not simply waiting for, or in, its first attempt: scheduled, retried, released, or with a
//! client-chosen id. If there is a record, it is the truth. A finished job is one string with a TTL.
//!
//! | file | what it does |
//! |---|---|
//! | `enqueue` | new jobs: an ordinary one is a stream entry |
//! | `closed_queues` | queues that take no new jobs |
//! | `new_entry` | the stream entry of a new, ordinary job |
//! | `enqueue_all` | many new jobs, all or none |
//! | `enqueue_each` | many new jobs, each on its own |
//! | `enqueue_span` | the span of a job that is put into its queue |
//! | `create` | new jobs with a record: scheduled, pending, unique, limited, with an id or a deadline |
//! | `uniqueness` | which job has a uniqueness, and whether it blocks another |
//! | `client_ids` | ids that clients chose |
//! | `queues`, `stats` | the queues there are, and their figures |
//! | `partitions`, `raise_partitions` | how many partitions a queue has, and which one a job is put into; raises their number |
//! | `claim_sizes`, `attempt_metrics` | metrics of claims, and of attempts that ended |
//! | `claim_budget` | how many bytes of jobs one answer may have |
//! | `claim` | hands jobs out, to queue-workers and over HTTP |
//! | `claimed_job` | a job in an attempt |
//! | `attempt`, `fence` | which attempt a call is about |
//! | `lease` | keeps attempts alive |
//! | `checkpoint`, `save_checkpoint` | what an attempt saves for the next one |
//! | `wait` | jobs that wait for signals and times in the middle of their work, and signals |
//! | `output` | what handlers stream while the job runs |
//! | `log` | lines that handlers log |
//! | `lost_claims` | releases jobs whose claim was never answered |
//! | `settle` | ends attempts: finish, retry, snooze, release |
//! | `silent_worker` | gives the jobs of a worker that stopped reporting to others |
//! | `consumer` | names of consumers in pending lists |
//! | `maintenance_mode` | pauses everything |
//! | `record`, `finished_job` | a stored job; what remains of it when it is finished |
//! | `locate` | finds a job by its id |
//! | `cancel`, `purge` | cancels one job; the waiting jobs of a queue |
//! | `expire`, `promote` | discards expired jobs; makes due or activated jobs available |
//! | `follow_up` | what follows the end of a job |
//! | `redrive` | runs ended jobs again, and waiting ones now |
//! | `dead_letter`, `dead_letters` | one dead letter; many at once |
//! | `dead_letter_errors` | what went wrong with them |
//! | `discarded_jobs` | lists of discarded jobs, dead letters among them |
//! | `edit` | changes waiting jobs and ended ones, deletes ended ones |
//! | `search` | lists and searches jobs in all states |
//! | `job_events` | events of jobs, for observers |

mod attempt;
mod attempt_metrics;
mod cancel;
mod checkpoint;
mod claim;
mod claim_budget;
mod claim_directly;
mod claim_sizes;
mod claimed_job;
mod client_ids;
mod closed_queues;
mod compact_result;
mod complete_batch;
pub(crate) mod consumer;
mod create;
mod create_members;
mod dead_letter;
mod dead_letter_errors;
mod dead_letter_limits;
mod dead_letters;
mod debounce;
mod discarded_jobs;
mod edit;
mod end_note;
mod enqueue;
mod enqueue_all;
mod enqueue_each;
mod enqueue_span;
mod expire;
mod fence;
mod finished_job;
mod follow_up;
mod job_events;
mod lease;
mod locate;
mod log;
mod lost_claims;
mod maintenance_mode;
mod new_entry;
mod output;
mod parent_results;
mod partitions;
mod postponed;
mod promote;
mod purge;
mod queues;
mod raise_partitions;
mod record;
mod redrive;
mod save_checkpoint;
mod search;
mod settle;
mod silent_worker;
mod stats;
mod uniqueness;
mod wait;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use common::{
    id::JobId,
    json::Object,
    name::{QueueName, WorkerId},
    settings::JobSettings,
    time::Millis,
    trace_context::SpanReference,
};
use model::{
    job::{JobState, NewJob},
    workflow::Membership,
};

pub use attempt::Attempt;
pub use attempt_metrics::AttemptMetrics;
pub use cancel::JobTransitionError;
pub use checkpoint::JobCheckpoint;
pub use claim::{ClaimAvailability, ClaimBatch, Claimant};
pub(crate) use claim::{duration_millis, malformed_reply, parse_streams_reply};
pub use claim_directly::{DirectClaim, EncodedJobs, JobSizes};
pub(crate) use claimed_job::record_lost;
pub use claimed_job::{ClaimedJob, describe_attempt, record_claim, record_settlement};
pub use compact_result::JobResult;
pub use complete_batch::{Completion, FollowUps};
pub use consumer::{Consumer, PULL_CONSUMER};
pub(crate) use create_members::NewMember;
pub use dead_letter_errors::DeadLetterErrors;
pub use dead_letters::DeadLetterStats;
pub use discarded_jobs::{DiscardedCursor, DiscardedFilter, DiscardedList, DiscardedPage};
pub use edit::{EditRefusal, JobChanges};
pub(super) use enqueue::new_job_record;
pub use enqueue::{EnqueueRefusal, EnqueuedJob};
pub use enqueue_all::BatchRefusal;
pub(super) use enqueue_span::EnqueueSpan;
pub use fence::Fence;
pub use finished_job::FinishedJob;
pub(super) use locate::JobStreamEntry;
pub use locate::{ActiveAttempt, JobHolder, LocatedJob};
pub use log::{LogPage, LogPosition};
pub use maintenance_mode::MaintenanceMode;
pub(super) use new_entry::NewEntry;
pub use output::{MAX_CHUNK_BYTES, OutputChunk, OutputPosition};
pub(crate) use parent_results::{open_results, parse_dependencies, write_dependencies};
pub use partitions::Partitions;
pub use purge::{PurgeCursor, PurgeRequest, PurgeResult};
pub(crate) use queues::sorted_priorities;
pub use queues::{QueueControl, RunTimeLimits};
pub use raise_partitions::PartitionRefusal;
pub use record::JobRecord;
pub(super) use record::parse_id_field;
pub use save_checkpoint::{CheckpointOutcome, CheckpointRefusal, MAX_CHECKPOINT_BYTES};
pub use search::{FoundJob, MAX_EXAMINED, SearchCursor, SearchPage};
pub use settle::{FailureOutcome, Settled};
pub use stats::QueueStats;
pub use wait::{NewSignal, SignalOutcome, WaitOutcome, WaitRequest};

use crate::{
    Redis, Store, StoreResult,
    deliveries::DeliveryRecorder,
    events::JobEvent,
    sealing::Sealer,
    statistics::{AttemptEnd, QueueTally},
};

/// A job of a workflow that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemberEnd<'a> {
    /// The workflow and its index there.
    pub(crate) membership: Membership,
    pub(crate) job: JobId,
    /// The JSON of the job.
    pub(crate) json: &'a str,
    /// The span of the attempt that ended it, if it is recorded.
    pub(crate) span: Option<SpanReference>,
}

/// Continues workflows when jobs of theirs ended: set by `workflows`, which depends on jobs.
pub(crate) type MembersEnded =
    for<'a> fn(&'a Jobs, Vec<MemberEnd<'a>>) -> Pin<Box<dyn Future<Output = Vec<StoreResult<()>>> + Send + 'a>>;

/// The jobs in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    pub(crate) store: Store,
    closed_queues: Arc<closed_queues::ClosedQueueCache>,
    partitions: Arc<partitions::KnownPartitions>,
    claim_budget: Arc<claim_budget::ClaimBudget>,
    lost_claims: Arc<lost_claims::LostClaims>,
    members_ended: MembersEnded,
}

impl Jobs {
    pub(crate) fn new(store: &Store, members_ended: MembersEnded) -> Self {
        Self {
            store: store.clone(),
            closed_queues: Arc::default(),
            partitions: Arc::default(),
            claim_budget: Arc::default(),
            lost_claims: Arc::default(),
            members_ended,
        }
    }

    /// The store that the jobs are part of.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The settings of all jobs.
    #[must_use]
    pub fn settings(&self) -> &JobSettings {
        &self.store.settings.jobs
    }

    /// The connection to Redis.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.store.redis
    }

    /// Seals and opens what is stored.
    pub(crate) fn sealer(&self) -> &Sealer {
        self.store.redis.sealer()
    }

    /// The longest attempt of a job: what it asks for, else what its queue or all jobs have, and never more than the
    /// queue or all jobs may have.
    #[must_use]
    pub fn attempt_timeout(&self, job: &JobRecord) -> Duration {
        self.attempt_timeout_of(&job.queue, job.timeout_ms)
    }

    /// The same for a job of that queue that asks for that much.
    #[must_use]
    pub fn attempt_timeout_of(&self, queue: &QueueName, asked_ms: Option<u64>) -> Duration {
        let (default, max) = self.attempt_timeouts(queue);
        asked_ms.map_or(default, Duration::from_millis).min(max)
    }

    /// The longest attempt of a queue's jobs that ask for nothing, and of any of its jobs.
    fn attempt_timeouts(&self, queue: &QueueName) -> (Duration, Duration) {
        let settings = &self.store.settings;
        let of_queue = settings.queue(queue);
        let default = of_queue.and_then(|queue| queue.attempt_timeout).unwrap_or(settings.jobs.attempt_timeout);
        let max = of_queue.and_then(|queue| queue.max_attempt_timeout).unwrap_or(settings.jobs.max_attempt_timeout);
        (default.min(max), max)
    }

    /// When an attempt must be over that another program may end. A longer lease for it is meant, as in `claim.lua`.
    fn attempt_deadline(&self, claimed: &ClaimedJob, lease: Option<Duration>) -> Millis {
        let (default, max) = self.attempt_timeouts(&claimed.job.queue);
        let asked = claimed.job.timeout_ms.map(Duration::from_millis);
        let limit = asked.unwrap_or_else(|| default.max(lease.unwrap_or_default())).min(max);
        claimed.started_at.saturating_add(Millis::try_from(limit.as_millis()).unwrap_or(Millis::MAX))
    }

    /// Records an event of a job.
    pub fn record_event(&self, event: JobEvent) {
        self.store.events.record(event);
    }

    /// Counts a success that one call recorded, and records its event. Results of batches are counted together.
    pub fn report_completed(&self, claimed: &ClaimedJob, ended_at: Millis) {
        self.count_attempt(claimed, AttemptEnd::Completed, ended_at);
        self.store.events.record(JobEvent::completed(&claimed.job, claimed.started_at, ended_at));
    }

    /// Counts the end of an attempt: how long it waited and ran.
    pub(crate) fn count_attempt(&self, claimed: &ClaimedJob, end: AttemptEnd, ended_at: Millis) {
        let tally = self.store.events.statistics().of(&claimed.job.queue);
        tally.count_attempt(end, claimed.waited_ms(), ended_at - claimed.started_at);
    }

    /// Counts a job that ended otherwise than by the outcome of an attempt, and records its event.
    pub(crate) fn report_end(&self, job: &JobRecord, state: JobState, at: Millis) {
        self.store.events.statistics().count_end(&job.queue, state);
        self.store.events.record(JobEvent::ended(job, state, at));
    }

    /// Where attempts to deliver are recorded.
    #[must_use]
    pub fn deliveries(&self) -> &DeliveryRecorder {
        self.store.events.deliveries()
    }

    /// Where jobs of a queue are counted.
    #[must_use]
    pub fn queue_tally(&self, queue: &QueueName) -> Arc<QueueTally> {
        self.store.events.statistics().of(queue)
    }

    /// Records the start of an attempt, if the settings ask for it.
    pub fn record_started(&self, claimed: &ClaimedJob, worker: Option<&WorkerId>) {
        if self.store.settings.jobs.started_events {
            self.store.events.record(JobEvent::started(claimed, worker));
        }
    }

    /// The time by Redis's clock, which decides what is due.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn now(&self) -> StoreResult<Millis> {
        self.store.redis.now().await
    }

    /// The time by Redis's clock as this process knows it, for times that are stored or shown. What decides an outcome
    /// asks [`Jobs::now`].
    #[must_use]
    pub fn estimated_now(&self) -> Millis {
        self.store.redis.estimated_now()
    }
}

/// The time that relative times in a group of requests count from: read once, and only if a request has one.
pub struct RequestClock<'a> {
    jobs: &'a Jobs,
    now: Option<Millis>,
}

impl<'a> RequestClock<'a> {
    /// A clock for requests that follow immediately.
    #[must_use]
    pub fn new(jobs: &'a Jobs) -> Self {
        Self { jobs, now: None }
    }

    /// The time for a request. A request with a start time or a deadline asks Redis, whose clock decides when they are
    /// due; any other knows Redis's time well enough.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn now_for(&mut self, body: &Object<'_>) -> StoreResult<Millis> {
        match self.now {
            Some(now) => Ok(now),
            None if NewJob::mentions_time(body) => Ok(*self.now.insert(self.jobs.now().await?)),
            None => Ok(self.jobs.estimated_now()),
        }
    }
}
