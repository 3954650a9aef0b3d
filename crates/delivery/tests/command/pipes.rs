//! Programs that write or read much, little, slowly or not at all.

use delivery::command::{CommandOutcome, CommandProgress, MAX_STDERR_BYTES, code};
use model::job::RetryAdvice;

use crate::kit::{NEVER, ProgramTrial};

const MUCH_BYTES: usize = 10 << 20;

fn much_json() -> String {
    format!("\"{}\"", "x".repeat(MUCH_BYTES))
}

#[tokio::test]
async fn much_goes_in_and_comes_out_at_the_same_time() {
    let echo = ProgramTrial::new("cat", &[])
        .with_stdin(much_json())
        .with_settings(|settings| settings.output_limit_bytes = MUCH_BYTES + 2);
    assert!(echo.result().await.as_deref() == Some(&much_json()));
}

#[tokio::test]
async fn a_program_may_write_everything_before_it_reads_anything() {
    let script = format!(
        "import sys\nsys.stderr.write('y' * {MUCH_BYTES})\nsys.stdout.write('[\"' + 'x' * {MUCH_BYTES} + '\",')\n\
         sys.stdout.flush()\nprint(len(sys.stdin.read()), ']')"
    );
    let trial = ProgramTrial::python(&script)
        .with_stdin(much_json())
        .with_settings(|settings| settings.output_limit_bytes = 2 * MUCH_BYTES);
    let result = trial.result().await.expect("a result");
    assert!(result.ends_with(&format!("x\",{} ]", MUCH_BYTES + 2)));
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    assert_eq!(ProgramTrial::shell("echo 7").with_stdin(much_json()).result().await.as_deref(), Some("7"));
    let trial = ProgramTrial::shell("exec <&-; echo 8").with_stdin(much_json());
    assert_eq!(trial.result().await.as_deref(), Some("8"));
}

#[tokio::test]
async fn a_result_may_have_as_many_bytes_as_the_limit_and_no_more() {
    let limited = |script: &str| ProgramTrial::shell(script).with_settings(|settings| settings.output_limit_bytes = 10);
    assert_eq!(limited("printf 1234567890").result().await.as_deref(), Some("1234567890"));
    let failure = limited("printf 12345678901").failure().await;
    assert_eq!((failure.code, failure.advice), (code::RESULT_TOO_LARGE, RetryAdvice::Never));
    assert_eq!(failure.message, "the program wrote more than 10 bytes on its standard output");
}

#[tokio::test]
async fn a_program_that_never_stops_writing_is_stopped() {
    let failure = ProgramTrial::shell("echo flooding >&2; yes")
        .with_settings(|settings| settings.stop_grace = NEVER)
        .failure()
        .await;
    assert_eq!((failure.code, failure.advice), (code::RESULT_TOO_LARGE, RetryAdvice::Never));
    assert_eq!(failure.stderr, "flooding\n");
    // One that does not want to hear that it has to stop
    let deaf = ProgramTrial::shell("trap '' TERM; yes")
        .with_settings(|settings| settings.stop_grace = std::time::Duration::ZERO);
    assert_eq!(deaf.failure().await.code, code::RESULT_TOO_LARGE);
}

#[tokio::test]
async fn a_failure_is_a_failure_however_much_was_written_before() {
    let trial = ProgramTrial::python("import os; os.write(1, b'x' * 100); os._exit(3)");
    let failure = trial.with_settings(|settings| settings.output_limit_bytes = 1000).failure().await;
    assert_eq!(failure.code, code::FAILED);
}

#[tokio::test]
async fn of_what_is_said_the_end_is_kept() {
    let script = format!("head -c {MUCH_BYTES} /dev/zero | tr '\\0' z >&2; echo >&2; echo the end >&2; exit 3");
    let failure = ProgramTrial::shell(&script).failure().await;
    assert_eq!(failure.message, "the program ended with exit code 3: the end");
    assert_eq!(failure.stderr.len(), MAX_STDERR_BYTES);
    assert!(failure.stderr.ends_with("z\nthe end\n"));
}

#[tokio::test]
async fn what_comes_byte_by_byte_is_put_together() {
    let script = r#"
import sys, time
def trickle(stream, text):
    for letter in text:
        stream.write(letter)
        stream.flush()
        time.sleep(0.003)
trickle(sys.stderr, '@progress {"progress": 0.5, "message": "half"}\n')
trickle(sys.stdout, '{"a": [1, 2]}')
"#;
    let running = ProgramTrial::python(script).start();
    let progress = running.progress.clone();
    assert_eq!(running.wait_for_ending().await, CommandOutcome::Succeeded(Some("{\"a\": [1, 2]}".to_owned())));
    let half = CommandProgress { progress: 0.5, message: Some("half".to_owned()) };
    assert_eq!(*progress.borrow(), Some(half));
}

#[tokio::test]
async fn progress_is_told_while_the_program_runs_and_is_no_part_of_what_it_said() {
    let script = "echo begin >&2; echo @progress 40 >&2; echo @progress 0.4 >&2; while :; do sleep 1000; done";
    let mut running = ProgramTrial::shell(script).start();
    assert_eq!(running.wait_for_progress(0.1).await, CommandProgress { progress: 0.4, message: None });
    running.stop.cancel();
    assert_eq!(running.wait_for_ending().await, CommandOutcome::Stopped { stderr: "begin\n@progress 40\n".to_owned() });
}

#[tokio::test]
async fn a_process_that_was_left_behind_does_not_delay_the_result() {
    // It holds stdout and stderr, and will not hear SIGTERM
    let script = "(trap '' TERM; sleep 1000) & echo '\"done\"'; echo left it >&2";
    assert_eq!(ProgramTrial::shell(script).result().await.as_deref(), Some("\"done\""));
}
