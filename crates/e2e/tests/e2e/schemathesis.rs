//! schemathesis reads `/openapi.json` and sends what it describes, and what it does not, to a gateway with a worker.

use std::{path::PathBuf, process::Stdio};

use testkit::{RedisServer, skip};
use tokio::process::Command;

use crate::kit::GalleyKit;

/// Streams have no end that it could wait for.
const STREAMS: &str = "/(stream|events|ws)$";

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import schemathesis"]).stderr(Stdio::null()).status().await;
    if !probe.is_ok_and(|status| status.success()) {
        skip(&format!("{python} has no schemathesis"));
        return;
    }
    // It asks to wait for as long as it may
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__MAX_WAIT_MS", "100")]).await;
    let _worker = kit.start_worker(&[]).await;
    let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/libraries/schemathesis.toml");
    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "--config-file"]).arg(config);
    command.args(["run", &kit.gateway.url("/openapi.json"), "--no-color", "--seed", "1", "--max-examples", "5"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--exclude-path-regex", STREAMS]);
    command.args(["--continue-on-failure", "--request-timeout", "10"]);
    // It leaves files where it runs
    let folder = tempfile::tempdir().expect("a folder");
    let output = command.current_dir(&folder).stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
