//! A worker from its start to its end: its rules or commands, `check`, `--once`, `--drain`, and how many jobs it runs at a time.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::kit::{GalleyKit, RULES_VARIABLE, SHORT_LEASE, TestFolder, job_body};

const COMMANDS: &str = "GALLEY__PUBSUB_WORKER__COMMANDS";

fn shell(job_type: &str, script: &str) -> String {
    let script = json!(script);
    format!("[[rule]]\ntype = \"{job_type}\"\ncommand = {{ program = \"/bin/sh\", args = [\"-c\", {script}] }}\n")
}

/// A rule for jobs that run until the file `gate` is in the folder.
pub(crate) fn gated(job_type: &str, folder: &TestFolder) -> String {
    shell(job_type, &format!("until [ -e '{}' ]; do sleep 0.02; done", folder.path_text("gate")))
}

#[tokio::test]
async fn rules_are_read_again_on_sighup_and_a_broken_file_changes_nothing() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::with_rules(&shell("first", "echo 1"));
    let worker = kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let run = async |job_type: &str| {
        let id = kit.enqueue(&json!({ "type": job_type, "args": [], "retry": { "max_attempts": 1 } })).await;
        eventually(&format!("{job_type} ends"), || async {
            let job = kit.job(&id).await;
            let ended = ["completed", "discarded"].contains(&job["state"].as_str()?);
            ended.then(|| if job["error"].is_null() { job["result"].clone() } else { job["error"]["code"].clone() })
        })
        .await
    };
    assert_eq!((run("first").await, run("second").await), (json!(1), json!("handler_not_found")));

    folder.write_rules(&(shell("first", "echo 10") + &shell("second", "echo 2")));
    worker.signal(Signal::SIGHUP);
    worker.wait_for_event("rules.reloaded").await;
    assert_eq!((run("first").await, run("second").await), (json!(10), json!(2)));

    folder.write_rules("[[rule]]\ntype = \"first\"\nhandler = \"no.such\"\n");
    worker.signal(Signal::SIGHUP);
    let failed = worker.wait_for_event("rules.reload_failed").await;
    let said = failed["error"].as_str().expect("an error");
    assert!(said.contains("rules.toml:3: ") && said.contains("no.such"), "{said}");
    assert_eq!((run("first").await, run("second").await), (json!(10), json!(2)));

    folder.remove("rules.toml");
    worker.signal(Signal::SIGHUP);
    eventually("reloading fails again", || async { (worker.events("rules.reload_failed").len() == 2).then_some(()) })
        .await;
    assert_eq!(run("second").await, 2);
}

#[tokio::test]
async fn rules_that_cannot_be_used_are_all_named_with_their_lines_and_nothing_starts() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::with_rules(
        "[[rule]]\ntype = \"Big\"\nhandler = \"test.noop\"\n\n[[rule]]\ntype = \"a\"\n\n\
         [[rule]]\ntype = \"b\"\nhttp = { url = \"ftp://example.com/\" }\n\n\
         [[rule]]\ntype = \"c\"\nhttp = { url = \"https://example.com/\", secrets = [\"env:NO_SUCH_SECRET\"] }\n",
    );
    let rules = folder.path_text("rules.toml");
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    for args in [&[][..], &["run"], &["--drain"], &["check"]] {
        let refused = kit.run_worker(args, &[(RULES_VARIABLE, &rules)]).await;
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        for problem in [
            "rules.toml:2: type must be a job type",
            "rules.toml:5: a rule must have exactly one of handler, http and command",
            "rules.toml:10: ",
            "rules.toml:14: the variable NO_SUCH_SECRET is not set",
        ] {
            assert!(said.contains(problem), "{args:?}: {problem} in {said}");
        }
    }
    let gone = kit.run_worker(&[], &[(RULES_VARIABLE, &folder.path_text("elsewhere.toml"))]).await;
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("elsewhere.toml"));
    assert_eq!(kit.job(&id).await["attempt"], 0);
}

#[tokio::test]
async fn commands_are_read_again_on_sighup_and_a_broken_file_changes_nothing() {
    let redis = RedisServer::start();
    let folder = TestFolder::new();
    let named = |name: &str| format!("[[command]]\nname = \"{name}\"\nprogram = \"true\"\n");
    folder.write("commands.toml", &named("first"));
    let mut worker =
        ServiceProcess::start("pubsub-worker", &redis, &[(COMMANDS, &folder.path_text("commands.toml"))]).await;
    assert_eq!(worker.wait_for_event("pubsub_worker.listening").await["commands"], 1);

    folder.write("commands.toml", &(named("first") + &named("second")));
    worker.signal(Signal::SIGHUP);
    assert_eq!(worker.wait_for_event("commands.reloaded").await["commands"], 2);

    folder.write("commands.toml", &(named("first") + &named("First")));
    worker.signal(Signal::SIGHUP);
    let failed = worker.wait_for_event("commands.reload_failed").await;
    let said = failed["error"].as_str().expect("an error");
    assert!(said.contains("commands.toml:5: command must match"), "{said}");

    folder.remove("commands.toml");
    worker.signal(Signal::SIGHUP);
    eventually("reloading fails again", || async {
        (worker.events("commands.reload_failed").len() == 2).then_some(())
    })
    .await;
    assert_eq!(worker.events("commands.reloaded").len(), 1);
    assert!(worker.is_running());

    let mut without = ServiceProcess::start("pubsub-worker", &redis, &[]).await;
    assert_eq!(without.wait_for_event("pubsub_worker.listening").await["commands"], 0);
    without.signal(Signal::SIGHUP);
    without.wait_for_event("commands.no_file").await;
    assert!(without.is_running());
}

#[tokio::test]
async fn commands_that_cannot_be_used_are_all_named_with_their_lines_and_nothing_starts() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    folder.write(
        "commands.toml",
        "[[command]]\nname = \"Big\"\nprogram = \"true\"\n\n[[command]]\nprogram = \"true\"\ntimeout_ms = 0\n\n\
         [[command]]\nname = \"a\"\nprogram = \"true\"\n\n[[command]]\nname = \"a\"\nprogram = \"true\"\n",
    );
    let refused = kit.run_binary("pubsub-worker", &[], &[(COMMANDS, &folder.path_text("commands.toml"))]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    for problem in [
        "commands.toml:2: command must match ^[a-z0-9][a-z0-9.-]*$",
        "commands.toml:5: a command must have a name",
        "commands.toml:7: timeout_ms must be 1 to 604800000, got 0",
        "commands.toml:14: there is a command named a on line 10 already",
    ] {
        assert!(said.contains(problem), "{problem} in {said}");
    }
    let gone = kit.run_binary("pubsub-worker", &[], &[(COMMANDS, &folder.path_text("elsewhere.toml"))]).await;
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("elsewhere.toml"));
}

#[tokio::test]
async fn check_says_what_is_done_with_a_type_and_shows_no_secret() {
    let kit = GalleyKit::start().await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let folder = TestFolder::with_rules(&format!(
        "[[rule]]\ntype = \"email.*\"\nhttp = {{ url = \"https://example.com/hidden\", secrets = [\"{secret}\"] }}\n\n\
         [[rule]]\ntype = \"image.resize\"\n[rule.command]\nprogram = \"resize\"\nargs = [\"--fast\"]\n\
         env = {{ KEY = \"of-the-program\" }}\n\n\
         [[rule]]\ntype = \"email.send\"\nhandler = \"test.noop\"\n",
    ));
    let rules = folder.path_text("rules.toml");
    let check = async |types: &[&str]| {
        let args = [&["check"], types].concat();
        let output = kit.run_worker(&args, &[(RULES_VARIABLE, &rules)]).await;
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, said) = check(&["email.send", "image.resize", "test.echo"]).await;
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[0].starts_with("email.send: rule email.* (line 1) sends it by POST to https://example.com"),
        "{said}"
    );
    assert!(lines[1].starts_with("image.resize: rule image.resize (line 5) gives it to the program"), "{said}");
    assert_eq!(lines[2], "test.echo: no rule: runs the handler of that name");
    let (code, said) = check(&["nobody.knows", "test.echo"]).await;
    assert_eq!(code, Some(1), "for scripts");
    assert!(said.contains("nobody.knows: no rule and no handler: fails with handler_not_found"), "{said}");
    let (code, said) = check(&[]).await;
    assert_eq!((code, said.lines().count()), (Some(0), 4), "each rule, and the rest: {said}");
    assert!(![secret, "hidden", "of-the-program"].iter().any(|word| said.contains(word)), "{said}");
    let (code, _) = check(&["Not A Type"]).await;
    assert_eq!(code, Some(2), "as with any wrong command line");
}

async fn states(kit: &GalleyKit, ids: &[String]) -> Vec<String> {
    let mut states = Vec::new();
    for id in ids {
        states.push(kit.job(id).await["state"].as_str().expect("a state").to_owned());
    }
    states
}

#[tokio::test]
async fn once_runs_one_job_and_finishes_it_however_long_it_takes() {
    let kit = GalleyKit::start().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(&job_body("test.slow", &json!([1000]))).await);
    }
    let short = ("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "100");
    let output = kit.run_worker(&["--once"], &[short]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(states(&kit, &ids).await, ["completed", "available", "available"]);
    assert_eq!(kit.job(&ids[0]).await["attempt"], 1, "not handed back in between");
    assert_eq!(kit.job(&ids[1]).await["attempt"], 0);
}

#[tokio::test]
async fn drain_runs_everything_that_is_there_and_what_that_makes() {
    let kit = GalleyKit::start().await;
    let url = kit.gateway.url("/ojs/v1/jobs");
    // Makes a job of its own kind, one less each time, and takes longer than the worker takes to find its queues empty
    let script = format!(
        "import json, sys, time, urllib.request\nleft = json.load(sys.stdin)['args'][0]\ntime.sleep(0.3)\n\
         if left:\n body = json.dumps({{'type': 'makes.more', 'args': [left - 1]}}).encode()\n \
         headers = {{'content-type': 'application/json'}}\n \
         urllib.request.urlopen(urllib.request.Request('{url}', body, headers)).read()\nprint(left)"
    );
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let (python, args) = (json!(python), json!(["-c", script]));
    let folder = TestFolder::with_rules(&format!(
        "[[rule]]\ntype = \"makes.more\"\ncommand = {{ program = {python}, args = {args} }}\n"
    ));
    let mut ids = vec![kit.enqueue(&job_body("makes.more", &json!([2]))).await];
    for n in 0..5 {
        ids.push(kit.enqueue(&json!({ "type": "test.echo", "args": [n], "queue": "demo" })).await);
    }
    let later = json!({ "type": "test.noop", "args": [], "scheduled_at": "+PT1H" });
    let later = kit.enqueue(&later).await;
    let output = kit.run_worker(&["--drain"], &[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(states(&kit, &ids).await.iter().all(|state| state == "completed"));
    let stats: Value = kit.get("/ojs/v1/queues/default/stats").await.json().await.expect("JSON");
    assert_eq!((&stats["queue"]["completed"], &stats["queue"]["available"]), (&json!(3), &json!(0)), "{stats}");
    assert_eq!(kit.job(&later).await["state"], "scheduled", "it is not waited for");
}

#[tokio::test]
async fn once_and_drain_end_when_there_is_nothing_to_do() {
    let kit = GalleyKit::start().await;
    for args in [&["--once"][..], &["--drain"], &["run", "--drain"]] {
        let output = kit.run_worker(args, &[]).await;
        assert!(output.status.success(), "{args:?} {}", String::from_utf8_lossy(&output.stdout));
    }
    let both = kit.run_worker(&["--once", "--drain"], &[]).await;
    assert_eq!(both.status.code(), Some(2));
}

/// The most that were under way at once, of lines that say who began and who ended.
fn max_concurrency(lines: &str, queue: &str) -> i32 {
    let (mut now, mut most) = (0, 0);
    for line in lines.lines() {
        match line.split_at(1) {
            ("+", name) if name == queue => now += 1,
            ("-", name) if name == queue => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

#[tokio::test]
async fn a_queue_with_a_limit_never_runs_more_than_that_while_others_go_on() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    let here = folder.path_text("");
    let script = format!(
        "cd '{here}'; echo +$GALLEY_QUEUE >> log; until [ -e gate ]; do sleep 0.02; done; echo -$GALLEY_QUEUE >> log"
    );
    folder.write_rules(&shell("*", &script));
    let mut ids = Vec::new();
    // The one with the limit is asked first, and full before the other's turn
    for (queue, jobs) in [("few", 6), ("many", 4)] {
        for _ in 0..jobs {
            ids.push(kit.enqueue(&json!({ "type": "a", "args": [], "queue": queue })).await);
        }
    }
    let worker = kit
        .start_worker(&[
            (RULES_VARIABLE, &folder.path_text("rules.toml")),
            ("GALLEY__QUEUE_WORKER__QUEUES", "few,many"),
            ("GALLEY__QUEUE_WORKER__CONCURRENCY", "10"),
            ("GALLEY__QUEUE_WORKER__QUEUE_CONCURRENCY__FEW", "2"),
        ])
        .await;
    eventually("all of the others run", || async { (folder.read("log").matches("+many").count() == 4).then_some(()) })
        .await;
    eventually("as many of the others as may run", || async {
        (folder.read("log").matches("+few").count() == 2).then_some(())
    })
    .await;
    folder.touch("gate");
    for id in &ids {
        kit.wait_for_state(id, "completed").await;
    }
    let log = folder.read("log");
    assert_eq!((log.matches("+few").count(), log.matches("-few").count()), (6, 6));
    assert_eq!((max_concurrency(&log, "few"), max_concurrency(&log, "many")), (2, 4), "{log}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_signals_at_once_are_one_and_leave_running_jobs_their_grace() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    folder.write_rules(&gated("slow", &folder));
    let mut worker = kit.start_worker(&[(RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let id = kit.enqueue(&json!({ "type": "slow", "args": [] })).await;
    kit.wait_for_state(&id, "active").await;
    // A supervisor and the process group. At once: it stands still until all are sent
    for signal in [Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM, Signal::SIGCONT] {
        worker.signal(signal);
    }
    worker.wait_for_event("process.stopping").await;
    folder.touch("gate");
    assert!(worker.wait_for_exit().await.success());
    let job = kit.job(&id).await;
    assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_signal_ends_the_grace_and_running_jobs_are_released_unspent() {
    let kit = GalleyKit::start().await;
    let mut worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "600000")]).await;
    let id = kit.enqueue(&json!({ "type": "test.slow", "args": [600_000] })).await;
    kit.wait_for_state(&id, "active").await;
    eventually("a signal counts as a second request", || async {
        worker.signal(Signal::SIGTERM);
        (!worker.events("process.grace_ended").is_empty()).then_some(())
    })
    .await;
    assert!(worker.wait_for_exit().await.success());
    let job = kit.wait_for_state(&id, "available").await;
    assert_eq!(job["attempt"], 0);
}

#[tokio::test]
async fn a_job_that_cannot_be_ended_takes_no_plain_result_along() {
    let kit = GalleyKit::start().await;
    for n in 0..20 {
        kit.enqueue(&json!({ "type": "test.echo", "args": [n], "expires_at": "2999-01-01T00:00:00Z" })).await;
    }
    let mut plain = Vec::new();
    for n in 0..20 {
        plain.push(kit.enqueue(&job_body("test.echo", &json!([n]))).await);
    }
    // The end of a job with a deadline removes a timer, which fails
    kit.redis_command(&["DEL", "galley:{default}:timers"]).await;
    kit.redis_command(&["SET", "galley:{default}:timers", "not a sorted set"]).await;
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__CONCURRENCY", "100")]).await;
    for id in &plain {
        kit.wait_for_state(id, "completed").await;
    }
    eventually("all plain results count as completed", || async {
        let metrics = kit.http.get(worker.url("/metrics")).send().await.ok()?.text().await.ok()?;
        let line = r#"galley_attempts_total{queue="default",outcome="completed"} 20"#;
        metrics.lines().any(|found| found == line).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_attempt_of_a_job_without_a_timeout_ends_too() {
    let limits = [("GALLEY__JOBS__ATTEMPT_TIMEOUT_MS", "300"), ("GALLEY__QUEUES__LONG__ATTEMPT_TIMEOUT_MS", "600000")];
    let kit = GalleyKit::start_with(RedisServer::start(), &limits).await;
    let _worker = kit.start_worker(&[limits[0], limits[1], ("GALLEY__QUEUE_WORKER__QUEUES", "default,long")]).await;
    let endless =
        |queue: &str| json!({ "type": "test.timeout", "args": [], "queue": queue, "retry": { "max_attempts": 1 } });
    let (long, id) = (kit.enqueue(&endless("long")).await, kit.enqueue(&endless("default")).await);
    assert_eq!(kit.wait_for_state(&id, "discarded").await["error"]["code"], "timeout");
    kit.wait_for_state(&long, "active").await;
}

#[tokio::test]
async fn a_handler_that_never_yields_loses_its_job_after_the_time_limit() {
    let mut variables = SHORT_LEASE.to_vec();
    variables.extend([("GALLEY__JOBS__CRASH_BUDGET", "0"), ("GALLEY__QUEUE_WORKER__STOP_GRACE_MS", "0")]);
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    let id = kit.enqueue(&json!({ "type": "test.block", "args": [120_000], "timeout_ms": 100 })).await;
    worker.wait_for_event("attempt.stuck").await;
    let ended = kit.wait_for_state(&id, "discarded").await;
    assert_eq!(ended["error"]["code"], "crash_budget_exhausted");
    // The worker goes on
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
}
