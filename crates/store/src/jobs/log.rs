//! The log of a job: lines that its handlers wrote, in all its attempts. It is kept as long as the job, the oldest lines
//! beyond `jobs.log_lines_max` are dropped, and only the current attempt adds to it.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

use redis::Value;

use super::{Attempt, Completion, Jobs, claim::malformed_reply, duration_millis};
use crate::{
    StoreResult,
    connection::{budgets::DataKind, notification::Notification},
    events::JobEvent,
    keys::QueueKeys,
    script,
};
use common::{
    id::{EntryId, JobId},
    json::ObjectWriter,
    name::{NameError, QueueName},
};
use model::job::JobLogLine;

/// How long a log is kept of a job whose end nobody recorded here.
const MAX_LOG_TTL: Duration = Duration::from_hours(90 * 24);
/// Bytes of lines in one event; the log has the rest.
const MAX_EVENT_BYTES: usize = 4 << 10;
/// About what Redis adds to a line.
const LINE_OVERHEAD_BYTES: usize = 60;

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition(EntryId);

impl FromStr for LogPosition {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::new("after", "be next of an earlier answer, such as 1700000000000-0", text);
        text.parse().map(Self).map_err(|_| refused())
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Lines of a log.
#[derive(Debug, Default)]
pub struct LogPage {
    /// Each with its place, as a JSON object.
    pub lines: Vec<(String, String)>,
    /// Lines that are not kept any more.
    pub dropped: u64,
}

impl Jobs {
    /// Adds lines of an attempt; false if it is not the current one. Without room in Redis the answer is an error.
    ///
    /// # Errors
    /// Redis is unavailable or full: the lines may have been added nevertheless.
    pub async fn write_log(&self, attempt: Attempt<'_>, number: u32, lines: &[JobLogLine]) -> StoreResult<bool> {
        let settings = self.settings();
        let max_lines = settings.log_lines_max;
        let Some(kept) = lines.len().checked_sub(max_lines).map_or(Some(lines), |over| lines.get(over..)) else {
            return Ok(true);
        };
        if max_lines == 0 || kept.is_empty() {
            return Ok(true);
        }
        let (job, keys) = (attempt.job, attempt.queue_keys());
        let texts: Vec<String> = kept.iter().map(|line| line.to_json(number, settings.log_line_bytes)).collect();
        let (id, queue) = (job.id.to_string(), job.queue.as_str());
        let bytes = texts.iter().map(|text| text.len() + LINE_OVERHEAD_BYTES).sum();
        self.store.redis.memory().note_stored(DataKind::Results, bytes);
        let mut call = attempt.call(&script::WRITE_LOG);
        call.key(keys.log(&job.id)).arg(max_lines).arg(duration_millis(MAX_LOG_TTL));
        call.arg(self.store.redis.topics().notifications());
        call.arg(Notification::DueChanged(job.queue.clone()).encode()).arg(self.store.redis.lease_start(keys.prefix()));
        for text in &texts {
            call.arg(self.sealer().seal(&["log", queue, &id], text).as_ref());
        }
        let written: i64 = call.invoke_async(&mut self.store.redis.clone()).await?;
        if written == 1 {
            self.store.events.record(JobEvent::logged(job, &event_lines(&texts)));
        }
        Ok(written == 1)
    }

    /// Lines of a job after a place, at most `limit`.
    ///
    /// # Errors
    /// Redis is unavailable, or a line cannot be opened.
    pub async fn read_log(
        &self,
        queue: &QueueName,
        id: JobId,
        after: Option<LogPosition>,
        limit: usize,
    ) -> StoreResult<LogPage> {
        let mut command = redis::cmd("XRANGE");
        let begin = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        command.arg(QueueKeys::new(queue).log(&id)).arg(begin).arg("+").arg("COUNT").arg(limit);
        self.read_log_page(queue, id, &command, after.is_some()).await
    }

    /// Lines of a job before a place, or its newest, at most `limit`, the newest first.
    ///
    /// # Errors
    /// As [`Self::read_log`].
    pub async fn read_newest_log(
        &self,
        queue: &QueueName,
        id: JobId,
        before: Option<LogPosition>,
        limit: usize,
    ) -> StoreResult<LogPage> {
        let mut command = redis::cmd("XREVRANGE");
        let end = before.map_or_else(|| "+".to_owned(), |before| format!("({before}"));
        command.arg(QueueKeys::new(queue).log(&id)).arg(end).arg("-").arg("COUNT").arg(limit);
        self.read_log_page(queue, id, &command, before.is_some()).await
    }

    async fn read_log_page(
        &self,
        queue: &QueueName,
        id: JobId,
        command: &redis::Cmd,
        is_further: bool,
    ) -> StoreResult<LogPage> {
        let key = QueueKeys::new(queue).log(&id);
        let mut redis = self.store.redis.clone();
        let found: Vec<(String, Vec<(String, String)>)> = command.query_async(&mut redis).await?;
        let id = id.to_string();
        let mut page = LogPage::default();
        for (place, fields) in found {
            let Some((_, stored)) = fields.into_iter().find(|(name, _)| name == "d") else { continue };
            page.lines.push((place, self.sealer().open(&["log", queue.as_str(), &id], stored)?));
        }
        if page.lines.is_empty() && !is_further {
            return Ok(page);
        }
        let mut command = redis::cmd("XINFO");
        // A log that ended meanwhile is an error here, and lost nothing
        let info: Result<HashMap<String, Value>, _> = command.arg("STREAM").arg(&key).query_async(&mut redis).await;
        page.dropped = info.map_or(Ok(0), |info| dropped_lines(&info))?;
        Ok(page)
    }

    /// Lets the logs of jobs that completed go with their results. Pass only jobs that may have one.
    pub(super) async fn expire_logs(&self, batch: &[Completion], outcomes: &[i64], ttl: Duration) {
        let mut pipeline = redis::pipe();
        for (completion, _) in batch.iter().zip(outcomes).filter(|(_, outcome)| **outcome != 0) {
            let (claimed, job) = (&completion.claimed, &completion.claimed.job);
            if !(claimed.has_log() || job.has_record) {
                continue;
            }
            let ttl = if job.workflow.is_some() { self.follow_up_result_ttl() } else { ttl };
            pipeline.cmd("PEXPIRE").arg(QueueKeys::new(&job.queue).log(&job.id)).arg(duration_millis(ttl)).ignore();
        }
        // Where this fails the TTL of the log applies
        if !pipeline.is_empty() {
            let _ = pipeline.exec_async(&mut self.store.redis.clone()).await;
        }
    }
}

/// Of lines, as many as an event has room for: the newest.
fn event_lines(texts: &[String]) -> String {
    let mut bytes = 0;
    let fit = texts.iter().rev().take_while(|text| {
        bytes += text.len() + 1;
        bytes <= MAX_EVENT_BYTES
    });
    let first = texts.len() - fit.count();
    let mut data = ObjectWriter::with_capacity(bytes.min(MAX_EVENT_BYTES) + 64);
    data.raw("lines", &format!("[{}]", texts[first..].join(",")));
    if first > 0 {
        data.number("omitted", first as u64);
    }
    data.finish()
}

/// How many entries a stream had that it has no more.
fn dropped_lines(info: &HashMap<String, Value>) -> StoreResult<u64> {
    let number = |name: &str| {
        let value = info.get(name).cloned().unwrap_or(Value::Int(0));
        redis::from_redis_value::<u64>(value).map_err(malformed_reply)
    };
    Ok(number("entries-added")?.saturating_sub(number("length")?))
}
