//! A process of redis-server that a test started.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

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

/// The program of the server.
pub(crate) fn redis_command() -> Command {
    Command::new(std::env::var_os("GALLEY_TEST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into()))
}

/// Starts it and waits until it answers on the port. None if it ends, as when somebody else has the port.
pub(crate) fn spawn_until_it_answers(mut command: Command, port: u16) -> Option<RedisProcess> {
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let process = process.unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!("{program} cannot be started ({error}): install redis-server, or run the tests with `make test`")
    });
    let mut process = RedisProcess::new(process);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if answers_ping(port) {
            return Some(process);
        }
        if process.has_ended() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Whether it answers a PING with a PONG, or asks who that is: while it reads its data it answers otherwise.
fn answers_ping(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut answer = [0; 7];
    stream.write_all(b"PING\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && (&answer == b"+PONG\r\n" || &answer == b"-NOAUTH")
}
