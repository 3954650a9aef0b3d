//! Programs that are told to stop, and attempts that are dropped.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use delivery::command::CommandOutcome;
use testkit::eventually;

use crate::kit::{NEVER, ProgramTrial, wait_until_all_exited};

/// Says that it is ready, then runs until a signal ends it.
const FOREVER: &str = "echo @progress 1 >&2; while :; do sleep 1000; done";

#[tokio::test]
async fn a_program_is_asked_to_stop_and_may_say_something() {
    // Not in a loop: a signal between fork and exec would be lost to the sleep that the shell then waits for
    let script = "trap 'echo tidied up >&2; exit 0' TERM; echo @progress 1 >&2; sleep 1000 & wait";
    let mut running = ProgramTrial::shell(script).with_settings(|settings| settings.stop_grace = NEVER).start();
    running.wait_for_progress(1.0).await;
    running.stop.cancel();
    let CommandOutcome::Stopped { stderr } = running.wait_for_ending().await else { panic!("it was stopped") };
    assert!(stderr.ends_with("tidied up\n"), "{stderr}");
}

#[tokio::test]
async fn a_program_that_does_not_listen_is_killed_after_the_grace() {
    let script = format!("trap '' TERM; {FOREVER}");
    let mut running =
        ProgramTrial::shell(&script).with_settings(|settings| settings.stop_grace = Duration::from_millis(100)).start();
    running.wait_for_progress(1.0).await;
    assert!(!running.processes().is_empty());
    running.stop.cancel();
    assert_eq!(running.wait_for_ending().await, CommandOutcome::Stopped { stderr: String::new() });
}

#[tokio::test]
async fn a_program_that_hangs_without_reading_or_writing_is_killed() {
    let script = "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n\
                  os.write(2, b'@progress 1\\n')\nos.close(0); os.close(1); os.close(2)\nwhile True: signal.pause()";
    let mut running =
        ProgramTrial::python(script).with_settings(|settings| settings.stop_grace = Duration::from_millis(100)).start();
    running.wait_for_progress(1.0).await;
    running.stop.cancel();
    assert_eq!(running.wait_for_ending().await, CommandOutcome::Stopped { stderr: String::new() });
}

#[tokio::test]
async fn a_program_that_is_held_with_sigstop_is_killed() {
    let script = r#"echo "@progress {\"progress\": 1, \"message\": \"$$\"}" >&2; kill -STOP $$; echo went on >&2"#;
    let trial = ProgramTrial::shell(script).with_settings(|settings| settings.stop_grace = Duration::from_millis(100));
    let mut running = trial.start();
    let stat = format!("/proc/{}/stat", running.wait_for_progress(1.0).await.message.expect("its number"));
    let is_held = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "));
    eventually("it is held", || async { is_held().then_some(()) }).await;
    running.stop.cancel();
    assert_eq!(running.wait_for_ending().await, CommandOutcome::Stopped { stderr: String::new() });
}

#[tokio::test]
async fn what_a_program_has_started_stops_with_it() {
    let script = format!("sleep 1001 & (sleep 1002 & sleep 1003 & wait) & trap '' TERM; {FOREVER}");
    let mut running =
        ProgramTrial::shell(&script).with_settings(|settings| settings.stop_grace = Duration::from_millis(100)).start();
    running.wait_for_progress(1.0).await;
    let all_run = || running.processes().iter().filter(|line| line.starts_with("sleep 100")).count() == 4;
    eventually("four sleep", || async { all_run().then_some(()) }).await;
    running.stop.cancel();
    assert!(matches!(running.wait_for_ending().await, CommandOutcome::Stopped { .. }));
}

#[tokio::test]
async fn what_ignores_sigterm_goes_even_if_the_program_has_obeyed() {
    let script = format!("(trap '' TERM; exec sleep 1001) & {FOREVER}");
    let mut running = ProgramTrial::shell(&script).with_settings(|settings| settings.stop_grace = NEVER).start();
    running.wait_for_progress(1.0).await;
    let is_there = || running.processes().iter().any(|line| line.starts_with("sleep 1001"));
    eventually("it sleeps", || async { is_there().then_some(()) }).await;
    running.stop.cancel();
    assert!(matches!(running.wait_for_ending().await, CommandOutcome::Stopped { .. }));
}

#[tokio::test]
async fn a_job_that_is_stopped_before_its_program_was_started_starts_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let trial = ProgramTrial::new("touch", &[trace.to_str().expect("a path")]);
    let (program, input, _progress) = trial.build();
    input.stop.cancel();
    assert_eq!(program.run(input).await, CommandOutcome::Stopped { stderr: String::new() });
    assert!(!trace.exists());
}

#[tokio::test]
async fn an_attempt_that_is_dropped_leaves_no_process_whatever_it_is_doing() {
    let deaf = format!("trap '' TERM; sleep 1001 & {FOREVER}");
    let mut runs = ProgramTrial::shell(&deaf).with_settings(|settings| settings.stop_grace = NEVER).start();
    runs.wait_for_progress(1.0).await;
    runs.abort().await;

    let mut in_its_grace = ProgramTrial::python(
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os.write(2, b'@progress 1\\n'))\n\
         os.write(2, b'@progress 0.5\\n')\nwhile True: signal.pause()",
    )
    .with_settings(|settings| settings.stop_grace = NEVER)
    .start();
    in_its_grace.wait_for_progress(0.5).await;
    in_its_grace.stop.cancel();
    in_its_grace.wait_for_progress(1.0).await;
    in_its_grace.abort().await;

    // After the program's end, while something holds the pipes
    let mut lingers = ProgramTrial::shell("sleep 1001 & echo @progress 1 >&2").start();
    lingers.wait_for_progress(1.0).await;
    lingers.abort().await;
}

#[tokio::test]
async fn an_attempt_can_be_dropped_at_every_step() {
    let mut completed = 0;
    for steps in 0..25 {
        let script = "sleep 1001 >/dev/null 2>&1 & for i in 1 2 3 4 5; do echo @progress $i >&2; echo $i; done";
        completed += u32::from(dropped_after(steps, ProgramTrial::shell(script), false).await);
        let script = "trap '' TERM; sleep 1001 & echo @progress 1 >&2; wait";
        let deaf =
            ProgramTrial::shell(script).with_settings(|settings| settings.stop_grace = Duration::from_millis(10));
        completed += u32::from(dropped_after(steps, deaf, true).await);
    }
    assert!(completed > 1, "the last ones get to their end");
}

/// Drops an attempt after it was polled that many times, and tells whether it was over by then. It may be told to stop once
/// it has reported.
async fn dropped_after(polls: usize, trial: ProgramTrial, is_stopped: bool) -> bool {
    let (program, input, mut progress) = trial.build();
    let stop = input.stop.clone();
    let stopping = tokio::spawn(async move {
        if progress.wait_for(Option::is_some).await.is_ok() && is_stopped {
            stop.cancel();
        }
    });
    let is_over = poll_at_most(polls, program.run(input)).await.is_some();
    stopping.await.expect("no panic");
    wait_until_all_exited(&trial.mark).await;
    is_over
}

/// Polls a future that many times and drops it.
async fn poll_at_most<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = future.as_mut().poll(context).map(Some);
        if left == 0 && polled.is_pending() { Poll::Ready(None) } else { polled }
    })
    .await
}
