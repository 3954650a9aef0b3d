//! The cluster that other tests use does what they rely on.

use std::time::Duration;

use testkit::{
    ClusterProcesses, eventually,
    redis::{self, RedisResult},
};

/// A key and its value, at a node that takes it.
async fn set(cluster: &ClusterProcesses, node: usize, key: &str) {
    cluster.ask::<()>(node, redis::cmd("SET").arg(key).arg("v")).await;
}

/// The value of a key at a node, or the code of the error, such as `MOVED` or `ASK`.
async fn get(cluster: &ClusterProcesses, node: usize, key: &str) -> String {
    let answer: RedisResult<Option<String>> =
        redis::cmd("GET").arg(key).query_async(&mut cluster.connection(node).await).await;
    match answer {
        Ok(value) => value.unwrap_or_else(|| "nothing".to_owned()),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}

#[tokio::test]
async fn a_slot_moves_at_once_or_in_steps() {
    let cluster = ClusterProcesses::start().await;
    let slot = cluster.slot_of("{orders}:1").await;
    let from = cluster.primary_of(slot).await;
    let to = (from + 1) % 3;
    set(&cluster, from, "{orders}:1").await;
    assert_eq!(get(&cluster, to, "{orders}:1").await, "MOVED");
    assert_eq!(cluster.begin_move(slot, to).await, from);
    assert_eq!(get(&cluster, from, "{orders}:1").await, "v");
    assert_eq!(get(&cluster, from, "{orders}:2").await, "ASK");
    cluster.move_keys(slot, from, to).await;
    assert_eq!(get(&cluster, from, "{orders}:1").await, "ASK");
    cluster.end_move(slot, from, to).await;
    assert_eq!(get(&cluster, from, "{orders}:1").await, "MOVED");
    assert_eq!(get(&cluster, to, "{orders}:1").await, "v");
    cluster.move_slot(slot, from).await;
    assert_eq!((cluster.primary_of(slot).await, get(&cluster, from, "{orders}:1").await), (from, "v".to_owned()));
    let sizes: Vec<(usize, u64)> = cluster.ask_primaries(&redis::cmd("DBSIZE")).await;
    let expected: Vec<(usize, u64)> = (0..3).map(|node| (node, u64::from(node == from))).collect();
    assert_eq!(sizes, expected);
}

#[tokio::test]
async fn a_replica_takes_over_when_it_is_told_to_and_when_its_primary_is_gone() {
    let mut cluster = ClusterProcesses::start().await;
    let slot = cluster.slot_of("key").await;
    let first = cluster.primary_of(slot).await;
    set(&cluster, first, "key").await;
    cluster.wait_until_replicated(first).await;
    let second = cluster.replica_of(first).await;
    cluster.fail_over(second).await;
    eventually("the first is its replica", || async { (get(&cluster, first, "key").await != "v").then_some(()) }).await;
    assert_eq!(cluster.primary_of(slot).await, second);
    cluster.wait_until_complete().await;
    assert_eq!(cluster.replica_of(second).await, first);

    cluster.set_down_after(Duration::from_millis(500)).await;
    cluster.kill(second);
    cluster.wait_until_promoted(first).await;
    assert_eq!(get(&cluster, first, "key").await, "v");
    cluster.restart(second);
    cluster.wait_until_complete().await;
    assert_eq!(cluster.replica_of(first).await, second);
}

#[tokio::test]
async fn a_url_names_every_node() {
    let cluster = ClusterProcesses::start_with_options(&["--maxmemory", "100mb"]).await;
    let addresses: Vec<String> = (0..6).map(|node| format!("127.0.0.1:{}", cluster.port(node))).collect();
    assert_eq!(cluster.url(), format!("redis+cluster://{}", addresses.join(",")));
    let limit: (String, u64) = cluster.ask(5, redis::cmd("CONFIG").arg("GET").arg("maxmemory")).await;
    assert_eq!(limit.1, 100 << 20);
    cluster.freeze(0);
    cluster.thaw(0);
    cluster.wait_until_complete().await;
}
