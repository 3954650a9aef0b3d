//! A process of redis-server that a test started.

use std::process::Child;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The process. It is killed when it is dropped.
pub(crate) struct RedisProcess(Child);

impl RedisProcess {
    pub(crate) fn new(process: Child) -> Self {
        Self(process)
    }

    /// Kills it without warning.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("redis can be killed");
        self.0.wait().expect("redis ends");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")), signal).expect("redis can be signalled");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a process").is_some()
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
