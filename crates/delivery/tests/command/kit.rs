//! Trials of programs, each marked by a variable that all of its processes inherit, so that none can be left over unseen.

use std::{path::PathBuf, time::Duration};

use delivery::command::{
    CommandFailure, CommandOutcome, CommandProgress, LineSink, Program, ProgramInput, ProgramSettings,
};
pub(crate) use testkit::ProcessMark;
use testkit::TEST_TIMEOUT;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The worker's binary.
pub(crate) fn worker_binary() -> PathBuf {
    testkit::binary_path("queue-worker")
}

/// Waits until no process of a trial is left, reaped by this process if it was its child.
pub(crate) async fn wait_until_all_exited(mark: &ProcessMark) {
    mark.wait_until_all_exited(std::process::id()).await;
}

/// A program and what it is given.
pub(crate) struct ProgramTrial {
    pub(crate) settings: ProgramSettings,
    pub(crate) mark: ProcessMark,
    pub(crate) stdin: Vec<u8>,
}

/// A program that runs.
pub(crate) struct RunningTrial {
    ending: JoinHandle<CommandOutcome>,
    mark: ProcessMark,
    pub(crate) stop: CancellationToken,
    pub(crate) progress: watch::Receiver<Option<CommandProgress>>,
}

impl ProgramTrial {
    pub(crate) fn new(program: &str, args: &[&str]) -> Self {
        let mut settings = ProgramSettings::new(program);
        settings.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        settings.launcher = Some(worker_binary());
        let mark = ProcessMark::random();
        let (name, value) = mark.env_variable();
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

    pub(crate) fn with_settings(mut self, change: impl FnOnce(&mut ProgramSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    pub(crate) fn with_stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it without waiting for its end.
    pub(crate) fn start(self) -> RunningTrial {
        let (program, input, progress) = self.build();
        let stop = input.stop.clone();
        let ending = tokio::spawn(async move { program.run(input).await });
        RunningTrial { ending, mark: self.mark, stop, progress }
    }

    /// The program and its input.
    pub(crate) fn build(&self) -> (Program, ProgramInput, watch::Receiver<Option<CommandProgress>>) {
        let program = Program::new(self.settings.clone()).expect("settings that can be used");
        let (sender, progress) = watch::channel(None);
        let env = vec![("GALLEY_JOB_ID", "a-job".to_owned())];
        let input = ProgramInput {
            stdin: self.stdin.clone(),
            env,
            stop: CancellationToken::new(),
            progress: sender,
            lines: LineSink::default(),
        };
        (program, input, progress)
    }

    /// Runs it to its end, after which nothing is left of it.
    pub(crate) async fn run(self) -> CommandOutcome {
        self.start().wait_for_ending().await
    }

    /// Its result.
    pub(crate) async fn result(self) -> Option<String> {
        match self.run().await {
            CommandOutcome::Succeeded(result) => result,
            other => panic!("not a success: {other:?}"),
        }
    }

    /// Its failure.
    pub(crate) async fn failure(self) -> CommandFailure {
        match self.run().await {
            CommandOutcome::Failed(failure) => failure,
            other => panic!("not a failure: {other:?}"),
        }
    }
}

impl RunningTrial {
    /// Waits until it has reported so much.
    pub(crate) async fn wait_for_progress(&mut self, progress: f64) -> CommandProgress {
        let has_come = self.progress.wait_for(|told| told.as_ref().is_some_and(|told| told.progress >= progress));
        let told = tokio::time::timeout(TEST_TIMEOUT, has_come).await.expect("it reports in time").expect("it reports");
        told.clone().expect("something was reported")
    }

    /// Waits for its end, after which nothing is left of it.
    pub(crate) async fn wait_for_ending(self) -> CommandOutcome {
        let ending = tokio::time::timeout(TEST_TIMEOUT, self.ending).await.expect("it ends in time").expect("no panic");
        wait_until_all_exited(&self.mark).await;
        ending
    }

    /// Drops it where it is.
    pub(crate) async fn abort(self) {
        self.ending.abort();
        wait_until_all_exited(&self.mark).await;
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> Vec<String> {
        self.mark.processes()
    }
}

/// Longer than any test takes: a test that waits for it fails.
pub(crate) const NEVER: Duration = Duration::from_hours(1);
