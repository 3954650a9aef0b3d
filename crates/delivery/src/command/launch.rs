//! The launcher: the worker's own binary, started with [`LAUNCHER_ARGUMENT`], sets limits on itself and then becomes
//! the program.
//!
//! Between fork and exec the worker could do this only with unsafe code; here it is ordinary code. A program that
//! cannot be started is distinguished from one that exits by itself with a token that only the launcher gets: its
//! error report on stderr starts with that token.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The hidden first argument that makes a worker's binary a launcher.
pub const LAUNCHER_ARGUMENT: &str = "exec-command";
/// The exit code that shells use for a command that cannot run.
const NOT_STARTED_EXIT_CODE: i32 = 127;
/// Stands for an absent number or directory.
const UNSET: &str = "";
/// Seconds from the signal that a program can catch to the one that it cannot.
const CPU_GRACE_SECONDS: rlim_t = 1;

static INTERCEPT_CALLED: AtomicBool = AtomicBool::new(false);

/// Becomes a program if this process was started as a launcher; otherwise returns at once. Call it first in `main`,
/// before there is a runtime: every program starts through here.
pub fn intercept() {
    INTERCEPT_CALLED.store(true, Ordering::Relaxed);
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == LAUNCHER_ARGUMENT) {
        let token = args.next().unwrap_or_default();
        let Err(message) = become_program(args);
        // Not eprintln!, which panics when stderr is closed
        let _ = writeln!(std::io::stderr(), "{}{message}", token.display());
        std::process::exit(NOT_STARTED_EXIT_CODE);
    }
}

/// The prefix of the launcher's error report. A program cannot know it: it is no longer on the command line when the
/// program runs.
pub(super) struct LaunchToken(String);

impl LaunchToken {
    pub(super) fn random() -> Self {
        Self(format!("{:032x} ", rand::random::<u128>()))
    }

    /// Why the program was not started, if the exit is the launcher's.
    pub(super) fn failure_report<'a>(&self, exit_code: i32, stderr: &'a str) -> Option<&'a str> {
        (exit_code == NOT_STARTED_EXIT_CODE).then(|| stderr.strip_prefix(&self.0)).flatten().map(str::trim_end)
    }
}

/// Limits of a process. Its children inherit them, each process for itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessLimits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpu: Option<Duration>,
}

/// This process's binary, if it is known to be a launcher.
pub(super) fn own_binary() -> Result<PathBuf, String> {
    if !INTERCEPT_CALLED.load(Ordering::Relaxed) {
        let needs = "the main function of this binary has to begin with delivery::command::launch::intercept, as \
                     worker::WorkerBuilder::main does";
        return Err(needs.to_owned());
    }
    if cfg!(target_os = "linux") {
        // Still this binary if an update replaced the file
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    std::env::current_exe().map_err(|error| format!("the worker's own binary cannot be found: {error}"))
}

/// Builds the launcher's command line.
pub(super) fn write_command_line(
    command: &mut Command,
    LaunchToken(token): &LaunchToken,
    limits: ProcessLimits,
    directory: Option<&Path>,
    program: &str,
    args: &[String],
) {
    let number = |number: Option<u64>| number.map_or_else(|| UNSET.to_owned(), |number| number.to_string());
    let cpu_seconds = limits.cpu.map(|limit| limit.as_secs() + u64::from(limit.subsec_nanos() > 0));
    command.args([LAUNCHER_ARGUMENT, token, &std::process::id().to_string()]);
    command.args([number(limits.memory_bytes), number(cpu_seconds)]);
    command.arg(directory.map_or(OsStr::new(UNSET), Path::as_os_str)).arg(program).args(args);
}

/// Parses what [`write_command_line`] built, in the new process, and becomes the program.
fn become_program(mut args: impl Iterator<Item = OsString>) -> Result<std::convert::Infallible, String> {
    let mut next = |what: &str| args.next().ok_or_else(|| format!("the launcher was given no {what}"));
    let parent = parse_number(&next("parent")?)?;
    let (memory_bytes, cpu_seconds) = (parse_number(&next("memory limit")?)?, parse_number(&next("cpu limit")?)?);
    let (directory, program) = (next("directory")?, next("program")?);
    if !directory.is_empty() {
        std::env::set_current_dir(&directory)
            .map_err(|error| format!("cannot start in {}: {error}", directory.display()))?;
    }
    die_with_parent(parent)?;
    lower_limit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(seconds) = cpu_seconds {
        lower_limit(Resource::RLIMIT_CPU, seconds, CPU_GRACE_SECONDS)?;
    }
    let mut command = Command::new(&program);
    command.args(args);
    // Last: the launcher itself may need more memory than the program
    if let Some(bytes) = memory_bytes {
        lower_limit(Resource::RLIMIT_AS, bytes, 0)?;
    }
    Err(format!("cannot start {}: {}", program.display(), command.exec()))
}

fn parse_number(text: &OsStr) -> Result<Option<u64>, String> {
    if text == UNSET {
        return Ok(None);
    }
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| format!("the launcher was given {} for a number", text.display()))
}

/// Makes the kernel kill this process when the worker is killed.
fn die_with_parent(parent: Option<u64>) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|error| format!("cannot be tied to the worker: {error}"))?;
    // The worker may have died before that. Then nobody reads this
    let is_child = parent.is_some_and(|parent| u64::from(std::os::unix::process::parent_id()) == parent);
    is_child.then_some(()).ok_or_else(|| "the worker is gone".to_owned())
}

/// Lowers a soft limit to `soft` and its hard limit to that plus `more`. A lower limit stays.
fn lower_limit(resource: Resource, soft: rlim_t, more: rlim_t) -> Result<(), String> {
    let lower = || {
        let (_, hardest) = getrlimit(resource)?;
        let hard = soft.saturating_add(more).min(hardest);
        setrlimit(resource, soft.min(hard), hard)
    };
    lower().map_err(|error| format!("cannot set {resource:?}: {error}"))
}
