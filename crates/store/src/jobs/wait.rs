//! Jobs that wait in the middle of their work: for a time, or for a signal that somebody sends.
//!
//! A wait ends the attempt without an outcome. The job goes on from its checkpoint in the next one, which gets the signals with
//! the job. Nothing marks a signal as received: the checkpoint says which ones the job knows, so a signal is received exactly
//! when the step that waited for it has its result. A crash before that leaves it where it is.

use std::{fmt::Write, time::Duration};

use redis::{FromRedisValue, Value};

use super::{Attempt, ClaimedJob, Fence, Jobs, LocatedJob, claim::malformed_reply, enqueue::RECORD_BYTES};
use crate::{
    StoreError, StoreResult,
    connection::{budgets::DataKind, notification::Notification},
    events::JobEvent,
    keys::QueueKeys,
    rate_limits::WaitSet,
    script,
};
use common::{
    id::JobId,
    name::{LimitKey, QueueName, SignalName},
    time::Millis,
};
use model::job::{
    JobSignal, JobState,
    wait::{MAX_SIGNALS, MAX_SIGNALS_BYTES},
};

/// How long signals are kept of a job that does not wait and whose end nobody recorded here.
const SIGNALS_TTL_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// When a wait without an end is due: after the year 5000, which every number format still holds exactly.
const NEVER: Millis = 100_000_000_000_000;
/// About what Redis adds to a signal.
const SIGNAL_OVERHEAD_BYTES: usize = 60;

/// What an attempt waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitRequest {
    /// The step of the job that waits.
    pub step: String,
    /// The signal, or none to wait for a time alone.
    pub signal: Option<SignalName>,
    /// How long at most, counted from when the step began to wait first.
    pub timeout: Option<Duration>,
    /// The numbers of the signals that the job knows already.
    pub received: Vec<u64>,
}

/// How a wait began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitOutcome {
    /// When the job is due at the latest.
    pub due: Millis,
    /// Whether it was due at once, because its signal was there or its time over.
    pub is_due: bool,
}

/// A new signal.
#[derive(Debug, Clone)]
pub struct NewSignal<'a> {
    /// What it is called.
    pub name: &'a SignalName,
    /// What tells it from others.
    pub id: &'a str,
    /// JSON.
    pub data: &'a str,
}

/// What became of a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignalOutcome {
    /// It is there.
    Added {
        /// As it is stored.
        signal: JobSignal,
        /// Whether the job waited for it.
        resumed: bool,
    },
    /// A signal with this id came before.
    Known(JobSignal),
    /// The job has too many, or they are too large.
    Full,
    /// The job has ended.
    Over(JobState),
    /// There is no such job.
    NotFound,
}

impl Jobs {
    /// Ends an attempt until its signal comes or its time is over; the attempt does not count. None if it was not
    /// the current one.
    ///
    /// # Errors
    /// Redis is unavailable: call again with the same arguments.
    pub async fn wait(
        &self,
        claimed: &ClaimedJob,
        fence: &Fence,
        request: &WaitRequest,
    ) -> StoreResult<Option<WaitOutcome>> {
        let attempt = Attempt::of(claimed, fence);
        let (job, keys) = (attempt.job, attempt.queue_keys());
        // A step that waits again, because its attempt ended before it had a result, goes on with its time
        let earlier = job.wait.as_ref().filter(|wait| wait.step == request.step);
        let mut stored = job.clone();
        stored.wait = None;
        let fields = stored.to_fields(self.sealer());
        if !job.has_record {
            let bytes = fields.iter().map(String::len).sum::<usize>();
            self.store.redis.memory().note_stored(DataKind::JobRecords, RECORD_BYTES + bytes);
        }
        let timeout = request.timeout.map(|timeout| timeout.as_millis().to_string()).unwrap_or_default();
        let received = request.received.iter().fold(String::new(), |mut text, number| {
            let _ = write!(text, ",{number},");
            text
        });
        let answer: Vec<String> = attempt
            .call(&script::WAIT)
            .key(keys.record(&job.id))
            .key(keys.due())
            .key(keys.timers())
            .key(keys.admitted(&LimitKey::or_placeholder(job.limit_key())))
            .key(keys.checkpoint(&job.id))
            .key(keys.signals(&job.id))
            .arg(job.id.to_string())
            .arg(job.priority.get())
            .arg(request.signal.as_ref().map_or("-", SignalName::as_str))
            .arg(&request.step)
            .arg(earlier.map(|wait| wait.since.to_string()).unwrap_or_default())
            .arg(earlier.and_then(|wait| wait.until).unwrap_or_default())
            .arg(timeout)
            .arg(received)
            .arg(NEVER)
            .arg(self.store.redis.topics().notifications())
            .arg(Notification::DueChanged(job.queue.clone()).encode())
            .arg(job.limit_key().map_or("", LimitKey::as_str))
            .arg(job.expiry_timer().map(|at| at.to_string()).unwrap_or_default())
            .arg(fields)
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        let Some(due) = answer.get(1).and_then(|due| due.parse().ok()) else { return Ok(None) };
        let is_due = answer.get(2).is_some_and(|text| text == "1");
        if let Some(key) = job.limit_key()
            && let Err(error) = self.admit(&job.queue, key).await
        {
            tracing::debug!(%error, queue = %job.queue, "next job of a key not admitted, left to maintenance");
        }
        self.store.events.record(JobEvent::waiting(job, request));
        if is_due {
            self.resume(&job.queue, job.id).await;
        }
        Ok(Some(WaitOutcome { due, is_due }))
    }

    /// Adds a signal to those of a job. A job that waits for it resumes.
    ///
    /// # Errors
    /// Redis is unavailable or full: it may have been added nevertheless.
    pub async fn signal(&self, id: JobId, new: NewSignal<'_>) -> StoreResult<SignalOutcome> {
        let Some((located, queue)) = self.locate_with_queue(id).await? else { return Ok(SignalOutcome::NotFound) };
        let job = match &located {
            LocatedJob::Finished(_) => return Ok(SignalOutcome::Over(located.state())),
            LocatedJob::InRecord { job, .. } | LocatedJob::InStream { job, .. } => job,
        };
        let (keys, text_id) = (QueueKeys::new(&queue), id.to_string());
        self.store.redis.memory().note_stored(DataKind::JobRecords, new.data.len() + SIGNAL_OVERHEAD_BYTES);
        let sent_at = self.now().await?;
        let mut call = script::SIGNAL.key(keys.record(&id));
        call.key(keys.result(&id)).key(keys.signals(&id)).key(keys.due());
        call.arg(&text_id).arg(new.name.as_str()).arg(new.id).arg(sent_at);
        call.arg(self.sealer().seal(&["signal", queue.as_str(), &text_id], new.data).as_ref());
        call.arg(MAX_SIGNALS).arg(MAX_SIGNALS_BYTES).arg(SIGNALS_TTL_MS);
        call.arg(self.store.redis.topics().notifications()).arg(Notification::DueChanged(queue.clone()).encode());
        let answer: Vec<Value> = call.invoke_async(&mut self.store.redis.clone()).await?;
        let mut parts = answer.into_iter();
        let mut next = || parts.next().unwrap_or_default();
        let word = String::from_redis_value(next()).map_err(malformed_reply)?;
        match word.as_str() {
            "full" => return Ok(SignalOutcome::Full),
            "ended" => {
                let located = self.locate(id).await?;
                return Ok(located.map_or(SignalOutcome::NotFound, |located| SignalOutcome::Over(located.state())));
            }
            _ => {}
        }
        let sequence = u64::from_redis_value(next()).map_err(malformed_reply)?;
        if word == "known" {
            let text = String::from_redis_value(next()).map_err(malformed_reply)?;
            return self.open_signal(&queue, id, sequence, &text).map(SignalOutcome::Known);
        }
        let resumed = i64::from_redis_value(next()).map_err(malformed_reply)? == 1;
        let (name, signal_id, data) = (new.name.clone(), new.id.to_owned(), new.data.to_owned());
        let signal = JobSignal { sequence, name, id: signal_id, sent_at, data };
        self.store.events.record(JobEvent::signalled(job, &signal, resumed));
        if resumed {
            self.resume(&queue, id).await;
        }
        Ok(SignalOutcome::Added { signal, resumed })
    }

    /// Makes a job available whose wait is over. The leader does what this cannot.
    async fn resume(&self, queue: &QueueName, id: JobId) {
        if let Err(error) = self.make_available(queue, &[id], WaitSet::Due).await {
            tracing::debug!(%error, %queue, %id, "job not resumed, left to maintenance");
        }
    }

    /// The signals that came for a job, in their order.
    ///
    /// # Errors
    /// Redis is unavailable, or one cannot be opened.
    pub async fn read_signals(&self, queue: &QueueName, id: JobId) -> StoreResult<Vec<JobSignal>> {
        let mut command = redis::cmd("LRANGE");
        command.arg(QueueKeys::new(queue).signals(&id)).arg(0).arg(-1);
        let stored: Vec<String> = command.query_async(&mut self.store.redis.clone()).await?;
        self.open_signals(queue, id, &stored)
    }

    /// Reads the signals of jobs of one queue that waited.
    pub(super) async fn load_signals(&self, claimed: &mut [ClaimedJob]) -> StoreResult<()> {
        let mut waited: Vec<&mut ClaimedJob> =
            claimed.iter_mut().filter(|claimed| claimed.job.wait.is_some()).collect();
        for some in waited.chunks_mut(self.claim_budget.max_read()) {
            let keys = QueueKeys::new(&some[0].job.queue);
            let mut pipeline = redis::pipe();
            for claimed in &*some {
                pipeline.cmd("LRANGE").arg(keys.signals(&claimed.job.id)).arg(0).arg(-1);
            }
            let stored: Result<Vec<Vec<String>>, _> = pipeline.query_async(&mut self.store.redis.clone()).await;
            let stored = self.claim_budget.observe(stored.map_err(StoreError::from))?;
            for (claimed, stored) in some.iter_mut().zip(stored) {
                claimed.signals = self.open_signals(&claimed.job.queue, claimed.job.id, &stored)?;
            }
        }
        Ok(())
    }

    fn open_signals(&self, queue: &QueueName, id: JobId, stored: &[String]) -> StoreResult<Vec<JobSignal>> {
        (1..).zip(stored.iter().rev()).map(|(sequence, text)| self.open_signal(queue, id, sequence, text)).collect()
    }

    /// Parses `<ms> <name> <id> <data>`.
    fn open_signal(&self, queue: &QueueName, id: JobId, sequence: u64, text: &str) -> StoreResult<JobSignal> {
        let damaged = || StoreError::damaged(format!("signal {sequence} of job {id} has another shape"));
        let mut parts = text.splitn(4, ' ');
        let mut next = || parts.next().ok_or_else(damaged);
        let (sent_at, name, signal_id, data) = (next()?, next()?, next()?, next()?.to_owned());
        Ok(JobSignal {
            sequence,
            name: name.parse().map_err(|_| damaged())?,
            id: signal_id.to_owned(),
            sent_at: sent_at.parse().map_err(|_| damaged())?,
            data: self.sealer().open(&["signal", queue.as_str(), &id.to_string()], data)?,
        })
    }
}
