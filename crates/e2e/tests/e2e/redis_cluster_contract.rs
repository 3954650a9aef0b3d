//! The original demo on a Redis Cluster: plain clients of redis-py, which find the nodes themselves, beside Galley.

use testkit::{ClusterProcesses, PATIENCE, ServiceProcess, eventually};

use crate::{
    http_client::CheckedClient,
    original_demo::{PythonProcess, python},
};

const LIST: &str = "task:prodcons:queue";
const ELEMENTS: usize = 40;

const POPPER: &str = "
print('ready')
while True:
    print('Task get', rcon.blpop('task:prodcons:queue', 0)[1].decode())
";
const PUSHER: &str = "
for n in range(40):
    rcon.lpush('task:prodcons:queue', 'python-%d' % n)
print('pushed')
";
const SUBSCRIBER: &str = "
ps = rcon.pubsub()
ps.subscribe('task:pubsub:channel')
for i in ps.listen():
    if i['type'] == 'subscribe':
        print('ready')
    if i['type'] == 'message':
        print('Task get', i['data'].decode())
";
const PUBLISHER: &str = "
for n in range(20):
    rcon.publish('task:pubsub:channel', 'python-%d' % n)
print('published')
";

/// Runs a program that waits for an answer of the cluster for as long as `timeout` says, in seconds or `None`.
fn run(program: &str, timeout: &str, cluster: &ClusterProcesses) -> Option<PythonProcess> {
    let connect = format!(
        "
import sys
from redis.cluster import ClusterNode, RedisCluster
nodes = [ClusterNode(*address.split(':')) for address in sys.argv[1].split(',')]
rcon = RedisCluster(startup_nodes=nodes, socket_timeout={timeout})"
    );
    python(&(connect + program), &cluster.addresses().join(","))
}

async fn start(cluster: &ClusterProcesses, name: &'static str) -> ServiceProcess {
    let service = ServiceProcess::start_with_redis_url(name, &cluster.url(), &PATIENCE).await;
    service.wait_until_ready().await;
    service
}

fn expected(number: usize) -> Vec<String> {
    let mut tasks: Vec<String> = (0..number).map(|n| format!("python-{n}")).collect();
    tasks.sort();
    tasks
}

/// Opens a page of the demo, as a visitor does who follows its redirection.
async fn visit(gateway: &ServiceProcess, path: &str) {
    let response = CheckedClient::new().get(gateway.url(path)).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
}

#[tokio::test]
async fn plain_cluster_clients_push_and_pop_beside_the_worker() {
    let cluster = ClusterProcesses::start().await;
    let worker = start(&cluster, "queue-worker").await;
    let Some(popper) = run(POPPER, "None", &cluster) else { return };
    eventually("the popper is ready", || async { popper.lines().contains(&"ready".to_owned()).then_some(()) }).await;
    let _pusher = run(PUSHER, "60", &cluster);
    let got = || -> Vec<String> {
        let mut tasks: Vec<String> = popper.tasks().into_iter().chain(worker.tasks()).collect();
        tasks.sort();
        tasks
    };
    eventually("all elements are taken", || async { (got().len() >= ELEMENTS).then_some(()) }).await;
    assert_eq!(got(), expected(ELEMENTS), "each element went to exactly one of the two");
}

#[tokio::test]
async fn what_the_page_pushes_and_publishes_reaches_plain_cluster_clients() {
    let cluster = ClusterProcesses::start().await;
    let (gateway, listener) = (start(&cluster, "gateway").await, start(&cluster, "pubsub-worker").await);
    let (Some(popper), Some(subscriber)) = (run(POPPER, "None", &cluster), run(SUBSCRIBER, "None", &cluster)) else {
        return;
    };
    for program in [&popper, &subscriber] {
        eventually("it is ready", || async { program.lines().contains(&"ready".to_owned()).then_some(()) }).await;
    }
    let _publisher = run(PUBLISHER, "60", &cluster);
    for _ in 0..5 {
        visit(&gateway, "/prodcons").await;
        visit(&gateway, "/pubsub").await;
    }
    eventually("5 elements are popped", || async { (popper.tasks().len() >= 5).then_some(()) }).await;
    assert!(popper.tasks().iter().all(|task| task.parse::<u8>().is_ok_and(|digit| digit < 10)));
    eventually("25 messages are heard by both", || async {
        (subscriber.tasks().len() >= 25 && listener.tasks().len() >= 25).then_some(())
    })
    .await;
    // They may listen at two nodes, between which messages of two publishers overtake each other
    let sorted = |mut tasks: Vec<String>| {
        tasks.sort();
        tasks
    };
    assert_eq!(sorted(subscriber.tasks()), sorted(listener.tasks()));
}

#[tokio::test]
async fn elements_go_on_when_the_list_moves_and_when_its_primary_is_replaced() {
    let mut cluster = ClusterProcesses::start().await;
    let (gateway, worker) = (start(&cluster, "gateway").await, start(&cluster, "queue-worker").await);
    let slot = cluster.slot_of(LIST).await;
    let first = cluster.primary_of(slot).await;
    visit(&gateway, "/prodcons").await;
    eventually("an element is executed", || async { (worker.tasks().len() == 1).then_some(()) }).await;
    cluster.move_slot(slot, (first + 1) % 3).await;
    visit(&gateway, "/prodcons").await;
    eventually("another one is executed at the new node", || async { (worker.tasks().len() == 2).then_some(()) }).await;
    let primary = cluster.primary_of(slot).await;
    let replica = cluster.replica_of(primary).await;
    cluster.wait_until_replicated(primary).await;
    cluster.kill(primary);
    cluster.promote(replica).await;
    cluster.wait_until_promoted(replica).await;
    eventually("another one is executed at the replica", || async {
        let _ = CheckedClient::new().get(gateway.url("/prodcons")).send().await;
        (worker.tasks().len() > 2).then_some(())
    })
    .await;
    gateway.wait_until_ready().await;
    worker.wait_until_ready().await;
}
