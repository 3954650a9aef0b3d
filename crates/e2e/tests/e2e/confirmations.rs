//! Requests that are answered when replicas have what they wrote, or with 202.

use serde_json::{Value, json};
use testkit::{RedisPersistence, RedisServer, ServiceProcess, eventually, redis};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
};

const ONE_REPLICA: (&str, &str) = ("GALLEY__DURABILITY__REPLICAS", "1");

/// Two gateways on a Redis with a replica. One waits for it as long as it takes, the other hardly.
struct ReplicatedKit {
    patient: GalleyKit,
    hasty: ServiceProcess,
    replica: RedisServer,
}

impl ReplicatedKit {
    async fn start() -> Self {
        // Otherwise it waits five seconds for more replicas
        let at_once = ["--repl-diskless-sync-delay", "0"];
        let redis = RedisServer::start_with_options(RedisPersistence::None, &at_once);
        let of_redis = format!("127.0.0.1 {}", redis.port());
        let replica = RedisServer::start_with_options(RedisPersistence::None, &["--replicaof", &of_redis]);
        redis.wait_until_replicated().await;
        let start = async |timeout| {
            let variables = [ONE_REPLICA, ("GALLEY__DURABILITY__TIMEOUT_MS", timeout)];
            let gateway = ServiceProcess::start("gateway", &redis, &variables).await;
            gateway.wait_until_ready().await;
            gateway
        };
        let (gateway, hasty) = (start("60000").await, start("10").await);
        Self { patient: GalleyKit { gateway, http: CheckedClient::new(), redis }, hasty, replica }
    }

    /// Sends a request to the gateway that hardly waits.
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> reqwest::Response {
        let method = method.parse().expect("a method");
        let mut request = self.patient.http.request(method, self.hasty.url(path));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        request.send().await.expect("the gateway answers")
    }
}

fn is_unconfirmed(response: &reqwest::Response) -> bool {
    let header = response.headers().get("galley-durability").map(|value| value.to_str().expect("text"));
    assert_eq!(header.is_some(), response.status() == 202, "{response:?}");
    header == Some("unconfirmed")
}

#[tokio::test]
async fn what_no_replica_has_is_answered_with_202_and_with_201_once_it_has() {
    let kit = ReplicatedKit::start().await;
    let job = job_body("test.echo", &json!([1]));
    let first = kit.patient.post("/ojs/v1/jobs", &job).await;
    assert!(!is_unconfirmed(&first) && first.status() == 201);
    let first: Value = first.json().await.expect("JSON");

    kit.replica.freeze();
    let refused = kit.send("POST", "/ojs/v1/jobs", Some(&json!({ "type": 1 }))).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("galley-durability")), (400, false));
    let stored = kit.send("POST", "/ojs/v1/jobs", Some(&job)).await;
    assert!(is_unconfirmed(&stored), "{stored:?}");
    let stored: Value = stored.json().await.expect("JSON");
    let id = stored["job"]["id"].as_str().expect("an id");
    assert_eq!(kit.patient.job(id).await["state"], "available", "it is stored");
    let message = kit.send("POST", "/v1/channels/news/messages", Some(&json!("hello"))).await;
    let batch = kit.send("POST", "/ojs/v1/jobs/batch", Some(&json!({ "jobs": [job, job] }))).await;
    let cancelled = kit.send("DELETE", &format!("/ojs/v1/jobs/{id}"), None).await;
    assert!(is_unconfirmed(&message) && is_unconfirmed(&batch) && is_unconfirmed(&cancelled));
    let lines = kit.patient.http.post(kit.hasty.url("/ojs/v1/jobs/stream"));
    let lines = lines.header("content-type", "application/x-ndjson").body(format!("{job}\n{{}}\n{job}\n"));
    let answer = lines.send().await.expect("an answer").text().await.expect("text");
    let marks: Vec<Value> =
        answer.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["unconfirmed"].clone()).collect();
    assert_eq!(marks, [json!(true), Value::Null, json!(true)], "{answer}");
    // Reads are about nothing new, and what workers report is worth a repetition
    assert!(!is_unconfirmed(&kit.send("GET", "/ojs/v1/queues", None).await));
    let fetched = kit.send("POST", "/ojs/v1/workers/fetch", Some(&json!({ "queues": ["default"] }))).await;
    assert!(!is_unconfirmed(&fetched) && fetched.status() == 200);
    let health: Value = kit.send("GET", "/ojs/v1/health", None).await.json().await.expect("JSON");
    let shown = json!({ "replicas": 1, "fsync": false, "timeout_ms": 10, "last": "unconfirmed" });
    assert_eq!(health["backend"]["confirmation"], shown, "{health}");
    kit.hasty.wait_for_event("durability.unmet").await;

    let repeat = |gateway: &ServiceProcess| {
        let request = kit.patient.http.post(gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
        request.header("idempotency-key", "once").body(job.to_string()).send()
    };
    let unconfirmed = repeat(&kit.hasty).await.expect("an answer");
    assert!(is_unconfirmed(&unconfirmed));
    let unconfirmed: Value = unconfirmed.json().await.expect("JSON");
    let waiting = tokio::spawn(repeat(&kit.patient.gateway));
    let waits = |line: &str| line.contains(" flags=b ") && line.contains(" cmd=wait ");
    eventually("it waits for the replica", || async {
        let clients = kit.patient.redis_command(&["CLIENT", "LIST"]).await;
        let clients = redis::from_redis_value::<String>(clients).expect("text");
        clients.lines().any(waits).then_some(())
    })
    .await;
    kit.replica.thaw();
    let confirmed = waiting.await.expect("no panic").expect("an answer");
    assert!(!is_unconfirmed(&confirmed) && confirmed.status() == 201);
    let confirmed: Value = confirmed.json().await.expect("JSON");
    assert_eq!(confirmed["job"]["id"], unconfirmed["job"]["id"], "one job");
    let mut replica = kit.replica.connection().await;
    let entries: u64 =
        redis::cmd("XLEN").arg("galley:{default}:s:0").query_async(&mut replica).await.expect("the replica answers");
    assert!(entries > 1 && first["job"]["id"].is_string(), "the replica has {entries}");
    eventually("it is said that writes arrive again", || async {
        let answer = kit.send("POST", "/ojs/v1/jobs", Some(&job)).await;
        (answer.status() == 201 && !kit.hasty.events("durability.met").is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gateway_whose_redis_cannot_say_what_is_asked_for_does_not_start() {
    let redis = RedisServer::start();
    let kit = GalleyKit::start_with(redis, &[]).await;
    let user = ["ACL", "SETUSER", "galley", "reset", "on", ">secret", "allkeys", "allchannels", "+@all", "-wait"];
    kit.redis_command(&user).await;
    let url = kit.redis.url_of("galley", "secret");
    let output = kit.run_binary("gateway", &[], &[ONE_REPLICA, ("GALLEY__REDIS__URL", &url)]).await;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && said.contains("may not use wait:"), "{said}");
}

#[tokio::test]
async fn what_is_not_on_disk_is_not_confirmed_where_redis_can_say_so() {
    let kit = GalleyKit::start_with(RedisServer::start_with(RedisPersistence::Always), &[]).await;
    let info = redis::from_redis_value::<String>(kit.redis_command(&["INFO", "server"]).await).expect("text");
    let on_disk = [("GALLEY__DURABILITY__FSYNC", "true"), ("GALLEY__DURABILITY__TIMEOUT_MS", "60000")];
    if info.contains("redis_version:7.0.") {
        let output = kit.run_binary("gateway", &[], &on_disk).await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("waitaof, which this server lacks"), "{said}");
        return;
    }
    let gateway = ServiceProcess::start("gateway", &kit.redis, &on_disk).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, ..kit };
    let stored = kit.post("/ojs/v1/jobs", &job_body("test.echo", &json!([1]))).await;
    assert!(!is_unconfirmed(&stored) && stored.status() == 201);
}
