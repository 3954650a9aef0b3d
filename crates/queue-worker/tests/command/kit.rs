//! Trials of programs, each marked by a variable that all of its processes inherit, so that none can be left over unseen.

use std::{fs, path::PathBuf, time::Duration};

use e2e::{LIMIT, eventually};
use queue_worker::command::{Ending, Failure, Input, Program, ProgramSettings, Progress};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const MARK: &str = "GALLEY_TEST_MARK";

/// The worker's binary.
pub(crate) fn worker_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_queue-worker"))
}

/// A value that no other process has in its environment.
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// The variable.
    pub(crate) fn variable(&self) -> (&'static str, &str) {
        (MARK, &self.0)
    }

    /// The command lines of all processes that have it.
    pub(crate) fn processes(&self) -> Vec<String> {
        let searched = format!("{MARK}={}", self.0);
        let folders = fs::read_dir("/proc").expect("there is /proc").flatten().map(|entry| entry.path());
        folders
            .filter(|folder| fs::read(folder.join("environ")).is_ok_and(|text| has_variable(&text, &searched)))
            .map(|folder| fs::read(folder.join("cmdline")).unwrap_or_default())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .collect()
    }

    /// Waits until one of the processes has become the program whose command line begins with that.
    pub(crate) async fn runs(&self, beginning: &str) {
        let is_there = || self.processes().iter().any(|line| line.starts_with(beginning));
        eventually(&format!("{beginning:?} runs"), || async { is_there().then_some(()) }).await;
    }

    /// Waits until there is none of them, nor a child of this process that is dead but not reaped.
    pub(crate) async fn nothing_is_left(&self) {
        let what = format!("no process of {MARK}={} is left", self.0);
        eventually(&what, || async { (self.processes().is_empty() && zombies() == 0).then_some(()) }).await;
    }
}

fn has_variable(environment: &[u8], variable: &str) -> bool {
    environment.split(|byte| *byte == 0).any(|text| text == variable.as_bytes())
}

/// Children of this process that nobody has reaped.
fn zombies() -> usize {
    let own = std::process::id().to_string();
    let folders = fs::read_dir("/proc").expect("there is /proc").flatten().map(|entry| entry.path());
    let is_zombie = |stat: &str| {
        // "42 (name) Z 41 ...", and a name may have anything in it
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.next() == Some("Z") && fields.next() == Some(&own)
    };
    folders.filter(|folder| fs::read_to_string(folder.join("stat")).is_ok_and(|stat| is_zombie(&stat))).count()
}

/// A program and what it is given.
pub(crate) struct Trial {
    pub(crate) settings: ProgramSettings,
    pub(crate) mark: Mark,
    pub(crate) stdin: Vec<u8>,
}

/// A program that runs.
pub(crate) struct Running {
    ending: JoinHandle<Ending>,
    mark: Mark,
    pub(crate) stop: CancellationToken,
    pub(crate) progress: watch::Receiver<Option<Progress>>,
}

impl Trial {
    pub(crate) fn new(program: &str, args: &[&str]) -> Self {
        let mut settings = ProgramSettings::new(program);
        settings.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        settings.launcher = Some(worker_binary());
        let mark = Mark::random();
        let (name, value) = mark.variable();
        settings.env.insert(name.to_owned(), value.to_owned());
        Self { settings, mark, stdin: b"{}".to_vec() }
    }

    pub(crate) fn shell(script: &str) -> Self {
        Self::new("/bin/sh", &["-c", script])
    }

    pub(crate) fn python(script: &str) -> Self {
        // What is called python3 may be a shell script that looks for one, and takes its time
        let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        Self::new(&python, &["-c", script])
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut ProgramSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    pub(crate) fn reading(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it without waiting for its end.
    pub(crate) fn start(self) -> Running {
        let (program, input, progress) = self.parts();
        let stop = input.stop.clone();
        let ending = tokio::spawn(async move { program.run(input).await });
        Running { ending, mark: self.mark, stop, progress }
    }

    /// The program and its input.
    pub(crate) fn parts(&self) -> (Program, Input, watch::Receiver<Option<Progress>>) {
        let program = Program::new(self.settings.clone()).expect("settings that can be used");
        let (sender, progress) = watch::channel(None);
        let env = vec![("GALLEY_JOB_ID", "a-job".to_owned())];
        let input = Input { stdin: self.stdin.clone(), env, stop: CancellationToken::new(), progress: sender };
        (program, input, progress)
    }

    /// Runs it to its end, after which nothing is left of it.
    pub(crate) async fn run(self) -> Ending {
        self.start().ended().await
    }

    /// Its result.
    pub(crate) async fn result(self) -> Option<String> {
        match self.run().await {
            Ending::Succeeded(result) => result,
            other => panic!("not a success: {other:?}"),
        }
    }

    /// Its failure.
    pub(crate) async fn failure(self) -> Failure {
        match self.run().await {
            Ending::Failed(failure) => failure,
            other => panic!("not a failure: {other:?}"),
        }
    }
}

impl Running {
    /// Waits until it has reported so much.
    pub(crate) async fn reports(&mut self, percent: f64) -> Progress {
        let has_come = self.progress.wait_for(|told| told.as_ref().is_some_and(|told| told.percent >= percent));
        let told = tokio::time::timeout(LIMIT, has_come).await.expect("it reports in time").expect("it reports");
        told.clone().expect("something was reported")
    }

    /// Waits for its end, after which nothing is left of it.
    pub(crate) async fn ended(self) -> Ending {
        let ending = tokio::time::timeout(LIMIT, self.ending).await.expect("it ends in time").expect("no panic");
        self.mark.nothing_is_left().await;
        ending
    }

    /// Drops it where it is.
    pub(crate) async fn dropped(self) {
        self.ending.abort();
        self.mark.nothing_is_left().await;
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> Vec<String> {
        self.mark.processes()
    }
}

/// Longer than any test takes: a test that waits for it fails.
pub(crate) const NEVER: Duration = Duration::from_hours(1);
