//! Where a command writes: results on standard output, notes and problems on standard error.
//!
//! Nothing that came from elsewhere reaches a terminal with control characters in it. On a pipe `--json` is the answer byte
//! for byte; on a terminal hidden characters in it are written as JSON's own escapes, which mean the same.

use std::io::{self, IsTerminal, Write};

use common::text;

use crate::failure::CliResult;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    has_colors: bool,
    /// Columns, if somebody looks at them.
    pub(crate) width: Option<usize>,
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    Good,
    Bad,
    Busy,
    Faint,
}

impl Color {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Busy => "33",
            Self::Faint => "2",
        }
    }

    /// The colour of a state of a job, queue, worker or subscription.
    pub(crate) fn of_state(state: &str) -> Option<Self> {
        match state {
            "completed" | "running" | "ok" | "enabled" => Some(Self::Good),
            "discarded" | "failed" | "disabled" | "terminating" | "stale" | "error" => Some(Self::Bad),
            "active" | "retryable" | "paused" | "draining" | "quiet" | "warning" => Some(Self::Busy),
            "cancelled" => Some(Self::Faint),
            _ => None,
        }
    }
}

impl Terminal {
    /// As on a terminal of that width, or on none: without colours.
    #[cfg(test)]
    pub(crate) fn of_width(width: Option<usize>) -> Self {
        Self { json: false, quiet: false, has_colors: false, width }
    }

    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = is_terminal.then(|| crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns)));
        Self {
            json,
            quiet,
            has_colors: is_terminal && !is_set("NO_COLOR") && !is_dumb,
            width: width.map(|w| w.max(20)),
        }
    }

    /// Whether progress is worth drawing.
    pub(crate) fn has_progress(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// One line of the result.
    #[expect(clippy::unused_self, reason = "results go through the terminal, like everything else")]
    pub(crate) fn line(self, line: &str) -> CliResult {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// JSON as it came.
    pub(crate) fn json_bytes(self, json: &[u8]) -> CliResult {
        let mut out = io::stdout().lock();
        match (self.width, std::str::from_utf8(json)) {
            (Some(_), Ok(json)) => out.write_all(text::json_without_hidden(json).as_bytes())?,
            _ => out.write_all(json)?,
        }
        if !json.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// What is good to know beside the result. On standard error, so that it is in nobody's way.
    pub(crate) fn note(self, note: &str) {
        if !self.quiet {
            // Who closed standard error does not want it
            let _ = writeln!(io::stderr(), "{note}");
        }
    }

    pub(crate) fn paint(self, text: &str, color: Option<Color>) -> String {
        match color {
            Some(color) if self.has_colors => format!("\u{1b}[{}m{text}\u{1b}[0m", color.code()),
            _ => text.to_owned(),
        }
    }
}
