//! Keys that are limited to queues and channels, and to what their maker may do.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{keyed_gateway::KeyedGateway, kit::job_body};

#[tokio::test]
async fn a_key_makes_and_changes_only_keys_that_may_do_no_more() {
    let keyed = KeyedGateway::start(&[]).await;
    let limited = json!({ "name": "admin of orders", "scopes": ["admin:write", "admin:read", "jobs:read"],
        "queues": ["orders.*"], "channels": ["orders.*"] });
    let (key, _) = keyed.make_key(&limited).await;
    let (_, mighty) = keyed.make_key(&json!({ "name": "mighty", "scopes": ["work"] })).await;
    let make = async |body: Value| keyed.outcome(&key, Method::POST, "/v1/admin/keys", Some(&body)).await;
    let orders = json!(["orders.eu"]);
    assert_eq!(
        make(json!({ "name": "a", "scopes": ["jobs:read"], "queues": orders, "channels": orders })).await.0,
        201
    );
    let refused = (403, "scope_required".to_owned());
    for body in [
        json!({ "name": "a", "scopes": ["jobs:write"], "queues": orders, "channels": orders }),
        json!({ "name": "a", "scopes": ["jobs:read"], "queues": ["*"], "channels": orders }),
        json!({ "name": "a", "scopes": ["jobs:read"], "queues": orders }),
    ] {
        assert_eq!(make(body.clone()).await, refused, "{body}");
    }
    for (method, path) in [
        (Method::GET, format!("/v1/admin/keys/{mighty}")),
        (Method::POST, format!("/v1/admin/keys/{mighty}/rotate")),
        (Method::DELETE, format!("/v1/admin/keys/{mighty}")),
    ] {
        assert_eq!(keyed.outcome(&key, method, &path, None).await.0, 404, "{path}");
    }
    let listed = keyed.send(&key, Method::GET, "/v1/admin/keys", None).await.text().await.expect("text");
    assert!(!listed.contains(&mighty), "{listed}");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table: a request for each kind of route")]
async fn a_key_for_some_queues_sees_and_makes_no_others() {
    let keyed = KeyedGateway::start(&[]).await;
    let (key, _) = keyed
        .make_key(&json!({ "name": "orders", "queues": ["orders.*"], "channels": ["orders.*"],
            "scopes": ["jobs:write", "jobs:read", "work", "channels:publish", "channels:subscribe", "subscriptions",
                "admin:read", "admin:write"] }))
        .await;
    let (own, foreign) = (keyed.enqueue("orders.eu").await, keyed.enqueue("mails").await);
    let job = |queue: &str| json!({ "type": "a", "args": [], "options": { "queue": queue } });
    let named = (403, "name_not_allowed".to_owned());
    let cases = [
        (Method::POST, "/ojs/v1/jobs".to_owned(), Some(job("mails")), named.clone()),
        (Method::POST, "/ojs/v1/jobs/batch".to_owned(), Some(json!({ "jobs": [job("mails")] })), named.clone()),
        (Method::POST, "/ojs/v1/workers/fetch".to_owned(), Some(json!({ "queues": ["mails"] })), named.clone()),
        (Method::POST, "/ojs/v1/queues/mails/pause".to_owned(), None, named.clone()),
        (Method::GET, "/ojs/v1/queues/m%61ils".to_owned(), None, named.clone()),
        (Method::GET, "/v1/channels/mails/messages".to_owned(), None, named.clone()),
        (Method::POST, "/v1/channels/mails/messages".to_owned(), Some(json!(1)), named.clone()),
        (Method::GET, "/ojs/v1/workers".to_owned(), None, named.clone()),
        (Method::GET, "/ojs/v1/dead-letter?queue=mails".to_owned(), None, named.clone()),
        (Method::GET, "/ojs/v1/admin/fsck?queue=mails".to_owned(), None, named.clone()),
        (
            Method::POST,
            "/ojs/v1/workflows".to_owned(),
            Some(json!({ "type": "chain", "steps": [job("orders.eu"), job("mails")] })),
            named.clone(),
        ),
        (
            Method::POST,
            "/ojs/v1/cron".to_owned(),
            Some(json!({ "name": "c", "cron": "0 0 1 1 *", "type": "a", "options": { "queue": "mails" } })),
            named.clone(),
        ),
        (
            Method::PUT,
            "/v1/subscriptions/s".to_owned(),
            Some(json!({ "channels": ["*"], "deliver": { "log": {} } })),
            named.clone(),
        ),
        (
            Method::PUT,
            "/v1/subscriptions/s".to_owned(),
            Some(json!({ "channels": ["orders.*"], "deliver": { "queue": { "queue": "mails", "type": "a" } } })),
            named.clone(),
        ),
        (Method::GET, format!("/ojs/v1/jobs/{foreign}"), None, (404, "not_found".to_owned())),
        (Method::DELETE, format!("/ojs/v1/jobs/{foreign}"), None, (404, "not_found".to_owned())),
        (Method::GET, format!("/ojs/v1/jobs/{own}"), None, (200, String::new())),
    ];
    for (method, path, body, expected) in cases {
        assert_eq!(keyed.outcome(&key, method, &path, body.as_ref()).await, expected, "{path} {body:?}");
    }
    let queues: Value = keyed.send(&key, Method::GET, "/ojs/v1/queues", None).await.json().await.expect("JSON");
    let names: Vec<&str> =
        queues["queues"].as_array().expect("queues").iter().filter_map(|queue| queue["name"].as_str()).collect();
    assert_eq!(names, ["orders.eu"]);

    // An attempt of a foreign job cannot be ended, also with its token
    let fetched = json!({ "queues": ["mails"], "worker_id": "w" });
    let fetched: Value = keyed
        .send(&keyed.admin, Method::POST, "/ojs/v1/workers/fetch", Some(&fetched))
        .await
        .json()
        .await
        .expect("JSON");
    let token = fetched["jobs"][0]["token"].clone();
    let ack = json!({ "job_id": foreign, "worker_id": "w", "token": token });
    assert_eq!(keyed.outcome(&key, Method::POST, "/ojs/v1/workers/ack", Some(&ack)).await.0, 404);
    assert_eq!(keyed.outcome(&keyed.admin, Method::POST, "/ojs/v1/workers/ack", Some(&ack)).await.0, 200);
}

#[tokio::test]
async fn an_idempotency_key_of_another_owner_is_another_one() {
    let keyed = KeyedGateway::start(&[]).await;
    let scopes = json!({ "name": "producer", "scopes": ["jobs:write"] });
    let ((one, _), (other, _)) = (keyed.make_key(&scopes).await, keyed.make_key(&scopes).await);
    let enqueue = async |key: &str| {
        let request = keyed.kit.http.post(keyed.kit.gateway.url("/ojs/v1/jobs"));
        let request = request.header("authorization", format!("Bearer {key}")).header("idempotency-key", "same");
        let body = job_body("test.echo", &json!([])).to_string();
        let response = request.header("content-type", "application/json").body(body).send().await.expect("an answer");
        let made: Value = response.json().await.expect("JSON");
        made["job"]["id"].clone()
    };
    let first = enqueue(&one).await;
    assert_eq!(enqueue(&one).await, first);
    assert_ne!(enqueue(&other).await, first);
}
