//! The audit of admin actions.

use reqwest::Method;
use serde_json::{Value, json};
use testkit::eventually;

use crate::keyed::{KeyRing, KeyedKit};

async fn entries(keyed: &KeyedKit, query: &str) -> Vec<Value> {
    let answer: Value = keyed.get(&keyed.admin, &format!("/v1/admin/audit{query}")).await.json().await.expect("JSON");
    answer["items"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn each_admin_action_is_in_the_audit_and_in_the_log_with_who_what_and_how_it_ended() {
    let mut ring = KeyRing::new();
    let reader = ring.add("scopes = [\"admin:read\", \"jobs:write\"]");
    let keyed = ring.start(&[]).await;
    let job = json!({ "type": "a.b", "args": [], "options": { "queue": "mails" } });
    keyed.post(&keyed.admin, "/ojs/v1/jobs", &job).await;
    let pause = "/ojs/v1/queues/mails/pause";
    assert_eq!(keyed.post(&keyed.admin, pause, &Value::Null).await.status(), 200);
    let unknown = keyed.send(&keyed.admin, Method::DELETE, "/ojs/v1/queues/none", &json!({ "confirm": "none" })).await;
    assert_eq!(unknown.status(), 404);
    assert_eq!(keyed.post(&reader, pause, &Value::Null).await.status(), 403, "it lacks the scope");
    assert_eq!(keyed.post(&keyed.admin, "/v1/tokens", &json!({})).await.status(), 201);
    let found = entries(&keyed, "").await;
    let shown: Vec<_> = found
        .iter()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().expect("text");
            (text("action"), text("target"), text("outcome"), entry["status"].as_u64().expect("a number"))
        })
        .collect();
    let token = ("POST /v1/tokens", "/v1/tokens", "done", 201);
    let delete = ("DELETE /ojs/v1/queues/{queue}", "/ojs/v1/queues/none", "refused", 404);
    assert_eq!(shown, [token, delete, ("POST /ojs/v1/queues/{queue}/pause", pause, "done", 200)]);
    let admin_id = keyed.admin.split('_').nth(1).expect("an id");
    assert!(found.iter().all(|entry| entry["key"] == admin_id && entry["from"] == "127.0.0.1"));
    let lines = eventually("each is in the log", || async {
        let lines = keyed.kit.gateway.events("admin.action");
        (lines.len() >= 4).then_some(lines)
    })
    .await;
    let refused: Vec<_> = lines.iter().filter(|line| line["status"] == 403).collect();
    let reader_id = reader.split('_').nth(1).expect("an id");
    assert_eq!((lines.len(), refused.len(), &refused[0]["key"]), (4, 1, &json!(reader_id)));
    // Page by page
    let last = &found[0];
    let rest = entries(&keyed, &format!("?after={}&limit=1", last["id"].as_str().expect("an id"))).await;
    assert_eq!(rest, found[1..2]);
    assert_eq!(keyed.get(&keyed.admin, "/v1/admin/audit?after=x").await.status(), 400);
    assert_eq!(keyed.get(&reader, "/v1/admin/audit").await.status(), 200);
    // Neither the key nor the token is in it
    let all = format!("{found:?}{}", keyed.kit.gateway.raw_log());
    assert!(!all.contains(&keyed.admin) && !all.contains(&reader) && !all.contains("eyJ"), "a secret is shown");
}

#[tokio::test]
async fn a_strange_target_does_not_break_the_audit() {
    let keyed = KeyedKit::start(&[]).await;
    let long = format!("/ojs/v1/queues/{}/pause", "%C3%A9".repeat(400));
    for path in [long.as_str(), "/ojs/v1/queues/a%22%0Ab/pause", "/ojs/v1/queues/%00/pause"] {
        let refused = keyed.post(&keyed.admin, path, &Value::Null).await.status().as_u16();
        assert!((400..500).contains(&refused), "{path}: {refused}");
    }
    let found = entries(&keyed, "").await;
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|entry| entry["target"].as_str().expect("text").len() <= 300));
}
