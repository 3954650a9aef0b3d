//! The tests of the Python package in `clients/python`, with a Redis and gateways of their own: both clients, typed tasks,
//! the worker, test modes, the type checker, the programs of the README, the wheel in an empty environment, the example
//! apps, the command that moves jobs of other systems, and the one that sends rows of a `PostgreSQL`.

use std::process::Stdio;

use testkit::{binary_path, skip};
use tokio::process::Command;

use crate::client_packages::clients;

#[tokio::test]
async fn the_python_package_passes_its_tests() {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let needed = [
        "-c",
        "import celery, django, fastapi, flask, flit_core, httpx, mypy, opentelemetry.sdk, psycopg, pytest, redis, rq",
    ];
    let probe = Command::new(&python).args(needed).stderr(Stdio::null()).status().await;
    if !probe.is_ok_and(|status| status.success()) {
        skip(&format!("{python} lacks a package that the tests of the Python package need; `make test` installs them"));
        return;
    }
    let gateway = binary_path("gateway");
    let mut command = Command::new(python);
    command.args(["-m", "pytest"]).current_dir(clients().join("python"));
    command.env("GALLEY_TEST_BINARIES", gateway.parent().expect("a program is in a folder"));
    // The environment has plugins for other tests
    command.env("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1");
    command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
