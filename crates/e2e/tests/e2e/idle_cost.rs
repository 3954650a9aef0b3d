//! What idle queues cost Redis.

use serde_json::json;
use testkit::{eventually, redis};

use crate::kit::GalleyKit;

const QUEUES: usize = 1000;
/// All services together, per second.
const MAX_COMMANDS: u64 = 30;
/// How long commands are counted, by Redis's clock, in seconds.
const COUNTED_SECONDS: u64 = 10;

/// How many commands Redis ran, without those that this test sends.
pub(crate) async fn count_commands(connection: &redis::aio::MultiplexedConnection) -> u64 {
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection.clone()).await.expect("redis runs");
    let counts = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        (name != "info").then_some(())?;
        rest.split(',').next()?.parse::<u64>().ok()
    });
    counts.sum()
}

/// Waits that long by the clock of Redis, asking with commands that [`count_commands`] leaves out.
pub(crate) async fn wait_for_seconds(connection: &redis::aio::MultiplexedConnection, seconds: u64) {
    let uptime = || async {
        let server: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection.clone()).await.expect("redis runs");
        let uptime = server.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
        uptime.expect("it says so").trim().parse::<u64>().expect("a number")
    };
    let start = uptime().await;
    eventually("time passes", || async { (uptime().await >= start + seconds).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_a_thousand_idle_queues_cost_at_most_thirty_commands_a_second() {
    let kit = GalleyKit::start().await;
    let queues: Vec<String> = (0..QUEUES).map(|number| format!("q{number}")).collect();
    let worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", queues.join(",").as_str())]).await;
    let _listener = kit.start_pubsub_worker().await;
    let jobs: Vec<_> = queues.iter().map(|queue| json!({ "type": "test.echo", "args": [], "queue": queue })).collect();
    for some in jobs.chunks(500) {
        assert_eq!(kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": some })).await.status(), 201);
    }
    eventually("all jobs are completed", || async {
        let metrics = kit.http.get(worker.url("/metrics")).send().await.ok()?.text().await.ok()?;
        let counts = metrics.lines().filter_map(|line| {
            let (_, count) = line.strip_prefix("galley_attempts_total{")?.rsplit_once(' ')?;
            count.parse::<usize>().ok()
        });
        (counts.sum::<usize>() >= QUEUES).then_some(())
    })
    .await;
    let connection = kit.redis.connection().await;
    // What the jobs left to do is done by then
    wait_for_seconds(&connection, 5).await;
    let before = count_commands(&connection).await;
    wait_for_seconds(&connection, COUNTED_SECONDS).await;
    let cost = count_commands(&connection).await - before;
    assert!(cost <= MAX_COMMANDS * (COUNTED_SECONDS + 1), "{cost} commands in {COUNTED_SECONDS} seconds");
}
