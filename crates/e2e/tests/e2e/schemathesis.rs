//! schemathesis reads `/openapi.json` and sends what it describes, and what it does not, to a gateway with a worker.

use std::{path::PathBuf, process::Stdio};

use testkit::{RedisServer, skip};
use tokio::process::Command;

use crate::{keyed::KeyRing, kit::GalleyKit};

/// Streams have no end that it could wait for. Its schema of an event stream is that of each event, not of the body.
const STREAMS: &str = "/(stream|events|ws)$";
const STREAM_OF_WRITABLE: &str = "followOutput";

/// It asks to wait for as long as it may.
const SHORT_WAIT: (&str, &str) = ("GALLEY__GATEWAY__MAX_WAIT_MS", "100");

/// Python with schemathesis, if it is here.
async fn python() -> Option<String> {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import schemathesis"]).stderr(Stdio::null()).status().await;
    if !probe.is_ok_and(|status| status.success()) {
        skip(&format!("{python} has no schemathesis"));
        return None;
    }
    Some(python)
}

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let Some(python) = python().await else { return };
    let kit = GalleyKit::start_with(RedisServer::start(), &[SHORT_WAIT]).await;
    run(&python, &kit, &["--phases", "examples,coverage,fuzzing", "--max-examples", "5"]).await;
}

#[tokio::test]
async fn schemathesis_with_a_key_finds_nothing_whatever_the_key_may_do() {
    let Some(python) = python().await else { return };
    let mut ring = KeyRing::new();
    let limited =
        ring.add("scopes = [\"jobs:write\", \"work\", \"subscriptions\", \"admin:read\"]\nnamespace = \"acme\"");
    let keyed = ring.start(&[SHORT_WAIT]).await;
    for key in [&keyed.admin, &limited] {
        let header = format!("Authorization: Bearer {key}");
        // What the key may not do is answered with 403, which is not what the description of the request says
        let checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
        let phases = ["--phases", "examples,fuzzing,stateful", "--max-examples", "2"];
        run(&python, &keyed.kit, &[&phases[..], &["--header", &header, "--checks", checks]].concat()).await;
    }
}

async fn run(python: &str, kit: &GalleyKit, options: &[&str]) {
    let _worker = kit.start_worker(&[]).await;
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/libraries/schemathesis.toml");
    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "--config-file"]).arg(config);
    command.args(["run", &kit.gateway.url("/openapi.json"), "--no-color", "--seed", "1"]);
    command.args(options).args(["--exclude-path-regex", STREAMS]);
    command.args(["--exclude-operation-id", STREAM_OF_WRITABLE]);
    command.args(["--continue-on-failure", "--request-timeout", "60"]);
    // It leaves files where it runs
    let folder = tempfile::tempdir().expect("a folder");
    let output = command.current_dir(&folder).stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
