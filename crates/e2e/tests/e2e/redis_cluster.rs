//! The services on a real Redis Cluster: everything that they do, while slots move, and when a primary is replaced.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::{
    ClusterProcesses, PATIENCE, RedisServer, ServiceProcess, TestAuthority, WebhookReceiver, WebhookReply, eventually,
    redis, skip,
};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body},
    pull::{LONG_MS, wait_for_waiters_of},
    push_handlers::rule,
    redis_acl, redis_requirements,
    sse::ChannelEventsClient,
};

/// Queues at all nodes.
const QUEUES: [&str; 6] = ["mail", "orders", "images", "reports", "q1", "q2"];
/// Jobs of each queue in each round.
const ROUND: usize = 3;

/// The services. The Redis of the kit is another one.
async fn start(urls: [&str; 3], rules: &str) -> (GalleyKit, ServiceProcess, ServiceProcess) {
    let queues = format!("default,demo,prodcons,{}", QUEUES.join(","));
    let more = [("GALLEY__QUEUE_WORKER__QUEUES", queues.as_str()), (RULES_VARIABLE, rules)];
    let of_worker: Vec<(&str, &str)> = PATIENCE.iter().copied().chain(more).collect();
    let gateway = ServiceProcess::start_with_redis_url("gateway", urls[0], &PATIENCE).await;
    let worker = ServiceProcess::start_with_redis_url("queue-worker", urls[1], &of_worker).await;
    let listener = ServiceProcess::start_with_redis_url("pubsub-worker", urls[2], &PATIENCE).await;
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    (GalleyKit { gateway, http: CheckedClient::new(), redis: RedisServer::start() }, worker, listener)
}

fn job(queue: &str) -> Value {
    json!({ "type": "test.echo", "args": [queue], "options": { "queue": queue } })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is text")).to_owned()
}

/// The users of `deploy/redis.acl` at every node, with what `docs/redis.md` says that a cluster needs more.
async fn set_users(cluster: &ClusterProcesses) {
    let users = redis_acl::users().replace("&galley:5:*", "&galley:0:*");
    for line in users.lines().filter(|line| line.starts_with("user ") && !line.starts_with("user default ")) {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg(line.split_whitespace().skip(1).collect::<Vec<_>>());
        command.arg(&["+asking", "+cluster|info", "+cluster|slots", "+spublish", "+ssubscribe", "+sunsubscribe"]);
        for node in cluster.running() {
            cluster.ask::<()>(node, &command).await;
        }
    }
}

#[tokio::test]
async fn everything_works_on_a_cluster_for_users_with_the_documented_permissions() {
    let cluster = ClusterProcesses::start().await;
    set_users(&cluster).await;
    let urls = ["gateway", "queue-worker", "pubsub-worker"]
        .map(|service| cluster.url_of(service, &redis_acl::password(service)));
    let receiver = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let folder = TestFolder::with_rules(&rule("push.*", &receiver, ""));
    let (kit, worker, listener) = start([&urls[0], &urls[1], &urls[2]], &folder.path_text("rules.toml")).await;
    redis_requirements::assert_it_works(&kit, &worker, &listener, "memory").await;
    jobs_of_many_queues_work(&kit).await;
    workflows_and_cron_entries_work(&kit).await;
    let pushed = kit.enqueue(&job_body("push.it", &json!([1]))).await;
    kit.wait_for_state(&pushed, "completed").await;
    receiver.wait_for_requests(1).await;
    assert!(worker.terminate().await.success() && listener.terminate().await.success());
    for node in cluster.running() {
        redis_requirements::assert_nothing_else_was_refused(&mut cluster.connection(node).await).await;
    }
}

async fn jobs_of_many_queues_work(kit: &GalleyKit) {
    let jobs = QUEUES.map(job);
    let made: Value = kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.json().await.expect("JSON");
    let ids: BTreeSet<String> = made["jobs"].as_array().expect("jobs").iter().map(|job| text(&job["id"])).collect();
    assert_eq!(ids.len(), QUEUES.len(), "{made}");
    for id in ids {
        kit.wait_for_state(&id, "completed").await;
    }
    let unique = json!({ "type": "test.noop", "args": [], "scheduled_at": "+PT1H", "unique": {} });
    for status in [201, 409] {
        assert_eq!(kit.post("/ojs/v1/jobs", &unique).await.status(), status);
    }
    // A program that waits for jobs of queues at several nodes, which it gets from any
    for queue in ["pull-1", "pull-2", "pull-3", "pull-4"] {
        let wanted = json!({ "queues": ["pull-1", "pull-2", "pull-3", "pull-4"], "wait_ms": LONG_MS });
        let fetch = kit.http.post(kit.gateway.url("/ojs/v1/workers/fetch")).header("content-type", "application/json");
        let waiter = tokio::spawn(fetch.body(wanted.to_string()).send());
        wait_for_waiters_of(kit, &kit.gateway, 1).await;
        let id = kit.enqueue(&job(queue)).await;
        let answer: Value = waiter.await.expect("no panic").expect("an answer").json().await.expect("JSON");
        let claimed = &answer["jobs"][0];
        assert_eq!(claimed["id"], json!(id), "{answer}");
        let done = json!({ "job_id": id, "token": claimed["token"], "result": 1 });
        assert_eq!(kit.post("/ojs/v1/workers/ack", &done).await.status(), 200);
        kit.wait_for_state(&id, "completed").await;
    }
}

async fn workflows_and_cron_entries_work(kit: &GalleyKit) {
    let step = |id: &str, job_type: &str, depends_on: &[&str]| json!({ "id": id, "type": job_type, "args": [id], "depends_on": depends_on });
    let steps = [
        step("start", "test.produce", &[]),
        step("left", "test.gather", &["start"]),
        step("right", "test.gather", &["start"]),
        step("all", "test.gather", &["left", "right"]),
    ];
    let callbacks = json!({ "on_complete": job_body("test.gather", &json!([])) });
    for workflow in [
        json!({ "type": "group", "jobs": QUEUES.map(job) }),
        json!({ "type": "batch", "jobs": QUEUES.map(job), "callbacks": callbacks }),
        json!({ "steps": steps, "options": { "queue": "demo" } }),
    ] {
        let made: Value = kit.post("/ojs/v1/workflows", &workflow).await.json().await.expect("JSON");
        let path = format!("/ojs/v1/workflows/{}", text(&made["workflow"]["id"]));
        eventually("the workflow is completed", || async {
            let shown: Value = kit.get(&path).await.json().await.ok()?;
            (shown["workflow"]["state"] == "completed").then_some(())
        })
        .await;
    }
    let template = json!({ "type": "test.noop", "args": [], "options": { "keep_envelope": true } });
    let entry = json!({ "name": "tick", "expression": "* * * * * *", "job_template": template });
    assert_eq!(kit.post("/ojs/v1/cron", &entry).await.status(), 201);
    let last = eventually("a run", || async {
        let shown: Value = kit.get("/ojs/v1/cron/tick").await.json().await.ok()?;
        shown["cron"]["last_job_id"].as_str().map(ToOwned::to_owned)
    })
    .await;
    kit.wait_for_state(&last, "completed").await;
}

/// Enqueues a job. Who is refused may try again, and is not told of slots and scripts.
async fn try_enqueue(kit: &GalleyKit, queue: &str) -> Option<String> {
    let response = kit.post("/ojs/v1/jobs", &job(queue)).await;
    let (status, may_try_again) = (response.status(), response.headers().contains_key("retry-after"));
    let answer = response.text().await.expect("text");
    if status == 201 {
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        return Some(text(&answer["job"]["id"]));
    }
    assert!(status == 503 && may_try_again, "{status} {answer}");
    None
}

/// Enqueues jobs of all queues, of which none may be refused.
async fn enqueue_round(kit: &GalleyKit) -> Vec<String> {
    let mut ids = Vec::new();
    for queue in QUEUES.repeat(ROUND) {
        ids.push(try_enqueue(kit, queue).await.expect("accepted"));
    }
    ids
}

async fn publish(kit: &GalleyKit, message: &str) -> Option<()> {
    let response = kit.post("/v1/channels/orders/messages", &json!(message)).await;
    assert!([201, 503].contains(&response.status().as_u16()), "{}", response.status());
    (response.status() == 201).then_some(())
}

/// Waits until a reader and a subscription have a message. Before it there may be a gap, and others.
async fn wait_for_message(stream: &mut ChannelEventsClient, listener: &ServiceProcess, message: &str) {
    while stream.next().await.expect("the stream goes on").data["data"] != message {}
    listener.wait_for_logged_body(&format!("\"{message}\"")).await;
}

#[tokio::test]
async fn nothing_that_was_accepted_is_lost_while_slots_move_and_when_a_primary_is_replaced() {
    let mut cluster = ClusterProcesses::start_with_options(&["--cluster-require-full-coverage", "no"]).await;
    let url = cluster.url();
    let (kit, worker, listener) = start([&url, &url, &url], "").await;
    let subscription = json!({ "channels": ["orders"], "deliver": { "log": {} } });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/all")).header("content-type", "application/json");
    let put = put.body(subscription.to_string()).send().await.expect("an answer");
    assert!(put.status().is_success());
    let mut stream = ChannelEventsClient::open(kit.gateway.url("/v1/channels/orders/stream"), None).await;
    let mut accepted = enqueue_round(&kit).await;
    for tag in QUEUES.iter().copied().chain(["ch:orders", "task:prodcons:queue", "galley:leader"]) {
        let slot = cluster.slot_of(&format!("{{{tag}}}")).await;
        let to = (cluster.primary_of(slot).await + 1) % 3;
        let ((), ids) = tokio::join!(cluster.move_slot(slot, to), enqueue_round(&kit));
        accepted.extend(ids);
    }
    publish(&kit, "moved").await.expect("it is published");
    wait_for_message(&mut stream, &listener, "moved").await;
    for id in &accepted {
        kit.wait_for_state(id, "completed").await;
    }
    for primary in 0..3 {
        cluster.wait_until_replicated(primary).await;
    }

    let killed = cluster.primary_of(cluster.slot_of("{mail}").await).await;
    let (mut of_others, mut of_killed) = (Vec::new(), Vec::new());
    for queue in QUEUES {
        let owner = cluster.primary_of(cluster.slot_of(&format!("{{{queue}}}")).await).await;
        if owner == killed { of_killed.push(queue) } else { of_others.push(queue) }
    }
    assert!(!of_others.is_empty());
    cluster.kill(killed);
    for queue in of_others {
        accepted.push(eventually("a node that runs accepts a job", || try_enqueue(&kit, queue)).await);
    }
    let replica = cluster.replica_of(killed).await;
    cluster.promote(replica).await;
    for queue in of_killed {
        accepted.push(eventually("the replica accepts a job", || try_enqueue(&kit, queue)).await);
    }
    eventually("a message is accepted", || publish(&kit, "replaced")).await;
    wait_for_message(&mut stream, &listener, "replaced").await;
    for id in &accepted {
        kit.wait_for_state(id, "completed").await;
    }
    for service in [&kit.gateway, &worker, &listener] {
        service.wait_until_ready().await;
        let log = service.raw_log();
        assert!(!["CROSSSLOT", "NOSCRIPT"].iter().any(|word| log.contains(word)), "{log}");
    }
}

/// Enqueues jobs of all queues; returns the ids of those that were confirmed.
async fn enqueue_confirmed(kit: &GalleyKit) -> Vec<String> {
    let mut confirmed = Vec::new();
    for queue in QUEUES.repeat(ROUND) {
        let response = kit.post("/ojs/v1/jobs", &job(queue)).await;
        let status = response.status().as_u16();
        assert!([201, 202].contains(&status), "{queue}: {status}");
        let answer: Value = response.json().await.expect("JSON");
        if status == 201 {
            confirmed.push(text(&answer["job"]["id"]));
        }
    }
    confirmed
}

#[tokio::test]
async fn what_a_replica_has_confirmed_survives_the_death_of_a_primary() {
    let mut cluster = ClusterProcesses::start_with_options(&["--cluster-require-full-coverage", "no"]).await;
    let asked = [("GALLEY__DURABILITY__REPLICAS", "1"), ("GALLEY__DURABILITY__TIMEOUT_MS", "1000")];
    let variables: Vec<(&str, &str)> = PATIENCE.iter().copied().chain(asked).collect();
    let gateway = ServiceProcess::start_with_redis_url("gateway", &cluster.url(), &variables).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: RedisServer::start() };
    let mut confirmed = eventually("every job of a round is confirmed", || async {
        let ids = enqueue_confirmed(&kit).await;
        (ids.len() == QUEUES.len() * ROUND).then_some(ids)
    })
    .await;
    let killed = cluster.primary_of(cluster.slot_of("{mail}").await).await;
    let replica = cluster.replica_of(killed).await;
    cluster.freeze(replica);
    let stored = kit.post("/ojs/v1/jobs", &job("mail")).await;
    assert_eq!(stored.status(), 202, "its primary alone has it");
    eventually("it is shown", || async {
        let health: Value = kit.get("/ojs/v1/health").await.json().await.ok()?;
        (health["backend"]["confirmation"]["last"] == "unconfirmed").then_some(())
    })
    .await;
    confirmed.extend(enqueue_confirmed(&kit).await);
    cluster.kill(killed);
    cluster.thaw(replica);
    cluster.promote(replica).await;
    cluster.wait_until_promoted(replica).await;
    for id in &confirmed {
        let path = format!("/ojs/v1/jobs/{id}");
        let status = eventually("the job is looked up", || async {
            let status = kit.get(&path).await.status().as_u16();
            (status != 503).then_some(status)
        })
        .await;
        assert_eq!(status, 200, "{id}");
    }
}

#[tokio::test]
async fn a_cluster_with_tls_is_used_over_tls_alone_also_when_a_replica_has_taken_over() {
    let authority = TestAuthority::new();
    let certificate = authority.issue("all", &["127.0.0.1"]);
    if RedisServer::start_with_tls(&authority, &certificate).is_none() {
        return skip("this redis-server was built without TLS");
    }
    let mut cluster = ClusterProcesses::start_with_tls(&authority, &certificate).await;
    let (url, ca) = (cluster.tls_url(), authority.ca_file());
    let encrypted = [
        ("GALLEY__REDIS__TLS_CA_FILE", ca.as_str()),
        ("GALLEY__REDIS__TLS_CERT_FILE", &certificate.cert),
        ("GALLEY__REDIS__TLS_KEY_FILE", &certificate.key),
    ];
    let queues = QUEUES.join(",");
    let of_worker = [("GALLEY__QUEUE_WORKER__QUEUES", queues.as_str()), ("GALLEY__BRIDGE__LIST", "")];
    let gateway = ServiceProcess::start_with_redis_url("gateway", &url, &[&PATIENCE[..], &encrypted].concat()).await;
    let variables = [&PATIENCE[..], &encrypted, &of_worker].concat();
    let worker = ServiceProcess::start_with_redis_url("queue-worker", &url, &variables).await;
    for service in [&gateway, &worker] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: RedisServer::start() };
    let mut accepted = enqueue_round(&kit).await;
    for id in &accepted {
        kit.wait_for_state(id, "completed").await;
    }
    let killed = cluster.primary_of(cluster.slot_of("{mail}").await).await;
    cluster.wait_until_replicated(killed).await;
    let replica = cluster.replica_of(killed).await;
    cluster.kill(killed);
    cluster.promote(replica).await;
    cluster.wait_until_promoted(replica).await;
    for queue in QUEUES {
        accepted.push(eventually("every queue accepts a job", || try_enqueue(&kit, queue)).await);
    }
    for id in &accepted {
        kit.wait_for_state(id, "completed").await;
    }
    for node in cluster.running() {
        let clients: String = cluster.ask(node, redis::cmd("CLIENT").arg("LIST")).await;
        let plain = format!("laddr=127.0.0.1:{} ", cluster.port(node));
        let strangers: Vec<&str> =
            clients.lines().filter(|line| line.contains(&plain) && !line.contains(" cmd=client|list ")).collect();
        assert!(strangers.is_empty(), "{strangers:#?}");
    }
}
