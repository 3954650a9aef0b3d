//! A program's standard error: progress lines, and diagnostics whose end is stored.

use std::{collections::VecDeque, sync::Arc};

use serde_json::Value;
use tokio::{process::ChildStderr, sync::watch};

use super::pipes::read_all;

/// Maximum bytes of stderr stored with an error: its end.
pub const MAX_STDERR_BYTES: usize = 64 << 10;
/// Maximum bytes of a progress line; a longer one is diagnostics.
const MAX_PROGRESS_LINE_BYTES: usize = 4096;
/// Longest line that is passed on; the rest of a longer one is left out.
const MAX_LOGGED_LINE_BYTES: usize = 64 << 10;
const PROGRESS_PREFIX: &[u8] = b"@progress";

/// A program's progress.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandProgress {
    /// From 0 to 1.
    pub progress: f64,
    /// The program's own words, at most about 4000 bytes.
    pub message: Option<String>,
}

impl CommandProgress {
    /// Parses a line: `@progress 0.4` or `@progress {"progress": 0.4, "message": "..."}`.
    fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line.strip_prefix(PROGRESS_PREFIX)?).ok()?;
        let given = text.trim();
        if !text.starts_with([' ', '\t']) {
            return None;
        }
        let (progress, message) = if given.starts_with('{') {
            let object: Value = serde_json::from_str(given).ok()?;
            let message = match object.get("message") {
                None | Some(Value::Null) => None,
                Some(message) => Some(message.as_str()?.to_owned()),
            };
            (object.get("progress")?.as_f64()?, message)
        } else {
            (given.parse().ok()?, None)
        };
        (0.0..=1.0).contains(&progress).then_some(Self { progress, message })
    }
}

/// Consumes stderr chunk by chunk.
pub(super) struct StderrReader {
    tail: VecDeque<u8>,
    /// The start of a line that may become a progress line.
    line: Vec<u8>,
    /// Whether the current line still may.
    may_be_progress: bool,
    progress: watch::Sender<Option<CommandProgress>>,
    lines: LineSplitter,
}

/// Receives each line of a program's standard error that is no progress, without its line feed. It must not block.
#[derive(Clone, Default)]
pub struct LineSink(Option<Arc<TakeLine>>);

type TakeLine = dyn Fn(&str) + Send + Sync;

impl LineSink {
    /// Passes each line on.
    #[must_use]
    pub fn new(take: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }
}

impl std::fmt::Debug for LineSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LineSink").field(&self.0.is_some()).finish()
    }
}

/// Joins pieces to lines of bounded length.
struct LineSplitter {
    sink: LineSink,
    line: Vec<u8>,
}

impl LineSplitter {
    fn push(&mut self, bytes: &[u8]) {
        if self.sink.0.is_none() {
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = MAX_LOGGED_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        if let Some(take) = self.sink.0.as_ref().filter(|_| !text.is_empty()) {
            take(text);
        }
    }
}

impl StderrReader {
    pub(super) fn new(progress: watch::Sender<Option<CommandProgress>>, sink: LineSink) -> Self {
        let lines = LineSplitter { sink, line: Vec::new() };
        Self { tail: VecDeque::new(), line: Vec::new(), may_be_progress: true, progress, lines }
    }

    pub(super) async fn read(&mut self, stderr: ChildStderr) {
        read_all(stderr, |chunk| self.push_chunk(chunk)).await;
    }

    /// The end of stderr, without progress lines.
    pub(super) fn finish(mut self) -> String {
        self.end_line();
        self.lines.end_line();
        let bytes = self.tail.make_contiguous();
        // The second half of a split character has no meaning
        let cut = bytes.iter().take(3).take_while(|byte| (0x80..0xC0).contains(*byte)).count();
        String::from_utf8_lossy(&bytes[cut..]).into_owned()
    }

    fn push_chunk(&mut self, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let is_end = piece.ends_with(b"\n");
            if self.may_be_progress {
                self.line.extend_from_slice(piece);
                let compared = self.line.len().min(PROGRESS_PREFIX.len());
                if self.line[..compared] != PROGRESS_PREFIX[..compared] || self.line.len() > MAX_PROGRESS_LINE_BYTES {
                    self.append_line();
                    self.may_be_progress = false;
                }
            } else {
                self.append_tail(piece);
            }
            if is_end {
                self.end_line();
            }
        }
    }

    /// Ends a line.
    fn end_line(&mut self) {
        match CommandProgress::parse(&self.line) {
            Some(progress) => {
                self.line.clear();
                self.progress.send_replace(Some(progress));
            }
            None => self.append_line(),
        }
        self.may_be_progress = true;
    }

    fn append_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.append_tail(&line);
    }

    fn append_tail(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
        let bytes = &bytes[bytes.len().saturating_sub(MAX_STDERR_BYTES)..];
        let surplus = (self.tail.len() + bytes.len()).saturating_sub(MAX_STDERR_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored stderr and all progress reports, if stderr arrives in pieces of `piece_bytes`.
    fn taken(stderr: &[u8], piece_bytes: usize) -> (String, Vec<CommandProgress>) {
        let (sender, mut receiver) = watch::channel(None);
        let mut diagnostics = StderrReader::new(sender, LineSink::default());
        let mut reported = Vec::new();
        for piece in stderr.chunks(piece_bytes) {
            diagnostics.push_chunk(piece);
            if receiver.has_changed().expect("the sender is here") {
                reported.extend(receiver.borrow_and_update().clone());
            }
        }
        let kept = diagnostics.finish();
        // The sender is dropped, but its last value remains
        let last = receiver.borrow().clone().filter(|last| reported.last() != Some(last));
        reported.extend(last);
        (kept, reported)
    }

    fn numbers(stderr: &str) -> Vec<f64> {
        taken(stderr.as_bytes(), 1).1.iter().map(|told| told.progress).collect()
    }

    #[test]
    fn progress_is_told_and_the_rest_is_kept_however_the_bytes_come() {
        let stderr = "begin\n@progress 0.4\n@prog\n@progress {\"progress\":0.625,\"message\":\"半分\"}\nend";
        for piece_bytes in [1, 2, 3, 7, 1000] {
            let (kept, reported) = taken(stderr.as_bytes(), piece_bytes);
            assert_eq!(kept, "begin\n@prog\nend", "in pieces of {piece_bytes}");
            let last = CommandProgress { progress: 0.625, message: Some("半分".to_owned()) };
            assert_eq!(reported.last(), Some(&last), "in pieces of {piece_bytes}");
        }
        assert_eq!(numbers(stderr), [0.4, 0.625]);
    }

    #[test]
    fn lines_without_progress_are_passed_on_whole_however_the_bytes_come() {
        for piece_bytes in [1, 3, 1000] {
            let taken = Arc::new(std::sync::Mutex::new(Vec::new()));
            let lines = taken.clone();
            let sink = LineSink::new(move |line| lines.lock().expect("no panic").push(line.to_owned()));
            let mut reader = StderrReader::new(watch::channel(None).0, sink);
            let stderr = "begin\r\n@progress 0.4\n\n@prog\nhalf";
            stderr.as_bytes().chunks(piece_bytes).for_each(|piece| reader.push_chunk(piece));
            reader.push_chunk(&vec![b'x'; 2 * MAX_LOGGED_LINE_BYTES]);
            reader.finish();
            let lines = taken.lock().expect("no panic");
            assert_eq!(lines[..2], ["begin", "@prog"], "in pieces of {piece_bytes}");
            assert!(lines.len() == 3 && lines[2].starts_with("halfx") && lines[2].len() == MAX_LOGGED_LINE_BYTES);
        }
    }

    #[test]
    fn a_last_line_without_a_newline_counts() {
        assert_eq!(numbers("@progress 0.99"), [0.99]);
    }

    #[test]
    fn both_ends_of_the_scale_are_progress() {
        assert_eq!(numbers("@progress 0\n@progress\t1\r\n"), [0.0, 1.0]);
    }

    #[test]
    fn what_is_no_progress_is_ignored_and_stays() {
        for line in [
            "@progress",
            "@progress ",
            "@progress1",
            "@progress -1",
            "@progress 40",
            "@progress NaN",
            "@progress inf",
            "@progress 1 %",
            "@progress {\"progress\":\"0.4\"}",
            "@progress {\"percent\":40}",
            "@progress {\"progress\":1",
            "@progress {\"message\":\"half\"}",
            "@progress {\"progress\":1,\"message\":1}",
            " @progress 1",
            "x@progress 1",
        ] {
            let (kept, reported) = taken(format!("{line}\n").as_bytes(), 5);
            assert_eq!((kept, reported), (format!("{line}\n"), vec![]));
        }
    }

    #[test]
    fn a_line_that_is_too_long_for_progress_is_not_held_back() {
        let (sender, _receiver) = watch::channel(None);
        let mut diagnostics = StderrReader::new(sender, LineSink::default());
        for _ in 0..100 {
            diagnostics.push_chunk(b"@progress ");
            diagnostics.push_chunk(&[b'0'; 1000]);
            assert!(diagnostics.line.len() <= MAX_PROGRESS_LINE_BYTES);
        }
        assert!(diagnostics.tail.len() > MAX_PROGRESS_LINE_BYTES);
    }

    #[test]
    fn the_end_is_kept_and_begins_with_a_whole_character() {
        let long: String = "半".repeat(MAX_STDERR_BYTES);
        for piece_bytes in [1000, 1 << 20] {
            let (kept, _) = taken(long.as_bytes(), piece_bytes);
            assert_eq!(kept.len(), MAX_STDERR_BYTES - MAX_STDERR_BYTES % 3);
            assert!(kept.chars().all(|character| character == '半'));
        }
    }
}
