//! Runs a program: a job or a message on standard input, a job's result on standard output. `docs/commands.md` is for
//! authors of programs.
//!
//! Invariants: no shell is involved. No program can keep an attempt from ending, or end the worker. When
//! [`Program::run`] has returned, or its future was dropped, the program's process group is killed and the program
//! reaped. The stored part of its output is bounded, and all of it is read.
//!
//! | module | what it does |
//! |---|---|
//! | `settings` | the settings of a program in a file |
//! | `timed` | a configured program with its time limit; [`Program`] alone runs until `stop` is cancelled |
//! | `commands` | the commands file for subscriptions |
//! | `group`, [`launch`] | start a program with limits in a process group |
//! | `pipes`, `stderr`, `outcome` | its input and output, and what its exit means |
//!
//! Not here: which work a program does, and how its outcome is recorded.

mod commands;
mod group;
pub mod launch;
mod outcome;
mod pipes;
mod settings;
mod stderr;
mod timed;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::{Pin, pin},
    process::{self, Stdio},
    time::Duration,
};

use anyhow::ensure;
use futures_util::{FutureExt, future::FusedFuture};
use nix::sys::signal::Signal;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

pub use self::{
    commands::Commands,
    outcome::{CommandFailure, CommandOutcome, code},
    settings::{CommandSettings, CommandSpec},
    stderr::{CommandProgress, LineSink, MAX_STDERR_BYTES},
    timed::Command,
};
use self::{group::ProcessGroup, launch::ProcessLimits, pipes::StdoutBuffer, stderr::StderrReader};

/// Variables of the worker's environment that every program gets: the others may hold secrets.
const PASSED_VARIABLES: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// After the exit: time for remaining processes to finish writing, or to hold the pipes in vain.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// After SIGKILL a process exits at once unless the kernel blocks it; after this time nobody waits for it.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// "Try again", `EX_TEMPFAIL` of sysexits.h.
pub const TRY_AGAIN_EXIT_CODE: i32 = 75;

/// The settings of a program.
#[derive(Debug, Clone)]
pub struct ProgramSettings {
    /// A path, or a name that is searched in `PATH`. A relative path starts at `directory`.
    pub program: String,
    /// Its arguments, unchanged.
    pub args: Vec<String>,
    /// Its environment variables. The worker's variables about the work override them.
    pub env: BTreeMap<String, String>,
    /// Variables of the worker that it gets besides `PATH` and the like.
    pub pass_env: Vec<String>,
    /// Its working directory; the worker's own by default.
    pub directory: Option<PathBuf>,
    /// Time from SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// What happens to its standard output.
    pub output: StandardOutput,
    /// Maximum size of its result in bytes.
    pub output_limit_bytes: usize,
    /// Maximum address space of each of its processes in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Maximum processor time of each of its processes, rounded up to whole seconds.
    pub cpu_limit: Option<Duration>,
    /// Exit codes after which no attempt follows.
    pub not_retryable_exit_codes: Vec<i32>,
    /// A binary whose `main` calls [`launch::intercept`]; this process's own by default.
    pub launcher: Option<PathBuf>,
}

impl ProgramSettings {
    /// A program with default settings.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            directory: None,
            stop_grace: Duration::from_secs(5),
            output: StandardOutput::Result,
            output_limit_bytes: 1 << 20,
            memory_limit_bytes: None,
            cpu_limit: None,
            not_retryable_exit_codes: Vec::new(),
            launcher: None,
        }
    }
}

/// What happens to a program's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandardOutput {
    /// It is the result: JSON, or nothing.
    Result,
    /// It is discarded.
    Discarded,
}

/// A program with valid settings.
#[derive(Debug)]
pub struct Program(ProgramSettings);

/// The input of one run.
#[derive(Debug)]
pub struct ProgramInput {
    /// Its standard input.
    pub stdin: Vec<u8>,
    /// Variables about the work.
    pub env: Vec<(&'static str, String)>,
    /// Cancelled when it must stop, for whatever reason.
    pub stop: CancellationToken,
    /// Receives its progress. Only the latest counts, so frequent reports block nothing.
    pub progress: watch::Sender<Option<CommandProgress>>,
    /// Receives the lines of its standard error.
    pub lines: LineSink,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExitCause {
    Exited,
    OutputTooLarge,
    Stopped,
}

impl Program {
    /// Validates the settings. Whether the program exists is checked when it starts, because it may be installed
    /// later.
    ///
    /// # Errors
    /// A setting that can never work, by name.
    pub fn new(settings: ProgramSettings) -> anyhow::Result<Self> {
        ensure!(!settings.program.is_empty(), "program: a path or a name is required");
        let texts = settings.args.iter().chain(settings.env.values()).chain([&settings.program]);
        ensure!(!texts.into_iter().any(|text| text.contains('\0')), "program, args and env cannot contain NUL");
        for name in settings.env.keys().chain(&settings.pass_env) {
            let is_name = !name.is_empty() && !name.contains(['=', '\0']);
            ensure!(is_name, "env and pass_env: names are not empty and have neither = nor NUL, unlike {name:?}");
        }
        ensure!(settings.output_limit_bytes > 0, "output_limit_bytes: at least 1");
        ensure!(settings.memory_limit_bytes != Some(0), "memory_limit_bytes: at least 1");
        ensure!(settings.cpu_limit != Some(Duration::ZERO), "cpu_limit: more than nothing");
        for code in &settings.not_retryable_exit_codes {
            let is_failure = (1..=255).contains(code) && *code != TRY_AGAIN_EXIT_CODE;
            ensure!(is_failure, "not_retryable_exit_codes: from 1 to 255 and not 75, which means try again: {code}");
        }
        Ok(Self(settings))
    }

    /// Starts the program and waits for its end, whatever that is.
    pub async fn run(&self, input: ProgramInput) -> CommandOutcome {
        let ProgramInput { stdin, env, stop, progress, lines } = input;
        let token = launch::LaunchToken::random();
        let command = match self.launcher_command(&env, &token) {
            Ok(command) => command,
            Err(message) => return CommandOutcome::not_started(message),
        };
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => return CommandOutcome::Stopped { stderr: String::new() },
            started = ProcessGroup::start(command) => started,
        };
        let (mut group, pipes) = match started {
            Ok(started) => started,
            Err(error) => return CommandOutcome::not_started(format!("the worker cannot start a process: {error}")),
        };
        let mut output = StdoutBuffer::new(self.0.output_limit_bytes);
        let mut diagnostics = StderrReader::new(progress, lines);
        let too_large = CancellationToken::new();
        let cause = {
            let feeding = pin!(pipes::write_stdin(pipes.stdin, stdin).fuse());
            let reading = async {
                tokio::join!(output.read(pipes.stdout, &too_large), diagnostics.read(pipes.stderr));
            };
            let reading = pin!(reading.fuse());
            drive_pipes(self.wait_for_exit(&mut group, &stop, &too_large), feeding, reading).await
        };
        // Kill the rest of the group before its id can be reused
        let status = group.kill_and_reap();
        self.classify_exit(cause, status, output, &diagnostics.finish(), &token)
    }

    /// Waits for the program's exit, or stops it when something asks for that.
    async fn wait_for_exit(
        &self,
        group: &mut ProcessGroup,
        stop: &CancellationToken,
        too_large: &CancellationToken,
    ) -> ExitCause {
        let cause = tokio::select! {
            biased;
            () = group.wait_for_exit() => return ExitCause::Exited,
            () = too_large.cancelled() => ExitCause::OutputTooLarge,
            () = stop.cancelled() => ExitCause::Stopped,
        };
        group.signal(Signal::SIGTERM);
        if timeout(self.0.stop_grace, group.wait_for_exit()).await.is_err() {
            group.signal(Signal::SIGKILL);
            if timeout(KILL_TIMEOUT, group.wait_for_exit()).await.is_err() {
                tracing::error!(program = self.0.program, "a program survived SIGKILL and is abandoned");
            }
        }
        cause
    }

    /// The launcher's command line, which becomes the program.
    fn launcher_command(
        &self,
        env: &[(&'static str, String)],
        token: &launch::LaunchToken,
    ) -> Result<process::Command, String> {
        let settings = &self.0;
        let launcher = match &settings.launcher {
            Some(launcher) => launcher.clone(),
            None => launch::own_binary()?,
        };
        let mut command = process::Command::new(launcher);
        let limits = ProcessLimits { memory_bytes: settings.memory_limit_bytes, cpu: settings.cpu_limit };
        launch::write_command_line(
            &mut command,
            token,
            limits,
            settings.directory.as_deref(),
            &settings.program,
            &settings.args,
        );
        command.env_clear();
        let passed = PASSED_VARIABLES.into_iter().chain(settings.pass_env.iter().map(String::as_str));
        command.envs(passed.filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(&settings.env).envs(env.iter().map(|(name, value)| (name, value)));
        let stdout = match settings.output {
            StandardOutput::Result => Stdio::piped(),
            StandardOutput::Discarded => Stdio::null(),
        };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        Ok(command)
    }
}

/// Drives the pipes until the program has exited, and a moment longer if another process holds them.
async fn drive_pipes<F, R>(
    ended: impl Future<Output = ExitCause>,
    mut feeding: Pin<&mut F>,
    mut reading: Pin<&mut R>,
) -> ExitCause
where
    F: FusedFuture<Output = ()>,
    R: FusedFuture<Output = ()>,
{
    let mut ended = pin!(ended);
    let cause = loop {
        tokio::select! {
            biased;
            cause = &mut ended => break cause,
            () = &mut reading, if !reading.is_terminated() => {}
            () = &mut feeding, if !feeding.is_terminated() => {}
        }
    };
    if !reading.is_terminated() && timeout(PIPE_DRAIN_TIMEOUT, reading).await.is_err() {
        tracing::debug!("a program has exited, but a process that it started holds its output open");
    }
    cause
}
