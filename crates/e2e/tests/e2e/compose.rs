//! The stack of `docker-compose.yml` on a real engine, as somebody has it who just cloned the repository. Its images are
//! the last stages of `deploy/Dockerfile` around the programs that the tests run, so nothing is compiled.
//!
//! It needs an engine with compose, and the images `redis:7.4-alpine` and `gcr.io/distroless/cc-debian12:nonroot`; without
//! one of them it is skipped, in CI too: not every CI has an engine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{Client, StatusCode, redirect::Policy};
use serde_json::{Value, json};
use testkit::{binary_path, eventually_for, patient_config, redis};

const SERVICES: [&str; 3] = ["gateway", "queue-worker", "pubsub-worker"];
const BASE_IMAGES: [&str; 2] = ["redis:7.4-alpine", "gcr.io/distroless/cc-debian12:nonroot"];
/// Containers start again, and the jobs of a worker that was killed wait for their leases of 30 s.
const LIMIT: Duration = Duration::from_mins(3);
/// The version of the images that are built here.
const VERSION: &str = "smoke-test";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What this machine lacks.
fn what_is_missing() -> Option<String> {
    if !succeeds(Command::new("docker").arg("info")) || !succeeds(Command::new("docker").args(["compose", "version"])) {
        return Some("there is no Docker engine with compose".to_owned());
    }
    let is_missing = |image: &&&str| {
        !succeeds(Command::new("docker").args(["image", "inspect", image]))
            && !succeeds(Command::new("docker").args(["pull", "--quiet", image]))
    };
    let image = BASE_IMAGES.iter().find(is_missing)?;
    Some(format!("there is no image {image}"))
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("docker runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The images around the programs of the tests.
fn build_images() {
    let folder = tempfile::tempdir().expect("a folder");
    // One stage of the images takes all programs
    for name in SERVICES.into_iter().chain(["galley"]) {
        fs::copy(binary_path(name), folder.path().join(name)).expect("a program");
    }
    for name in SERVICES {
        let mut build = Command::new("docker");
        build.args(["build", "--quiet", "--build-arg", "BINARIES=prebuilt", "--target", name]);
        // The programs of the tests are not linked statically
        build.args(["--build-arg", &format!("RUNTIME={}", BASE_IMAGES[1])]);
        build.args(["--tag", &format!("localhost/galley-{name}:{VERSION}"), "--file"]);
        run(build.arg(root().join("deploy/Dockerfile")).arg(folder.path()).env("DOCKER_BUILDKIT", "1"));
    }
}

/// A running stack, gone at the end with its data.
struct Stack {
    project: String,
}

impl Stack {
    fn start() -> Self {
        let stack = Self { project: format!("galley-test-{}", std::process::id()) };
        stack.compose(&["up", "--detach", "--wait", "--no-build"]);
        stack
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["compose", "--progress", "quiet", "--project-name", &self.project, "--file"]);
        command.arg(root().join("docker-compose.yml")).args(arguments);
        // Ports that are free, and nothing of the machine's own settings
        command.env("GALLEY_PORT", "0").env("GALLEY_REDIS_PORT", "0").env("GALLEY_VERSION", VERSION);
        for name in ["GALLEY_IMAGES", "GALLEY_ADDRESS", "GALLEY_FIRST_KEY", "GALLEY_REDIS_PASSWORD"] {
            command.env_remove(name);
        }
        command
    }

    fn compose(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Where a port of a service is published. It is another after the container starts again.
    fn address(&self, service: &str, port: &str) -> String {
        self.compose(&["port", service, port])
    }

    fn containers(&self, service: &str) -> Vec<String> {
        self.compose(&["ps", "--quiet", service]).lines().map(ToOwned::to_owned).collect()
    }

    fn scale_workers(&self, count: usize) {
        let scale = format!("queue-worker={count}");
        self.compose(&["up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", &scale]);
        assert_eq!(self.containers("queue-worker").len(), count);
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [&["ps", "--all"][..], &["logs", "--no-color", "--tail", "40"]] {
                let output = self.command(arguments).output().map(|output| output.stdout).unwrap_or_default();
                eprintln!("{}", String::from_utf8_lossy(&output));
            }
        }
        let _ = self.command(&["down", "--volumes", "--timeout", "2"]).output();
    }
}

/// A client with the first key.
struct Api<'a> {
    stack: &'a Stack,
    http: Client,
    key: String,
    address: String,
}

impl<'a> Api<'a> {
    fn new(stack: &'a Stack) -> Self {
        let key = stack.compose(&["run", "--rm", "--no-TTY", "setup", "key"]);
        let http = Client::builder().redirect(Policy::none()).pool_max_idle_per_host(0).build().expect("a client");
        Self { stack, http, key, address: stack.address("gateway", "8080") }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends it again until it is accepted: while a container starts again nothing listens. The key of the request makes
    /// that safe.
    async fn post(&self, path: &str, body: &Value, key: &str) -> Value {
        eventually_for(LIMIT, &format!("{path} is accepted"), || async {
            let request = self.http.post(self.url(path)).bearer_auth(&self.key).header("idempotency-key", key);
            let request = request.header("content-type", "application/json").body(body.to_string());
            let response = request.send().await.ok().filter(|response| response.status().is_success())?;
            response.json().await.ok()
        })
        .await
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let response = self.http.get(self.url(path)).bearer_auth(&self.key).send().await.ok()?;
        response.json().await.ok()
    }
}

async fn keys_are_demanded(api: &Api<'_>) {
    let status = async |request: reqwest::RequestBuilder| request.send().await.expect("it answers").status();
    let jobs = api.url("/ojs/v1/queues");
    assert_eq!(status(api.http.get(&jobs)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(api.http.get(&jobs).bearer_auth("glk_a_b")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(api.http.get(&jobs).bearer_auth(&api.key)).await, StatusCode::OK);
    for (path, expected) in [("/", StatusCode::OK), ("/prodcons", StatusCode::FOUND), ("/pubsub", StatusCode::FOUND)] {
        assert_eq!(status(api.http.get(api.url(path))).await, expected, "{path}");
    }
    assert_eq!(status(api.http.get(api.url("/health/ready"))).await, StatusCode::OK);
}

/// A plain Redis client, with the password, gets what the page publishes; without, nothing.
async fn plain_clients_take_part(api: &Api<'_>) {
    let address = api.stack.address("redis", "6379");
    let stranger = redis::Client::open(format!("redis://{address}")).expect("a URL");
    let patient = patient_config();
    let mut stranger = stranger.get_multiplexed_async_connection_with_config(&patient).await.expect("it connects");
    let refused: redis::RedisResult<Option<String>> = redis::cmd("GET").arg("x").query_async(&mut stranger).await;
    assert_eq!(refused.expect_err("a password is needed").code(), Some("NOAUTH"));
    let password = api.stack.compose(&["run", "--rm", "--no-TTY", "setup", "redis-password"]);
    let client = redis::Client::open(format!("redis://:{password}@{address}/5")).expect("a URL");
    let mut admin = client.get_multiplexed_async_connection_with_config(&patient).await.expect("it connects");
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut admin).await.expect("a list");
    for service in SERVICES {
        assert!(list.contains(&format!(" user={service} ")), "{service} has no user of its own: {list}");
    }
    let mut listener = client.get_async_pubsub().await.expect("it connects");
    listener.subscribe("task:pubsub:channel").await.expect("it subscribes");
    api.http.get(api.url("/pubsub")).send().await.expect("it answers");
    let message = listener.on_message().next().await.expect("a message");
    let digit: String = message.get_payload().expect("text");
    assert!(digit.len() == 1 && digit.bytes().all(|byte| byte.is_ascii_digit()), "{digit:?}");
}

/// What happens while jobs run.
const FAULTS: [&str; 6] =
    ["three workers", "kill queue-worker", "kill gateway", "kill pubsub-worker", "kill redis", "one worker"];

impl Stack {
    fn suffer(&self, fault: &str) {
        match fault.strip_prefix("kill ") {
            Some(service) => {
                let containers = self.containers(service);
                run(Command::new("docker").args(["kill", containers.first().expect("a container")]));
                // `docker kill` counts as stopped by hand, so the policy does not start it again
                self.scale_workers(3);
            }
            None => self.scale_workers(if fault == "one worker" { 1 } else { 3 }),
        }
    }
}

/// What the gateway accepted.
#[derive(Default)]
struct Accepted {
    jobs: Vec<String>,
    messages: u64,
}

impl Accepted {
    async fn add(&mut self, api: &Api<'_>, round: &str) {
        for n in 0..40 {
            let job = json!({ "type": "test.slow", "args": [50 + n], "options": { "retry": { "max_attempts": 20 } } });
            let answer = api.post("/ojs/v1/jobs", &job, &format!("job {round} {n}")).await;
            self.jobs.push(answer["job"]["id"].as_str().expect("an id").to_owned());
            if n % 8 == 0 {
                api.post("/v1/channels/orders/messages", &json!([round, n]), &format!("message {round} {n}")).await;
                self.messages += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_the_compose_stack_loses_nothing() {
    if let Some(missing) = what_is_missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    build_images();
    let stack = Stack::start();
    let mut api = Api::new(&stack);
    keys_are_demanded(&api).await;
    plain_clients_take_part(&api).await;

    let subscription =
        json!({ "channels": ["orders"], "deliver": { "queue": { "queue": "demo", "type": "test.echo" } } });
    let put = api.http.put(api.url("/v1/subscriptions/orders")).bearer_auth(&api.key);
    let put = put.header("content-type", "application/json").body(subscription.to_string()).send().await;
    assert!(put.expect("it answers").status().is_success());

    let mut accepted = Accepted::default();
    for fault in FAULTS {
        accepted.add(&api, fault).await;
        stack.suffer(fault);
        api.address = stack.address("gateway", "8080");
    }
    for id in &accepted.jobs {
        eventually_for(LIMIT, &format!("job {id} is completed"), || async {
            let shown = api.get(&format!("/ojs/v1/jobs/{id}")).await?;
            (shown["job"]["state"] == "completed").then_some(())
        })
        .await;
    }
    let messages = accepted.messages;
    eventually_for(LIMIT, &format!("{messages} messages are delivered"), || async {
        let shown = api.get("/ojs/v1/queues/demo").await?;
        (shown["queue"]["completed"].as_u64()? >= messages).then_some(())
    })
    .await;
}
