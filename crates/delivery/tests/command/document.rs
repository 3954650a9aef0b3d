//! The examples of `docs/commands.md`, run from there.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use delivery::command::{CommandOutcome, code};
use tempfile::TempDir;

use crate::kit::{NEVER, ProgramTrial};

/// The first fenced block of a language as an executable file.
fn example(language: &str) -> (TempDir, PathBuf) {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md"));
    let document = document.expect("the document is there");
    let begin = format!("\n```{language}\n");
    let (_, rest) = document.split_once(&begin).expect("there is an example");
    let (text, _) = rest.split_once("\n```\n").expect("it ends");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("example");
    fs::write(&file, format!("{text}\n")).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a file");
    (folder, file)
}

#[tokio::test]
async fn the_python_example_does_what_is_said_of_it() {
    let (_folder, file) = example("python");
    let program = file.to_str().expect("a path");
    let job = |args: &str| format!("{{\"type\":\"text.count\",\"args\":{args}}}");

    let running = ProgramTrial::new(program, &[]).with_stdin(job("[\"to be or\", \"not\"]")).start();
    let progress = running.progress.clone();
    assert_eq!(
        running.wait_for_ending().await,
        CommandOutcome::Succeeded(Some("{\"job\": \"a-job\", \"words\": 4}".to_owned()))
    );
    assert!((progress.borrow().as_ref().expect("progress").progress - 1.0).abs() < f64::EPSILON);

    let wrong = ProgramTrial::new(program, &[]).with_settings(|settings| settings.not_retryable_exit_codes = vec![65]);
    let failure = wrong.with_stdin(job("[1]")).failure().await;
    assert_eq!((failure.code, failure.advice), (code::FAILED, model::job::RetryAdvice::Never));
    assert_eq!(failure.message, "the program ended with exit code 65: every argument has to be a text");

    let mut endless = ProgramTrial::new(program, &[]).with_settings(|settings| settings.stop_grace = NEVER);
    let many = vec!["\"a word\""; 500_000].join(",");
    endless = endless.with_stdin(job(&format!("[{many}]")));
    let mut running = endless.start();
    running.wait_for_progress(0.0).await;
    running.stop.cancel();
    let CommandOutcome::Stopped { stderr } = running.wait_for_ending().await else { panic!("it was stopped") };
    assert_eq!(stderr, "stopped\n");
}

#[tokio::test]
async fn the_shell_example_does_what_is_said_of_it() {
    let (folder, file) = example("sh");
    let program = file.to_str().expect("a path");
    let lock = folder.path().join("busy");
    let variable = ("LOCK".to_owned(), lock.to_str().expect("a path").to_owned());
    let trial = || {
        ProgramTrial::new(program, &[])
            .with_settings(|settings| drop(settings.env.insert(variable.0.clone(), variable.1.clone())))
    };

    let job = "{\"type\":\"text.measure\",\"args\":[\"饭\"]}";
    assert_eq!(trial().with_stdin(job).result().await, Some(format!("{{\"bytes\": {}}}", job.len())));
    assert!(!lock.exists());

    fs::create_dir(&lock).expect("a folder");
    let failure = trial().with_stdin(job).failure().await;
    assert_eq!((failure.code, failure.stderr.as_str()), (code::TRY_AGAIN, "somebody else is at it\n"));
}
