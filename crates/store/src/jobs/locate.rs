//! Finds a job by its id, in whatever state it is.

use redis::{FromRedisValue, Value};

use super::{
    Jobs,
    claim::{malformed_reply, read_job_entry},
    enqueue::parse_entry_id,
    finished_job::FinishedJob,
    record::{JobFields, JobRecord},
};
use crate::{
    StoreError, StoreResult,
    keys::{self, QueueKeys},
    script,
    sealing::Sealer,
};
use common::{
    id::{EntryId, JobId},
    name::{Priority, QueueName},
    time::Millis,
};
use model::job::{JobState, JobWait};

/// Where a job is.
#[derive(Debug, Clone)]
pub enum LocatedJob {
    /// Finished; the JSON of the whole job.
    Finished(String),
    /// It waits in a record: scheduled, retryable, pending, or waiting for the limit of its key.
    InRecord {
        /// The job.
        job: JobRecord,
        /// Which of them; available when it waits for the limit of its key.
        state: JobState,
        /// The state in the words of the record.
        record_state: String,
        /// When it is due.
        due: Option<Millis>,
    },
    /// In a stream: available, or active when a consumer holds it.
    InStream {
        /// The job.
        job: JobRecord,
        /// Its entry.
        entry: EntryId,
        /// Who holds it.
        holder: Option<JobHolder>,
    },
}

/// Who holds a job.
#[derive(Debug, Clone)]
pub struct JobHolder {
    /// The consumer's name in the pending list.
    pub consumer: String,
    /// When it was claimed, or last renewed for a queue-worker's older attempt.
    pub idle_since: Millis,
    /// The attempt in the active hash, if it is there.
    pub attempt: Option<ActiveAttempt>,
    /// Its progress as JSON, if reported.
    pub progress: Option<String>,
}

/// The token of an attempt that only its queue-worker can end.
const NO_TOKEN: &str = "-";

/// An attempt in the active hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveAttempt {
    /// Its token; `-` if only its queue-worker can end it.
    pub token: String,
    /// When it started.
    pub started_at: Millis,
    /// When its `timeout_ms` is over, or 0.
    pub deadline: Millis,
    /// The name of its worker.
    pub worker: String,
}

impl ActiveAttempt {
    /// Whether a program other than the queue-worker has its token.
    #[must_use]
    pub fn has_callback_token(&self) -> bool {
        self.token != NO_TOKEN
    }

    /// Parses `<token> <started ms> <lease ms> <deadline ms> <worker>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, ' ');
        let (token, started) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        let (_lease, deadline) = (parts.next()?, parts.next()?.parse().ok()?);
        Some(Self { token, started_at: started, deadline, worker: parts.next()?.to_owned() })
    }
}

impl LocatedJob {
    /// The job's state.
    #[must_use]
    pub fn state(&self) -> JobState {
        match self {
            Self::Finished(json) => finished_state(json),
            Self::InRecord { state, .. } => *state,
            Self::InStream { holder: None, .. } => JobState::Available,
            Self::InStream { holder: Some(_), .. } => JobState::Active,
        }
    }

    /// What it waits for, if it waits in the middle of its work.
    #[must_use]
    pub fn wait(&self) -> Option<&JobWait> {
        match self {
            Self::InRecord { job, state: JobState::Scheduled, .. } => job.wait.as_deref(),
            _ => None,
        }
    }

    /// The queue that it is or was in.
    #[must_use]
    pub fn queue(&self) -> Option<QueueName> {
        #[derive(serde::Deserialize)]
        struct QueueOf {
            queue: QueueName,
        }
        match self {
            Self::Finished(json) => serde_json::from_str(json).ok().map(|QueueOf { queue }| queue),
            Self::InRecord { job, .. } | Self::InStream { job, .. } => Some(job.queue.clone()),
        }
    }

    /// Where it is, as `lua/end_job.lua` takes it: kind, entry, attempt name, consumer and state of the record.
    pub(super) fn seen_args(&self) -> [String; 5] {
        let empty = String::new;
        match self {
            Self::Finished(_) => Default::default(),
            Self::InRecord { record_state, .. } => {
                ["record".to_owned(), empty(), empty(), empty(), record_state.clone()]
            }
            Self::InStream { job, entry, holder } => {
                let consumer = holder.as_ref().map(|holder| holder.consumer.clone()).unwrap_or_default();
                let attempt_name = keys::attempt_name(job.priority, *entry);
                ["entry".to_owned(), entry.to_string(), attempt_name, consumer, empty()]
            }
        }
    }

    /// The JSON of the whole job.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Finished(json) => json.clone(),
            Self::InRecord { job, state, due, .. } => {
                let mut view = job.view(*state);
                view.next_attempt_at = due.filter(|_| *state == JobState::Retryable);
                let waiting = self.wait().map(|wait| wait.to_json(None));
                view.waiting = waiting.as_deref();
                view.to_json()
            }
            Self::InStream { job, holder, .. } => {
                let mut view = job.view(self.state());
                if let Some(holder) = holder {
                    view.attempt = job.history.current_attempt();
                    view.started_at = Some(holder.started_at());
                    view.worker_id = holder.worker();
                    view.progress = holder.progress.as_deref();
                }
                view.to_json()
            }
        }
    }
}

impl JobHolder {
    /// When the attempt started, if known.
    #[must_use]
    pub fn started_at(&self) -> Millis {
        self.attempt.as_ref().map_or(self.idle_since, |attempt| attempt.started_at)
    }

    /// The holder's name, as it gave it.
    #[must_use]
    pub fn worker(&self) -> Option<&str> {
        self.attempt.as_ref().map(|attempt| attempt.worker.as_str()).filter(|worker| !worker.is_empty())
    }
}

/// The state in the JSON of a finished job, where it is the second member.
fn finished_state(json: &str) -> JobState {
    #[derive(serde::Deserialize)]
    struct FinishedStateField {
        state: JobState,
    }
    serde_json::from_str::<FinishedStateField>(json).map_or(JobState::Discarded, |only| only.state)
}

/// What a stream entry has.
pub(crate) enum JobStreamEntry {
    Job(Box<JobRecord>),
    /// It was deleted.
    Missing,
    /// It is not a job, which was logged.
    Unreadable,
}

enum LookupStep {
    Found(Box<LocatedJob>),
    Moved(Priority, EntryId),
    NotFound,
}

impl Jobs {
    /// Finds a job.
    ///
    /// # Errors
    /// Redis is unavailable or the job is damaged.
    pub async fn locate(&self, id: JobId) -> StoreResult<Option<LocatedJob>> {
        match self.locate_with_queue(id).await? {
            Some((located, _)) => self.with_parent_results(located).await.map(Some),
            None => Ok(None),
        }
    }

    /// Finds a job and its queue.
    ///
    /// # Errors
    /// As [`Jobs::locate`].
    pub async fn locate_with_queue(&self, id: JobId) -> StoreResult<Option<(LocatedJob, QueueName)>> {
        let mut connection = self.store.redis.clone();
        let (tagged, chosen): (Vec<String>, Option<String>) = redis::pipe()
            .cmd("ZRANGEBYSCORE")
            .arg(keys::QUEUES)
            .arg(id.queue_tag())
            .arg(id.queue_tag())
            .cmd("GET")
            .arg(keys::client_job_id(&id))
            .query_async(&mut connection)
            .await?;
        // A generated id has a tag of its queue, which several names may share; the queue of a chosen id is stored
        for name in chosen.into_iter().chain(tagged) {
            let Ok(queue) = QueueName::from_stored(&name) else { continue };
            if let Some(located) = self.locate_in_queue(id, &queue).await? {
                return Ok(Some((located, queue)));
            }
        }
        Ok(None)
    }

    /// Finds a job of this queue.
    pub(crate) async fn locate_in_queue(&self, id: JobId, queue: &QueueName) -> StoreResult<Option<LocatedJob>> {
        let mut place = id.address().map(|address| (address.priority, address.entry));
        // A job can move between two look-ups, each time because somebody moved it
        for _ in 0..8 {
            match self.look_up_once(id, queue, place).await? {
                LookupStep::Found(located) => return Ok(Some(*located)),
                LookupStep::Moved(priority, entry) => place = Some((priority, entry)),
                LookupStep::NotFound => return Ok(None),
            }
        }
        Err(StoreError::damaged(format!("job {id} cannot be pinned down")))
    }

    /// Reads a stream entry.
    pub(crate) async fn read_entry(
        &self,
        queue: &QueueName,
        priority: Priority,
        entry: EntryId,
    ) -> StoreResult<JobStreamEntry> {
        let mut command = redis::cmd("XRANGE");
        command.arg(QueueKeys::new(queue).stream(priority)).arg(entry.to_string()).arg(entry.to_string());
        let found: Vec<(String, Value)> = command.query_async(&mut self.store.redis.clone()).await?;
        let Some((entry, fields)) = found.into_iter().next() else { return Ok(JobStreamEntry::Missing) };
        Ok(read_job_entry(self.sealer(), queue, priority, &entry, fields)
            .map_or(JobStreamEntry::Unreadable, |(job, _)| JobStreamEntry::Job(Box::new(job))))
    }

    async fn look_up_once(
        &self,
        id: JobId,
        queue: &QueueName,
        place: Option<(Priority, EntryId)>,
    ) -> StoreResult<LookupStep> {
        let keys = QueueKeys::new(queue);
        let (priority, entry) = place.map_or((Priority::default(), None), |(priority, entry)| (priority, Some(entry)));
        let reply: Vec<Value> = script::LOCATE
            .key(keys.result(&id))
            .key(keys.record(&id))
            .key(keys.active())
            .key(keys.stream(priority))
            .arg(priority.get())
            .arg(entry.map(|entry| entry.to_string()).unwrap_or_default())
            .invoke_async(&mut self.store.redis.clone())
            .await?;
        let now = self.estimated_now();
        let mut parts = reply.into_iter();
        let kind = String::from_redis_value(parts.next().unwrap_or_default()).map_err(malformed_reply)?;
        let mut next = || parts.next().unwrap_or_default();
        match (kind.as_str(), entry) {
            ("result", _) => {
                let text = String::from_redis_value(next()).map_err(malformed_reply)?;
                let job = FinishedJob::json_of(self.sealer(), &text, id, queue)?;
                Ok(job.map_or(LookupStep::NotFound, |json| LookupStep::Found(Box::new(LocatedJob::Finished(json)))))
            }
            ("record", _) => {
                let fields = JobFields::from_redis_value(next()).map_err(malformed_reply)?;
                locate_in_record(self.sealer(), id, queue, fields).map(Box::new).map(LookupStep::Found)
            }
            ("follow", _) => {
                let priority = i64::from_redis_value(next()).map_err(malformed_reply)?;
                let entry = parse_entry_id(&String::from_redis_value(next()).map_err(malformed_reply)?)?;
                Ok(LookupStep::Moved(Priority::try_from(priority).map_err(malformed_reply)?, entry))
            }
            ("entry", Some(entry)) => {
                let fields = JobFields::from_redis_value(next()).map_err(malformed_reply)?;
                let pending = Vec::<(String, String, i64, i64)>::from_redis_value(next()).map_err(malformed_reply)?;
                let attempt = String::from_redis_value(next()).map_err(malformed_reply)?;
                let progress = String::from_redis_value(next()).map_err(malformed_reply)?;
                let job = JobRecord::from_entry(self.sealer(), queue, priority, entry, fields)?;
                if job.id != id {
                    return Ok(LookupStep::NotFound);
                }
                let progress = self.open_progress(queue, priority, entry, progress)?;
                let holder = pending.into_iter().next().map(|(_, consumer, idle, _)| JobHolder {
                    consumer,
                    idle_since: now - idle,
                    attempt: ActiveAttempt::parse(&attempt),
                    progress,
                });
                Ok(LookupStep::Found(Box::new(LocatedJob::InStream { job, entry, holder })))
            }
            _ => Ok(LookupStep::NotFound),
        }
    }
}

pub(super) fn locate_in_record(
    sealer: &Sealer,
    id: JobId,
    queue: &QueueName,
    fields: JobFields,
) -> StoreResult<LocatedJob> {
    let record_state = fields.get("s").unwrap_or_default().to_owned();
    let state =
        if record_state == "key_waiting" { Some(JobState::Available) } else { JobState::from_name(&record_state) };
    let state = state.ok_or_else(|| StoreError::damaged(format!("record of {id} has no state")))?;
    let priority = fields.get("p").and_then(Priority::from_text);
    let due = fields.get("d").and_then(|text| text.parse().ok());
    let owner = id.to_string();
    let job = JobRecord::from_fields((sealer, &owner), id, queue, priority.unwrap_or_default(), fields, true)?;
    Ok(LocatedJob::InRecord { job, state, record_state, due })
}
