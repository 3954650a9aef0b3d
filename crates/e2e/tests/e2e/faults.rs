//! Whatever breaks: nothing that was acknowledged is lost, and everything carries on by itself.

use std::time::{Duration, Instant};
use testkit::redis;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, RULES_VARIABLE, SHORT_LEASE, TestFolder, job_body},
    worker_life::gated,
};

/// Enqueues a job as soon as one is taken and gives its id.
async fn enqueue_soon(kit: &GalleyKit, body: &Value) -> String {
    eventually("a job is taken", || async {
        let response = kit.post("/ojs/v1/jobs", body).await;
        let answer: Value = (response.status() == 201).then_some(response)?.json().await.ok()?;
        answer["job"]["id"].as_str().map(ToOwned::to_owned)
    })
    .await
}

/// Waits until everything works again by itself.
async fn works(kit: &GalleyKit) {
    let id = enqueue_soon(kit, &job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
}

/// A worker that does at once what takes others long.
async fn start_heir(kit: &GalleyKit, job_type: &str) -> (ServiceProcess, TestFolder) {
    let rules =
        TestFolder::with_rules(&format!("[[rule]]\ntype = \"{job_type}\"\n[rule.command]\nprogram = \"true\"\n"));
    let file = rules.path_text("rules.toml");
    let without_demo = ("GALLEY__QUEUE_WORKER__DEMO_HANDLERS", "false");
    (kit.start_worker(&[(RULES_VARIABLE, file.as_str()), without_demo]).await, rules)
}

#[tokio::test]
async fn a_worker_that_is_killed_in_mid_job_loses_nothing() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LEASE).await;
    let doomed = kit.start_worker(&SHORT_LEASE).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(kit.enqueue(&job_body("test.timeout", &json!([]))).await);
    }
    for id in &ids {
        kit.wait_for_state(id, "active").await;
    }
    doomed.kill();
    let _heir = start_heir(&kit, "test.timeout").await;
    for id in &ids {
        let done = kit.wait_for_state(id, "completed").await;
        // More than two if a lease ended before the kill, on a machine that is busy
        assert!(done["attempt"].as_u64() >= Some(2), "the first attempt went with its worker: {done}");
    }
}

#[tokio::test]
async fn a_worker_that_stopped_for_three_leases_cannot_record_what_another_has_done_since() {
    let kit = GalleyKit::start_with(RedisServer::start(), &SHORT_LEASE).await;
    let folder = TestFolder::new();
    folder.write_rules(&gated("held", &folder));
    let rules = folder.path_text("rules.toml");
    let zombie = kit.start_worker(&[SHORT_LEASE[0], SHORT_LEASE[1], (RULES_VARIABLE, rules.as_str())]).await;
    let id = kit.enqueue(&job_body("held", &json!([]))).await;
    kit.wait_for_state(&id, "active").await;
    zombie.signal(Signal::SIGSTOP);
    let _heir = start_heir(&kit, "held").await;
    let done = kit.wait_for_state(&id, "completed").await;
    assert!(done["attempt"].as_u64() >= Some(2), "{done}");
    folder.touch("gate");
    zombie.signal(Signal::SIGCONT);
    // It finds out one way or the other: when it renews or when it records
    eventually("the zombie notices", || async {
        (zombie.events("attempt.lost").len() + zombie.events("result.stale").len() > 0).then_some(())
    })
    .await;
    assert_eq!(kit.job(&id).await, done, "nothing changed");
    assert_eq!(
        kit.redis_command(&["HGET", "galley:{default}:stats", "completed"]).await,
        redis::Value::BulkString(b"1".to_vec())
    );
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_of_redis_and_both_workers_carry_on() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    let worker = kit.start_worker(&[]).await;
    let listener = kit.start_pubsub_worker().await;
    let mut ids = Vec::new();
    for round in 0..3 {
        // Running, waiting and scheduled when it happens
        for _ in 0..5 {
            ids.push(kit.enqueue(&job_body("test.slow", &json!([300]))).await);
            ids.push(kit.enqueue(&json!({ "type": "test.echo", "args": [round], "scheduled_at": "+PT1S" })).await);
            ids.push(
                kit.enqueue(
                    &json!({ "type": "test.fail_once", "args": [], "retry": { "initial_interval": "PT0.5S" } }),
                )
                .await,
            );
        }
        kit.redis.kill();
        let refused = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
        assert_eq!(refused.status(), 503);
        kit.redis.restart();
        works(&kit).await;
        let again = format!("again {round}");
        eventually("the pubsub-worker receives messages again", || async {
            kit.redis_command(&["PUBLISH", "task:pubsub:channel", &again]).await;
            listener.tasks().contains(&again).then_some(())
        })
        .await;
    }
    for id in &ids {
        kit.wait_for_state(id, "completed").await;
    }
    assert!(listener.events("channel.resubscribed").len() >= 3, "one event for each restart");
    assert!(worker.events("result.stale").is_empty(), "live workers keep their jobs over a restart");
}

#[tokio::test]
async fn cut_connections_and_forgotten_scripts_are_survived() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let listener = kit.start_pubsub_worker().await;
    let mut ids = Vec::new();
    let started = Instant::now();
    for _ in 0..20 {
        for _ in 0..5 {
            let response = kit.post("/ojs/v1/jobs", &job_body("test.slow", &json!([100]))).await;
            // A command in which the cut shows may fail: then nothing was acknowledged
            if response.status() == 201 {
                let answer: Value = response.json().await.expect("JSON");
                ids.push(answer["job"]["id"].as_str().expect("an id").to_owned());
            } else {
                assert_eq!(response.status(), 503);
            }
        }
        for kind in ["normal", "pubsub"] {
            kit.redis_command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
        }
        kit.redis_command(&["SCRIPT", "FLUSH"]).await;
        // Until it is connected again it refuses all at once, however many that are
        ids.push(enqueue_soon(&kit, &job_body("test.slow", &json!([100]))).await);
    }
    works(&kit).await;
    for id in &ids {
        let done = kit.wait_for_state(id, "completed").await;
        assert_eq!(done["attempt"], 1, "no lease ran out, so nothing ran twice");
    }
    // One of each round was certain to be
    assert!(ids.len() >= 60, "most were acknowledged: {} in {:?}", ids.len(), started.elapsed());
    assert!(worker.events("claim.recovered").len() <= ids.len());
    eventually("the listener hears", || async {
        kit.redis_command(&["PUBLISH", "task:pubsub:channel", "still there"]).await;
        listener.tasks().contains(&"still there".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_was_emptied_is_set_up_again_by_those_that_wait_on_it() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    works(&kit).await;
    kit.redis_command(&["FLUSHALL"]).await;
    works(&kit).await;
    let id = kit.enqueue(&json!({ "type": "test.noop", "args": [], "queue": "demo", "scheduled_at": "+PT0.2S" })).await;
    kit.wait_for_state(&id, "completed").await;
}

#[tokio::test]
async fn a_worker_that_starts_on_a_full_redis_works_off_what_is_there() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
    assert_eq!(refused.status(), 503);
    let worker = ServiceProcess::start("queue-worker", &kit.redis, &[]).await;
    // There is no room for its result
    eventually("the job is completed", || async {
        let shown: Value = kit.get("/ojs/v1/queues/default").await.json().await.ok()?;
        (shown["queue"]["completed"] == 1).then_some(())
    })
    .await;
    assert!(worker.events("queue.unavailable").is_empty(), "queues that do not exist yet take next to nothing");
}

#[tokio::test]
async fn elements_that_a_worker_left_on_their_way_are_taken_up_by_one_that_lives() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    kit.get("/prodcons").await;
    eventually("it gets the task", || async { (!worker.tasks().is_empty()).then_some(()) }).await;
    kit.redis_command(&["LPUSH", "galley:bridge:{task:prodcons:queue}", "left behind"]).await;
    worker.wait_for_task("left behind").await;
}

#[tokio::test]
async fn large_jobs_and_results_go_through() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[]).await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(kit.enqueue(&job_body("test.echo", &json!(["x".repeat(900_000)]))).await);
    }
    for id in &ids {
        let done = kit.wait_for_state(id, "completed").await;
        assert_eq!(done["result"][0].as_str().map(str::len), Some(900_000));
    }
}

#[tokio::test]
async fn without_redis_requests_are_answered_503_and_the_processes_stay_up() {
    let mut kit = GalleyKit::start().await;
    let (mut worker, mut listener) = (kit.start_worker(&[]).await, kit.start_pubsub_worker().await);
    kit.redis.kill();
    let body = job_body("test.noop", &json!([]));
    let requests = [
        kit.post("/ojs/v1/jobs", &body).await,
        kit.get("/ojs/v1/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f").await,
        kit.post("/ojs/v1/workers/fetch", &json!({ "queues": ["default"] })).await,
        kit.get("/ojs/v1/health").await,
        kit.get("/health/ready").await,
        kit.get("/prodcons").await,
        kit.post("/v1/channels/c/messages", &body).await,
    ];
    for response in requests {
        assert_eq!(response.status(), 503, "{}", response.url());
        assert!(response.headers().contains_key("retry-after"), "{}", response.url());
    }
    assert_eq!(kit.get("/health/live").await.status(), 200);
    assert_eq!(kit.get("/").await.status(), 200);
    for service in [&worker, &listener] {
        eventually("it is not ready", || async {
            let response = kit.http.get(service.url("/health/ready")).send().await.ok()?;
            (response.status() == 503).then_some(())
        })
        .await;
    }
    assert!(worker.is_running() && listener.is_running());
    kit.redis.restart();
    works(&kit).await;
    worker.wait_until_ready().await;
    listener.wait_until_ready().await;
}

#[tokio::test]
async fn services_start_without_redis_and_begin_when_it_comes() {
    let mut redis = RedisServer::start();
    redis.kill();
    let gateway = ServiceProcess::start("gateway", &redis, &[]).await;
    let worker = ServiceProcess::start("queue-worker", &redis, &[]).await;
    let listener = ServiceProcess::start("pubsub-worker", &redis, &[]).await;
    redis.restart();
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis };
    works(&kit).await;
}

#[tokio::test]
async fn alone_a_redis_that_froze_for_two_leases_does_not_cost_live_workers_their_jobs() {
    freeze("200").await;
}

#[tokio::test]
async fn alone_a_freeze_in_which_no_command_times_out_does_not_either() {
    freeze("10000").await;
}

async fn freeze(response_timeout_ms: &str) {
    let variables = [SHORT_LEASE[0], SHORT_LEASE[1], ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", response_timeout_ms)];
    let kit = GalleyKit::start_with(RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    // An answer may take longer than this gateway waits
    let id = enqueue_soon(&kit, &job_body("test.slow", &json!([9000]))).await;
    kit.wait_for_state(&id, "active").await;
    kit.redis.freeze();
    let thawed = Instant::now() + Duration::from_millis(6500);
    eventually("two leases have passed", || async { (Instant::now() >= thawed).then_some(()) }).await;
    kit.redis.thaw();
    let done = kit.wait_for_state(&id, "completed").await;
    assert_eq!(done["attempt"], 1);
    assert!(worker.events("attempt.lost").is_empty());
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_what_it_can_and_hands_back_the_rest_unspent() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    folder.write_rules(&gated("short", &folder));
    // A machine that pauses for ten seconds meanwhile does not use it up
    let grace = ("GALLEY__QUEUE_WORKER__SHUTDOWN_GRACE_MS", "12000");
    let mut worker = kit.start_worker(&[grace, (RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let short = kit.enqueue(&job_body("short", &json!([]))).await;
    let long = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    // By then the short one, which came before, was claimed
    kit.wait_for_state(&long, "active").await;
    worker.signal(Signal::SIGTERM);
    worker.wait_for_event("process.stopping").await;
    folder.touch("gate");
    assert!(worker.wait_for_exit().await.success());
    assert_eq!(kit.job(&short).await["state"], "completed");
    let back = kit.job(&long).await;
    assert_eq!((&back["state"], &back["attempt"]), (&json!("available"), &json!(0)));
    assert!(kit.fetch("default").await.is_some_and(|job| job["attempt"] == 1 && job["id"] == json!(long)));
}

#[tokio::test]
async fn an_idle_worker_stops_at_once_and_takes_nothing_along() {
    let kit = GalleyKit::start().await;
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let worker = kit.start_worker(&[]).await;
        let listener = kit.start_pubsub_worker().await;
        let started = Instant::now();
        assert!(worker.terminate().await.success() && listener.terminate().await.success());
        shortest = shortest.min(started.elapsed());
        kit.get("/prodcons").await;
        kit.enqueue(&job_body("test.noop", &json!([]))).await;
    }
    // Far below the five seconds that its blocking reads would take to end by themselves. A busy machine may pause once
    assert!(shortest < Duration::from_secs(4), "{shortest:?}");
    let _worker = kit.start_worker(&[]).await;
    for (queue, jobs) in [("default", 3), ("prodcons", 3)] {
        eventually("all are completed", || async {
            let stats: Value = kit.get(&format!("/ojs/v1/queues/{queue}/stats")).await.json().await.ok()?;
            (stats["queue"]["completed"] == jobs).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_loses_no_acknowledged_job() {
    let kit = GalleyKit::start().await;
    let url = kit.gateway.url("/ojs/v1/jobs");
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (http, url) = (kit.http.clone(), url.clone());
            tokio::spawn(async move {
                let mut ids = Vec::new();
                loop {
                    let request = http.post(&url).header("content-type", "application/json");
                    let Ok(response) = request.body(r#"{"type":"a","args":[]}"#).send().await else { return ids };
                    let Ok(answer) = response.json::<Value>().await else { return ids };
                    // What was refused, as on a busy machine, was not acknowledged
                    ids.extend(answer["job"]["id"].as_str().map(ToOwned::to_owned));
                }
            })
        })
        .collect();
    eventually("there is load", || async {
        let length: u64 =
            redis::cmd("XLEN").arg("galley:{default}:s:0").query_async(&mut kit.redis.connection().await).await.ok()?;
        (length > 200).then_some(())
    })
    .await;
    let GalleyKit { gateway, redis, http } = kit;
    assert!(gateway.terminate().await.success());
    let kit = GalleyKit::start_with(redis, &[]).await;
    drop(http);
    for client in clients {
        for id in client.await.expect("no panic") {
            assert_eq!(kit.job(&id).await["state"], "available", "{id}");
        }
    }
}

#[tokio::test]
async fn a_pulled_job_comes_back_when_its_lease_is_over() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "a", "args": [], "visibility_timeout_ms": 1000 })).await;
    kit.fetch("default").await.expect("a job");
    kit.wait_for_state(&id, "available").await;
    assert_eq!(kit.fetch("default").await.expect("a job")["attempt"], 2);
}

#[tokio::test]
async fn a_redis_that_would_throw_jobs_away_is_refused() {
    let kit = GalleyKit::start().await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    eventually("it is not ready", || async { (kit.get("/health/ready").await.status() == 503).then_some(()) }).await;
    let status = std::process::Command::new(testkit::binary_path("queue-worker"))
        .env("GALLEY__REDIS__URL", kit.redis.url())
        .env("GALLEY__QUEUE_WORKER__LISTEN", "127.0.0.1:0")
        .output()
        .expect("it starts");
    assert!(!status.status.success());
    let said = [status.stdout, status.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("maxmemory-policy must be noeviction"));
}
