//! The processes: their lines in one stream, each with its name, and their end.
//!
//! Each one leads a process group of its own: Ctrl-C reaches only this program, which stops them in order.

use std::{
    io::Write,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    failure::{CliError, CliResult},
    terminal::{Color, Terminal},
};

/// The longest stop of a program: the longest of their own graces and what follows.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// How long lines of a program may come after its end, from something it left behind.
const LAST_LINES: Duration = Duration::from_secs(2);
/// A longer line is shown in parts.
const MAX_LINE_BYTES: u64 = 64 << 10;
const NAME_WIDTH: usize = 13;

/// Why it is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TreeEnd {
    /// A signal asks.
    Asked,
    /// A program has ended.
    Exited { name: &'static str, how: String },
}

/// Ends of programs, and signals.
pub(super) struct TreeEnds {
    ended: mpsc::Receiver<TreeEnd>,
    asked: mpsc::Receiver<()>,
}

impl TreeEnds {
    pub(super) async fn next(&mut self) -> TreeEnd {
        tokio::select! {
            biased;
            Some(()) = self.asked.recv() => TreeEnd::Asked,
            Some(end) = self.ended.recv() => end,
            else => TreeEnd::Asked,
        }
    }
}

pub(super) struct ProcessTree {
    processes: Vec<DevProcess>,
    terminal: Terminal,
    ended: mpsc::Sender<TreeEnd>,
}

struct DevProcess {
    name: &'static str,
    group: Pid,
    status: watch::Receiver<Option<ExitStatus>>,
    lines: Vec<JoinHandle<()>>,
}

impl ProcessTree {
    pub(super) fn new(terminal: Terminal) -> CliResult<(Self, TreeEnds)> {
        let (sender, asked) = mpsc::channel(8);
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let (mut signals, sender) = (signal(kind)?, sender.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // A full buffer has enough of them
                    let _ = sender.try_send(());
                }
            });
        }
        let (ended, ends) = mpsc::channel(8);
        Ok((Self { processes: Vec::new(), terminal, ended }, TreeEnds { ended: ends, asked }))
    }

    pub(super) fn start(&mut self, name: &'static str, command: &mut Command) -> CliResult {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let process = command.spawn();
        let mut process = process.map_err(|error| CliError::failed(format!("{name} cannot be started: {error}")))?;
        let id = process.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        let lines = [
            process.stdout.take().map(|output| tokio::spawn(pass_on(name, output, self.terminal))),
            process.stderr.take().map(|output| tokio::spawn(pass_on(name, output, self.terminal))),
        ];
        let (sender, status) = watch::channel(None);
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let waited = process.wait().await;
            let how = match &waited {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            sender.send_replace(Some(waited.unwrap_or_default()));
            let _ = ended.send(TreeEnd::Exited { name, how }).await;
        });
        let lines = lines.into_iter().flatten().collect();
        self.processes.push(DevProcess { name, group: Pid::from_raw(id), status, lines });
        Ok(())
    }

    /// Stops all, the last first, and waits for their last lines. A second signal kills what is left.
    pub(super) async fn stop(mut self, ends: &mut TreeEnds, dead: Option<&'static str>) {
        let killed = {
            let stopping = async {
                for process in self.processes.iter_mut().rev().filter(|process| Some(process.name) != dead) {
                    process.signal(Signal::SIGTERM);
                    let _ = tokio::time::timeout(STOP_TIMEOUT, process.ended()).await;
                }
            };
            tokio::select! {
                () = stopping => false,
                _ = ends.asked.recv() => true,
            }
        };
        for process in &mut self.processes {
            // Also what a program left behind
            process.signal(Signal::SIGKILL);
            process.ended().await;
            for lines in &mut process.lines {
                let _ = tokio::time::timeout(LAST_LINES, lines).await;
            }
        }
        if killed {
            self.terminal.note("killed");
        }
    }
}

impl DevProcess {
    fn signal(&self, signal: Signal) {
        // 0 would be this program's own group
        if self.group.as_raw() > 0 {
            let _ = killpg(self.group, signal);
        }
    }

    async fn ended(&mut self) {
        let _ = self.status.wait_for(Option::is_some).await;
    }
}

/// Writes the lines of a program with its name before each.
async fn pass_on(name: &'static str, output: impl AsyncRead + Unpin, terminal: Terminal) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = tokio::io::AsyncReadExt::take(&mut reader, MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if terminal.quiet {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let head = terminal.paint(&format!("{name:<NAME_WIDTH$} |"), Some(Color::Faint));
        let shown = format!("{head} {}\n", text.trim_end_matches(['\r', '\n']));
        // The reader may be gone; the programs go on
        let _ = if terminal.json {
            std::io::stderr().lock().write_all(shown.as_bytes())
        } else {
            std::io::stdout().lock().write_all(shown.as_bytes())
        };
    }
}
