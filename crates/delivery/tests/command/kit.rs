//! Trials of programs, each marked by a variable that all of its processes inherit, so that none can be left over unseen.

use std::{path::PathBuf, time::Duration};

use delivery::command::{Ending, Failure, Input, Program, ProgramSettings, Progress};
use testkit::LIMIT;
pub(crate) use testkit::Mark;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The worker's binary.
pub(crate) fn worker_binary() -> PathBuf {
    testkit::binary("queue-worker")
}

/// Waits until no process of a trial is left, reaped by this process if it was its child.
pub(crate) async fn nothing_is_left_of(mark: &Mark) {
    mark.nothing_is_left_by(std::process::id()).await;
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
        nothing_is_left_of(&self.mark).await;
        ending
    }

    /// Drops it where it is.
    pub(crate) async fn dropped(self) {
        self.ending.abort();
        nothing_is_left_of(&self.mark).await;
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> Vec<String> {
        self.mark.processes()
    }
}

/// Longer than any test takes: a test that waits for it fails.
pub(crate) const NEVER: Duration = Duration::from_hours(1);
