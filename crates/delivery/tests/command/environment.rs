//! What a program is given besides its input.

use std::collections::BTreeMap;

use crate::kit::ProgramTrial;

/// The environment as it was when the program was started: the variables of a shell are more than that.
const TELL_ENVIRONMENT: &str = r#"printf '"'; tr '\0' '|' < /proc/$$/environ; printf '"'"#;
/// A variable that every test has, in place of a secret of the worker.
const OF_THE_WORKER: &str = "CARGO_MANIFEST_DIR";

async fn environment(trial: ProgramTrial) -> BTreeMap<String, String> {
    let text: String = serde_json::from_str(&trial.result().await.expect("a result")).expect("a text");
    let pairs = text.split_terminator('|').map(|pair| pair.split_once('=').expect("a name and a value"));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn a_program_does_not_see_the_variables_of_the_worker() {
    assert!(std::env::var(OF_THE_WORKER).is_ok());
    let seen = environment(ProgramTrial::shell(TELL_ENVIRONMENT)).await;
    let allowed = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "GALLEY_TEST_MARK", "GALLEY_JOB_ID"];
    assert!(seen.keys().all(|name| allowed.contains(&name.as_str())), "{:?}", seen.keys());
    assert_eq!(seen["PATH"], std::env::var("PATH").expect("a path"));
    assert_eq!(seen["GALLEY_JOB_ID"], "a-job");
}

#[tokio::test]
async fn it_sees_those_that_are_named_and_its_own_and_those_about_the_job_win() {
    let trial = ProgramTrial::shell(TELL_ENVIRONMENT).with_settings(|settings| {
        settings.pass_env = vec![OF_THE_WORKER.to_owned(), "NO_SUCH_VARIABLE".to_owned()];
        settings.env.insert("COLOUR".to_owned(), "grün = green".to_owned());
        settings.env.insert("GALLEY_JOB_ID".to_owned(), "forged".to_owned());
    });
    let seen = environment(trial).await;
    assert_eq!(seen[OF_THE_WORKER], std::env::var(OF_THE_WORKER).expect("a variable"));
    assert_eq!(seen["COLOUR"], "grün = green");
    assert_eq!(seen["GALLEY_JOB_ID"], "a-job");
    assert!(!seen.contains_key("NO_SUCH_VARIABLE"));
}

#[tokio::test]
async fn arguments_reach_a_program_as_they_are() {
    let args = ["-c", "import json, sys; print(json.dumps(sys.argv[1:]))", "$(id)", "a b", "*", "'", "", "--", "饭\n"];
    let result = ProgramTrial::new("python3", &args).result().await.expect("a result");
    let seen: Vec<String> = serde_json::from_str(&result).expect("an array");
    assert_eq!(seen, &args[2..]);
}

#[tokio::test]
async fn a_program_runs_where_it_should_and_leaves_no_core() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().canonicalize().expect("a path");
    let trial = ProgramTrial::shell("printf '[\"%s\", %s]' \"$(pwd -P)\" \"$(ulimit -Hc)\"");
    let result = trial.with_settings(|settings| settings.directory = Some(path.clone())).result().await;
    assert_eq!(result, Some(format!("[\"{}\", 0]", path.display())));
}
