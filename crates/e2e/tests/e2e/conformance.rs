//! The Open Job Spec's own suites, with two gateways behind one Redis: one server, one behind sentinels, a cluster.

use std::process::Command;

use testkit::{PATIENCE, RedisDeployment, RedisKind, RedisServer, ServiceProcess};

/// Every case but those that wait for whole minutes.
const ALL: &str = "--level 0 --level 1 --level 2 --level 3 --level 4 --level ext --skip L2-CRON-004 --skip L2-CRON-005";
const WHOLE_MINUTES: &str = "--test L2-CRON-004 --test L2-CRON-005";
/// Without scheduled jobs and cron entries, which wait too: what they need of Redis other tests need too.
const QUICK: &str = "--level 0 --level 1 --level 3 --level 4 --level ext";

/// Runs alone, as the two below: its cases look at the clock.
#[tokio::test(flavor = "multi_thread")]
async fn alone_levels_0_to_4_and_the_admin_cases_pass() {
    assert_passes(RedisKind::Server, ALL, "136 passed, 0 failed, 3 skipped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_the_cases_that_need_not_wait_pass_on_a_cluster() {
    assert_passes(RedisKind::Cluster, QUICK, "125 passed, 0 failed, 1 skipped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_the_cases_that_need_not_wait_pass_behind_sentinels() {
    assert_passes(RedisKind::Sentinels, QUICK, "125 passed, 0 failed, 1 skipped").await;
}

/// Beside other tests: they wait two minutes for a cron entry, and a second more or less is nothing to them.
#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_cron_that_wait_for_whole_minutes_pass() {
    assert_passes(RedisKind::Server, WHOLE_MINUTES, "2 passed, 0 failed, 0 skipped").await;
}

async fn assert_passes(redis: RedisKind, cases: &str, expected: &str) {
    let redis = RedisDeployment::start(redis, RedisServer::start).await;
    let variables = [&PATIENCE[..], &[("GALLEY__GATEWAY__TEST_DIRECTIVES", "true")]].concat();
    let gateway = ServiceProcess::start_with_redis_url("gateway", &redis.url(), &variables).await;
    // The other gateway may be the maintenance leader while this one is asked
    let other = ServiceProcess::start_with_redis_url("gateway", &redis.url(), &variables).await;
    for gateway in [&gateway, &other] {
        gateway.wait_until_ready().await;
    }
    let suites = concat!(env!("CARGO_MANIFEST_DIR"), "/ojs");
    if Command::new("python3").arg("--version").output().is_err() {
        testkit::skip("there is no python3, which plays the suites");
        return;
    }
    let mut command = Command::new("python3");
    command.arg(format!("{suites}/conformance.py")).args(["--url", &gateway.url("")]);
    for database in redis.primary_urls().await {
        command.args(["--redis", &database]);
    }
    command.args(["--jobs", "4", "--skip", "L1-RTR-014"]).args(cases.split(' '));
    let output = command.output().expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().last(), Some(expected));
}
