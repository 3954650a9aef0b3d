//! Having what is stored looked over.

use serde_json::{Value, json};
use testkit::{eventually, redis};

use crate::kit::{GalleyKit, job_body};

#[tokio::test]
async fn what_cannot_be_is_reported_and_mended_when_it_is_asked_for() {
    // The maintenance must not be faster
    let slow = [("GALLEY__MAINTENANCE__SWEEP_MS", "600000"), ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "600000")];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &slow).await;
    // A leader sweeps when it begins, too
    eventually("there is a leader", || async {
        (kit.redis_command(&["EXISTS", "galley:leader"]).await == redis::Value::Int(1)).then_some(())
    })
    .await;
    kit.enqueue(&job_body("test.echo", &json!([]))).await;
    let mut scheduled = job_body("test.echo", &json!([]));
    scheduled["scheduled_at"] = "+PT1H".into();
    let id = kit.enqueue(&scheduled).await;
    let report = async || -> Value { kit.get("/ojs/v1/admin/fsck?queue=default").await.json().await.expect("JSON") };
    let healthy = report().await;
    assert_eq!((&healthy["complete"], &healthy["violations"]), (&json!(true), &json!([])));
    assert!(healthy["looked_at"].as_u64() < Some(20), "what there is, not what it costs: {healthy}");
    kit.redis_command(&["ZREM", "galley:{default}:due", &id]).await;
    let broken = report().await;
    let violation = json!({ "kind": "record_without_place", "what": format!("record {id}"), "repaired": false });
    assert_eq!(broken["violations"], json!([violation]));
    let mended: Value = kit
        .post("/ojs/v1/admin/fsck", &json!({ "repair": true, "queue": "default" }))
        .await
        .json()
        .await
        .expect("JSON");
    assert_eq!((&mended["violations"][0]["repaired"], &mended["complete"]), (&json!(true), &json!(true)));
    assert_eq!(report().await["violations"], json!([]));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let kit = GalleyKit::start().await;
    for path in ["", "?queue=A", "?queue=default&cursor=nonsense"] {
        assert_eq!(kit.get(&format!("/ojs/v1/admin/fsck{path}")).await.status(), 400, "{path}");
    }
    for body in [json!({ "repair": true }), json!({ "queue": "default", "repair": "yes" })] {
        assert_eq!(kit.post("/ojs/v1/admin/fsck", &body).await.status(), 400, "{body}");
    }
}
