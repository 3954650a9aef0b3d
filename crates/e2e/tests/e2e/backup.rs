//! A backup of Redis is taken while everything runs, and restored to another server, as docs/operations.md says.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testkit::{RedisPersistence, RedisServer, eventually, redis};

use crate::kit::{GalleyKit, SHORT_LEASE, job_body};

/// Starts a server with the files of that folder, lets it write an append-only file, and starts it again with that.
async fn restore(folder: &str) -> RedisServer {
    let redis = RedisServer::start_with_options(RedisPersistence::None, &["--dir", folder]);
    let mut connection = redis.connection().await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("appendonly").arg("yes").exec_async(&mut connection).await.expect("it writes one");
    wait_until_saved(&redis, &["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_last_bgrewrite_status:ok"])
        .await;
    drop(redis);
    RedisServer::start_with_options(RedisPersistence::Always, &["--dir", folder])
}

async fn wait_until_saved(redis: &RedisServer, fields: &[&str]) {
    eventually("it is saved", || async {
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("persistence").query_async(&mut redis.connection().await).await.ok()?;
        fields.iter().all(|field| info.lines().any(|line| line == *field)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_backup_has_goes_on_at_the_server_that_it_is_restored_to() {
    let kit = GalleyKit::start_durable(&SHORT_LEASE).await;
    let worker = kit.start_worker(&[]).await;
    let ended = kit.enqueue(&job_body("test.echo", &json!(["done"]))).await;
    kit.wait_for_state(&ended, "completed").await;
    drop(worker);
    let running = kit.enqueue(&job_body("test.echo", &json!(["ran"]))).await;
    let fetch = json!({ "queues": ["default"], "worker_id": "puller", "visibility_timeout_ms": 3000 });
    let fetched: Value = kit.post("/ojs/v1/workers/fetch", &fetch).await.json().await.expect("JSON");
    assert_eq!(fetched["jobs"][0]["id"], running.as_str());
    let waiting = kit.enqueue(&job_body("test.echo", &json!(["waits"]))).await;
    let later = json!({ "type": "test.echo", "args": [], "options": { "delay_until": "+PT1H" } });
    let later = kit.enqueue(&later).await;
    assert_eq!(kit.post("/v1/channels/news/messages", &json!("kept")).await.status(), 201);

    let backup = tempfile::tempdir().expect("a folder");
    let dump = backup.path().join("dump.rdb");
    fs::write(&dump, dump_of(&kit.redis).await).expect("the backup is written");
    let after = kit.enqueue(&job_body("test.echo", &json!(["after the backup"]))).await;
    drop(kit);

    let folder = backup.path().to_str().expect("text");
    let kit = GalleyKit::start_with(restore(folder).await, &SHORT_LEASE).await;
    let _worker = kit.start_worker(&SHORT_LEASE).await;
    assert_eq!(kit.wait_for_state(&waiting, "completed").await["result"], json!(["waits"]));
    assert_eq!(kit.wait_for_state(&running, "completed").await["result"], json!(["ran"]), "it runs again");
    assert_eq!(kit.job(&ended).await["result"], json!(["done"]));
    assert_eq!(kit.job(&later).await["state"], "scheduled");
    assert_eq!(kit.get(&format!("/ojs/v1/jobs/{after}")).await.status(), 404, "it is younger than the backup");
    assert_eq!(kit.post("/v1/channels/news/messages", &json!("new")).await.status(), 201);
    let history: Value = kit.get("/v1/channels/news/messages").await.json().await.expect("JSON");
    let epoch = |n: usize| history["items"][n]["id"].as_str().and_then(|id| id.split('-').next());
    assert_eq!((&history["items"][0]["data"], &history["items"][1]["data"]), (&json!("kept"), &json!("new")));
    assert!(epoch(0).is_some() && epoch(0) != epoch(1), "{history}");
}

/// The dump that Redis writes while it runs.
async fn dump_of(redis: &RedisServer) -> Vec<u8> {
    let mut connection = redis.connection().await;
    redis::cmd("BGSAVE").exec_async(&mut connection).await.expect("it saves");
    wait_until_saved(redis, &["rdb_bgsave_in_progress:0", "rdb_last_bgsave_status:ok"]).await;
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg("dir");
    let (_, folder): (String, String) = get.query_async(&mut connection).await.expect("it says where");
    fs::read(Path::new(&folder).join("dump.rdb")).expect("it is there")
}
