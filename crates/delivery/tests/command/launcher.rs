//! The worker's binary as a launcher of programs, and whose death programs share.

use std::process::{Command, Stdio};

use delivery::command::{CommandOutcome, code, launch::LAUNCHER_ARGUMENT};
use model::job::RetryAdvice;
use testkit::{TEST_TIMEOUT, eventually};

use crate::kit::{ProcessMark, ProgramTrial, wait_until_all_exited, worker_binary};

#[tokio::test]
async fn a_program_dies_with_a_worker_that_is_killed() {
    let mark = ProcessMark::random();
    let script = "import os, subprocess, sys, time\n\
                  subprocess.Popen([*sys.argv[1:3], 'token ', str(os.getpid()), '', '', '', 'sleep', '1001'])\n\
                  time.sleep(1000)";
    let (name, value) = mark.env_variable();
    let mut worker = Command::new("python3");
    worker.args(["-c", script]).arg(worker_binary()).arg(LAUNCHER_ARGUMENT).env(name, value);
    let mut worker = worker.spawn().expect("python3 is installed");
    mark.wait_until_running("sleep 1001").await;
    worker.kill().expect("a process of ours");
    worker.wait().expect("a process of ours");
    wait_until_all_exited(&mark).await;
}

#[test]
fn a_program_is_not_started_when_its_worker_is_gone_already() {
    for worker in ["queue-worker", "pubsub-worker"] {
        let mut launcher = Command::new(testkit::binary_path(worker));
        // Its parent is this test, which is not the first process of the machine
        launcher.args([LAUNCHER_ARGUMENT, "token ", "1", "", "", "", "echo", "started"]);
        let output = launcher.stdin(Stdio::null()).output().expect("the binary is built");
        assert_eq!(output.status.code(), Some(127), "{worker}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{worker}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "token the worker is gone\n", "{worker}");
    }
}

#[tokio::test]
async fn either_worker_starts_programs() {
    for worker in ["queue-worker", "pubsub-worker"] {
        let trial = ProgramTrial::shell("echo 5")
            .with_settings(|settings| settings.launcher = Some(testkit::binary_path(worker)));
        assert_eq!(trial.result().await.as_deref(), Some("5"), "{worker}");
    }
}

#[test]
fn a_program_outlives_the_thread_that_ran_it_first() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let trial = ProgramTrial::shell("echo @progress 1 >&2; while ! read -r go < \"$GO\"; do :; done; echo \"$go\"");
    let folder = tempfile::tempdir().expect("a folder");
    let go = folder.path().join("go");
    std::fs::write(&go, "").expect("a file");
    let trial = trial.with_settings(|settings| {
        settings.env.insert("GO".to_owned(), go.to_str().expect("a path").to_owned());
    });
    let (program, input, mut progress) = trial.build();
    let mut running = Box::pin(async move { program.run(input).await });
    let handle = runtime.handle().clone();
    let first = std::thread::spawn(move || {
        handle.block_on(async {
            tokio::select! {
                ending = &mut running => panic!("it waits: {ending:?}"),
                started = progress.wait_for(Option::is_some) => drop(started.expect("it starts")),
            }
        });
        running
    });
    let running = first.join().expect("no panic");
    // A client that dies with the thread has died by the time that its end has been told
    std::fs::write(&go, "5\n").expect("a file");
    let ending = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, running).await });
    assert_eq!(ending.expect("it ends"), CommandOutcome::Succeeded(Some("5".to_owned())));
    runtime.block_on(wait_until_all_exited(&trial.mark));
}

#[tokio::test]
async fn a_binary_that_is_no_launcher_is_not_started_as_one() {
    let failure = ProgramTrial::shell("exit 0").with_settings(|settings| settings.launcher = None).failure().await;
    assert_eq!((failure.code, failure.advice), (code::NOT_STARTED, RetryAdvice::ByPolicy));
    assert!(failure.message.contains("has to begin with delivery::command::launch::intercept"), "{}", failure.message);
}

#[tokio::test]
async fn a_launcher_that_is_missing_is_told() {
    let failure = ProgramTrial::shell("exit 0")
        .with_settings(|settings| settings.launcher = Some("/nowhere".into()))
        .failure()
        .await;
    assert_eq!(failure.code, code::NOT_STARTED);
    assert!(failure.message.starts_with("the worker cannot start a process: "), "{}", failure.message);
}

#[tokio::test]
async fn the_worker_is_not_seen_in_what_runs() {
    let mut running = ProgramTrial::new("sh", &["-c", "echo @progress 1 >&2; sleep 1001"]).start();
    running.wait_for_progress(1.0).await;
    eventually("it sleeps", || async {
        running.processes().iter().any(|line| line.starts_with("sleep 1001")).then_some(())
    })
    .await;
    let lines = running.processes();
    assert!(lines.iter().all(|line| line.starts_with("sh -c") || line.starts_with("sleep")), "{lines:?}");
    running.abort().await;
}
