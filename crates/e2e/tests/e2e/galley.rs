//! The program `galley` as people and scripts run it: real processes, exit codes, output.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, binary_path, eventually};

use crate::kit::GalleyKit;

/// What a run of the program left.
pub(crate) struct GalleyRun {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl GalleyRun {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The output of a run that must succeed.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
}

/// Runs the program without a terminal.
pub(crate) async fn run_galley(args: &[&str], variables: &[(&str, &str)], input: &str) -> GalleyRun {
    let mut command = tokio::process::Command::new(binary_path("galley"));
    command.args(args).env_remove("GALLEY_URL").env_remove("GALLEY_KEY").envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().expect("galley starts");
    let input = input.to_owned();
    let stdin = process.stdin.take().expect("it is piped").into_owned_fd().expect("a pipe");
    // A program that does not read its input closes it
    let writing = tokio::task::spawn_blocking(move || drop(std::fs::File::from(stdin).write_all(input.as_bytes())));
    let output = tokio::time::timeout(TEST_TIMEOUT, process.wait_with_output()).await;
    let Output { status, stdout, stderr } = output.expect("it ends in time").expect("it runs");
    writing.await.expect("a thread");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    GalleyRun { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// A gateway, and the program that knows its URL.
pub(crate) struct GalleyProgram {
    pub(crate) kit: GalleyKit,
}

impl GalleyProgram {
    pub(crate) async fn start() -> Self {
        Self { kit: GalleyKit::start().await }
    }

    pub(crate) async fn run(&self, args: &[&str]) -> GalleyRun {
        self.run_with_input(args, "").await
    }

    pub(crate) async fn run_with_input(&self, args: &[&str], input: &str) -> GalleyRun {
        run_galley(args, &[("GALLEY_URL", &self.kit.gateway.url(""))], input).await
    }

    /// Runs a command with `--json` that must succeed and gives its answer.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let run = self.run(&args).await;
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
        run.json()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_enqueued_waited_for_and_shown() {
    let galley = GalleyProgram::start().await;
    let _worker = galley.kit.start_worker(&[]).await;
    let run =
        galley.run_with_input(&["jobs", "enqueue", "test.echo", "-", "--wait", "--json"], "[\"hello\", 1.10]").await;
    let job = run.json()["job"].clone();
    assert_eq!((run.code, &job["state"], &job["result"]), (0, &json!("completed"), &json!(["hello", 1.10])));
    let id = job["id"].as_str().expect("an id");
    let shown = galley.run(&["jobs", "get", id]).await.done();
    assert!(shown.contains("completed") && shown.contains(r#"["hello", 1.10]"#), "{shown}");
    assert_eq!(galley.run(&["jobs", "get", id, "--quiet"]).await.done().trim(), id);
    // The answer of the gateway, byte for byte
    let raw = galley.kit.get(&format!("/ojs/v1/jobs/{id}")).await.text().await.expect("text");
    assert_eq!(galley.run(&["jobs", "get", id, "--json"]).await.done().trim_end(), raw);
    let failed = galley.run(&["jobs", "enqueue", "test.fail_once", "--max-attempts", "1", "--wait"]).await;
    assert_eq!(failed.code, 1, "{}{}", failed.out, failed.err);
    assert!(failed.out.contains("discarded") && failed.out.contains("error 1"), "{}", failed.out);
}

#[tokio::test]
async fn options_of_a_new_job_reach_the_gateway_digit_for_digit() {
    let galley = GalleyProgram::start().await;
    let args =
        ["jobs", "enqueue", "a.b", "[12345678901234567890123, {\"x\": 1.50}]", "--queue", "mail", "--priority", "-3"];
    let more =
        ["--scheduled-at", "+PT1H", "--meta", "{\"tenant\":7}", "--tag", "x", "--tag", "y", "--timeout-ms", "5000"];
    let run = galley.run(&[&args[..], &more, &["--max-attempts", "2", "--dead-letter", "--json"]].concat()).await;
    let text = run.out.clone();
    assert!(
        text.contains("[12345678901234567890123, {\"x\": 1.50}]") || text.contains("12345678901234567890123"),
        "{text}"
    );
    let job = run.json()["job"].clone();
    assert_eq!((&job["queue"], &job["priority"], &job["state"]), (&json!("mail"), &json!(-3), &json!("scheduled")));
    assert_eq!(
        (&job["tags"], &job["meta"], &job["max_attempts"]),
        (&json!(["x", "y"]), &json!({ "tenant": 7 }), &json!(2))
    );
    let id = job["id"].as_str().expect("an id");
    let shown = galley.run(&["jobs", "cancel", id]).await.done();
    assert!(shown.contains("cancelled") && shown.contains("12345678901234567890123"), "{shown}");
    assert!(galley.run(&["jobs", "retry", id]).await.done().contains("available"));
}

#[tokio::test]
async fn exit_codes_say_what_went_wrong_and_errors_what_to_do() {
    let galley = GalleyProgram::start().await;
    let unknown = "01a20358-99fa-7000-8000-3239590134ff";
    let missing = galley.run(&["jobs", "get", unknown]).await;
    assert_eq!(missing.code, 1, "{}", missing.err);
    for wrong in
        [&["jobs", "enqueue", "t", "{}"][..], &["jobs"], &["nothing"], &["queues", "limits", "q", "--rate", "x"]]
    {
        assert_eq!(galley.run(wrong).await.code, 2, "{wrong:?}");
    }
    let purge = galley.run(&["queues", "purge", "default"]).await;
    assert_eq!(purge.code, 1, "no such queue yet: {}", purge.err);
    galley.kit.enqueue(&json!({ "type": "a", "args": [] })).await;
    let purge = galley.run(&["queues", "purge", "default"]).await;
    assert!(purge.code == 2 && purge.err.contains("\"default\"") && purge.err.contains("--yes"), "{}", purge.err);
    let nobody = run_galley(&["queues", "list", "--url", "http://127.0.0.1:1"], &[], "").await;
    assert_eq!(nobody.code, 3, "{}", nobody.err);
    assert!(nobody.err.contains("http://127.0.0.1:1") && nobody.err.contains("GALLEY_URL"), "{}", nobody.err);
    let url = run_galley(&["queues", "list", "--url", "nowhere"], &[], "").await;
    assert_eq!(url.code, 2, "{}", url.err);
}

#[tokio::test]
async fn queues_are_shown_paused_drained_limited_checked_and_purged() {
    let galley = GalleyProgram::start().await;
    for number in 0..3 {
        galley.kit.enqueue(&json!({ "type": "a", "args": [number], "queue": "mail" })).await;
    }
    let list = galley.run(&["queues", "list"]).await.done();
    let row = list.lines().find(|line| line.starts_with("mail")).expect("a row");
    assert!(list.starts_with("QUEUE") && row.split_whitespace().nth(2) == Some("3"), "{list}");
    assert_eq!(galley.run(&["queues", "list", "-q"]).await.done(), "mail\n");
    for (action, state) in [("pause", "paused"), ("resume", "running"), ("drain", "draining"), ("resume", "running")] {
        let shown = galley.run(&["queues", action, "mail"]).await.done();
        assert!(shown.lines().any(|line| line.starts_with("state") && line.ends_with(state)), "{action}: {shown}");
    }
    let limits = galley.json(&["queues", "limits", "mail", "--rate", "100/PT1M", "--burst", "5"]).await;
    assert_eq!(limits["queue"]["limits"]["rate"]["burst"], 5);
    // What is not said stays
    let limits = galley.json(&["queues", "limits", "mail", "--concurrency", "2"]).await["queue"]["limits"].clone();
    assert_eq!((&limits["concurrency"], &limits["rate"]["limit"]), (&json!(2), &json!(100)));
    let limits = galley.json(&["queues", "limits", "mail", "--reset"]).await["queue"]["limits"].clone();
    assert_eq!(limits["concurrency"], Value::Null);
    let checked = galley.run(&["queues", "check", "mail"]).await;
    assert_eq!(checked.code, 0, "{}", checked.err);
    let misspelt = galley.run(&["queues", "show", "mails"]).await;
    assert!(misspelt.code == 1 && misspelt.err.contains("mail"), "{}", misspelt.err);
    assert_eq!(galley.run(&["queues", "purge", "mail", "--yes"]).await.done().trim(), "3 cancelled");
    galley.run(&["queues", "delete", "mail", "--yes"]).await.done();
    assert_eq!(galley.json(&["queues", "list"]).await["queues"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_grouped_by_error_and_retried() {
    let galley = GalleyProgram::start().await;
    let worker = galley.kit.start_worker(&[]).await;
    for _ in 0..3 {
        let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
        let id = galley.kit.enqueue(&json!({ "type": "no.such", "args": [], "retry": retry })).await;
        galley.kit.wait_for_state(&id, "discarded").await;
    }
    let groups = galley.run(&["dead", "list"]).await.done();
    let row = groups.lines().nth(1).expect("a group");
    assert!(row.split_whitespace().take(3).eq(["3", "no.such", "handler_not_found"]), "{groups}");
    worker.terminate().await;
    let asked = galley.run(&["dead", "retry"]).await;
    assert_eq!(asked.code, 2, "which ones? {}", asked.err);
    let asked = galley.run(&["dead", "retry", "--type", "no.such"]).await;
    assert!(asked.code == 2 && asked.err.contains("no.such") && asked.err.contains('3'), "{}", asked.err);
    let dry = galley.run(&["dead", "retry", "--type", "no.such", "--dry-run"]).await.done();
    assert!(dry.starts_with('3'), "{dry}");
    assert_eq!(galley.run(&["dead", "retry", "--type", "no.such", "--yes"]).await.done().trim(), "3 retried");
    assert_eq!(galley.json(&["dead", "list"]).await["jobs"], json!([]));
    assert_eq!(galley.json(&["queues", "show", "default"]).await["queue"]["available"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_cron_entries_workflows_and_keys_are_steered() {
    let galley = GalleyProgram::start().await;
    let mut worker = galley.kit.start_worker(&[]).await;
    // It may be ready before it has reported for the first time
    let id = eventually("the worker is listed", || async {
        galley.json(&["workers", "list"]).await["items"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    galley.run(&["workers", "quiet", &id]).await.done();
    galley.run(&["workers", "resume", &id]).await.done();
    assert!(galley.run(&["workers", "show", &id]).await.done().contains(&id));
    galley.run(&["workers", "stop", &id]).await.done();
    worker.wait_for_exit().await;

    let set = ["cron", "set", "nightly", "0 3 * * *", "test.echo", "[1]", "--timezone", "Europe/Berlin", "--tag", "t"];
    assert_eq!(galley.json(&set).await["cron"]["timezone"], "Europe/Berlin");
    assert_eq!(galley.json(&["cron", "pause", "nightly"]).await["cron"]["enabled"], false);
    assert_eq!(galley.json(&["cron", "resume", "nightly"]).await["cron"]["enabled"], true);
    assert_eq!(galley.run(&["cron", "next", "nightly", "--count", "2"]).await.done().lines().count(), 2);
    assert_eq!(galley.json(&["cron", "run", "nightly"]).await["job"]["tags"], json!(["t"]));
    assert!(galley.run(&["cron", "list"]).await.done().contains("0 3 * * *"));
    galley.run(&["cron", "delete", "nightly", "--yes"]).await.done();

    let chain =
        json!({ "type": "chain", "steps": [{ "type": "a", "args": [] }, { "type": "b", "args": [] }] }).to_string();
    let started = galley.run_with_input(&["workflows", "start", "-", "--json"], &chain).await.json();
    let id = started["workflow"]["id"].as_str().expect("an id").to_owned();
    assert!(galley.run(&["workflows", "list"]).await.done().contains(&id));
    assert!(galley.run(&["workflows", "show", &id]).await.done().contains("0 of 2"));
    assert_eq!(galley.json(&["workflows", "cancel", &id, "--yes"]).await["workflow"]["state"], "cancelled");
    let nested =
        json!({ "type": "chain", "steps": [serde_json::from_str::<Value>(&chain).expect("JSON")] }).to_string();
    let outer = galley.run_with_input(&["workflows", "start", "-", "--json"], &nested).await.json();
    let inner = outer["workflow"]["members"][0]["id"].as_str().expect("an id").to_owned();
    let id = outer["workflow"]["id"].as_str().expect("an id").to_owned();
    assert!(galley.run(&["workflows", "show", &id]).await.done().contains(&format!("{inner}  running  chain")));
    assert!(galley.run(&["workflows", "show", &inner]).await.done().contains(&id));
    assert!(!galley.run(&["workflows", "list"]).await.done().contains(&inner), "what is in another one is found there");
    galley.run(&["workflows", "cancel", &id, "--yes"]).await.done();

    let key = galley.run(&["keys", "create", "ci", "--scope", "jobs:write,admin:read", "--queue", "ci.*"]).await;
    assert!(key.code == 0 && key.out.starts_with("glk_") && key.out.trim().lines().count() == 1, "{}", key.err);
    let id = galley.json(&["keys", "list"]).await["items"][0]["id"].as_str().expect("an id").to_owned();
    assert!(galley.run(&["keys", "rotate", &id]).await.done().starts_with("glk_"));
    let asked = galley.run(&["keys", "revoke", &id]).await;
    assert!(asked.code != 0, "{}", asked.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_something_failed_to_retried_and_succeeded_without_a_single_request_by_hand() {
    let galley = GalleyProgram::start().await;
    let id = galley.run(&["jobs", "enqueue", "test.echo", "[7]", "--dead-letter", "--quiet"]).await.done();
    let id = id.trim();
    let fetched = galley.kit.fetch("default").await.expect("a job");
    let error = json!({ "code": "smtp_timeout", "message": "no answer from mail.example", "retryable": false });
    let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "error": error });
    assert_eq!(galley.kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
    let groups = galley.run(&["dead", "list"]).await.done();
    assert!(groups.contains("smtp_timeout") && groups.contains("no answer from mail.example"), "{groups}");
    assert!(groups.contains(id), "one of them can be looked at: {groups}");
    let shown = galley.run(&["jobs", "get", id]).await.done();
    assert!(shown.contains("discarded") && shown.contains("no answer from mail.example"), "{shown}");
    // What was wrong is mended: a worker that can do it
    let _worker = galley.kit.start_worker(&[]).await;
    assert_eq!(galley.run(&["dead", "retry", "--error", "smtp_timeout", "--yes"]).await.done().trim(), "1 retried");
    let ended = galley.run(&["jobs", "wait", id]).await.done();
    assert!(ended.contains("completed") && ended.contains("[7]"), "{ended}");
    assert_eq!(galley.json(&["dead", "list"]).await["jobs"], json!([]));
}
