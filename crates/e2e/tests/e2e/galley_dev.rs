//! `galley dev`, `config`, `doctor` and `completions`.

use std::{fs, net::TcpListener, os::unix::fs::symlink, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use testkit::{ProcessMark, RedisServer, ReservedPort, TEST_TIMEOUT, binary_path, eventually};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    galley::{GalleyProgram, run_galley},
    kit::TestFolder,
};

fn redis_server() -> String {
    std::env::var("GALLEY_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A port each for the services: tests run side by side, and would take the usual ones from each other.
struct ServicePorts([(&'static str, ReservedPort); 3]);

impl ServicePorts {
    fn choose() -> Self {
        Self(["GATEWAY", "QUEUE_WORKER", "PUBSUB_WORKER"].map(|section| (section, ReservedPort::choose())))
    }

    fn variables(&self) -> Vec<(String, String)> {
        let variable = |(section, port): &(&str, ReservedPort)| {
            (format!("GALLEY__{section}__LISTEN"), format!("127.0.0.1:{}", port.number()))
        };
        self.0.iter().map(variable).collect()
    }
}

/// All of Galley, started by one command.
struct RunningDev {
    process: Child,
    url: String,
    key: String,
    mark: ProcessMark,
    _ports: ServicePorts,
}

impl RunningDev {
    async fn start(args: &[&str]) -> Self {
        let (mark, ports) = (ProcessMark::random(), ServicePorts::choose());
        let mut command = Command::new(binary_path("galley"));
        command.args(["dev", "--json", "--redis-server", &redis_server()]).args(args).kill_on_drop(true);
        command
            .envs([mark.env_variable()])
            .envs(ports.variables())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut process = command.spawn().expect("galley starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let banner = tokio::time::timeout(TEST_TIMEOUT, lines.next_line()).await.expect("in time");
        let banner: Value = serde_json::from_str(&banner.expect("text").expect("a line")).expect("JSON");
        let text = |name: &str| banner[name].as_str().expect("text").to_owned();
        Self { process, url: text("url"), key: text("key"), mark, _ports: ports }
    }

    async fn run(&self, args: &[&str]) -> Value {
        let run = run_galley(args, &[("GALLEY_URL", &self.url), ("GALLEY_KEY", &self.key)], "").await;
        assert_eq!(run.code, 0, "{}{}", run.out, run.err);
        run.json()
    }

    fn interrupt(&self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
        kill(Pid::from_raw(id), Signal::SIGINT).expect("a signal");
    }

    /// Waits for its end, and that nothing of it is left.
    async fn exit_code(mut self) -> Option<i32> {
        let status = tokio::time::timeout(TEST_TIMEOUT, self.process.wait()).await;
        let code = status.expect("it ends in time").expect("a status").code();
        self.mark.wait_until_all_exited(std::process::id()).await;
        code
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_runs_everything_and_one_interrupt_stops_it_and_keeps_the_data() {
    let folder = TestFolder::new();
    let data = folder.path_text("data");
    let dev = RunningDev::start(&["--data", &data]).await;
    let job = dev.run(&["jobs", "enqueue", "test.echo", "[7]", "--wait", "--json"]).await;
    assert_eq!(job["job"]["result"], json!([7]));
    dev.run(&["publish", "news", "dinner", "--json"]).await;
    let second = run_galley(&["dev", "--data", &data, "--redis-server", &redis_server()], &[], "").await;
    assert!(second.code == 1 && second.err.contains("--data"), "{}", second.err);
    let key = dev.key.clone();
    dev.interrupt();
    assert_eq!(dev.exit_code().await, Some(0));
    let again = RunningDev::start(&["--data", &data]).await;
    assert_eq!(again.key, key);
    let id = job["job"]["id"].as_str().expect("an id");
    assert_eq!(again.run(&["jobs", "get", id, "--json"]).await["job"]["state"], "completed");
    again.interrupt();
    assert_eq!(again.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_program_dies_all_stop_and_it_is_named() {
    let folder = TestFolder::new();
    for name in ["galley", "gateway", "queue-worker"] {
        symlink(binary_path(name), folder.path(name)).expect("a link");
    }
    // Ends at once, as one with a broken configuration does
    fs::write(folder.path("pubsub-worker"), "#!/bin/sh\necho broken >&2\nexit 3\n").expect("a file");
    fs::set_permissions(folder.path("pubsub-worker"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    fs::remove_file(folder.path("galley")).expect("a link");
    fs::hard_link(binary_path("galley"), folder.path("galley"))
        .or_else(|_| fs::copy(binary_path("galley"), folder.path("galley")).map(drop))
        .expect("a copy");
    let (mark, ports) = (ProcessMark::random(), ServicePorts::choose());
    let mut command = Command::new(folder.path("galley"));
    command
        .args(["dev", "--redis-server", &redis_server()])
        .envs([mark.env_variable()])
        .envs(ports.variables())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TEST_TIMEOUT, command.stdin(Stdio::null()).output()).await;
    let output = output.expect("it ends in time").expect("it runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("pubsub-worker ended") && err.contains('3'), "{err}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("| broken"), "its lines are shown");
    assert!(mark.processes().is_empty(), "nothing is left");
}

#[tokio::test]
async fn without_a_redis_server_the_message_says_how_to_install_one() {
    let run = run_galley(&["dev"], &[("PATH", "/nowhere")], "").await;
    assert!(run.code == 1 && run.err.contains("redis-server") && run.err.contains("install"), "{}", run.err);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let run = run_galley(&["dev", "--port", &port], &[], "").await;
    assert!(run.code == 1 && run.err.contains(&port) && run.err.contains("--port"), "{}", run.err);
}

#[tokio::test]
async fn settings_are_checked_printed_with_their_source_and_described_by_a_schema() {
    let folder = TestFolder::new();
    let file = folder.path_text("galley.toml");
    folder.write("galley.toml", "[redis]\npassword = \"s3cret-word\"\n[queues.mail]\nconcurrency = 2\n");
    let variables = [("GALLEY_CONFIG", file.as_str()), ("GALLEY__JOBS__LEASE_MS", "5000")];
    run_galley(&["config", "check"], &variables, "").await.done();
    let printed = run_galley(&["config", "print", "--changed", "--json"], &variables, "").await;
    let items = printed.json()["items"].clone();
    let of = |key: &str| {
        items.as_array().expect("a list").iter().find(|item| item["key"] == key).expect("a setting").clone()
    };
    assert_eq!(
        of("jobs.lease_ms"),
        json!({ "key": "jobs.lease_ms", "value": 5000, "source": "GALLEY__JOBS__LEASE_MS" })
    );
    assert_eq!(of("queues.mail.concurrency"), json!({ "key": "queues.mail.concurrency", "value": 2, "source": file }));
    let people = run_galley(&["config", "print"], &variables, "").await.done();
    assert!(people.contains("gateway.listen") && people.contains("default"), "{people}");
    assert!(!(people + &printed.out).contains("s3cret-word"), "secrets are not shown");
    let schema = run_galley(&["config", "schema"], &[], "").await.json();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    assert!(validator.is_valid(&json!({ "jobs": { "lease_ms": 5000 }, "queues": { "mail": { "concurrency": 2 } } })));
    assert!(!validator.is_valid(&json!({ "jobs": { "lease_ms": 1 } })));
    assert!(!validator.is_valid(&json!({ "jobs": { "leash_ms": 5000 } })));
    folder.write("galley.toml", "[jobs]\nlease_ms = 1\n");
    let wrong = run_galley(&["config", "check"], &[("GALLEY_CONFIG", &file)], "").await;
    assert!(wrong.code == 1 && wrong.err.contains("jobs.lease_ms"), "{}", wrong.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_and_says_how_to_mend_it() {
    let galley = GalleyProgram::start().await;
    let url = galley.kit.redis.url();
    let look = async |variables: &[(&str, &str)]| run_galley(&["doctor", "--json"], variables, "").await;
    let gateway = galley.kit.gateway.url("");
    let variables = [("GALLEY_URL", gateway.as_str()), ("GALLEY__REDIS__URL", url.as_str())];
    let states = |found: &Value| -> Vec<(String, String)> {
        let items = found["items"].as_array().expect("a list");
        let text = |item: &Value, name: &str| item[name].as_str().expect("text").to_owned();
        items.iter().map(|item| (text(item, "check"), text(item, "state"))).collect()
    };
    let has = |found: &[(String, String)], check: &str, state: &str| {
        assert!(found.contains(&(check.to_owned(), state.to_owned())), "{check} {state}: {found:?}");
    };
    let checks = ["redis", "version", "eviction", "latency", "clock", "rights", "leader", "gateway", "key"];
    let is_ok = |found: &[(String, String)], check: &str| found.contains(&(check.to_owned(), "ok".to_owned()));
    // A leader may not be there yet, and answers of a busy machine take long now and then
    let found = eventually("all is well", || async {
        let run = look(&variables).await;
        let found = (run.code == 0).then(|| states(&run.json()))?;
        checks.iter().all(|check| is_ok(&found, check)).then_some(found)
    })
    .await;
    has(&found, "persistence", "warning");
    has(&found, "memory", "warning");
    galley.kit.redis_command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let evicting = look(&variables).await;
    assert_eq!(evicting.code, 1);
    has(&states(&evicting.json()), "eviction", "error");
    let nobody = ReservedPort::choose();
    let address = format!("127.0.0.1:{}", nobody.number());
    let away = format!("redis://{address}/5");
    let people = run_galley(&["doctor", "--redis-url", &away, "--url", &format!("http://{address}")], &[], "").await;
    assert!(people.code == 1 && people.out.contains("GALLEY_URL") && people.err.contains("2 things"), "{}", people.out);
    let empty = RedisServer::start();
    let run = run_galley(&["doctor", "--redis-url", &empty.url(), "--json"], &variables[..1], "").await;
    has(&states(&run.json()), "leader", "error");
}

#[tokio::test]
async fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run_galley(&["completions", shell], &[], "").await.done();
        assert!(script.contains("subscriptions") && script.contains("doctor"), "{shell}");
    }
    let folder = TestFolder::new();
    run_galley(&["man", "--folder", &folder.path_text("man")], &[], "").await.done();
    assert!(folder.read("man/galley-jobs-enqueue.1").contains("scheduled"), "a page for each command");
}
