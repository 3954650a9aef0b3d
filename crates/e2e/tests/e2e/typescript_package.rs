//! The tests of the TypeScript package in `clients/typescript`, with a Redis and gateways of their own: the tarball in an
//! empty project for ESM and CJS, the compiler, the client, channels, and the example app.

use std::process::Stdio;

use testkit::{binary_path, skip};
use tokio::process::Command;

use crate::client_packages::clients;

#[tokio::test]
async fn the_typescript_package_passes_its_tests() {
    for needed in ["GALLEY_TEST_TSC", "GALLEY_TEST_NODE_FOLDER"] {
        if std::env::var(needed).is_err() {
            skip(&format!("{needed} is not set; `make test` sets it"));
            return;
        }
    }
    let gateway = binary_path("gateway");
    let mut command = Command::new("node");
    command.arg("tests/run.mjs").current_dir(clients().join("typescript"));
    command.env("GALLEY_TEST_BINARIES", gateway.parent().expect("a program is in a folder"));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("node is installed");
    let [said, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{said}{errors}");
}
