//! What Redis refuses for a while: a primary that became a replica, a long script, credentials that are being changed.

use serde_json::{Value, json};
use testkit::{FailoverProxy, RedisServer, ServiceProcess, eventually, patient_config, redis};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body},
};

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left_by_all_services_for_the_new_one() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let proxy = FailoverProxy::start(&old).await;
    let start = async |name| ServiceProcess::start_with_redis_url(name, &proxy.url(), &[]).await;
    let (gateway, worker, listener) =
        (start("gateway").await, start("queue-worker").await, start("pubsub-worker").await);
    for service in [&gateway, &worker, &listener] {
        service.wait_until_ready().await;
    }
    let kit = GalleyKit { gateway, http: CheckedClient::new(), redis: new };
    let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    kit.wait_for_state(&id, "completed").await;
    proxy.move_to(&kit.redis);
    let mut demoted = old.connection().await;
    let port = kit.redis.port().to_string();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).exec_async(&mut demoted).await.expect("it becomes a replica");
    let id = eventually("jobs are accepted again", || async {
        let response = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
        if response.status() != 201 {
            assert_eq!(response.status(), 503, "it may pass");
            return None;
        }
        let answer: Value = response.json().await.ok()?;
        Some(answer["job"]["id"].as_str()?.to_owned())
    })
    .await;
    kit.wait_for_state(&id, "completed").await;
    eventually("listings work", || async { (kit.get("/ojs/v1/queues").await.status() == 200).then_some(()) }).await;
    eventually("messages arrive", || async {
        kit.post("/v1/channels/task:pubsub:channel/messages", &json!("again")).await;
        listener.tasks().contains(&"\"again\"".to_owned()).then_some(())
    })
    .await;
    for service in [&kit.gateway, &worker, &listener] {
        service.wait_until_ready().await;
        service.wait_for_event("redis.disconnected").await;
        let left = service.events("redis.disconnected");
        assert_eq!(left.len(), 1, "said once: {left:?}");
        // A blocked read may be the first to hear of it
        let error = left[0]["error"].as_str().unwrap_or_default();
        assert!(error.contains("ReadOnly") || error.contains("UNBLOCKED"), "{left:?}");
    }
}

/// A worker whose programs wait until the file `go` is there, then note that they ran; the type `bad` fails.
async fn worker_with_waiting_programs(
    kit: &GalleyKit,
    folder: &TestFolder,
    variables: &[(&str, &str)],
) -> ServiceProcess {
    let here = json!(folder.path_text(""));
    let wait = "until [ -e go ]; do sleep 0.05; done; echo ran >> runs";
    let rule = |name: &str, script: &str| {
        format!(
            "[[rule]]\ntype = \"{name}\"\n[rule.command]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {}]\ndirectory = {here}\n",
            json!(script)
        )
    };
    folder.write_rules(&format!("{}{}", rule("good", wait), rule("bad", &format!("{wait}; exit 1"))));
    let rules = folder.path_text("rules.toml");
    let mut all = vec![(RULES_VARIABLE, rules.as_str())];
    all.extend(variables);
    kit.start_worker(&all).await
}

/// Two jobs that will succeed and two that will fail for good, all running.
async fn start_four_jobs(kit: &GalleyKit) -> Vec<(String, &'static str)> {
    let mut jobs = Vec::new();
    for (job_type, state) in [("good", "completed"), ("good", "completed"), ("bad", "discarded"), ("bad", "discarded")]
    {
        let body = json!({ "type": job_type, "args": [], "retry": { "max_attempts": 1 } });
        jobs.push((kit.enqueue(&body).await, state));
    }
    for (id, _) in &jobs {
        kit.wait_for_state(id, "active").await;
    }
    jobs
}

async fn wait_until_four_ran(folder: &TestFolder) {
    folder.touch("go");
    eventually("all programs ran", || async { (folder.read("runs").lines().count() == 4).then_some(()) }).await;
}

async fn assert_each_ran_once(kit: &GalleyKit, folder: &TestFolder, jobs: &[(String, &str)]) {
    for (id, state) in jobs {
        let done = kit.wait_for_state(id, state).await;
        assert_eq!(done["attempt"], 1, "{done}");
    }
    assert_eq!(folder.read("runs").lines().count(), 4, "no program ran twice");
}

#[tokio::test]
async fn what_ended_while_a_long_script_refused_connections_is_recorded_and_does_not_run_again() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    let proxy = FailoverProxy::start(&kit.redis).await;
    let worker = worker_with_waiting_programs(&kit, &folder, &[("GALLEY__REDIS__URL", &proxy.url())]).await;
    let jobs = start_four_jobs(&kit).await;
    kit.redis_command(&["CONFIG", "SET", "busy-reply-threshold", "100"]).await;
    let mut blocked = kit.redis.connection().await;
    let script = tokio::spawn(async move {
        let _ = redis::cmd("EVAL").arg("while true do end").arg(0).exec_async(&mut blocked).await;
    });
    // Database 0 needs no SELECT, which a busy server refuses
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", kit.redis.port())).expect("a URL");
    let mut killer = eventually("redis says that it is busy", || async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient_config()).await.ok()?;
        let refused = redis::cmd("PING").exec_async(&mut connection).await.err()?;
        (refused.code() == Some("BUSY")).then_some(connection)
    })
    .await;
    proxy.cut_connections();
    eventually("the worker cannot connect", || async { worker.events("redis.unavailable").pop() }).await;
    wait_until_four_ran(&folder).await;
    let refused = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await;
    assert_eq!(refused.status(), 503, "it may pass");
    redis::cmd("SCRIPT").arg("KILL").exec_async(&mut killer).await.expect("the script ends");
    script.await.expect("it ends");
    assert_each_ran_once(&kit, &folder, &jobs).await;
}

#[tokio::test]
async fn what_ended_while_credentials_were_changed_is_recorded_and_does_not_run_again() {
    let kit = GalleyKit::start().await;
    let user = ["ACL", "SETUSER", "worker", "on", ">old", "~*", "&*", "+@all"];
    kit.redis_command(&user).await;
    let folder = TestFolder::new();
    let url = format!("redis://worker:old@127.0.0.1:{}/5", kit.redis.port());
    let worker = worker_with_waiting_programs(&kit, &folder, &[("GALLEY__REDIS__URL", &url)]).await;
    let jobs = start_four_jobs(&kit).await;
    // First what records results is forbidden, then the password is another
    kit.redis_command(&["ACL", "SETUSER", "worker", "-xack"]).await;
    wait_until_four_ran(&folder).await;
    eventually("redis refuses to record", || async { worker.events("result.refused").pop() }).await;
    kit.redis_command(&["ACL", "SETUSER", "worker", "resetpass", ">new"]).await;
    kit.redis_command(&["CLIENT", "KILL", "USER", "worker"]).await;
    eventually("the worker cannot connect", || async { worker.events("redis.unavailable").pop() }).await;
    kit.redis_command(&["ACL", "SETUSER", "worker", "resetpass", ">old", "+xack"]).await;
    assert_each_ran_once(&kit, &folder, &jobs).await;
}
