//! A program's process group, of which the program is the leader: started, signalled, killed and reaped.
//!
//! The leader is reaped last. Until then its number, which is the group's too, belongs to nobody else, so that a signal
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

/// Programs that wait for being started. Each attempt asks for one and waits for it.
const MAX_PENDING_STARTS: usize = 64;

/// A group that is killed when this is dropped.
pub(super) struct ProcessGroup {
    leader: GroupLeader,
    child_ended: tokio::signal::unix::Signal,
}

/// The worker's ends of the pipes.
pub(super) struct ProgramPipes {
    pub(super) stdin: ChildStdin,
    /// None when it is not a pipe.
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: ChildStderr,
}

impl ProcessGroup {
    /// Starts a command, whose streams are pipes but for its output, which may be something else, in a group of its own.
    pub(super) async fn start(mut command: Command) -> io::Result<(Self, ProgramPipes)> {
        command.process_group(0);
        // Heard before there is a process: its end cannot be missed
        let child_ended = signal(SignalKind::child())?;
        let (reply, started) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts programs is gone");
        starter_thread().send(StartRequest { command, reply }).await.map_err(|_| gone())?;
        let mut leader = started.await.map_err(|_| gone())??;
        let pipes = leader.take_pipes()?;
        Ok((Self { leader, child_ended }, pipes))
    }

    /// Waits until the program has ended, without reaping it.
    pub(super) async fn wait_for_exit(&mut self) {
        while !self.leader.has_ended() {
            if self.child_ended.recv().await.is_none() {
                // Only when the runtime goes away, and this future with it
                return std::future::pending().await;
            }
        }
    }

    /// To all of the group.
    pub(super) fn signal(&self, signal: Signal) {
        self.leader.signal(signal);
    }

    /// Kills what is left of the group and reaps the leader; nothing if that does not end.
    pub(super) fn kill_and_reap(mut self) -> Option<ExitStatus> {
        self.leader.kill_and_reap()
    }
}

/// The program itself. As long as it is not reaped its number is its own.
struct GroupLeader {
    id: Pid,
    /// None when it was reaped.
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
        // EINVAL is an end too: by a real-time signal, for which there is no name
        !matches!(waitid(Id::Pid(self.id), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    /// Elsewhere a child cannot be looked at without reaping it: its number may be taken before the group is killed.
    #[cfg(not(target_os = "linux"))]
    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        if self.child.is_none() {
            return;
        }
        // EPERM: all of them have become somebody else, and nothing can be done about that
        if let Err(error) = killpg(self.id, signal) {
            tracing::debug!(%error, %signal, "no process of the group gets the signal");
        }
    }

    /// Kills the group and reaps the leader if it has ended.
    fn kill_and_reap(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let child = self.child.as_mut()?;
        // It may have left its group
        let _ = child.kill();
        let status = child.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }
}

impl Drop for GroupLeader {
    fn drop(&mut self) {
        self.kill_and_reap();
        // It ends in a moment. A thread can wait for that even when the runtime is about to go; if there can be no thread
        // the process stays a zombie until the worker ends
        if let Some(mut child) = self.child.take() {
            let _ = thread::Builder::new().name("reap-program".to_owned()).spawn(move || child.wait());
        }
    }
}

/// A command to be started, and who waits for it.
struct StartRequest {
    command: Command,
    reply: oneshot::Sender<io::Result<GroupLeader>>,
}

/// The thread that starts all programs. Linux tells a program that its parent died when the parent's *thread* ends, and
/// threads of a runtime come and go (`block_in_place`, a runtime that somebody makes for a moment); this one ends with the
/// process. Besides, starting blocks until the new process runs something else.
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
                // If nobody waits any more the leader comes back, and dropping it kills it
                let _ = reply.send(leader);
            }
        };
        // Without the thread the channel is closed, and every start fails saying so
        if let Err(error) = thread::Builder::new().name("start-programs".to_owned()).spawn(run) {
            tracing::error!(%error, "no thread for starting programs");
        }
        sender
    })
}
