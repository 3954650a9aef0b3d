//! What happened, as those saw it who took part: files of JSON lines, synced to the disk before anybody goes on. They lie outside
//! Redis, so whatever Redis loses, they have.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Milliseconds of the monotonic clock, which all processes of a machine share.
    pub at: u64,
    /// Who saw it.
    pub by: String,
    /// What it was.
    #[serde(flatten)]
    pub event: HistoryEvent,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum HistoryEvent {
    /// A request was sent, perhaps again.
    Sent {
        /// Which.
        request: u32,
    },
    /// It was not answered, or with a 5xx: it may have been carried out.
    Unanswered {
        /// Which.
        request: u32,
        /// Why.
        reason: String,
    },
    /// It was answered with 201 or 200.
    Acknowledged {
        /// Which.
        request: u32,
        /// Its jobs in their order, or its workflow.
        ids: Vec<String>,
        /// Whether the answer was 201.
        is_created: bool,
    },
    /// It was refused for good.
    Refused {
        /// Which.
        request: u32,
        /// The status of the answer.
        status: u16,
        /// Whether it was the request with the key of another one.
        is_conflict: bool,
    },
    /// A cancellation was answered with 200.
    Cancelled {
        /// The job.
        id: String,
    },
    /// A redrive was answered with 200.
    Redriven {
        /// The job.
        id: String,
    },
    /// A handler began.
    Started {
        /// The run, unique.
        run: String,
        /// The job.
        id: String,
        /// The number in its arguments; 0 for cron.
        key: u32,
        /// The attempt.
        attempt: u32,
        /// The run of a cron entry that it is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cron: Option<String>,
    },
    /// A handler ended.
    Finished {
        /// The run.
        run: String,
        /// Whether it returned a result.
        is_success: bool,
    },
    /// A fault struck.
    Struck {
        /// Its place in the plan.
        fault: usize,
        /// The process or link.
        target: String,
        /// From when.
        from: u64,
        /// Until when.
        to: u64,
        /// How much it hit.
        hits: u64,
    },
    /// A job was looked up.
    Looked {
        /// What it looked like.
        job: CheckedJobView,
        /// Whether all was over.
        is_final: bool,
    },
    /// The jobs of a workflow, when all was over.
    WorkflowEnded {
        /// Which.
        id: String,
        /// Its state.
        state: String,
        /// Its jobs, in their order, callbacks last.
        members: Vec<String>,
    },
    /// The jobs of a queue that Redis counted as completed.
    Counted {
        /// The queue.
        queue: String,
        /// How many.
        completed: u64,
    },
}

/// A job as a gateway shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedJobView {
    /// Its id.
    pub id: String,
    /// Its state, or `missing`.
    pub state: String,
    /// Its queue.
    pub queue: String,
    /// Its last attempt.
    pub attempt: u32,
    /// The run in its result.
    pub run: Option<String>,
    /// The code of its last error.
    pub code: Option<String>,
    /// Whether only its end is known, because Redis had no memory for more.
    #[serde(default)]
    pub is_noted: bool,
}

impl CheckedJobView {
    /// Whether nothing follows by itself.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "discarded" | "cancelled")
    }
}

/// A file of one who takes part.
pub struct HistoryWriter {
    name: String,
    file: Mutex<File>,
}

impl HistoryWriter {
    /// Opens the file of a name in the folder of a run; what is there stays.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        Self::open_for(folder, name, name)
    }

    /// Opens another file for what that name does.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open_for(folder: &Path, file: &str, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{file}.jsonl"));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Self { name: name.to_owned(), file: Mutex::new(file) })
    }

    /// Writes what happened now, and returns when it is on the disk.
    ///
    /// # Panics
    /// It cannot be written: then nothing that follows would mean anything.
    pub fn append(&self, event: HistoryEvent) {
        let entry = HistoryEntry { at: now_ms(), by: self.name.clone(), event };
        let mut line = serde_json::to_vec(&entry).expect("it is JSON");
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).and_then(|()| file.sync_data()).expect("a history can be written");
    }
}

/// Milliseconds of the monotonic clock.
///
/// # Panics
/// There is no such clock.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a monotonic clock");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

/// Everything in the files of a folder, in the order of its times.
///
/// # Errors
/// A file cannot be read, or has a line that is none. A last line without its end was cut off by a kill.
pub fn read_histories(folder: &Path) -> anyhow::Result<Vec<HistoryEntry>> {
    let mut entries = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for line in whole.lines() {
            // A process that was killed while it wrote leaves half a line, and the next one goes on behind it
            match serde_json::from_str(line) {
                Ok(entry) => entries.push(entry),
                Err(error) if line.matches("{\"at\"").count() < 2 && line.ends_with('}') => {
                    return Err(error).with_context(|| format!("{}: {line}", path.display()));
                }
                Err(_) => {
                    let last = line.rfind("{\"at\"").unwrap_or(0);
                    entries.extend(serde_json::from_str::<HistoryEntry>(&line[last..]).ok());
                }
            }
        }
    }
    entries.sort_by_key(|entry: &HistoryEntry| entry.at);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_in_its_order_and_half_a_line_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let writer = HistoryWriter::open(folder.path(), "somebody").expect("a file");
        for request in 0..3 {
            writer.append(HistoryEvent::Sent { request });
        }
        let path = folder.path().join("killed.jsonl");
        fs::write(&path, "{\"at\":1,\"by\":\"killed\",\"event\":\"sent\",\"requ").expect("a file");
        let read = read_histories(folder.path()).expect("histories");
        let requests: Vec<_> = read.into_iter().map(|entry| entry.event).collect();
        assert_eq!(requests, (0..3).map(|request| HistoryEvent::Sent { request }).collect::<Vec<_>>());
        HistoryWriter::open(folder.path(), "killed").expect("a file").append(HistoryEvent::Sent { request: 9 });
        assert_eq!(read_histories(folder.path()).expect("histories").len(), 4, "the line behind half a line counts");
    }

    #[test]
    fn a_whole_line_that_is_no_entry_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("bad.jsonl"), "{\"at\":1,\"by\":\"x\",\"event\":\"unheard\"}\n").expect("a file");
        read_histories(folder.path()).expect_err("what it means is not known");
    }
}
