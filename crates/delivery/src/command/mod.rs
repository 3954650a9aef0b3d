//! Doing work with a program: a job or a message on its standard input, the result of a job on its standard output,
//! `docs/commands.md` for those who write one.
//!
//! What always holds: no shell is involved; nothing that the program does or leaves undone keeps an attempt from ending
//! or takes the worker along; when [`Program::run`] has returned, or its future was dropped, the program's process group
//! has been killed and the program reaped. What is kept of its output is bounded, and it is read to the end however long.
//!
//! | module | what it is |
//! |---|---|
//! | `settings` | what files say of a program |
//! | `timed` | a program of a file, within its time; [`Program`] alone runs until `stop` is cancelled |
//! | `commands` | the file of those that subscriptions name |
//! | `group`, [`launch`] | starting one, with limits, in a process group |
//! | `pipes`, `stderr`, `outcome` | what it reads and says, and what its end means |
//!
//! Not here: which work is done by which program, and what is recorded.

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
    stderr::{CommandProgress, MAX_STDERR_BYTES},
    timed::Command,
};
use self::{group::ProcessGroup, launch::ProcessLimits, pipes::StdoutBuffer, stderr::StderrReader};

/// What a program may see of the worker's own environment without being named: the rest may hold secrets.
const PASSED_VARIABLES: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// After the program's end: time for what it left behind to finish writing, or to go on holding the pipes in vain.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// After SIGKILL a process ends at once unless the kernel is stuck with it, and nobody waits for that.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// "Try again", `EX_TEMPFAIL` of sysexits.h.
pub const TRY_AGAIN_EXIT_CODE: i32 = 75;

/// A program as a configuration file describes it.
#[derive(Debug, Clone)]
pub struct ProgramSettings {
    /// A path, or a name that is looked for in `PATH`. A relative path starts at `directory`.
    pub program: String,
    /// Its arguments, as they are.
    pub args: Vec<String>,
    /// Variables for it. Those that the worker gives with the work win.
    pub env: BTreeMap<String, String>,
    /// The names of variables of the worker that it may see besides `PATH` and its like.
    pub pass_env: Vec<String>,
    /// Where it runs; the worker's own if there is none.
    pub directory: Option<PathBuf>,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// What becomes of what it writes.
    pub output: StandardOutput,
    /// The longest result.
    pub output_limit_bytes: usize,
    /// Address space of each of its processes.
    pub memory_limit_bytes: Option<u64>,
    /// Processor time of each of its processes, rounded up to whole seconds.
    pub cpu_limit: Option<Duration>,
    /// Exit codes after which no other attempt follows.
    pub not_retryable_exit_codes: Vec<i32>,
    /// A binary whose `main` calls [`launch::intercept`]; this process's own if there is none.
    pub launcher: Option<PathBuf>,
}

impl ProgramSettings {
    /// A program with the defaults for everything else.
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

/// What becomes of a program's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandardOutput {
    /// It is the result: JSON, or nothing.
    Result,
    /// Nobody reads it.
    Discarded,
}

/// A program whose settings can be used.
#[derive(Debug)]
pub struct Program(ProgramSettings);

/// One piece of work for a program.
#[derive(Debug)]
pub struct ProgramInput {
    /// What it reads.
    pub stdin: Vec<u8>,
    /// Variables that tell it about the work.
    pub env: Vec<(&'static str, String)>,
    /// Cancelled when it has to stop, for whatever reason.
    pub stop: CancellationToken,
    /// How far it is. Only the latest counts, so a program that reports often waits for nobody.
    pub progress: watch::Sender<Option<CommandProgress>>,
}

/// Why a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExitCause {
    Exited,
    OutputTooLarge,
    Stopped,
}

impl Program {
    /// Checks the settings. Whether there is such a program shows when it is started: it may come later.
    ///
    /// # Errors
    /// A setting that can never work, by its name.
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

    /// Starts the program and sees to its end, whichever way it comes.
    pub async fn run(&self, input: ProgramInput) -> CommandOutcome {
        let ProgramInput { stdin, env, stop, progress } = input;
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
        let mut diagnostics = StderrReader::new(progress);
        let too_large = CancellationToken::new();
        let cause = {
            let feeding = pin!(pipes::write_stdin(pipes.stdin, stdin).fuse());
            let reading = async {
                tokio::join!(output.read(pipes.stdout, &too_large), diagnostics.read(pipes.stderr));
            };
            let reading = pin!(reading.fuse());
            drive_pipes(self.wait_for_exit(&mut group, &stop, &too_large), feeding, reading).await
        };
        // Whatever the program left in its group goes before the number of the group can be anybody else's
        let status = group.kill_and_reap();
        self.classify_exit(cause, status, output, &diagnostics.finish(), &token)
    }

    /// Waits for the program's end, and brings it about when something asks for it.
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
                tracing::error!(program = self.0.program, "a program survives SIGKILL, it is left alone");
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

/// Keeps the pipes going until the program has ended, and for a moment after that if somebody else holds them.
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
        tracing::debug!("a program has ended, but its output is held open by something that it started");
    }
    cause
}
