//! The clients in `clients/`: the snippets of their READMEs, as they are, with real gateways. Each test is run for each
//! language.

use std::{
    cell::RefCell,
    collections::HashSet,
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, eventually};

use crate::{
    client_packages::{ClientLanguage, clients, compile, unpack},
    kit::{GalleyKit, job_body},
    odd_workers::ODD_WORKER_PY,
    pull::wait_for_waiters_of,
};

/// Leases and timeouts are looked at often, and it is noted when an attempt begins.
const SETTINGS: [(&str, &str); 2] =
    [("GALLEY__MAINTENANCE__SWEEP_MS", "100"), ("GALLEY__JOBS__STARTED_EVENTS", "true")];

/// The snippets of a language in a folder, and a gateway for them.
pub(crate) struct ClientSnippets {
    language: ClientLanguage,
    folder: TempDir,
    pub(crate) kit: GalleyKit,
}

impl ClientSnippets {
    /// None where the language's tools are missing; `make test` installs them where it can.
    pub(crate) async fn of(language: ClientLanguage) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        match language {
            ClientLanguage::Python => {
                unpack(language, folder.path());
                std::fs::write(folder.path().join("odd.py"), ODD_WORKER_PY).expect("written");
            }
            ClientLanguage::TypeScript => {
                let Ok(tsc) = std::env::var("GALLEY_TEST_TSC") else {
                    testkit::skip("GALLEY_TEST_TSC is not set; `make test` sets it");
                    return None;
                };
                compile(&tsc, folder.path());
            }
        }
        Some(Self { language, folder, kit: GalleyKit::start_with(RedisServer::start(), &SETTINGS).await })
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match self.language {
            ClientLanguage::Python => {
                let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
                let mut command = Command::new(python);
                command.arg(format!("{program}.py")).env("PYTHONPATH", clients().join("python"));
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            ClientLanguage::TypeScript => {
                let mut command = Command::new("node");
                command.arg(format!("{program}.js"));
                command
            }
        };
        command.current_dir(self.folder.path()).env("GALLEY_URL", self.kit.gateway.url("")).stdin(Stdio::null());
        command
    }

    /// Starts a worker whose outcomes are hard to tell.
    pub(crate) fn odd_worker(&self) -> ClientWorkerProcess {
        ClientWorkerProcess(self.command("odd").spawn().expect("its language is installed"))
    }

    /// Starts the worker of the README.
    fn worker(&self) -> ClientWorkerProcess {
        ClientWorkerProcess(self.command("worker").spawn().expect("its language is installed"))
    }

    /// Enqueues a job for it.
    async fn enqueue(&self, job_type: &str, args: Value, more: Value) -> String {
        let mut body = job_body(job_type, &args);
        let members = body.as_object_mut().expect("an object");
        members.insert("queue".to_owned(), json!("mail"));
        members.extend(more.as_object().expect("an object").clone());
        self.kit.enqueue(&body).await
    }

    /// Enqueues a report that takes long, and waits until a worker has come so far with it.
    async fn running_report(&self, more: Value) -> String {
        let id = self.enqueue("report.build", json!([1000, 0.05]), more).await;
        self.wait_for_progress(&id).await;
        id
    }

    async fn wait_for_progress(&self, id: &str) {
        eventually("the report is under way", || async { self.kit.job(id).await["progress"].as_f64() }).await;
    }
}

/// A running worker.
pub(crate) struct ClientWorkerProcess(Child);

impl ClientWorkerProcess {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")), signal).expect("a process of ours");
    }

    fn has_exited(&mut self) -> bool {
        self.0.try_wait().expect("a process of ours").is_some()
    }

    async fn wait_for_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a process of ours") {
                return status;
            }
            assert!(started.elapsed() < TEST_TIMEOUT, "the worker does not end");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

impl Drop for ClientWorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

macro_rules! in_each_language {
    ($($test:ident),+ $(,)?) => {
        mod python {
            $(#[tokio::test] async fn $test() { super::$test(crate::client_packages::ClientLanguage::Python).await; })+
        }
        mod typescript {
            $(#[tokio::test] async fn $test() { super::$test(crate::client_packages::ClientLanguage::TypeScript).await; })+
        }
    };
}

/// Each job would wait for its lease of 30 s if its end were refused and dropped.
async fn an_outcome_that_is_hard_to_tell_is_told_all_the_same(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.odd_worker();
    let failed = snippets.enqueue("odd.failure", json!([]), json!({})).await;
    let failed = snippets.kit.wait_for_state(&failed, "discarded").await;
    let message = failed["errors"][0]["message"].as_str().expect("a message");
    assert_eq!(message, "no file caf\u{fffd}", "{failed}");
    let done = snippets.enqueue("odd.result", json!([]), json!({})).await;
    let done = snippets.kit.wait_for_state(&done, "completed").await;
    assert_eq!(done["result"], json!(["caf\u{fffd}", { "caf\u{fffd}": "\u{1f600}" }]), "{done}");
    for (job_type, code) in [("odd.deep", "result_refused"), ("odd.unshown", "handler_error")] {
        let id = snippets.enqueue(job_type, json!([]), json!({})).await;
        let job = snippets.kit.wait_for_state(&id, "discarded").await;
        assert_eq!(job["errors"][0]["code"], code, "{job}");
        assert_eq!(job["attempt"], 1, "{job}");
    }
}

in_each_language!(
    an_outcome_that_is_hard_to_tell_is_told_all_the_same,
    the_readme_does_what_it_says,
    a_worker_says_that_it_started_and_logs_failures,
    failures_are_retried_or_not_as_the_handler_says,
    a_job_that_runs_past_its_timeout_is_stopped_and_the_worker_lives_on,
    a_job_that_is_cancelled_while_it_runs_is_stopped,
    a_worker_that_is_killed_in_mid_job_loses_nothing,
    a_worker_that_is_told_to_stop_finishes_what_it_can_and_hands_back_the_rest_unspent,
    a_worker_that_is_told_to_terminate_by_a_directive_ends,
    a_large_result_arrives_and_one_that_is_too_large_is_a_failure_that_says_so,
    two_workers_share_the_work_and_nothing_is_lost_or_done_twice,
    a_worker_carries_on_when_the_gateway_was_away,
);

async fn a_worker_says_that_it_started_and_logs_failures(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let log = snippets.folder.path().join("worker.log");
    let written = || std::fs::File::options().append(true).create(true).open(&log).expect("a file");
    let mut command = snippets.command("worker");
    let _worker = ClientWorkerProcess(command.stdout(written()).stderr(written()).spawn().expect("it starts"));
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it says that it started", || async { read().contains("works on mail").then_some(()) }).await;
    let id = snippets.enqueue("no.such.type", json!([]), json!({ "retry": { "max_attempts": 1 } })).await;
    let failed = format!("job {id} (no.such.type) failed in attempt 1: no handler for jobs of type no.such.type");
    eventually("it logs the failure", || async { read().contains(&failed).then_some(()) }).await;
}

async fn the_readme_does_what_it_says(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let output = snippets.command("enqueue").stdout(Stdio::piped()).spawn().expect("it starts");
    let output = tokio::task::spawn_blocking(|| output.wait_with_output()).await.expect("no panic").expect("output");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(
        printed.to_lowercase().lines().collect::<Vec<_>>(),
        ["hello", "discarded nobody is no address", "cancelled"]
    );
}

async fn failures_are_retried_or_not_as_the_handler_says(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let to = "ada@example.org";
    let busy = snippets.enqueue("email.send", json!([to, { "subject": "s", "server": "busy" }]), json!({})).await;
    let nobody = snippets.enqueue("email.send", json!(["nobody", {}]), json!({})).await;
    let once = json!({ "retry": { "max_attempts": 1 } });
    let broken = snippets.enqueue("email.send", json!([to, {}]), once.clone()).await;
    let unknown = snippets.enqueue("email.burn", json!([]), once).await;
    let done = snippets.kit.wait_for_state(&busy, "completed").await;
    assert_eq!((&done["attempt"], &done["errors"][0]["type"]), (&json!(2), &json!("Retry")));
    assert_eq!(done["errors"][0]["message"], "the mail server is busy");
    let failed = snippets.kit.wait_for_state(&nobody, "discarded").await;
    assert_eq!((&failed["attempt"], &failed["max_attempts"]), (&json!(1), &json!(3)));
    assert_eq!(failed["errors"][0]["type"], "NoRetry");
    let failed = snippets.kit.wait_for_state(&broken, "discarded").await["errors"][0].clone();
    let error_type = if matches!(language, ClientLanguage::Python) { "KeyError" } else { "TypeError" };
    assert_eq!(failed["type"], error_type);
    assert!(failed["message"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(failed["stack"].as_str().is_some_and(|stack| stack.contains("worker.")), "{failed}");
    let failed = snippets.kit.wait_for_state(&unknown, "discarded").await;
    assert_eq!(failed["errors"][0]["code"], "handler_not_found");
}

async fn a_job_that_runs_past_its_timeout_is_stopped_and_the_worker_lives_on(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let limits = json!({ "timeout_ms": 500, "retry": { "max_attempts": 1 } });
    for _ in 0..4 {
        snippets.enqueue("report.build", json!([1000, 0.05]), limits.clone()).await;
    }
    let id = snippets.enqueue("report.build", json!([1000, 0.05]), limits).await;
    let failed = snippets.kit.wait_for_state(&id, "discarded").await;
    assert_eq!(failed["errors"][0]["code"], "timeout", "{failed}");
    // All of its places are free again
    let id = snippets.enqueue("email.send", json!(["ada@example.org", { "subject": "s" }]), json!({})).await;
    snippets.kit.wait_for_state(&id, "completed").await;
}

async fn a_job_that_is_cancelled_while_it_runs_is_stopped(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let id = snippets.running_report(json!({})).await;
    let url = snippets.kit.gateway.url(&format!("/ojs/v1/jobs/{id}"));
    assert_eq!(snippets.kit.http.delete(url).send().await.expect("an answer").status(), 200);
    eventually("the worker has let go of it", || async {
        let answer: Value = snippets.kit.get("/ojs/v1/workers").await.json().await.ok()?;
        let worker = answer["items"].as_array()?.first()?;
        (worker["active_jobs"] == 0 && worker["concurrency"] == 4).then_some(())
    })
    .await;
    assert_eq!(snippets.kit.job(&id).await["state"], "cancelled");
}

async fn a_worker_that_is_killed_in_mid_job_loses_nothing(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let mut doomed = snippets.worker();
    // Long enough that it is not done before the worker is killed
    let id = snippets.enqueue("report.build", json!([10, 1]), json!({})).await;
    snippets.wait_for_progress(&id).await;
    doomed.signal(Signal::SIGKILL);
    assert!(!doomed.wait_for_exit().await.success());
    snippets.kit.wait_for_state(&id, "available").await;
    let _other = snippets.worker();
    let done = snippets.kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["result"].as_array().map(Vec::len), Some(10));
}

async fn a_worker_that_is_told_to_stop_finishes_what_it_can_and_hands_back_the_rest_unspent(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let mut worker = snippets.worker();
    // Much less than the five seconds of its grace
    let short = snippets.enqueue("report.build", json!([5, 0.2]), json!({})).await;
    let long = snippets.running_report(json!({})).await;
    wait_for_waiters_of(&snippets.kit, &snippets.kit.gateway, 1).await;
    worker.signal(Signal::SIGTERM);
    // The signal has arrived when the fetch that waits is given up
    wait_for_waiters_of(&snippets.kit, &snippets.kit.gateway, 0).await;
    let after = snippets.enqueue("email.send", json!(["ada@example.org", { "subject": "s" }]), json!({})).await;
    assert!(worker.wait_for_exit().await.success());
    assert_eq!(snippets.kit.job(&short).await["state"], "completed");
    assert_eq!(snippets.kit.job(&after).await["state"], "available", "nothing more was fetched");
    let back = snippets.kit.job(&long).await;
    assert_eq!((&back["state"], &back["attempt"]), (&json!("available"), &json!(0)), "{back}");
    // Twice is at once
    let worker = RefCell::new(snippets.worker());
    snippets.wait_for_progress(&long).await;
    assert_eq!(snippets.kit.job(&long).await["attempt"], 1);
    worker.borrow().signal(Signal::SIGTERM);
    eventually("it says that it ends, unless its grace is over before", || async {
        let answer: Value = snippets.kit.get("/ojs/v1/workers").await.json().await.ok()?;
        (worker_state(&answer, "terminating").is_some() || worker.borrow_mut().has_exited()).then_some(())
    })
    .await;
    let mut worker = worker.into_inner();
    if !worker.has_exited() {
        worker.signal(Signal::SIGTERM);
    }
    assert!(worker.wait_for_exit().await.success());
    assert_eq!(snippets.kit.job(&long).await["state"], "available");
}

fn worker_state(list: &Value, state: &str) -> Option<String> {
    let mut workers = list["items"].as_array()?.iter();
    workers.find(|worker| worker["state"] == state)?["id"].as_str().map(ToOwned::to_owned)
}

async fn a_worker_that_is_told_to_terminate_by_a_directive_ends(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let mut worker = snippets.worker();
    let list = async || snippets.kit.get("/ojs/v1/workers").await.json::<Value>().await.ok();
    let id = eventually("it is listed", || async { worker_state(&list().await?, "running") }).await;
    let direct = async |what: &str| {
        let path = format!("/ojs/v1/workers/{id}/{what}");
        assert_eq!(snippets.kit.post(&path, &json!({})).await.status(), 200);
    };
    direct("quiet").await;
    eventually("it is quiet", || async { worker_state(&list().await?, "quiet") }).await;
    direct("terminate").await;
    assert!(worker.wait_for_exit().await.success());
}

async fn a_large_result_arrives_and_one_that_is_too_large_is_a_failure_that_says_so(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let large = snippets.enqueue("report.build", json!([100, 0]), json!({})).await;
    let done = snippets.kit.wait_for_state(&large, "completed").await;
    let pages = done["result"].as_array().expect("pages");
    assert!(pages.len() == 100 && pages.iter().all(|page| page.as_str().is_some_and(|text| text.len() == 10_000)));
    let huge = snippets.enqueue("report.build", json!([200, 0]), json!({})).await;
    let failed = snippets.kit.wait_for_state(&huge, "discarded").await;
    assert_eq!((&failed["errors"][0]["code"], &failed["attempt"]), (&json!("result_too_large"), &json!(1)), "{failed}");
}

async fn two_workers_share_the_work_and_nothing_is_lost_or_done_twice(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let _workers = [snippets.worker(), snippets.worker()];
    let kit = &snippets.kit;
    // Both wait, so that each has its share when the jobs come
    wait_for_waiters_of(kit, &kit.gateway, 2).await;
    let mail =
        |n: usize| json!({ "type": "email.send", "args": [format!("{n}@x"), { "subject": "s" }], "queue": "mail" });
    let jobs: Vec<Value> = (0..300).map(mail).collect();
    let response = kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await;
    let answer: Value = response.json().await.expect("JSON");
    for (n, job) in answer["jobs"].as_array().expect("jobs").iter().enumerate() {
        let done = kit.wait_for_state(job["id"].as_str().expect("an id"), "completed").await;
        assert_eq!((&done["attempt"], &done["result"]["to"]), (&json!(1), &json!(format!("{n}@x"))));
    }
    let stats: Value = kit.get("/ojs/v1/queues/mail").await.json().await.expect("JSON");
    assert_eq!((&stats["queue"]["completed"], &stats["queue"]["active"]), (&json!(300), &json!(0)), "{stats}");
    let all = eventually("all beginnings are noted", || async {
        let answer: Value = kit.get("/ojs/v1/events?types=job.started&limit=1000").await.json().await.ok()?;
        answer["events"].as_array().filter(|events| events.len() >= 300).cloned()
    })
    .await;
    assert_eq!(all.len(), 300, "each was begun once");
    let workers: HashSet<&str> = all.iter().filter_map(|event| event["data"]["worker_id"].as_str()).collect();
    assert_eq!(workers.len(), 2, "both had some");
}

async fn a_worker_carries_on_when_the_gateway_was_away(language: ClientLanguage) {
    let Some(mut snippets) = ClientSnippets::of(language).await else { return };
    let _worker = snippets.worker();
    let id = snippets.enqueue("report.build", json!([10, 0.2]), json!({})).await;
    snippets.wait_for_progress(&id).await;
    let address = snippets.kit.gateway.address().to_string();
    let mut settings = SETTINGS.to_vec();
    settings.push(("GALLEY__GATEWAY__LISTEN", &address));
    // A port cannot be taken again while the old one still has it
    let elsewhere = ServiceProcess::start("gateway", &snippets.kit.redis, &SETTINGS).await;
    std::mem::replace(&mut snippets.kit.gateway, elsewhere).kill();
    snippets.kit.gateway = ServiceProcess::start("gateway", &snippets.kit.redis, &settings).await;
    let done = snippets.kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["attempt"], 1);
    let id = snippets.enqueue("email.send", json!(["ada@example.org", { "subject": "s" }]), json!({})).await;
    snippets.kit.wait_for_state(&id, "completed").await;
}
