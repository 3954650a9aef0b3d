//! Starting, checking and configuring the binaries.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
};
use testkit::redis;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{RedisServer, eventually};

use crate::{http_client, kit::GalleyKit};

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_whether_the_service_on_this_machine_is_ready() {
    let kit = GalleyKit::start().await;
    let listen = kit.gateway.address().to_string();
    let check = |listen: &str| {
        let mut command = Command::new(testkit::binary_path("gateway"));
        command.arg("healthcheck").env("GALLEY__GATEWAY__LISTEN", listen).output().expect("it runs").status.success()
    };
    // It waits two seconds for an answer
    eventually("it is ready", || async { check(&listen).then_some(()) }).await;
    let everywhere = listen.replace("127.0.0.1", "0.0.0.0");
    let what = "an address that listens everywhere is asked through loopback";
    eventually(what, || async { check(&everywhere).then_some(()) }).await;
    drop(kit);
    assert!(!check(&listen));
}

#[test]
fn a_setting_that_is_not_allowed_ends_the_process_with_a_message_that_names_it() {
    for (binary, name, value, expected) in [
        ("gateway", "GALLEY__GATEWAY__LISTEN", "nowhere", "setting gateway.listen must be an address and port"),
        (
            "queue-worker",
            "GALLEY__QUEUE_WORKER__CONCURRENCY",
            "0",
            "setting queue_worker.concurrency must be 1 to 10000, got 0",
        ),
        (
            "pubsub-worker",
            "GALLEY__PUBSUB_WORKER__CHANNELS",
            "galley:notifications",
            "setting pubsub_worker.channels must be",
        ),
        (
            "gateway",
            "GALLEY__NO__SUCH",
            "1",
            "setting no does not exist, expected one of redis, durability, encryption, reload, gateway",
        ),
        ("gateway", "GALLEY_CONFIG", "/no/such/file.toml", "/no/such/file.toml"),
    ] {
        let output = Command::new(testkit::binary_path(binary)).env(name, value).output().expect("it runs");
        assert!(!output.status.success(), "{name}={value}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{name}={value}: {said}");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_process_with_a_message_that_says_so() {
    let kit = GalleyKit::start().await;
    let output = Command::new(testkit::binary_path("gateway"))
        .env("GALLEY__REDIS__URL", kit.redis.url())
        .env("GALLEY__GATEWAY__LISTEN", kit.gateway.address().to_string())
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let said = [output.stdout, output.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("gateway.listen: cannot listen on"));
}

#[test]
fn make_run_names_the_setting_of_a_port_that_is_taken_before_it_builds() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("an address").to_string();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new("bash")
        .arg("deploy/dev/run.sh")
        .current_dir(root)
        .env("GALLEY__GATEWAY__LISTEN", &address)
        // A build would fail
        .env("CARGO_BUILD_TARGET", "none")
        .output()
        .expect("bash runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&address) && said.contains("GALLEY__GATEWAY__LISTEN="), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_log_nobody_reads_goes_on_and_stops_when_it_is_told_to() {
    let redis = RedisServer::start();
    let mut worker = Command::new(testkit::binary_path("pubsub-worker"))
        .env("GALLEY__REDIS__URL", redis.url())
        .env("GALLEY__PUBSUB_WORKER__LISTEN", "127.0.0.1:0")
        .env("GALLEY__LOG__FORMAT", "json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    // It is kept open, and not read any more
    let mut log = BufReader::new(worker.stdout.take().expect("it is piped"));
    let address: SocketAddr = loop {
        let mut line = String::new();
        log.read_line(&mut line).expect("it logs");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if let Some(address) = line.get("address").and_then(serde_json::Value::as_str) {
            break address.parse().expect("an address");
        }
    };
    eventually("it is ready", || async {
        let answer = http_client::get(format!("http://{address}/health/ready")).await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    let mut connection = redis.connection().await;
    let mut messages = redis::pipe();
    for _ in 0..1000 {
        messages.publish("task:pubsub:channel", "x".repeat(200)).ignore();
    }
    let lost = || async {
        let metrics = http_client::get(format!("http://{address}/metrics")).await.ok()?.text().await.ok()?;
        metrics.lines().find_map(|line| line.strip_prefix("galley_log_lines_lost_total ")?.parse::<u64>().ok())
    };
    // More than it keeps until somebody reads
    eventually("lines are lost, and it says so", || {
        let (mut connection, messages) = (connection.clone(), messages.clone());
        async move {
            messages.exec_async(&mut connection).await.expect("redis runs");
            lost().await.filter(|lost| *lost > 0)
        }
    })
    .await;
    let _: i64 = redis::cmd("PUBLISH")
        .arg("task:pubsub:channel")
        .arg("x")
        .query_async(&mut connection)
        .await
        .expect("redis runs");
    kill(Pid::from_raw(worker.id().try_into().expect("a process")), Signal::SIGTERM).expect("it runs");
    let ended = eventually("it stops", || {
        let ended = worker.try_wait().expect("ours");
        async move { ended }
    })
    .await;
    assert!(ended.success(), "{ended}");
    drop(log);
}
