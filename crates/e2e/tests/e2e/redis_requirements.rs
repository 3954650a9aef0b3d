//! What Galley needs of a Redis, what it does when the server does not say, and how it says what can never work.

use serde_json::{Value, json};
use testkit::{PATIENCE, RedisPersistence, RedisServer, ServiceProcess, TEST_TIMEOUT, binary_path, eventually, redis};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
    sse::ChannelEventsClient,
};

const SERVICES: [&str; 3] = ["gateway", "queue-worker", "pubsub-worker"];

/// The rules of the documented ACL line, without the optional commands.
fn documented_rules() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/redis.md")).expect("the page");
    let line = page.split("user galley ").nth(1).and_then(|rest| rest.split("```").next()).expect("the ACL line");
    let optional = ["+info", "+config|get", "+client|unblock"];
    line.split_whitespace().filter(|rule| !optional.contains(rule)).map(str::to_owned).collect()
}

async fn set_user(redis: &RedisServer, rules: &[String]) -> String {
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("galley").arg("reset");
    for rule in rules {
        command.arg(rule);
    }
    command.exec_async(&mut redis.connection().await).await.expect("valid rules");
    format!("redis://galley:PASSWORD@127.0.0.1:{}/5", redis.port())
}

#[tokio::test]
async fn a_user_with_the_documented_permissions_and_without_info_is_served_and_ready() {
    assert_served(&documented_rules()).await;
}

#[tokio::test]
async fn a_user_whose_channels_are_those_of_the_database_is_served_and_ready() {
    let narrow = |rule: String| if rule == "&galley:*" { "&galley:5:*".to_owned() } else { rule };
    assert_served(&documented_rules().into_iter().map(narrow).collect::<Vec<_>>()).await;
}

async fn assert_served(rules: &[String]) {
    let redis = RedisServer::start();
    let url = set_user(&redis, rules).await;
    assert_core_works(redis, [&url, &url, &url], "unknown").await;
}

/// Runs what Galley mainly does, with the services connected by URLs of their own: gateway, queue-worker, pubsub-worker.
/// Redis refuses nothing but what is optional.
pub(crate) async fn assert_core_works(redis: RedisServer, urls: [&str; 3], durability: &str) {
    let start = async |name, url| ServiceProcess::start_with_redis_url(name, url, &PATIENCE).await;
    let gateway = start("gateway", urls[0]).await;
    let (worker, listener) = (start("queue-worker", urls[1]).await, start("pubsub-worker", urls[2]).await);
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis };
    assert_it_works(&kit, &worker, &listener, durability).await;
    assert!(worker.terminate().await.success() && listener.terminate().await.success());
    assert_nothing_else_was_refused(&mut kit.redis.connection().await).await;
}

/// The same for services that run.
pub(crate) async fn assert_it_works(
    kit: &GalleyKit,
    worker: &ServiceProcess,
    listener: &ServiceProcess,
    durability: &str,
) {
    let health: Value = kit.get("/ojs/v1/health").await.json().await.expect("JSON");
    assert_eq!((&health["status"], &health["backend"]["durability"]), (&json!("ok"), &json!(durability)));
    let later = json!({ "type": "test.noop", "args": [], "scheduled_at": "+PT0.2S", "priority": 5 });
    let limited = json!({ "type": "test.noop", "args": [], "rate_limit": { "key": "k", "concurrency": 1 } });
    let failing = json!({ "type": "test.fail_once", "args": [], "retry": { "initial_interval": "PT0.1S" } });
    for body in [job_body("test.echo", &json!([1])), later, limited, failing] {
        let id = kit.enqueue(&body).await;
        kit.wait_for_state(&id, "completed").await;
    }
    let chain = json!({ "type": "chain", "name": "c", "steps": [{ "type": "test.noop", "args": [] }, { "type": "test.noop", "args": [] }] });
    let made: Value = kit.post("/ojs/v1/workflows", &chain).await.json().await.expect("JSON");
    let workflow = made["workflow"]["id"].as_str().expect("an id").to_owned();
    eventually("the workflow ends", || async {
        let shown: Value = kit.get(&format!("/ojs/v1/workflows/{workflow}")).await.json().await.ok()?;
        (shown["workflow"]["state"] == "completed").then_some(())
    })
    .await;
    let subscription = json!({ "channels": ["orders"], "deliver": { "log": {} } });
    let url = kit.gateway.url("/v1/subscriptions/billing");
    let put = kit.http.put(url).header("content-type", "application/json").body(subscription.to_string());
    assert!(put.send().await.expect("the gateway answers").status().is_success());
    assert_processes_tell_each_other(kit, worker, listener).await;
    kit.get("/prodcons").await;
    eventually("the list is emptied", || async { (!worker.tasks().is_empty()).then_some(()) }).await;
    for path in ["/ojs/v1/queues", "/ojs/v1/workers", "/ojs/v1/dead-letter", "/v1/channels", "/v1/subscriptions"] {
        assert_eq!(kit.get(path).await.status(), 200, "{path}");
    }
    for service in [&kit.gateway, worker, listener] {
        service.wait_until_ready().await;
    }
}

/// What a server refused to its users is optional.
pub(crate) async fn assert_nothing_else_was_refused(connection: &mut redis::aio::MultiplexedConnection) {
    let refused: Vec<std::collections::HashMap<String, redis::Value>> =
        redis::cmd("ACL").arg("LOG").query_async(connection).await.expect("redis runs");
    let refused: std::collections::BTreeSet<String> = refused
        .into_iter()
        .map(|mut entry| redis::FromRedisValue::from_redis_value(entry.remove("object").expect("an object")))
        .map(|object| object.expect("text"))
        .collect();
    let optional = ["client|unblock", "config|get", "info", "orders"].map(str::to_owned);
    assert!(refused.iter().all(|object| optional.contains(object)), "{refused:?}");
}

/// Everything that one process tells another over pub/sub.
async fn assert_processes_tell_each_other(kit: &GalleyKit, worker: &ServiceProcess, listener: &ServiceProcess) {
    let mut streams = Vec::new();
    for path in ["/v1/channels/orders/stream", "/v1/stream?channel=ord*"] {
        streams.push(ChannelEventsClient::open(kit.gateway.url(path), None).await);
    }
    kit.post("/v1/channels/orders/messages", &json!("paid")).await;
    listener.wait_for_logged_body("\"paid\"").await;
    for stream in &mut streams {
        assert_eq!(stream.expect("message").await["data"], "paid");
    }
    let running = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    kit.wait_for_state(&running, "active").await;
    let path = format!("/ojs/v1/jobs/{running}?wait_ms=20000");
    let (shown, ()) = tokio::join!(kit.get(&path), kit.cancel(&running));
    assert_eq!(shown.json::<Value>().await.expect("JSON")["job"]["state"], "cancelled");
    eventually("the attempt stops", || async { (!worker.events("attempt.lost").is_empty()).then_some(()) }).await;
}

/// Starts a service that must stop by itself; gives what it says on stderr.
async fn refusal(service: &str, redis_url: &str) -> String {
    let section = service.replace('-', "_").to_uppercase();
    let mut command = tokio::process::Command::new(binary_path(service));
    command.env("GALLEY__REDIS__URL", redis_url).env(format!("GALLEY__{section}__LISTEN"), "127.0.0.1:0");
    command.env("GALLEY__LOG__FORMAT", "json").env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "1");
    // A service whose Redis is slow starts without it
    command.envs(PATIENCE);
    let output = tokio::time::timeout(TEST_TIMEOUT, command.kill_on_drop(true).output()).await;
    let output = output.expect("it stops by itself").expect("a binary of ours starts");
    assert_eq!(output.status.code(), Some(1), "{service} {redis_url}");
    String::from_utf8(output.stderr).expect("text")
}

async fn assert_refused(redis_url: &str, expected: &str) {
    for service in SERVICES {
        let said = refusal(service, redis_url).await;
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with(&format!("{service}: ")) && said.contains(expected), "{expected} in {said}");
    }
}

#[tokio::test]
async fn a_redis_that_can_never_work_stops_every_service_with_one_line_that_says_what_to_change() {
    let server = RedisServer::start();
    let port = server.port();
    let mut admin = server.connection().await;
    assert_refused(&format!("redis://127.0.0.1:{port}/99"), "it has no database 99").await;
    assert_refused(&format!("redis://galley:wrong@127.0.0.1:{port}/5"), "user or password is wrong").await;
    let without = |rule: &str| {
        let mut rules = documented_rules();
        rules.push(rule.to_owned());
        rules
    };
    let url = set_user(&server, &without("-xadd")).await;
    assert_refused(&url, "may not use xadd: allow what docs/redis.md#permissions lists").await;
    let url = set_user(&server, &without("resetchannels")).await;
    assert_refused(&url, "the channel galley:5:*").await;
    let url = set_user(&server, &without("resetkeys")).await;
    assert_refused(&url, "the key galley:*").await;
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("secret").exec_async(&mut admin).await.expect("it is set");
    assert_refused(&format!("redis://127.0.0.1:{port}/5"), "change redis.url").await;
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("").exec_async(&mut admin).await.expect("it is set");

    let primary = RedisServer::start();
    let to = primary.port().to_string();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(to).exec_async(&mut admin).await.expect("it becomes a replica");
    assert_refused(&server.url(), "it is a replica and takes no writes: set redis.url to its primary").await;

    let cluster = RedisServer::start_with_options(RedisPersistence::None, &["--cluster-enabled", "yes"]);
    for database in ["0", "5"] {
        let url = format!("redis://127.0.0.1:{}/{database}", cluster.port());
        assert_refused(&url, "it has `cluster-enabled yes`: set redis.url to redis+cluster://").await;
    }
}

#[tokio::test]
async fn ready_means_that_a_write_works() {
    let kit = GalleyKit::start().await;
    let (worker, listener) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
    let wait_until_unready = async || {
        for service in [&kit.gateway, &worker, &listener] {
            eventually("it is not ready", || async {
                let response = kit.http.get(service.url("/health/ready")).send().await.ok()?;
                (response.status() == 503).then_some(())
            })
            .await;
        }
    };
    kit.redis_command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    wait_until_unready().await;
    assert_eq!(kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await.status(), 503);
    kit.redis_command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    let primary = RedisServer::start();
    for service in [&kit.gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    kit.redis_command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).await;
    wait_until_unready().await;
    kit.redis_command(&["REPLICAOF", "NO", "ONE"]).await;
    for service in [&kit.gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    // A full Redis still takes what frees it
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(kit.get("/health/ready").await.status(), 200);
}
