//! New jobs.

use redis::{Script, ScriptInvocation};

use super::{
    Jobs,
    stored::{Stored, new_fields},
    wake::Wake,
};
use crate::{
    id::{EntryId, JobId, queue_tag},
    job::{History, NewJob, State},
    name::{Priority, QueueName},
    redis::{
        StoreError, StoreResult,
        events::Happened,
        keys::{self, QueueKeys},
        script,
    },
    time::Millis,
};

/// How long an id that a client chose is remembered beyond the job's start, unless the job ends before.
const CHOSEN_ID_TTL_MS: i64 = 90 * 86_400_000;
/// A queue can vanish between making it and using it only if somebody empties Redis just then.
const ATTEMPTS: usize = 3;

/// A job that was stored.
#[derive(Debug, Clone)]
pub struct Enqueued {
    /// The job.
    pub job: Stored,
    /// Available or scheduled.
    pub state: State,
}

/// A job that was not stored, and nothing else was written either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is a job with that id.
    Duplicate(JobId),
    /// The queue holds as many waiting jobs as it may.
    Full {
        /// How many that is.
        max_depth: u64,
    },
    /// There are as many queues as there may be.
    TooManyQueues {
        /// How many that is.
        max_queues: u64,
    },
}

enum Added {
    Entry(EntryId),
    Full,
    NoStream,
}

impl Jobs {
    /// Stores a job. `now` is the time its start was reckoned from.
    ///
    /// # Errors
    /// After [`StoreError::Unavailable`] the job may have been stored all the same.
    pub async fn enqueue(
        &self,
        new: NewJob,
        traceparent: Option<String>,
        now: Millis,
    ) -> StoreResult<Result<Enqueued, Refused>> {
        let outcome = if new.id.is_some() || new.start_at.is_some() {
            self.create(new, traceparent, now).await?
        } else {
            self.add(new, traceparent).await?
        };
        if let Ok(enqueued) = &outcome {
            metrics::counter!("galley_jobs_enqueued_total", "queue" => enqueued.job.queue.to_string()).increment(1);
            self.events.record(Happened::enqueued(&enqueued.job, enqueued.state));
        }
        Ok(outcome)
    }

    /// An ordinary job: one entry in a stream.
    async fn add(&self, new: NewJob, traceparent: Option<String>) -> StoreResult<Result<Enqueued, Refused>> {
        let (salt, fields) = new_fields(&new, traceparent.as_deref());
        for _ in 0..ATTEMPTS {
            let added = match self.max_depth(&new.queue) {
                Some(max_depth) => self.add_bounded(&new, max_depth, &fields).await?,
                None => self.add_entry(&new, &fields).await?,
            };
            match added {
                Added::Entry(entry) => return self.added(new, traceparent, entry, salt).await.map(Ok),
                Added::Full => {
                    let max_depth = self.max_depth(&new.queue).unwrap_or(0);
                    return Ok(Err(Refused::Full { max_depth }));
                }
                Added::NoStream => {
                    if let Err(refused) = self.open_stream(&new.queue, new.priority).await? {
                        return Ok(Err(refused));
                    }
                }
            }
        }
        Err(StoreError::damaged(format!("the stream of {} keeps vanishing", new.queue)))
    }

    async fn add_entry(&self, new: &NewJob, fields: &[String]) -> StoreResult<Added> {
        let stream = QueueKeys::new(&new.queue).stream(new.priority);
        // NOMKSTREAM: a stream is made together with its group and its place in the registry, or not at all
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("NOMKSTREAM").arg("*").arg(fields);
        let entry: Option<String> = command.query_async(&mut self.redis.clone()).await?;
        entry.map_or(Ok(Added::NoStream), |entry| parse_entry(&entry).map(Added::Entry))
    }

    async fn add_bounded(&self, new: &NewJob, max_depth: u64, fields: &[String]) -> StoreResult<Added> {
        let keys = QueueKeys::new(&new.queue);
        let mut call = script::ENQUEUE_BOUNDED.prepare_invoke();
        call.key(keys.stream(new.priority));
        self.add_other_streams(&mut call, &new.queue, new.priority).await?;
        let answer: Option<String> = call.arg(max_depth).arg(fields).invoke_async(&mut self.redis.clone()).await?;
        match answer.as_deref() {
            None => Ok(Added::NoStream),
            Some("full") => Ok(Added::Full),
            Some(entry) => parse_entry(entry).map(Added::Entry),
        }
    }

    async fn added(
        &self,
        new: NewJob,
        traceparent: Option<String>,
        entry: EntryId,
        salt: u32,
    ) -> StoreResult<Enqueued> {
        let enqueued_at = i64::try_from(entry.milliseconds).ok();
        let Some(id) = JobId::at(entry, &new.queue, new.priority, salt) else {
            // Redis's clock stood still for 268 million jobs: without an id nobody could find this one
            let stream = QueueKeys::new(&new.queue).stream(new.priority);
            redis::cmd("XDEL").arg(stream).arg(entry.to_string()).exec_async(&mut self.redis.clone()).await?;
            return Err(StoreError::damaged("redis's clock stands still"));
        };
        let job = Stored { enqueued_at, ..stored(id, new, traceparent, History::default(), false) };
        Ok(Enqueued { job, state: State::Available })
    }

    /// A job with a record from the start.
    async fn create(
        &self,
        new: NewJob,
        traceparent: Option<String>,
        now: Millis,
    ) -> StoreResult<Result<Enqueued, Refused>> {
        let id = match new.id {
            Some(id) if new.workflow.is_none() && self.locate(id).await?.is_some() => {
                return Ok(Err(Refused::Duplicate(id)));
            }
            Some(id) => id,
            None => JobId::without_address(u64::try_from(now).unwrap_or_default(), &new.queue),
        };
        if let Err(refused) = self.register(&new.queue).await? {
            return Ok(Err(refused));
        }
        // The id of a workflow's job was not chosen: it leads to its queue, and making the job twice does nothing
        let (is_chosen, start_at) = (new.id.is_some() && new.workflow.is_none(), new.start_at);
        let history = History { created_at: new.id.map(|_| now), ..History::default() };
        let mut job = stored(id, new, traceparent, history, true);
        let keys = QueueKeys::new(&job.queue);
        // There was room for a workflow when it was accepted: its jobs are let in
        let max_depth = self.max_depth(&job.queue).filter(|_| job.workflow.is_none()).unwrap_or(0);
        let mut call = script::CREATE.prepare_invoke();
        call.key(keys.record(&id))
            .key(keys.result(&id))
            .key(keys.due())
            .key(keys.stream(job.priority))
            .key(keys.priorities());
        if max_depth > 0 && start_at.is_none() {
            self.add_other_streams(&mut call, &job.queue, job.priority).await?;
        }
        call.arg(id.to_string()).arg(job.priority.get()).arg(start_at.map(|at| at.to_string()).unwrap_or_default());
        call.arg(keys::WAKE).arg(Wake::Due(job.queue.clone()).encode()).arg(Wake::Stream(job.queue.clone()).encode());
        let answer: Vec<String> =
            call.arg(max_depth).arg(job.to_fields()).invoke_async(&mut self.redis.clone()).await?;
        match answer.first().map(String::as_str) {
            Some("full") => return Ok(Err(Refused::Full { max_depth })),
            Some("created") if is_chosen => {
                self.note_chosen_id(id, &job.queue, start_at.map_or(0, |start| start - now)).await?;
            }
            Some("created") => {}
            _ if !is_chosen => return Ok(Err(Refused::Duplicate(id))),
            _ => {
                // It is there, but perhaps not to be found: an earlier request may have ended just before it was noted
                self.note_chosen_id(id, &job.queue, 0).await?;
                return Ok(Err(Refused::Duplicate(id)));
            }
        }
        let state = if start_at.is_some() { State::Scheduled } else { State::Available };
        let entry = answer.get(1).and_then(|entry| entry.parse::<EntryId>().ok());
        job.enqueued_at = entry.and_then(|entry| i64::try_from(entry.milliseconds).ok());
        Ok(Ok(Enqueued { job, state }))
    }

    /// Notes which queue an id that a client chose went to, unless it is noted already.
    async fn note_chosen_id(&self, id: JobId, queue: &QueueName, starts_in: Millis) -> StoreResult<()> {
        let mut command = redis::cmd("SET");
        command.arg(keys::chosen_id(&id)).arg(queue.as_str()).arg("NX").arg("PX").arg(starts_in + CHOSEN_ID_TTL_MS);
        Ok(command.exec_async(&mut self.redis.clone()).await?)
    }

    /// Lets a noted id live on with a job that is revived.
    pub(super) async fn prolong_chosen_id(&self, id: JobId) -> StoreResult<()> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(keys::chosen_id(&id)).arg(CHOSEN_ID_TTL_MS);
        Ok(command.exec_async(&mut self.redis.clone()).await?)
    }

    pub(in crate::redis) fn max_depth(&self, queue: &QueueName) -> Option<u64> {
        self.limits.get(queue).and_then(|limits| limits.max_depth)
    }

    /// The streams of a queue's other priorities: its depth limit counts them all.
    async fn add_other_streams(
        &self,
        call: &mut ScriptInvocation<'_>,
        queue: &QueueName,
        priority: Priority,
    ) -> StoreResult<()> {
        let keys = QueueKeys::new(queue);
        for other in self.priorities(queue).await?.into_iter().filter(|other| *other != priority) {
            call.key(keys.stream(other));
        }
        Ok(())
    }

    /// Makes the stream of a queue's priority, and the queue if it is new.
    pub(in crate::redis) async fn open_stream(
        &self,
        queue: &QueueName,
        priority: Priority,
    ) -> StoreResult<Result<(), Refused>> {
        if let Err(refused) = self.register(queue).await? {
            return Ok(Err(refused));
        }
        let keys = QueueKeys::new(queue);
        let script: &Script = &script::OPEN_STREAM;
        let _: i64 = script
            .key(keys.priorities())
            .key(keys.stream(priority))
            .arg(priority.get())
            .arg(keys::WAKE)
            .arg(Wake::Stream(queue.clone()).encode())
            .invoke_async(&mut self.redis.clone())
            .await?;
        Ok(Ok(()))
    }

    /// Puts a queue into the registry. Comes before anything of the queue is written, so that nothing is out of sight.
    async fn register(&self, queue: &QueueName) -> StoreResult<Result<(), Refused>> {
        let mut connection = self.redis.clone();
        let (known, count): (Option<f64>, u64) = redis::pipe()
            .cmd("ZSCORE")
            .arg(keys::QUEUES)
            .arg(queue.as_str())
            .cmd("ZCARD")
            .arg(keys::QUEUES)
            .query_async(&mut connection)
            .await?;
        if known.is_some() {
            return Ok(Ok(()));
        }
        let max_queues = self.settings.max_queues;
        if count >= max_queues {
            return Ok(Err(Refused::TooManyQueues { max_queues }));
        }
        redis::cmd("ZADD")
            .arg(keys::QUEUES)
            .arg(queue_tag(queue))
            .arg(queue.as_str())
            .exec_async(&mut connection)
            .await?;
        Ok(Ok(()))
    }

    /// The priorities that a queue has streams for, highest first.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn priorities(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        let members: Vec<String> =
            redis::cmd("SMEMBERS").arg(QueueKeys::new(queue).priorities()).query_async(&mut self.redis.clone()).await?;
        Ok(sorted_priorities(&members))
    }

    /// Makes sure that a queue exists, so that a worker can wait on its streams; answers with its priorities.
    ///
    /// # Errors
    /// Redis is unavailable or full, or there are too many queues.
    pub async fn open_queue(&self, queue: &QueueName) -> StoreResult<Vec<Priority>> {
        let priorities = self.priorities(queue).await?;
        if !priorities.is_empty() {
            return Ok(priorities);
        }
        match self.open_stream(queue, Priority::default()).await? {
            Ok(()) => Ok(vec![Priority::default()]),
            Err(refused) => Err(StoreError::damaged(format!("queue {queue} cannot be made: {refused:?}"))),
        }
    }
}

pub(super) fn sorted_priorities(members: &[String]) -> Vec<Priority> {
    let mut priorities: Vec<Priority> =
        members.iter().filter_map(|member| Priority::try_from(member.parse::<i64>().ok()?).ok()).collect();
    priorities.sort_unstable_by(|a, b| b.cmp(a));
    priorities
}

pub(super) fn parse_entry(text: &str) -> StoreResult<EntryId> {
    text.parse().map_err(|error: crate::id::EntryIdError| StoreError::damaged(error.to_string()))
}

/// A new, ordinary job as it is stored.
pub(in crate::redis) fn stored_new(id: JobId, new: NewJob) -> Stored {
    stored(id, new, None, History::default(), false)
}

fn stored(id: JobId, new: NewJob, traceparent: Option<String>, history: History, has_record: bool) -> Stored {
    Stored {
        id,
        queue: new.queue,
        priority: new.priority,
        envelope: new.envelope,
        summary: new.summary,
        history,
        lease_ms: new.visibility_timeout_ms,
        timeout_ms: new.timeout_ms,
        traceparent,
        workflow: new.workflow,
        parent_results: new.parent_results,
        has_record,
        enqueued_at: None,
    }
}
