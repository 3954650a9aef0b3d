//! One of Galley's own processes, as users run it: a test knows its environment, its ports and its log. Tests find log
//! lines by `event` (docs/reference/log-events.md), never by their English text.

use std::{
    fmt,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use crate::{RedisServer, TEST_TIMEOUT, eventually};

/// Settings of a service whose Redis, if it does not answer for seconds, is on a slow machine: only behind a proxy or
/// sentinels it may be gone.
pub const PATIENCE: [(&str, &str); 2] =
    [("GALLEY__REDIS__CONNECT_TIMEOUT_MS", "20000"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "20000")];

/// A running process.
pub struct ServiceProcess {
    name: &'static str,
    process: Child,
    log_lines: Arc<Mutex<Vec<String>>>,
    log_reader: JoinHandle<()>,
    address: SocketAddr,
}

/// Where a binary of the workspace is: in the folder `GALLEY_TEST_BINARIES`, or beside the calling test or program.
/// With the variable set, new tests run against the programs of another build, such as an older one.
///
/// # Panics
/// It has not been built: `make test` does that.
#[must_use]
pub fn binary_path(name: &str) -> PathBuf {
    let folder = std::env::var_os("GALLEY_TEST_BINARIES").map_or_else(own_binaries, PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: build it, or run the tests with `make test`", path.display());
    path
}

/// `target/<profile>`, of `target/<profile>/<program>` or `target/<profile>/deps/<test>`.
fn own_binaries() -> PathBuf {
    let own = std::env::current_exe().expect("a program has a path");
    let folder = own.parent().expect("a program is in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("target/<profile>") } else { folder };
    folder.to_owned()
}

impl ServiceProcess {
    /// Starts a binary with a Redis and a free port, and waits until it listens.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(name: &'static str, redis: &RedisServer, variables: &[(&str, &str)]) -> Self {
        Self::start_without_waiting(name, redis, variables).wait_until_listening().await
    }

    /// The same with a Redis URL, and the timeouts of Redis that users have.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_with_redis_url(name: &'static str, redis_url: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, &settings_section(name), redis_url, variables).wait_until_listening().await
    }

    /// The same, which does not listen yet: see [`ServiceProcess::wait_until_listening`].
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn spawn_with_redis_url(name: &'static str, redis_url: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, &settings_section(name), redis_url, variables)
    }

    /// The same for a queue-worker with custom handlers, whose binary has another name.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_worker(name: &'static str, redis: &RedisServer, variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, "QUEUE_WORKER", &redis.url(), &patient(variables)).wait_until_listening().await
    }

    /// The same with a Redis URL, and the timeouts of Redis that users have.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_worker_with_redis_url(name: &'static str, redis_url: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, "QUEUE_WORKER", redis_url, variables).wait_until_listening().await
    }

    /// Starts a binary, which does not listen yet: see [`ServiceProcess::wait_until_listening`].
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_without_waiting(name: &'static str, redis: &RedisServer, variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, &settings_section(name), &redis.url(), &patient(variables))
    }

    /// Waits until it listens.
    ///
    /// # Panics
    /// It does not in time.
    pub async fn wait_until_listening(mut self) -> Self {
        self.address = eventually(&format!("{} listens", self.name), || async {
            let line = self
                .log_entries()
                .into_iter()
                .find(|line| line["event"].as_str().is_some_and(|event| event.ends_with(".listening")))?;
            line["address"].as_str()?.parse().ok()
        })
        .await;
        self
    }

    /// Starts a service from the programs in a folder: those of another version.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_from(
        folder: &Path,
        name: &'static str,
        redis: &RedisServer,
        variables: &[(&str, &str)],
    ) -> Self {
        let program = folder.join(name);
        let process = Self::spawn_program(&program, name, &settings_section(name), &redis.url(), &patient(variables));
        process.wait_until_listening().await
    }

    fn spawn(name: &'static str, section: &str, redis_url: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn_program(&binary_path(name), name, section, redis_url, variables)
    }

    fn spawn_program(
        program: &Path,
        name: &'static str,
        section: &str,
        redis_url: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(program);
        command.env("GALLEY__REDIS__URL", redis_url).env(format!("GALLEY__{section}__LISTEN"), "127.0.0.1:0");
        command.env("GALLEY__LOG__FORMAT", "json").env("GALLEY__QUEUE_WORKER__DEMO_HANDLERS", "true");
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().expect("a binary of ours starts");
        let log_lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let output = process.stdout.take().expect("stdout is piped");
        let kept = log_lines.clone();
        let log_reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { name, process, log_lines, log_reader, address: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    /// `http://127.0.0.1:<port><path>`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Its log lines so far, as JSON.
    #[must_use]
    pub fn log_entries(&self) -> Vec<Value> {
        let lines = self.log_lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter_map(|line| serde_json::from_str::<LogLine>(line).ok()).map(|LogLine(line)| line).collect()
    }

    /// Its log so far, as it was written.
    #[must_use]
    pub fn raw_log(&self) -> String {
        self.log_lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// The log lines of an event so far.
    #[must_use]
    pub fn events(&self, event: &str) -> Vec<Value> {
        self.log_entries().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// Waits for an event and returns its first log line.
    ///
    /// # Panics
    /// It does not come in time.
    pub async fn wait_for_event(&self, event: &str) -> Value {
        let what = format!("{} logs {event}", self.name);
        eventually(&what, || async { self.events(event).into_iter().next() }).await
    }

    /// The tasks that it has logged so far as `Task get <task>`, which is what the original demo's consumers print.
    #[must_use]
    pub fn tasks(&self) -> Vec<String> {
        let messages = self.log_entries();
        messages
            .iter()
            .filter_map(|line| Some(line["message"].as_str()?.strip_prefix("Task get ")?.to_owned()))
            .collect()
    }

    /// Waits until it has logged `Task get <task>`.
    ///
    /// # Panics
    /// It does not come in time.
    pub async fn wait_for_task(&self, task: &str) {
        let what = format!("{} gets {task:?}", self.name);
        eventually(&what, || async { self.tasks().iter().any(|got| got == task).then_some(()) }).await;
    }

    /// The bodies that `log` targets of subscriptions have written so far.
    #[must_use]
    pub fn logged_bodies(&self) -> Vec<String> {
        let lines = self.events("message.logged");
        lines.iter().filter_map(|line| Some(line["message"].as_str()?.strip_prefix("message ")?.to_owned())).collect()
    }

    /// Waits until a `log` target has written a body.
    ///
    /// # Panics
    /// It does not in time.
    pub async fn wait_for_logged_body(&self, body: &str) {
        let what = format!("{} logs the message {body:?}", self.name);
        eventually(&what, || async { self.logged_bodies().iter().any(|logged| logged == body).then_some(()) }).await;
    }

    /// Waits until `/health/ready` says that every part works.
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn wait_until_ready(&self) -> &Self {
        let url = self.url("/health/ready");
        eventually(&format!("{} is ready", self.name), || async {
            let answer: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            (answer["status"] == "ok").then_some(())
        })
        .await;
        self
    }

    /// Sends a signal. After SIGSTOP all its threads are stopped when this returns.
    ///
    /// # Panics
    /// It is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).expect("a pid")), signal).expect("a process of ours");
        if signal == Signal::SIGSTOP {
            let deadline = Instant::now() + TEST_TIMEOUT;
            while !self.is_stopped() {
                assert!(Instant::now() < deadline, "{} does not stop", self.name);
                std::thread::yield_now();
            }
        }
    }

    /// True if every thread is stopped: the kernel stops them one after the other.
    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("a process of ours");
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The name before the state may contain any character
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
        })
    }

    /// Kills it without warning, as `kill -9` does.
    ///
    /// # Panics
    /// It is gone.
    pub fn kill(mut self) {
        self.process.kill().expect("a process of ours");
        self.process.wait().expect("a process of ours");
    }

    /// Sends SIGTERM and waits until it exits.
    ///
    /// # Panics
    /// It does not end.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit().await
    }

    /// Waits until it exits and its log is read to the end.
    ///
    /// # Panics
    /// It does not end.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let is_late = Instant::now() >= deadline;
            // A program that it has left behind may keep the log open
            if let Some(status) = self.process.try_wait().expect("a process of ours")
                && (self.log_reader.is_finished() || is_late)
            {
                return status;
            }
            assert!(!is_late, "{} does not end", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// True while it runs.
    ///
    /// # Panics
    /// It cannot be asked.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("a process of ours").is_none()
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let lines = self.log_lines.lock().unwrap_or_else(PoisonError::into_inner);
            let last = lines.len().saturating_sub(40);
            eprintln!("--- last lines of {}:\n{}", self.name, lines[last..].join("\n"));
        }
    }
}

/// A log line whose members are all named once: readers of JSON take the first or the last of two.
struct LogLine(Value);

impl<'de> Deserialize<'de> for LogLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = LogLine;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogLine, A::Error> {
                let mut members = serde_json::Map::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    let earlier = members.insert(name.clone(), value);
                    assert!(earlier.is_none(), "a log line has two members {name}: {members:?}");
                }
                Ok(LogLine(Value::Object(members)))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The variables of a service that waits long for Redis, unless they say otherwise.
fn patient<'a>(variables: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    PATIENCE.iter().chain(variables).copied().collect()
}

/// The section of the settings that a service reads.
fn settings_section(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}
