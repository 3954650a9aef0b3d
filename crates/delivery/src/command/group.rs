//! The process group of a program, which is its leader: starts, signals, kills and reaps it.
//!
//! The leader is reaped last. Until then no other process can get its id, which is also the group's, so that a signal
//! cannot hit a stranger.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    sync::OnceLock,
    thread,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{ChildStderr, ChildStdin, ChildStdout},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// Maximum number of starts that wait for the starter thread.
const MAX_PENDING_STARTS: usize = 64;

/// A process group that is killed on drop.
pub(super) struct ProcessGroup {
    leader: GroupLeader,
    child_ended: tokio::signal::unix::Signal,
}

/// The worker's ends of the pipes.
pub(super) struct ProgramPipes {
    pub(super) stdin: ChildStdin,
    /// None if stdout is not a pipe.
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: ChildStderr,
}

impl ProcessGroup {
    /// Starts a command in a new process group, with pipes for stdin and stderr, and for stdout if the command asks
    /// for it.
    pub(super) async fn start(mut command: Command) -> io::Result<(Self, ProgramPipes)> {
        command.process_group(0);
        // Registered before the process exists, so that its exit cannot be missed
        let child_ended = signal(SignalKind::child())?;
        let (reply, started) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts programs is gone");
        starter_thread().send(StartRequest { command, reply }).await.map_err(|_| gone())?;
        let mut leader = started.await.map_err(|_| gone())??;
        let pipes = leader.take_pipes()?;
        Ok((Self { leader, child_ended }, pipes))
    }

    /// Waits until the program has exited, without reaping it.
    pub(super) async fn wait_for_exit(&mut self) {
        while !self.leader.has_ended() {
            if self.child_ended.recv().await.is_none() {
                // Only when the runtime shuts down, and this future with it
                return std::future::pending().await;
            }
        }
    }

    /// Signals the whole group.
    pub(super) fn signal(&self, signal: Signal) {
        self.leader.signal(signal);
    }

    /// Kills the rest of the group and reaps the leader; none if the leader survives.
    pub(super) fn kill_and_reap(mut self) -> Option<ExitStatus> {
        self.leader.kill_and_reap()
    }
}

/// The program itself. Its process id is reserved until it is reaped.
struct GroupLeader {
    id: Pid,
    /// None once it is reaped.
    child: Option<Child>,
}

impl GroupLeader {
    fn new(child: Child) -> Self {
        Self { id: Pid::from_raw(child.id().cast_signed()), child: Some(child) }
    }

    fn take_pipes(&mut self) -> io::Result<ProgramPipes> {
        let streams = self.child.as_mut().map(|child| (child.stdin.take(), child.stdout.take(), child.stderr.take()));
        let Some((Some(stdin), stdout, Some(stderr))) = streams else {
            return Err(io::Error::other("stdin and stderr have to be pipes"));
        };
        Ok(ProgramPipes {
            stdin: ChildStdin::from_std(stdin)?,
            stdout: stdout.map(ChildStdout::from_std).transpose()?,
            stderr: ChildStderr::from_std(stderr)?,
        })
    }

    #[cfg(target_os = "linux")]
    fn has_ended(&mut self) -> bool {
        use nix::{
            errno::Errno,
            sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
        };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        // EINVAL also means it exited: by a real-time signal, which nix cannot name
        !matches!(waitid(Id::Pid(self.id), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    /// Other systems cannot check a child without reaping it: its id may be reused before the group is killed.
    #[cfg(not(target_os = "linux"))]
    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        if self.child.is_none() {
            return;
        }
        // EPERM: all members changed their user, and cannot be signalled
        if let Err(error) = killpg(self.id, signal) {
            tracing::debug!(%error, %signal, "no process of the group gets the signal");
        }
    }

    /// Kills the group, and reaps the leader if it has exited.
    fn kill_and_reap(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let child = self.child.as_mut()?;
        // The leader may have left its group
        let _ = child.kill();
        let status = child.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }
}

impl Drop for GroupLeader {
    fn drop(&mut self) {
        self.kill_and_reap();
        // It exits soon. A thread can wait for that even when the runtime shuts down; without a thread the process
        // stays a zombie until the worker exits
        if let Some(mut child) = self.child.take() {
            let _ = thread::Builder::new().name("reap-program".to_owned()).spawn(move || child.wait());
        }
    }
}

/// A command to start, and the reply channel.
struct StartRequest {
    command: Command,
    reply: oneshot::Sender<io::Result<GroupLeader>>,
}

/// The thread that starts all programs. Linux signals a parent's death when the parent *thread* exits, and threads of
/// a runtime come and go (`block_in_place`, short-lived runtimes); this thread exits with the process. Besides, a
/// start blocks until the new process has called exec.
fn starter_thread() -> &'static mpsc::Sender<StartRequest> {
    static STARTER: OnceLock<mpsc::Sender<StartRequest>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, mut starts) = mpsc::channel::<StartRequest>(MAX_PENDING_STARTS);
        let run = move || {
            while let Some(StartRequest { mut command, reply }) = starts.blocking_recv() {
                if reply.is_closed() {
                    continue;
                }
                let leader = command.spawn().map(GroupLeader::new);
                // If the receiver is gone, the leader comes back, and its drop kills it
                let _ = reply.send(leader);
            }
        };
        // Without the thread the channel is closed, and every start fails with that error
        if let Err(error) = thread::Builder::new().name("start-programs".to_owned()).spawn(run) {
            tracing::error!(%error, "cannot start the thread that starts programs");
        }
        sender
    })
}
