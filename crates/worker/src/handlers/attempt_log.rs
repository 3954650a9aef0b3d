//! The lines that an attempt logs, on their way to Redis. Logging never waits: lines collect for a moment and are written
//! together, and an attempt that logs faster than Redis takes lines loses the oldest, which the log says. An attempt without
//! lines costs nothing.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::job::{JobLogLine, LogLevel};
use store::{
    StoreError,
    jobs::{Attempt, ClaimedJob, Fence},
};
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle};

use crate::shared::WorkerShared;

/// Lines that wait to be written, and their bytes.
const MAX_WAITING_LINES: usize = 512;
const MAX_WAITING_BYTES: usize = 512 << 10;
/// Lines of one write.
const MAX_WRITTEN_LINES: usize = 128;
/// How long lines collect before they are written.
const LINGER: Duration = Duration::from_millis(200);
/// Attempts to write the last lines of an attempt while Redis is away.
const MAX_LAST_TRIES: u32 = 3;

/// The log of one attempt. Cheap to clone.
#[derive(Clone)]
pub(super) struct AttemptLog(Arc<LoggingAttempt>);

struct LoggingAttempt {
    claimed: Arc<ClaimedJob>,
    shared: Arc<WorkerShared>,
    waiting: Mutex<WaitingLines>,
    /// Tells the writer that the attempt ends.
    ending: Notify,
}

#[derive(Default)]
struct WaitingLines {
    lines: Vec<JobLogLine>,
    bytes: usize,
    dropped: usize,
    writer: Option<JoinHandle<()>>,
    is_ending: bool,
}

impl AttemptLog {
    pub(super) fn new(claimed: &Arc<ClaimedJob>, shared: &Arc<WorkerShared>) -> Self {
        Self(Arc::new(LoggingAttempt {
            claimed: claimed.clone(),
            shared: shared.clone(),
            waiting: Mutex::default(),
            ending: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, WaitingLines> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, and starts the writer with the first one.
    pub(super) fn push(&self, level: LogLevel, message: &str) {
        let settings = self.0.shared.jobs.settings();
        let max_bytes = settings.log_line_bytes;
        if settings.log_lines_max == 0 {
            return;
        }
        // One byte more shows that it was longer
        let end = (0..=message.len().min(max_bytes + 4)).rev().find(|end| message.is_char_boundary(*end));
        let message = message[..end.unwrap_or_default()].to_owned();
        let at = self.0.shared.jobs.estimated_now();
        let mut waiting = self.lock();
        waiting.bytes += message.len();
        waiting.lines.push(JobLogLine { at, level, message });
        if waiting.lines.len() > MAX_WAITING_LINES || waiting.bytes > MAX_WAITING_BYTES {
            // Half of them, so that a flood does not move all for each line
            let count = waiting.lines.len() / 2 + 1;
            let freed: usize = waiting.lines.drain(..count).map(|line| line.message.len()).sum();
            waiting.bytes -= freed;
            waiting.dropped += count;
        }
        self.0.claimed.mark_log();
        if waiting.writer.is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            let log = self.clone();
            waiting.writer = Some(runtime.spawn(async move { log.write_lines().await }));
        }
    }

    fn take(&self) -> (Vec<JobLogLine>, bool) {
        let mut waiting = self.lock();
        let count = waiting.lines.len().min(MAX_WRITTEN_LINES);
        let rest = waiting.lines.split_off(count);
        let mut lines = mem::replace(&mut waiting.lines, rest);
        waiting.bytes = waiting.lines.iter().map(|line| line.message.len()).sum();
        let dropped = mem::take(&mut waiting.dropped);
        if let Some(first) = lines.first().filter(|_| dropped > 0) {
            let message = format!("{dropped} lines are missing here: they came faster than they could be stored");
            lines.insert(0, JobLogLine { at: first.at, level: LogLevel::Warn, message });
        }
        if lines.is_empty() && !waiting.is_ending {
            // The next line starts another writer
            waiting.writer = None;
        }
        (lines, waiting.is_ending)
    }

    /// Writes lines until none are left for a moment, or the attempt ends.
    async fn write_lines(&self) {
        let LoggingAttempt { claimed, shared, ending, .. } = &*self.0;
        let (mut tries, fence) = (0, Fence::for_worker(&shared.consumer));
        loop {
            let _ = tokio::time::timeout(LINGER, ending.notified()).await;
            let (mut lines, mut is_ending) = self.take();
            if lines.is_empty() {
                return;
            }
            loop {
                let (attempt, number) = (Attempt::of(claimed, &fence), claimed.job.history.current_attempt());
                match shared.jobs.write_log(attempt, number, &lines).await {
                    Ok(true) => tries = 0,
                    // Nobody wants the rest either: it is dropped with the attempt
                    Ok(false) => return count_dropped(lines.len()),
                    Err(StoreError::Unavailable(_)) if !is_ending || tries < MAX_LAST_TRIES => {
                        tries += 1;
                        let _ = tokio::time::timeout(LINGER, ending.notified()).await;
                        is_ending = self.lock().is_ending;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(id = %claimed.job.id, %error, "lines of a job are lost");
                        count_dropped(lines.len());
                    }
                }
                // At the end there is no reason to wait for more
                if !is_ending {
                    break;
                }
                (lines, is_ending) = self.take();
                if lines.is_empty() {
                    return;
                }
            }
        }
    }

    /// Waits until the lines of the attempt are written: after its end nobody may add any.
    pub(super) async fn finish(&self) {
        let writer = {
            let mut waiting = self.lock();
            waiting.is_ending = true;
            waiting.writer.take()
        };
        self.0.ending.notify_one();
        match writer {
            Some(writer) => drop(writer.await),
            // They were logged on a thread without a runtime
            None => self.write_lines().await,
        }
    }
}

fn count_dropped(lines: usize) {
    metrics::counter!("galley_job_log_lines_dropped_total").increment(lines as u64);
}
