//! Jobs that are given to programs: what they are told, what becomes of them, and that nothing of them is left over.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{ProcessMark, RedisServer, ServiceProcess, eventually};

use crate::kit::{GalleyKit, RULES_VARIABLE, SHORT_LEASE, TestFolder, job_body};

/// Longer than any test takes.
const NEVER: &str = "sleep 1001";
/// A lease that is not lost though the machine is busy, and that a test can wait for.
const PATIENT_LEASE: [(&str, &str); 2] = [("GALLEY__JOBS__LEASE_MS", "8000"), SHORT_LEASE[1]];

/// Rules whose programs are all marked.
struct MarkedPrograms {
    mark: ProcessMark,
    folder: TestFolder,
    rules: String,
}

impl MarkedPrograms {
    fn new() -> Self {
        Self { mark: ProcessMark::random(), folder: TestFolder::new(), rules: String::new() }
    }

    /// A job type that is done by a program.
    fn with(mut self, job_type: &str, program: &str, args: &[&str], more: &str) -> Self {
        let (name, value) = self.mark.env_variable();
        let here = self.folder.path_text("");
        // JSON's texts are TOML's
        let (program, args, here) = (json!(program), json!(args), json!(here));
        let rule = format!("[[rule]]\ntype = \"{job_type}\"\n[rule.command]\nprogram = {program}\nargs = {args}\n");
        self.rules.push_str(&rule);
        let around = format!("directory = {here}\nenv = {{ {name} = \"{value}\" }}\n{more}\n");
        self.rules.push_str(&around);
        self
    }

    /// The same for a script; it runs in the folder of the test.
    fn shell(self, job_type: &str, script: &str, more: &str) -> Self {
        self.with(job_type, "/bin/sh", &["-c", script], more)
    }

    fn python(self, job_type: &str, script: &str, more: &str) -> Self {
        // What is called python3 may be a shell script that looks for one, and takes its time
        let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        self.with(job_type, &python, &["-c", script], more)
    }

    async fn worker(&self, kit: &GalleyKit, more: &[(&str, &str)]) -> ServiceProcess {
        self.folder.write_rules(&self.rules);
        let rules = self.folder.path_text("rules.toml");
        let mut variables = vec![(RULES_VARIABLE, rules.as_str())];
        variables.extend(more);
        kit.start_worker(&variables).await
    }

    /// Waits until nothing of any program is left, dead or alive.
    async fn wait_until_all_exited(&self, worker: &ServiceProcess) {
        self.mark.wait_until_all_exited(worker.process_id()).await;
    }
}

fn once(job_type: &str) -> Value {
    json!({ "type": job_type, "args": [], "retry": { "max_attempts": 1 } })
}

#[tokio::test]
async fn a_program_gets_the_job_and_what_it_writes_is_the_result() {
    let kit = GalleyKit::start().await;
    let script = "import json, os, sys\njob = json.load(sys.stdin)\n\
        told = {name: os.environ.get('GALLEY_' + name) for name in \
        ('JOB_ID', 'JOB_TYPE', 'QUEUE', 'ATTEMPT', 'MAX_ATTEMPTS', 'DEADLINE', '_REDIS__URL')}\n\
        told['trace'] = os.environ.get('TRACEPARENT')\n\
        json.dump({'args': job['args'], 'id': job['id'], 'token': job.get('token'), 'told': told}, sys.stdout)";
    let programs = MarkedPrograms::new().python("image.resize", script, "");
    let worker = programs.worker(&kit, &[]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({ "type": "image.resize", "args": ["cat.png", 100], "timeout_ms": 600_000 });
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let response = request.header("traceparent", trace).body(body.to_string()).send().await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    let id = answer["job"]["id"].as_str().expect("an id");
    let done = kit.wait_for_state(id, "completed").await;
    let result = &done["result"];
    assert_eq!((&result["id"], &result["args"]), (&json!(id), &body["args"]), "{done}");
    assert!(result["token"].is_null(), "only a client that may end an attempt is given its token");
    let told = &result["told"];
    assert_eq!((&told["JOB_ID"], &told["JOB_TYPE"]), (&json!(id), &json!("image.resize")));
    assert_eq!((&told["QUEUE"], &told["trace"]), (&json!("default"), &json!(trace)));
    assert_eq!((&told["ATTEMPT"], &told["MAX_ATTEMPTS"]), (&json!("1"), &json!("3")));
    assert!(told["DEADLINE"].as_str() > done["started_at"].as_str());
    assert!(told["_REDIS__URL"].is_null(), "what the worker knows is not the program's business");
    programs.wait_until_all_exited(&worker).await;
}

#[tokio::test]
async fn each_way_to_fail_has_its_code_and_says_whether_another_attempt_follows() {
    let kit = GalleyKit::start().await;
    let all = [
        ("a.exit", "echo first >&2; echo it broke >&2; exit 3", "command_failed", "retryable"),
        ("a.again", "exit 75", "command_try_again", "retryable"),
        ("a.final", "exit 65", "command_failed", "discarded"),
        ("a.crash", "kill -SEGV $$", "command_killed", "retryable"),
        ("a.huge", "cat /dev/zero", "result_too_large", "discarded"),
        ("a.text", "echo done", "invalid_result", "discarded"),
    ];
    let mut programs = MarkedPrograms::new().with("a.missing", "/nowhere/to/be/found", &[], "");
    for (job_type, script, ..) in all {
        programs = programs.shell(job_type, script, "not_retryable_exit_codes = [65]");
    }
    let mut worker = programs.worker(&kit, &[]).await;
    let missing = ("a.missing", "", "command_not_started", "retryable");
    for (job_type, _, code, state) in all.into_iter().chain([missing]) {
        let id = kit.enqueue(&json!({ "type": job_type, "args": [], "retry": { "initial_interval": "PT1H" } })).await;
        let failed = kit.wait_for_state(&id, state).await;
        assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!(code), &json!(1)), "{job_type} {failed}");
        if job_type == "a.exit" {
            assert_eq!(failed["error"]["output"], "first\nit broke\n");
            assert_eq!(failed["error"]["message"], "the program ended with exit code 3: it broke");
        }
    }
    assert!(worker.is_running());
    programs.wait_until_all_exited(&worker).await;
}

#[tokio::test]
async fn a_program_that_fails_is_given_the_job_again() {
    let kit = GalleyKit::start().await;
    let script = "[ $GALLEY_ATTEMPT = 2 ] || exit 1; echo '\"the second time\"'";
    let programs = MarkedPrograms::new().shell("a", script, "");
    let _worker = programs.worker(&kit, &[]).await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "retry": { "initial_interval": "PT0.05S" } })).await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(2), &json!("the second time")));
}

#[tokio::test]
async fn what_a_program_says_of_its_progress_is_seen_while_it_runs() {
    let kit = GalleyKit::start().await;
    let script = r#"echo '@progress {"progress": 0.4, "message": "halfway there"}' >&2
        until [ -e gate ]; do sleep 0.02; done; echo 1"#;
    let programs = MarkedPrograms::new().shell("a", script, "");
    let _worker = programs.worker(&kit, &[]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let shown =
        eventually("progress is shown", || async { Some(kit.job(&id).await).filter(|job| !job["progress"].is_null()) })
            .await;
    assert_eq!((&shown["progress"], &shown["state"]), (&json!(0.4), &json!("active")));
    assert_eq!(shown["progress_data"], json!({ "message": "halfway there" }));
    programs.folder.touch("gate");
    kit.wait_for_state(&id, "completed").await;
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_stopped_and_what_it_said_is_kept() {
    let kit = GalleyKit::start().await;
    let script = format!("echo about to sleep >&2; {NEVER}");
    // Long enough for the program to say it, however busy the machine is
    let programs = MarkedPrograms::new().shell("a.rule", &script, "timeout_ms = 12000").shell("a.job", &script, "");
    let worker = programs.worker(&kit, &[]).await;
    let by_rule = kit.enqueue(&once("a.rule")).await;
    let mut body = once("a.job");
    body["timeout_ms"] = json!(12_000);
    for (job_type, id) in [("a.rule", by_rule), ("a.job", kit.enqueue(&body).await)] {
        let late = kit.wait_for_state(&id, "discarded").await;
        assert_eq!((&late["error"]["code"], &late["attempt"]), (&json!("timeout"), &json!(1)), "{late}");
        assert_eq!(late["error"]["output"], "about to sleep\n", "{job_type}");
    }
    programs.wait_until_all_exited(&worker).await;
}

#[tokio::test]
async fn a_program_whose_job_is_cancelled_is_asked_to_stop_and_killed_if_it_does_not() {
    let kit = GalleyKit::start().await;
    let polite = "trap 'echo tidied up > polite; exit 0' TERM; touch up; sleep 1001 & wait";
    let deaf = "trap '' TERM; touch up; while :; do sleep 1001; done";
    let programs = MarkedPrograms::new().shell("polite", polite, "stop_grace_ms = 60000");
    let programs = programs.shell("deaf", deaf, "stop_grace_ms = 300");
    let mut worker = programs.worker(&kit, &[]).await;
    for job_type in ["polite", "deaf"] {
        let id = kit.enqueue(&job_body(job_type, &json!([]))).await;
        let up = programs.folder.path("up");
        eventually("it runs", || async { up.exists().then_some(()) }).await;
        kit.cancel(&id).await;
        programs.wait_until_all_exited(&worker).await;
        assert_eq!(kit.job(&id).await["state"], "cancelled");
        std::fs::remove_file(up).expect("it was there");
    }
    assert_eq!(programs.folder.read("polite"), "tidied up\n");
    assert!(worker.is_running());
}

#[tokio::test]
async fn what_a_program_has_started_and_left_behind_does_not_outlive_the_attempt() {
    let kit = GalleyKit::start().await;
    let script = "sleep 1001 & (sleep 1002 & sleep 1003 &) ; sleep 1004 > /dev/null 2>&1 & echo 1";
    let programs = MarkedPrograms::new().shell("a", script, "");
    let worker = programs.worker(&kit, &[]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], 1);
    programs.wait_until_all_exited(&worker).await;
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_lets_programs_finish_within_its_grace() {
    let kit = GalleyKit::start().await;
    let script = "touch up; until [ -e gate ]; do sleep 0.02; done; echo '\"in time\"'";
    let programs = MarkedPrograms::new().shell("a", script, "");
    let mut worker = programs.worker(&kit, &[]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    eventually("it runs", || async { programs.folder.path("up").exists().then_some(()) }).await;
    worker.signal(Signal::SIGTERM);
    worker.wait_for_event("process.stopping").await;
    let well_into_it = Instant::now() + Duration::from_millis(500);
    eventually("its grace has begun", || async { (Instant::now() >= well_into_it).then_some(()) }).await;
    programs.folder.touch("gate");
    assert!(worker.wait_for_exit().await.success());
    let done = kit.job(&id).await;
    assert_eq!((&done["state"], &done["result"]), (&json!("completed"), &json!("in time")));
}

#[tokio::test]
async fn programs_that_are_not_done_within_the_grace_are_stopped_and_their_jobs_handed_back_unspent() {
    let kit = GalleyKit::start().await;
    let script = "trap 'echo told > told; exit 1' TERM; touch up; sleep 1001 & wait";
    let programs = MarkedPrograms::new().shell("a", script, "stop_grace_ms = 60000");
    let worker = programs.worker(&kit, &[("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "300")]).await;
    let process_id = worker.process_id();
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    eventually("it runs", || async { programs.folder.path("up").exists().then_some(()) }).await;
    assert!(worker.terminate().await.success());
    assert_eq!(programs.folder.read("told"), "told\n");
    programs.mark.wait_until_all_exited(process_id).await;
    let back = kit.job(&id).await;
    assert_eq!((&back["state"], &back["attempt"]), (&json!("available"), &json!(0)), "{back}");
    let fetched = kit.fetch("default").await.expect("the job");
    assert_eq!((&fetched["id"], &fetched["attempt"]), (&json!(id), &json!(1)));
}

#[tokio::test]
async fn a_worker_that_is_killed_takes_its_programs_along_and_their_jobs_run_elsewhere() {
    let kit = GalleyKit::start_with(RedisServer::start(), &PATIENT_LEASE).await;
    let doomed_programs = MarkedPrograms::new().with("a", "sleep", &["1001"], "");
    let doomed = doomed_programs.worker(&kit, &PATIENT_LEASE).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(&job_body("a", &json!([]))).await);
    }
    let mark = &doomed_programs.mark;
    let all_run = || mark.processes().iter().filter(|line| line.starts_with(NEVER)).count() == 3;
    eventually("three sleep", || async { all_run().then_some(()) }).await;
    let process_id = doomed.process_id();
    doomed.kill();
    mark.wait_until_all_exited(process_id).await;
    let heirs_programs = MarkedPrograms::new().shell("a", "echo '\"by the heir\"'", "");
    let _heir = heirs_programs.worker(&kit, &PATIENT_LEASE).await;
    for id in &ids {
        let done = kit.wait_for_state(id, "completed").await;
        assert_eq!(done["result"], "by the heir");
        // More than two if a lease ended before the kill, on a machine that stood still
        assert!(done["attempt"].as_u64() >= Some(2), "the first attempt went with its worker: {done}");
    }
}

#[tokio::test]
async fn a_program_that_crashes_takes_no_other_along() {
    let kit = GalleyKit::start().await;
    let programs = MarkedPrograms::new().shell("crash", "kill -KILL $$", "");
    let programs = programs.shell("good", "touch up; until [ -e gate ]; do sleep 0.02; done; echo 1", "");
    let worker = programs.worker(&kit, &[]).await;
    let good = kit.enqueue(&job_body("good", &json!([]))).await;
    eventually("it runs", || async { programs.folder.path("up").exists().then_some(()) }).await;
    for _ in 0..5 {
        let id = kit.enqueue(&once("crash")).await;
        assert_eq!(kit.wait_for_state(&id, "discarded").await["error"]["code"], "command_killed");
    }
    programs.folder.touch("gate");
    let done = kit.wait_for_state(&good, "completed").await;
    assert_eq!((&done["attempt"], &done["result"]), (&json!(1), &json!(1)));
    programs.wait_until_all_exited(&worker).await;
}
