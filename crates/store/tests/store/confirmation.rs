//! Whether what was written has reached replicas.

use common::settings::Settings;
use store::connection::confirmation::Confirmer;
use testkit::{ClusterProcesses, RedisPersistence, RedisServer, eventually, redis};

use crate::kit::StoreKit;

/// A store on a Redis with a replica, which writes must reach within a minute.
async fn start() -> (StoreKit, RedisServer, Confirmer) {
    let redis = RedisServer::start_with_options(RedisPersistence::None, &["--repl-diskless-sync-delay", "0"]);
    let of_redis = format!("127.0.0.1 {}", redis.port());
    let replica = RedisServer::start_with_options(RedisPersistence::None, &["--replicaof", &of_redis]);
    redis.wait_until_replicated().await;
    let kit = StoreKit::with_server(redis, &[]);
    let confirmer = confirmer(&kit, "60000");
    (kit, replica, confirmer)
}

/// Asks for one replica.
fn confirmer(kit: &StoreKit, timeout_ms: &str) -> Confirmer {
    let variables = [("GALLEY__DURABILITY__REPLICAS", "1"), ("GALLEY__DURABILITY__TIMEOUT_MS", timeout_ms)];
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let wanted = Settings::from_sources(None, variables).expect("valid").durability;
    Confirmer::new(&kit.redis, &wanted)
}

/// The number of the shared connection.
async fn shared_client(kit: &StoreKit) -> i64 {
    redis::cmd("CLIENT").arg("ID").query_async(&mut kit.redis.clone()).await.expect("redis runs")
}

/// The numbers of the clients that wait, or that did last.
async fn waiting_clients(kit: &StoreKit) -> Vec<i64> {
    let list: String =
        redis::cmd("CLIENT").arg("LIST").query_async(&mut kit.server.connection().await).await.expect("redis runs");
    let waits = list.lines().filter(|line| line.contains(" cmd=wait "));
    waits.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok()).collect()
}

#[tokio::test]
async fn a_write_is_confirmed_when_the_replica_has_it_also_after_the_waiting_connection_was_closed() {
    let (kit, mut replica, confirmer) = start().await;
    for n in 1..=3 {
        let mark = confirmer.mark();
        kit.enqueue(r#"{"type":"a","args":[]}"#).await;
        assert!(confirmer.confirm(mark).await);
        let mut replica = replica.connection().await;
        let length: u64 =
            redis::cmd("XLEN").arg("galley:{default}:s:0").query_async(&mut replica).await.expect("it answers");
        assert_eq!(length, n);
        let waiting = waiting_clients(&kit).await;
        assert_eq!(waiting.len(), 1, "one connection of the process waits");
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(waiting[0]);
        kill.exec_async(&mut kit.server.connection().await).await.expect("it was there");
    }
    replica.kill();
}

#[tokio::test]
async fn a_write_on_a_connection_that_was_replaced_is_not_confirmed() {
    let (kit, _replica, confirmer) = start().await;
    let first = confirmer.mark();
    kit.enqueue(r#"{"type":"a","args":[]}"#).await;
    assert!(confirmer.confirm(first).await);
    let before = confirmer.mark();
    // The connection that waits stays
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("ID").arg(shared_client(&kit).await);
    kill.exec_async(&mut kit.server.connection().await).await.expect("it was there");
    eventually("the store connects again", || async { kit.redis.ping().await.ok() }).await;
    kit.enqueue(r#"{"type":"a","args":[]}"#).await;
    let after = confirmer.mark();
    assert!(!confirmer.confirm(before).await, "which server has it is not known");
    assert!(confirmer.confirm(after).await);
    assert_eq!(confirmer.state().expect("it is on").last_confirmed, Some(true));
}

#[tokio::test]
async fn each_node_of_a_cluster_confirms_what_it_has_also_after_the_slot_of_the_key_of_the_process_moved() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let confirmer = confirmer(&kit, "60000");
    // The first slots of all nodes, in which they have the key of the process
    for moved in [None, Some((0, 1)), Some((5461, 2)), Some((10_922, 0))] {
        if let Some((slot, to)) = moved {
            cluster.move_slot(slot, to).await;
        }
        for queue in ["mail", "orders", "images", "q1", "q2"] {
            let mark = confirmer.mark();
            kit.enqueue(&format!(r#"{{"type":"a","args":[],"options":{{"queue":"{queue}"}}}}"#)).await;
            assert!(confirmer.confirm(mark).await, "{queue} after {moved:?}");
            assert_eq!(confirmer.state().expect("it is on").last_confirmed, Some(true));
        }
    }
}

#[tokio::test]
async fn what_only_one_node_of_a_cluster_lacks_is_not_confirmed_there_and_is_elsewhere() {
    let cluster = ClusterProcesses::start().await;
    let kit = StoreKit::of_cluster(&cluster, &[]);
    let hasty = confirmer(&kit, "1000");
    let primary = async |queue: &str| cluster.primary_of(cluster.slot_of(&format!("{{{queue}}}")).await).await;
    let without_replica = primary("mail").await;
    let mut others = Vec::new();
    for queue in ["orders", "images", "q1", "q2"] {
        if primary(queue).await != without_replica {
            others.push(queue);
        }
    }
    let replica = cluster.replica_of(without_replica).await;
    let is_confirmed = async |queue: &str| {
        let mark = hasty.mark();
        kit.enqueue(&format!(r#"{{"type":"a","args":[],"options":{{"queue":"{queue}"}}}}"#)).await;
        hasty.confirm(mark).await
    };
    eventually("it is confirmed", || async { is_confirmed("mail").await.then_some(()) }).await;
    cluster.freeze(replica);
    assert!(!is_confirmed("mail").await);
    eventually("it is shown", || async { (hasty.state()?.last_confirmed == Some(false)).then_some(()) }).await;
    for queue in others {
        // Unless the other node answers something else of this process meanwhile
        eventually("another node confirms", || async { is_confirmed(queue).await.then_some(()) }).await;
    }
    cluster.thaw(replica);
    eventually("it is confirmed again", || async { is_confirmed("mail").await.then_some(()) }).await;
    eventually("no node lacks anything", || async { (hasty.state()?.last_confirmed == Some(true)).then_some(()) })
        .await;
}

#[tokio::test]
async fn without_the_setting_nothing_is_asked() {
    let kit = StoreKit::start();
    let nothing = Settings::from_sources(None, std::collections::HashMap::default()).expect("valid").durability;
    let confirmer = Confirmer::new(&kit.redis, &nothing);
    assert!(!confirmer.is_on() && confirmer.state().is_none());
    assert!(confirmer.confirm(confirmer.mark()).await);
    assert!(waiting_clients(&kit).await.is_empty());
}
