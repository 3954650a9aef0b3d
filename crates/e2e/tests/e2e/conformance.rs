//! The Open Job Spec's own suites, with two gateways behind one Redis: one server, one behind sentinels, a cluster.

use testkit::{PATIENCE, RedisDeployment, RedisKind, RedisServer, ServiceProcess};
use tokio::process::Command;

/// Every case but those that wait for whole minutes.
const CASES: &str =
    "--level 0 --level 1 --level 2 --level 3 --level 4 --level ext --skip L2-CRON-004 --skip L2-CRON-005";
const PASSED: &str = "136 passed, 0 failed, 3 skipped";
const WHOLE_MINUTES: &str = "--test L2-CRON-004 --test L2-CRON-005";

/// Runs alone, as the two below: its cases look at the clock.
#[tokio::test(flavor = "multi_thread")]
async fn alone_levels_0_to_4_and_the_admin_cases_pass() {
    assert_passes(RedisKind::Server, CASES, PASSED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_levels_0_to_4_and_the_admin_cases_pass_on_a_cluster() {
    assert_passes(RedisKind::Cluster, CASES, PASSED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_levels_0_to_4_and_the_admin_cases_pass_behind_sentinels() {
    assert_passes(RedisKind::Sentinels, CASES, PASSED).await;
}

/// Beside other tests and each other: they wait two minutes for a cron entry, and a second more or less is nothing to them.
#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_cron_that_wait_for_whole_minutes_pass_on_a_server_on_a_cluster_and_behind_sentinels() {
    let [server, cluster, sentinels] = [RedisKind::Server, RedisKind::Cluster, RedisKind::Sentinels]
        .map(|redis| assert_passes(redis, WHOLE_MINUTES, "2 passed, 0 failed, 0 skipped"));
    tokio::join!(server, cluster, sentinels);
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
    if Command::new("python3").arg("--version").output().await.is_err() {
        testkit::skip("there is no python3, which plays the suites");
        return;
    }
    let mut command = Command::new("python3");
    command.arg(format!("{suites}/conformance.py")).args(["--url", &gateway.url("")]);
    for database in redis.primary_urls().await {
        command.args(["--redis", &database]);
    }
    command.args(["--jobs", "4", "--skip", "L1-RTR-014"]).args(cases.split(' '));
    let output = command.output().await.expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().last(), Some(expected));
}
