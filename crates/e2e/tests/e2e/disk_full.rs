//! The disk of a Redis that syncs it each second is full: Redis stays, and refuses writes until there is room.

use std::collections::BTreeSet;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use testkit::{RedisPersistence, RedisServer, eventually, redis};

use crate::kit::{GalleyKit, job_body};

/// How many requests are refused.
const REFUSALS: usize = 20;

async fn send(kit: &GalleyKit, key: &str) -> Response {
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let body = job_body("test.noop", &json!([]));
    request.header("idempotency-key", key).body(body.to_string()).send().await.expect("the gateway answers")
}

async fn id_of(answer: Response) -> String {
    let answer: Value = answer.json().await.expect("JSON");
    answer["job"]["id"].as_str().expect("an id").to_owned()
}

async fn assert_says_why(answer: Response) {
    let (status, has_delay) = (answer.status(), answer.headers().contains_key("retry-after"));
    let said: Value = answer.json().await.expect("JSON");
    assert_eq!((status.as_u16(), said["error"]["code"].as_str()), (503, Some("backend_cannot_save")), "{said}");
    assert!(has_delay, "{said}");
}

/// Sends requests, each with its number as key, until enough are refused: the ids of what was acknowledged, and those refused.
async fn send_until_refused(kit: &GalleyKit) -> (BTreeSet<String>, Vec<String>) {
    let (mut acknowledged, mut refused) = (BTreeSet::new(), Vec::new());
    for number in 0.. {
        let (key, answer) = (number.to_string(), send(kit, &number.to_string()).await);
        if answer.status() == StatusCode::CREATED {
            // Redis wrote before it knew that the disk is full, and keeps that until there is room
            acknowledged.insert(id_of(answer).await);
        } else {
            assert_says_why(answer).await;
            refused.push(key);
        }
        if refused.len() == REFUSALS {
            break;
        }
    }
    (acknowledged, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_around_a_full_disk_is_there_and_what_is_refused_says_why() {
    let redis = RedisServer::start_on_watched_disk(RedisPersistence::EverySecond);
    let mut kit = GalleyKit::start_with(redis, &[]).await;
    let _worker = kit.start_worker(&[]).await;
    let mut pulled = job_body("a.b", &json!([]));
    pulled["queue"] = json!("pulled");
    kit.enqueue(&pulled).await;
    let pulled = kit.fetch("pulled").await.expect("a job");
    let mut acknowledged = BTreeSet::new();
    for number in 0..20 {
        acknowledged.insert(id_of(send(&kit, &format!("before {number}")).await).await);
    }
    kit.redis.disk().set_full(true);
    let (meanwhile, refused) = send_until_refused(&kit).await;
    acknowledged.extend(meanwhile);
    // A client that holds a job keeps it, and its result can be recorded later
    let end = json!({ "job_id": pulled["id"], "result": 1 });
    assert_says_why(kit.post("/ojs/v1/workers/ack", &end).await).await;
    assert_eq!(kit.job(pulled["id"].as_str().expect("an id")).await["state"], "active");
    kit.redis.disk().set_full(false);
    for key in refused {
        let answer = eventually("it takes writes again", || async {
            let answer = send(&kit, &key).await;
            (answer.status() == StatusCode::CREATED).then_some(answer)
        })
        .await;
        assert!(acknowledged.insert(id_of(answer).await), "what was refused was not stored");
    }
    assert_eq!(kit.post("/ojs/v1/workers/ack", &end).await.status(), 200);
    for id in &acknowledged {
        kit.wait_for_state(id, "completed").await;
    }
    let stats: Value = kit.get("/ojs/v1/queues/default/stats").await.json().await.expect("JSON");
    assert_eq!(stats["queue"]["completed"], acknowledged.len(), "each was stored and ran once: {stats}");
    // And all of it is on the disk, so a kill takes nothing
    eventually("everything is written", || async {
        let info: redis::InfoDict =
            redis::from_redis_value(kit.redis_command(&["INFO", "persistence"]).await).expect("fields");
        let is_ok = info.get::<String>("aof_last_write_status")? == "ok";
        (is_ok && info.get::<u64>("aof_buffer_length")? == 0).then_some(())
    })
    .await;
    kit.redis.kill();
    kit.redis.restart();
    acknowledged.insert(pulled["id"].as_str().expect("an id").to_owned());
    for id in &acknowledged {
        kit.wait_for_state(id, "completed").await;
    }
}
