//! How programs end by themselves, and what that means.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use delivery::command::{CommandOutcome, Program, ProgramSettings, code};
use model::job::RetryAdvice;

use crate::kit::ProgramTrial;

#[tokio::test]
async fn what_a_program_writes_is_its_result() {
    let result = ProgramTrial::shell("echo; echo '{\"big\": 12345678901234567890, \"b\":1, \"a\":2} '").result().await;
    assert_eq!(result.as_deref(), Some("{\"big\": 12345678901234567890, \"b\":1, \"a\":2}"));
}

#[tokio::test]
async fn a_program_that_writes_nothing_has_no_result() {
    for script in ["exit 0", "echo; echo"] {
        assert_eq!(ProgramTrial::shell(script).result().await, None, "{script}");
    }
}

#[tokio::test]
async fn what_is_not_json_is_a_failure_that_would_come_again() {
    let long = format!("printf '%s\\n\\033[31m' done; echo {}", "x".repeat(1000));
    for script in ["echo done", &long, "echo '{\"a\":1'", "echo 1 2"] {
        let failure = ProgramTrial::shell(script).failure().await;
        assert_eq!((failure.code, failure.advice), (code::INVALID_RESULT, RetryAdvice::Never), "{script}");
        assert!(failure.message.len() < 400, "{}", failure.message);
        assert!(!failure.message.contains('\u{1b}'), "{}", failure.message);
    }
    let failure = ProgramTrial::shell("echo done").failure().await;
    assert!(failure.message.ends_with(": done"), "{}", failure.message);
}

#[tokio::test]
async fn a_result_is_made_valid_and_not_refused_for_its_text() {
    for (script, result) in
        [(r#"printf '"\377"'"#, "\"\u{fffd}\""), (r#"printf '%s' '["\ud800",NaN]'"#, r#"["\ufffd",null]"#)]
    {
        assert_eq!(ProgramTrial::shell(script).result().await.as_deref(), Some(result), "{script}");
    }
}

#[tokio::test]
async fn a_result_that_is_nested_deeper_than_readers_go_is_refused() {
    let nested = |levels: usize| format!("echo '{}{}'", "[".repeat(levels), "]".repeat(levels));
    assert!(ProgramTrial::shell(&nested(128)).result().await.is_some());
    let failure = ProgramTrial::shell(&nested(129)).failure().await;
    assert_eq!((failure.code, failure.advice), (code::INVALID_RESULT, RetryAdvice::Never));
}

#[tokio::test]
async fn exit_code_75_asks_for_another_attempt() {
    let failure = ProgramTrial::shell("echo 'the mailbox is locked' >&2; exit 75").failure().await;
    assert_eq!((failure.code, failure.advice), (code::TRY_AGAIN, RetryAdvice::ByPolicy));
    assert!(failure.message.ends_with(": the mailbox is locked"), "{}", failure.message);
    assert_eq!(failure.stderr, "the mailbox is locked\n");
}

#[tokio::test]
async fn another_exit_code_is_a_failure_and_the_last_line_says_why() {
    let failure = ProgramTrial::shell("echo 5; printf 'warming up\\nno such image\\n\\n' >&2; exit 3").failure().await;
    assert_eq!((failure.code, failure.advice), (code::FAILED, RetryAdvice::ByPolicy));
    assert_eq!(failure.message, "the program ended with exit code 3: no such image");
    assert_eq!(failure.stderr, "warming up\nno such image\n\n");
    assert_eq!(ProgramTrial::shell("exit 4").failure().await.message, "the program ended with exit code 4");
}

#[tokio::test]
async fn exit_codes_can_be_named_after_which_no_attempt_follows() {
    let ending_with = |exit_code: i32| {
        let trial = ProgramTrial::shell(&format!("exit {exit_code}"));
        trial.with_settings(|settings| settings.not_retryable_exit_codes = vec![65, 66])
    };
    assert_eq!(ending_with(66).failure().await.advice, RetryAdvice::Never);
    assert_eq!(ending_with(67).failure().await.advice, RetryAdvice::ByPolicy);
}

#[tokio::test]
async fn a_program_that_crashes_is_named_by_its_signal_and_takes_nobody_along() {
    let others: Vec<_> =
        (0..5).map(|number| ProgramTrial::shell(&format!("read job; echo {number}")).start()).collect();
    for (signal, name) in [("SEGV", "SIGSEGV"), ("KILL", "SIGKILL"), ("TERM", "SIGTERM"), ("40", "a real-time signal")]
    {
        let failure = ProgramTrial::shell(&format!("echo now >&2; echo 1; kill -{signal} $$")).failure().await;
        assert_eq!((failure.code, failure.advice), (code::KILLED, RetryAdvice::ByPolicy));
        assert_eq!(failure.message, format!("the program was killed by {name}"));
        assert_eq!(failure.stderr, "now\n");
    }
    for (number, other) in others.into_iter().enumerate() {
        assert_eq!(other.wait_for_ending().await, CommandOutcome::Succeeded(Some(number.to_string())));
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told_apart_from_one_that_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("not-executable");
    fs::write(&file, "#!/bin/sh\n").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a file");
    let file = file.to_str().expect("a path");
    for program in ["/nowhere/to/be/found", "no-program-of-that-name", file, "/"] {
        let failure = ProgramTrial::new(program, &[]).failure().await;
        assert_eq!((failure.code, failure.advice), (code::NOT_STARTED, RetryAdvice::ByPolicy));
        assert!(failure.message.starts_with(&format!("cannot start {program}: ")), "{}", failure.message);
    }
    let astray = ProgramTrial::shell("exit 0").with_settings(|settings| settings.directory = Some("/nowhere".into()));
    let failure = astray.failure().await;
    assert_eq!(failure.code, code::NOT_STARTED);
    assert!(failure.message.starts_with("cannot start in /nowhere: "), "{}", failure.message);
    // What shells do is no sign of that
    let failure = ProgramTrial::shell("no-program-of-that-name").failure().await;
    assert_eq!(failure.code, code::FAILED);
    assert!(failure.message.starts_with("the program ended with exit code 127: "), "{}", failure.message);
}

#[tokio::test]
async fn a_program_that_takes_too_much_memory_gets_none() {
    // Address space, of which nothing is touched
    let script = "print(len(bytearray(1 << 30)))";
    assert_eq!(ProgramTrial::python(script).result().await.as_deref(), Some("1073741824"));
    let failure = ProgramTrial::python(script)
        .with_settings(|settings| settings.memory_limit_bytes = Some(512 << 20))
        .failure()
        .await;
    assert_eq!(failure.message, "the program ended with exit code 1: MemoryError");
    let tight = ProgramTrial::python(script)
        .with_settings(|settings| settings.memory_limit_bytes = Some(1 << 20))
        .failure()
        .await;
    assert!(tight.message.contains("1048576 bytes") || tight.code != code::KILLED, "{}", tight.message);
}

#[tokio::test]
async fn a_program_that_takes_too_much_processor_time_is_killed() {
    let limited =
        |script: &str| ProgramTrial::python(script).with_settings(|s| s.cpu_limit = Some(Duration::from_millis(500)));
    let failure = limited("while True: pass").failure().await;
    assert_eq!(failure.code, code::KILLED);
    let says = "the program was killed by SIGXCPU: it used more processor time than its limit of 500ms";
    assert_eq!(failure.message, says);
    let deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
    let failure = limited(deaf).failure().await;
    assert_eq!(failure.message, "the program was killed by SIGKILL; its limit of processor time is 500ms");
}

#[test]
fn settings_that_can_never_work_are_refused() {
    let refused = |change: fn(&mut ProgramSettings), says: &str| {
        let mut settings = ProgramSettings::new("true");
        change(&mut settings);
        let message = Program::new(settings).expect_err("it is refused").to_string();
        assert!(message.starts_with(says), "{message}");
    };
    assert!(Program::new(ProgramSettings::new("true")).is_ok());
    refused(|settings| settings.program.clear(), "program: ");
    refused(|settings| settings.args.push("a\0b".to_owned()), "program, args and env");
    refused(|settings| settings.pass_env.push("A=B".to_owned()), "env and pass_env: ");
    refused(|settings| drop(settings.env.insert(String::new(), String::new())), "env and pass_env: ");
    refused(|settings| settings.output_limit_bytes = 0, "output_limit_bytes: ");
    refused(|settings| settings.memory_limit_bytes = Some(0), "memory_limit_bytes: ");
    refused(|settings| settings.cpu_limit = Some(Duration::ZERO), "cpu_limit: ");
    refused(|settings| settings.not_retryable_exit_codes.push(75), "not_retryable_exit_codes: ");
    refused(|settings| settings.not_retryable_exit_codes.push(0), "not_retryable_exit_codes: ");
}
