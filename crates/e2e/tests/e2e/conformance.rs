//! The Open Job Spec's own suites, with two gateways behind one Redis.

use std::process::Command;

use testkit::{RedisServer, ServiceProcess};

use crate::kit::GalleyKit;

/// Runs alone: its cases look at the clock. Those of cron wait for whole minutes, so this takes a few.
#[tokio::test(flavor = "multi_thread")]
async fn alone_levels_0_to_4_and_the_admin_cases_pass() {
    let directives = [("GALLEY__GATEWAY__TEST_DIRECTIVES", "true")];
    let kit = GalleyKit::start_with(RedisServer::start(), &directives).await;
    // The other gateway may be the maintenance leader while this one is asked
    let other = ServiceProcess::start("gateway", &kit.redis, &directives).await;
    other.wait_until_ready().await;
    let suites = concat!(env!("CARGO_MANIFEST_DIR"), "/ojs");
    if Command::new("python3").arg("--version").output().is_err() {
        testkit::skip("there is no python3, which plays the suites");
        return;
    }
    let output = Command::new("python3")
        .arg(format!("{suites}/conformance.py"))
        .args(["--url", &kit.gateway.url("")])
        .args(["--redis", &kit.redis.url()])
        .args([
            "--jobs", "4", "--level", "0", "--level", "1", "--level", "2", "--level", "3", "--level", "4", "--level",
            "ext",
        ])
        .args(["--skip", "L1-RTR-014"])
        .output()
        .expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().last(), Some("138 passed, 0 failed, 1 skipped"));
}
