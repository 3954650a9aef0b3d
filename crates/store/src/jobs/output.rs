//! The output of a job: chunks that its handlers streamed while it ran, such as the words of an answer. Readers follow it
//! live, and a client that comes late reads it from its first chunk. It is bounded in chunks and bytes, the oldest go, and it is gone an hour
//! after the last one: the result is what is kept.

use std::{fmt, str::FromStr};

use super::{Attempt, Jobs};
use crate::{
    StoreResult,
    connection::{budgets::DataKind, notification::Notification},
    keys::QueueKeys,
    script,
};
use common::{
    id::{EntryId, JobId},
    name::{NameError, QueueName},
};

/// The largest chunk, in bytes of JSON.
pub const MAX_CHUNK_BYTES: usize = 64 << 10;
/// What is kept of the output of a job: its newest chunks.
const MAX_OUTPUT_CHUNKS: usize = 10_000;
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// How long it is kept after the last chunk.
const OUTPUT_TTL_MS: u64 = 60 * 60 * 1000;
/// About what Redis adds to a chunk.
const CHUNK_OVERHEAD_BYTES: usize = 80;

/// A place in an output: when the output began, and the number of a chunk in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputPosition(EntryId);

impl OutputPosition {
    /// Before every chunk.
    pub const START: Self = Self(EntryId { milliseconds: 0, sequence: 0 });

    /// Whether a chunk follows this one without one between. The first chunk of an output follows the start.
    #[must_use]
    pub fn is_followed_by(self, next: Self) -> bool {
        let begins_at = if self == Self::START { next.0.milliseconds } else { self.0.milliseconds };
        next.0.milliseconds == begins_at && next.0.sequence == self.0.sequence + 1
    }
}

impl FromStr for OutputPosition {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::new("Last-Event-ID", "be the id of a chunk, such as 1700000000000-1", text);
        text.parse().map(Self).map_err(|_| refused())
    }
}

impl fmt::Display for OutputPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A chunk of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Its place.
    pub position: OutputPosition,
    /// Which attempt it is of: its number, and what tells it from others with that number.
    pub attempt: String,
    /// Its JSON.
    pub json: String,
}

impl OutputChunk {
    /// The number of its attempt.
    #[must_use]
    pub fn attempt_number(&self) -> u32 {
        self.attempt.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
    }
}

impl Jobs {
    /// Adds chunks of an attempt, each JSON; none if it is not the current one, else how many chunks it has. With the number
    /// of the first one in the attempt, from 1, those that are there already are not added again.
    ///
    /// # Errors
    /// Redis is unavailable or full: the chunks may have been added nevertheless.
    pub async fn write_output(
        &self,
        attempt: Attempt<'_>,
        first: Option<u64>,
        chunks: &[impl AsRef<str>],
    ) -> StoreResult<Option<u64>> {
        let (job, keys) = (attempt.job, attempt.queue_keys());
        let (id, queue, topics) = (job.id.to_string(), job.queue.as_str(), self.store.redis.topics());
        let bytes = chunks.iter().map(|chunk| chunk.as_ref().len() + CHUNK_OVERHEAD_BYTES).sum();
        self.store.redis.memory().note_stored(DataKind::Results, bytes);
        let mut call = attempt.call(&script::WRITE_OUTPUT);
        call.key(keys.output(&job.id)).arg(&id).arg(job.history.current_attempt()).arg(first.unwrap_or_default());
        call.arg(MAX_OUTPUT_CHUNKS)
            .arg(MAX_OUTPUT_BYTES)
            .arg(OUTPUT_TTL_MS)
            .arg(topics.for_script(topics.output(&job.queue)));
        call.arg(topics.notifications()).arg(Notification::DueChanged(job.queue.clone()).encode());
        call.arg(self.store.redis.lease_start(keys.prefix()));
        for chunk in chunks {
            call.arg(self.sealer().seal(&["output", queue, &id], chunk.as_ref()).as_ref());
        }
        let written: i64 = call.invoke_async(&mut self.store.redis.clone()).await?;
        Ok(u64::try_from(written).ok())
    }

    /// Chunks of a job after a place, at most `limit`.
    ///
    /// # Errors
    /// Redis is unavailable, or a chunk cannot be opened.
    pub async fn read_output(
        &self,
        queue: &QueueName,
        id: JobId,
        after: OutputPosition,
        limit: usize,
    ) -> StoreResult<Vec<OutputChunk>> {
        let mut command = redis::cmd("XRANGE");
        let key = QueueKeys::new(queue).output(&id);
        command.arg(key).arg(format!("({after}")).arg("+").arg("COUNT").arg(limit);
        let found: Vec<(String, Vec<(String, String)>)> = command.query_async(&mut self.store.redis.clone()).await?;
        let id = id.to_string();
        let mut chunks = Vec::with_capacity(found.len());
        for (place, fields) in found {
            let (mut stored, mut attempt) = (None, String::new());
            for (name, value) in fields {
                match name.as_str() {
                    "d" => stored = Some(value),
                    "a" => attempt = value,
                    _ => {}
                }
            }
            let (Some(stored), Ok(position)) = (stored, place.parse().map(OutputPosition)) else { continue };
            let json = self.sealer().open(&["output", queue.as_str(), &id], stored)?;
            chunks.push(OutputChunk { position, attempt, json });
        }
        Ok(chunks)
    }
}
