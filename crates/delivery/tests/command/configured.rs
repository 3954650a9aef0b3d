//! Programs as files describe them: within their time, and with what they write discarded.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use common::name::CommandName;
use delivery::command::{
    Command, CommandOutcome, CommandSettings, Commands, LineSink, ProgramInput, StandardOutput, code,
};
use model::job::RetryAdvice;
use testkit::TEST_TIMEOUT;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kit::{NEVER, ProcessMark, ProgramTrial, wait_until_all_exited, worker_binary};

const MUCH_BYTES: usize = 10 << 20;

fn shell(script: &str, mark: &ProcessMark) -> Command {
    let (name, value) = mark.env_variable();
    let settings = CommandSettings {
        program: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        pass_env: Vec::new(),
        directory: None,
        timeout_ms: in_ms(NEVER),
        // Longer than its time: both can be over
        stop_grace_ms: 2 * in_ms(NEVER),
        output_limit_bytes: 1,
        memory_limit_bytes: None,
        cpu_limit_ms: None,
        not_retryable_exit_codes: Vec::new(),
    };
    Command::new(settings, StandardOutput::Discarded).expect("settings that can be used").with_launcher(worker_binary())
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("not that long")
}

async fn run(script: &str, mark: &ProcessMark) -> CommandOutcome {
    let command = shell(script, mark);
    let env = vec![("GALLEY_CHANNEL", "orders".to_owned())];
    let running = command.run(b"a message".to_vec(), env, CancellationToken::new());
    tokio::time::timeout(TEST_TIMEOUT, running).await.expect("it ends in time")
}

/// How a program ends that goes on for ever and does not listen: told to stop or not, then its time passes at once.
async fn when_time_passes(is_stopped: bool) -> CommandOutcome {
    let mark = ProcessMark::random();
    let script = "trap '' TERM; echo on and on >&2; echo @progress 1 >&2; while :; do sleep 1001; done";
    let command = shell(script, &mark);
    let (progress, mut told) = watch::channel(None);
    let stop = CancellationToken::new();
    let input =
        ProgramInput { stdin: Vec::new(), env: Vec::new(), stop: stop.clone(), progress, lines: LineSink::default() };
    let passing = async {
        let runs = tokio::time::timeout(TEST_TIMEOUT, told.wait_for(Option::is_some)).await;
        runs.expect("it runs in time").expect("it runs");
        if is_stopped {
            stop.cancel();
        }
        // From here on the clock goes from one timer to the next while nothing else is to be done
        tokio::time::pause();
    };
    let (ending, ()) = tokio::join!(command.run_with_progress(input), passing);
    tokio::time::resume();
    wait_until_all_exited(&mark).await;
    ending
}

#[tokio::test]
async fn a_program_whose_time_is_over_has_failed_and_what_it_said_is_kept() {
    let CommandOutcome::Failed(failure) = when_time_passes(false).await else { panic!("it is late") };
    assert_eq!((failure.code, failure.advice), (code::TIMEOUT, RetryAdvice::ByPolicy));
    assert_eq!(failure.message, "the program took longer than 3600000 ms");
    assert_eq!(failure.stderr, "on and on\n");
}

#[tokio::test]
async fn one_that_was_told_to_stop_before_has_been_stopped_even_if_its_time_is_over_by_then() {
    assert_eq!(when_time_passes(true).await, CommandOutcome::Stopped { stderr: "on and on\n".to_owned() });
}

#[tokio::test]
async fn what_is_written_is_discarded_whatever_it_is_and_however_much() {
    let mark = ProcessMark::random();
    let script = format!("head -c {MUCH_BYTES} /dev/zero; echo no JSON; test \"$(cat)\" = 'a message'");
    assert_eq!(run(&script, &mark).await, CommandOutcome::Succeeded(None));
    let script = "echo no JSON; echo \"$GALLEY_CHANNEL is closed\" >&2; exit 75";
    let CommandOutcome::Failed(failure) = run(script, &mark).await else { panic!("it failed") };
    assert_eq!((failure.code, failure.stderr.as_str()), (code::TRY_AGAIN, "orders is closed\n"));
    // What holds on to standard error is not waited for either
    let script = "(trap '' TERM; sleep 1001) & echo left it";
    let ending =
        ProgramTrial::shell(script).with_settings(|settings| settings.output = StandardOutput::Discarded).run().await;
    assert_eq!(ending, CommandOutcome::Succeeded(None));
    wait_until_all_exited(&mark).await;
}

#[test]
fn commands_are_loaded_from_a_file_and_problems_name_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("commands.toml");
    fs::write(&path, "[[command]]\nname = \"a\"\nprogram = \"true\"\n").expect("a file");
    let a: CommandName = "a".parse().expect("a name");
    assert!(Commands::load(&path).expect("a command").get(&a).is_some());
    fs::write(&path, "[[command]]\nname = \"A\"\nprogram = \"true\"\n\n[[command]]\nprogram = \"\"\n").expect("a file");
    let error = Commands::load(&path).expect_err("problems").to_string();
    let lines: Vec<_> = error.lines().collect();
    let begins = |line: &str, number: usize| line.starts_with(&format!("{}:{number}: ", path.display()));
    assert!(lines.len() == 3 && begins(lines[0], 2) && begins(lines[1], 5) && begins(lines[2], 5), "{error}");
    let error = Commands::load(Path::new("/no/such.toml")).expect_err("no file").to_string();
    assert!(error.starts_with("/no/such.toml: the commands cannot be read: "), "{error}");
}
