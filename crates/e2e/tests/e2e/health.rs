//! Live, ready and started: what breaks shows as the reason, and what does not matter does not.

use std::time::Instant;

use serde_json::{Value, json};
use testkit::{AnswerHoldProxy, MessageDropProxy, RedisServer, ServiceProcess, eventually};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, job_body},
};

/// The status of `/health/ready` and its answer.
async fn ready(service: &ServiceProcess) -> (u16, Value) {
    let answer = crate::http_client::get(service.url("/health/ready")).await.expect("the service answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

/// Waits until a service answers with that status, and its part with a reason that contains these words.
async fn wait_for_reason(service: &ServiceProcess, status: u16, part: &str, words: &str) -> Value {
    eventually(&format!("{part} says {words:?}"), || async {
        let (answered, answer) = ready(service).await;
        let reason = answer["parts"][part]["reason"].as_str().unwrap_or_default().to_owned();
        (answered == status && reason.contains(words)).then_some(answer)
    })
    .await
}

/// Waits until every part of a service works and gives its answer.
pub(crate) async fn wait_until_well(service: &ServiceProcess) -> Value {
    eventually("all is well", || async {
        let (status, answer) = ready(service).await;
        (status == 200 && answer["status"] == "ok").then_some(answer)
    })
    .await
}

struct AllServices {
    kit: GalleyKit,
    worker: ServiceProcess,
    pubsub_worker: ServiceProcess,
}

impl AllServices {
    async fn start() -> Self {
        let kit = GalleyKit::start().await;
        let (worker, pubsub_worker) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
        Self { kit, worker, pubsub_worker }
    }

    /// Each service with the part that does its work.
    fn all(&self) -> [(&ServiceProcess, &'static str); 3] {
        [(&self.kit.gateway, "jobs"), (&self.worker, "jobs"), (&self.pubsub_worker, "subscriptions")]
    }

    async fn config(&self, name: &str, value: &str) {
        self.kit.redis_command(&["CONFIG", "SET", name, value]).await;
    }
}

#[tokio::test]
async fn every_service_is_live_started_and_ready_with_all_parts() {
    let services = AllServices::start().await;
    for (service, part) in services.all() {
        let answer = wait_until_well(service).await;
        assert_eq!(answer["parts"][part]["status"], "ok", "{answer}");
        for path in ["/health/live", "/health/startup"] {
            let answer = crate::http_client::get(service.url(path)).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(answer.json::<Value>().await.expect("JSON")["status"], "ok", "{path}");
        }
    }
    let keys = services.kit.redis_keys().await;
    assert!(!keys.iter().any(|key| key.contains("health")), "{keys:?}");
}

#[tokio::test]
async fn what_breaks_in_redis_is_the_reason_in_every_service() {
    let services = AllServices::start().await;
    let primary = RedisServer::start();
    for (break_it, mend_it, words) in [
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS",
        ),
        (
            ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
            ["CONFIG", "SET", "maxmemory-policy", "noeviction"],
            "maxmemory-policy must be noeviction",
        ),
    ] {
        services.kit.redis_command(&break_it).await;
        for (service, part) in services.all() {
            wait_for_reason(service, 503, part, words).await;
        }
        services.kit.redis_command(&mend_it).await;
        for (service, _) in services.all() {
            wait_until_well(service).await;
        }
    }
    services.kit.redis_command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).await;
    for (service, part) in services.all() {
        wait_for_reason(service, 503, part, "replica").await;
    }
    services.kit.redis_command(&["REPLICAOF", "NO", "ONE"]).await;
    for (service, _) in services.all() {
        wait_until_well(service).await;
    }
    // Nothing answers, and connections stay open
    services.kit.redis.freeze();
    for (service, part) in services.all() {
        // The check itself ends first, or a command of somebody else, which closes the shared connection. Other parts of a
        // service find out too after a while
        let says_so = || async {
            let (status, answer) = ready(service).await;
            let reason = answer["parts"][part]["reason"].as_str()?;
            let is_late = ["has not answered within 1500 ms", "timed out"].iter().any(|words| reason.contains(words));
            (status == 503 && is_late).then_some(())
        };
        eventually("the reason is that redis does not answer", says_so).await;
    }
    services.kit.redis.thaw();
    for (service, _) in services.all() {
        wait_until_well(service).await;
    }
    // The scripts are forgotten: no reason to be unready
    services.kit.redis_command(&["SCRIPT", "FLUSH"]).await;
    for (service, _) in services.all() {
        wait_until_well(service).await;
    }
}

#[tokio::test]
async fn a_full_redis_leaves_the_gateway_ready_for_what_frees_it_and_workers_do_all_their_work() {
    let services = AllServices::start().await;
    services.config("maxmemory", "1").await;
    let answer =
        wait_for_reason(&services.kit.gateway, 200, "jobs", "no jobs are accepted: redis is out of memory").await;
    assert_eq!((&answer["status"], &answer["reason"]), (&json!("degraded"), &answer["parts"]["jobs"]["reason"]));
    let refused = services.kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
    assert_eq!(refused.status(), 503);
    for service in [&services.worker, &services.pubsub_worker] {
        wait_until_well(service).await;
    }
    services.config("maxmemory", "0").await;
    wait_until_well(&services.kit.gateway).await;
}

#[tokio::test]
async fn neither_a_full_pool_nor_slow_answers_elsewhere_make_a_gateway_unready() {
    let redis = RedisServer::start();
    let way = AnswerHoldProxy::start(&redis).await;
    let patient = [("GALLEY__REDIS__POOL_SIZE", "1"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "60000")];
    let gateway = ServiceProcess::start_with_redis_url("gateway", &way.url(), &patient).await;
    gateway.wait_until_ready().await;
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis };
    let id = kit.enqueue(&json!({ "type": "a", "args": ["held-in-the-answer"], "queue": "held" })).await;
    kit.post("/ojs/v1/workers/heartbeat", &json!({ "worker_id": "held-in-the-list" })).await;
    eventually("the worker is listed", || async {
        kit.get("/ojs/v1/workers").await.text().await.ok()?.contains("held-in-the-list").then_some(())
    })
    .await;
    way.hold_connections_from(b"held-in-the-");
    let listing = |path: String| {
        let url = kit.gateway.url(&path);
        tokio::spawn(async move { crate::http_client::get(url).await.map(|answer| answer.status().as_u16()) })
    };
    // The first one has the only connection of the pool, the second one waits for it; many wait on shared connections
    let mut held = vec![listing("/ojs/v1/workers".to_owned()), listing("/ojs/v1/workers".to_owned())];
    held.extend((0..8).map(|_| listing(format!("/ojs/v1/jobs/{id}"))));
    // Maintenance, which needs a connection now and then, may wait too
    let is_full = async || {
        let text = kit.get("/metrics").await.text().await.expect("text");
        let waiters =
            text.lines().find_map(|line| line.strip_prefix("galley_redis_pool_waiters ")?.parse::<u64>().ok());
        waiters > Some(0)
    };
    eventually("the pool is full", || async { is_full().await.then_some(()) }).await;
    for _ in 0..3 {
        // One look may find a busy machine; if it waited behind what is held, every look would
        eventually("it is ready", || async {
            let (status, answer) = ready(&kit.gateway).await;
            (status == 200 && answer["status"] == "ok").then_some(())
        })
        .await;
        // Its result is old by then
        assert!(is_full().await, "the pool is full all the time");
        crate::idle_cost::wait_for_seconds(&kit.redis.connection().await, 2).await;
    }
    assert!(held.iter().all(|request| !request.is_finished()));
    way.release();
    for request in held {
        assert_eq!(request.await.expect("no panic").expect("an answer"), 200);
    }
}

#[tokio::test]
async fn trouble_with_channels_leaves_the_jobs_api_ready_and_says_so() {
    let kit = GalleyKit::start().await;
    let way = MessageDropProxy::start(&kit.redis).await;
    let quick = [("GALLEY__CHANNELS__PROBE_MS", "100"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "2000")];
    let deaf = ServiceProcess::start_with_redis_url("gateway", &way.url(), &quick).await;
    let deaf_worker = ServiceProcess::start_with_redis_url("queue-worker", &way.url(), &quick).await;
    let deaf_logger = ServiceProcess::start_with_redis_url("pubsub-worker", &way.url(), &quick).await;
    for service in [&deaf, &deaf_worker, &deaf_logger] {
        wait_until_well(service).await;
    }
    way.drop_messages();
    let answer = wait_for_reason(&deaf, 200, "channels", "channels are not heard").await;
    assert_eq!((&answer["status"], &answer["parts"]["jobs"]["status"]), (&json!("degraded"), &json!("ok")));
    wait_for_reason(&deaf_worker, 200, "notifications", "notifications are not heard").await;
    // It is there for channels
    wait_for_reason(&deaf_logger, 503, "channels", "channels are not heard").await;
    let enqueued = kit.http.post(deaf.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let enqueued = enqueued.body(job_body("test.noop", &json!([])).to_string()).send().await.expect("an answer");
    assert_eq!(enqueued.status(), 201);
    way.deliver_on_new_connections();
    for service in [&deaf, &deaf_worker, &deaf_logger] {
        wait_until_well(service).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_probes_costs_one_round_trip_a_second() {
    let services = AllServices::start().await;
    for (service, _) in services.all() {
        let connection = services.kit.redis.connection().await;
        // Each check asks this once, and nothing else does on an open connection
        let checks = async || {
            let stats: String = testkit::redis::cmd("INFO")
                .arg("commandstats")
                .query_async(&mut connection.clone())
                .await
                .expect("it runs");
            let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_config|get:calls=")).unwrap_or("0,");
            calls.split_once(',').expect("more follows").0.parse::<u64>().expect("a number")
        };
        let (before, began) = (checks().await, Instant::now());
        let url = service.url("/health/ready");
        let probing = tokio::spawn(async move {
            let mut answered = 0_u64;
            loop {
                let probes = (0..20).map(|_| crate::http_client::get(url.clone()));
                for answer in futures_util::future::join_all(probes).await {
                    assert_eq!(answer.expect("an answer").status(), 200);
                    answered += 1;
                }
                if answered >= 100_000 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        crate::idle_cost::wait_for_seconds(&connection, 5).await;
        let checked = checks().await - before;
        probing.abort();
        // One at each end, and one for the part of a second that is left
        let seconds = began.elapsed().as_secs();
        assert!((1..=seconds + 2).contains(&checked), "{checked} checks in {seconds} seconds");
    }
}

#[tokio::test]
async fn a_key_is_needed_to_read_why_a_gateway_is_not_ready() {
    let key = "glk_first_0123456789012345678901234567890123456789012";
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__AUTH__FIRST_KEY", key)]).await;
    kit.redis_command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let answer = wait_for_reason(&kit.gateway, 503, "jobs", "see /ojs/v1/health with a key").await;
    assert!(!answer.to_string().contains("NOREPLICAS"), "{answer}");
}
