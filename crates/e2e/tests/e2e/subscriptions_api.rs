//! Durable subscriptions over HTTP: making, watching, steering and removing them.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::redis;
use testkit::{RedisServer, ServiceProcess};

use crate::kit::GalleyKit;

/// The first key pair of RFC 8032.
const PRIVATE_KEY: &str = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
const PUBLIC_KEY: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(crate) async fn send(kit: &GalleyKit, method: Method, path: &str, body: &str) -> Response {
    let request = kit.http.request(method, kit.gateway.url(&format!("/v1/subscriptions{path}")));
    let request = request.header("content-type", "application/json").body(body.to_owned());
    request.send().await.expect("the gateway answers")
}

/// Status and body.
pub(crate) async fn answer(kit: &GalleyKit, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response = send(kit, method, path, &body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

pub(crate) async fn put(kit: &GalleyKit, name: &str, body: &Value) -> (u16, Value) {
    answer(kit, Method::PUT, &format!("/{name}"), body).await
}

async fn shown(kit: &GalleyKit, name: &str) -> Value {
    let (status, answer) = answer(kit, Method::GET, &format!("/{name}"), &Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    answer["subscription"].clone()
}

/// Publishes messages and gives their ids.
async fn publish(kit: &GalleyKit, channel: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
        let response = kit.http.post(url).body(number.to_string()).send().await.expect("the gateway answers");
        let answer: Value = response.json().await.expect("JSON");
        ids.push(answer["id"].as_str().expect("an id").to_owned());
    }
    ids
}

pub(crate) fn log_of(channels: &[&str]) -> Value {
    json!({ "channels": channels, "deliver": { "log": {} } })
}

#[tokio::test]
async fn a_subscription_is_made_changed_watched_held_back_and_removed() {
    let kit = GalleyKit::start().await;
    let response = send(&kit, Method::PUT, "/billing", &log_of(&["orders.*"]).to_string()).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["location"].as_bytes()),
        (201, &b"/v1/subscriptions/billing"[..])
    );
    let made: Value = response.json().await.expect("JSON");
    assert_eq!(made["secret"], Value::Null, "nothing is signed");
    let made = &made["subscription"];
    assert_eq!(
        (&made["name"], &made["queue"], &made["state"]),
        (&json!("billing"), &json!("sub.billing"), &json!("active"))
    );

    let (status, repeated) = put(&kit, "billing", &log_of(&["orders.*"])).await;
    assert_eq!(status, 200);
    assert_eq!(repeated["subscription"]["created_at"], made["created_at"]);
    let seen = shown(&kit, "billing").await;
    let (status, sent_back) = put(&kit, "billing", &seen).await;
    assert_eq!((status, &sent_back["subscription"]["deliver"]), (200, &seen["deliver"]), "{sent_back}");

    publish(&kit, "orders.new", 3).await;
    publish(&kit, "orders.paid", 5).await;
    publish(&kit, "other", 1).await;
    let progress = shown(&kit, "billing").await["progress"].clone();
    let expected = json!({
        "delivered": 0, "filtered": 0, "failed": 0, "last_delivered_at": null, "failing_since": null,
        "lag": 8, "in_flight": 0, "retrying": 0, "dead": 0, "channels_total": 2, "channels": progress["channels"],
    });
    assert_eq!(progress, expected);
    let lags: Vec<_> = progress["channels"]
        .as_array()
        .expect("channels")
        .iter()
        .map(|of| (of["channel"].clone(), of["lag"].clone()))
        .collect();
    assert_eq!(lags, [(json!("orders.paid"), json!(5)), (json!("orders.new"), json!(3))], "the greatest lag first");

    for (what, state) in [("pause", "paused"), ("pause", "paused"), ("resume", "active"), ("resume", "active")] {
        let (status, answer) = answer(&kit, Method::POST, &format!("/billing/{what}"), &Value::Null).await;
        assert_eq!((status, &answer["subscription"]["state"]), (200, &json!(state)));
        let queue: Value = kit.get("/ojs/v1/queues/sub.billing").await.json().await.expect("JSON");
        assert_eq!(queue["queue"]["paused"], json!(state == "paused"), "retries wait too");
    }
    let (status, removed) = answer(&kit, Method::DELETE, "/billing", &Value::Null).await;
    assert_eq!((status, removed), (200, json!({ "deleted": true, "name": "billing" })));
    for (method, path) in [
        (Method::GET, "/billing"),
        (Method::DELETE, "/billing"),
        (Method::POST, "/billing/pause"),
        (Method::POST, "/billing/resume"),
        (Method::GET, "/No_Name"),
        (Method::DELETE, "/%7Bx%7D"),
    ] {
        let (status, problem) = answer(&kit, method, path, &Value::Null).await;
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{path}");
    }
    let (status, _) = answer(&kit, Method::POST, "/billing/seek", &json!({ "to": "new" })).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn one_that_was_given_up_goes_on_when_it_is_told_to() {
    let kit = GalleyKit::start().await;
    put(&kit, "s", &log_of(&["c"])).await;
    let redis::Value::BulkString(stored) = kit.redis_command(&["HGET", "galley:subscriptions", "s"]).await else {
        panic!("it is stored")
    };
    let disabled = String::from_utf8(stored)
        .expect("text")
        .replace(r#""state":"active""#, r#""state":"disabled","reason":"it answered 410""#);
    kit.redis_command(&["HSET", "galley:subscriptions", "s", &disabled]).await;
    let seen = shown(&kit, "s").await;
    assert_eq!((&seen["state"], &seen["reason"]), (&json!("disabled"), &json!("it answered 410")));
    let (status, resumed) = answer(&kit, Method::POST, "/s/resume", &Value::Null).await;
    assert_eq!((status, &resumed["subscription"]["state"]), (200, &json!("active")));
    assert_eq!(resumed["subscription"]["reason"], Value::Null);
}

#[tokio::test]
async fn it_goes_on_somewhere_else_in_one_channel_or_in_all() {
    let kit = GalleyKit::start().await;
    let (a, b) = (publish(&kit, "a", 4).await, publish(&kit, "b", 2).await);
    put(&kit, "both", &log_of(&["a", "b"])).await;
    put(&kit, "one", &log_of(&["a"])).await;
    let mut each = log_of(&["a", "b"]);
    each["mode"] = json!("broadcast");
    put(&kit, "each", &each).await;
    let lag = async |name: &str| shown(&kit, name).await["progress"]["lag"].as_u64().expect("a number");
    for (name, seek, expected) in [
        ("both", json!({ "to": "earliest" }), 6),
        ("both", json!({ "to": "new", "channel": "a" }), 2),
        ("both", json!({ "to": a[1], "channel": "a" }), 4),
        ("both", json!({ "to": "-PT1H" }), 6),
        ("both", json!({ "to": "new" }), 0),
        ("both", json!({ "to": "0-0", "channel": "b" }), 2),
        ("one", json!({ "to": a[0] }), 3),
        ("one", json!({ "to": a[3], "channel": "a" }), 0),
        ("each", json!({ "to": "earliest" }), 0),
    ] {
        let (status, answer) = answer(&kit, Method::POST, &format!("/{name}/seek"), &seek).await;
        assert_eq!((status, &answer["subscription"]["name"]), (200, &json!(name)), "{seek}: {answer}");
        assert_eq!(lag(name).await, expected, "{name} to {seek}");
    }
    let gone = "1-0";
    for (name, seek, code, said) in [
        ("both", json!({ "to": a[0] }), "invalid_request", "say which as channel"),
        ("both", json!({ "to": "later" }), "invalid_request", "to must be new, earliest"),
        ("both", json!({ "to": "new", "channel": "c" }), "invalid_request", "channel must be one of those"),
        ("both", json!({ "to": "new", "channel": "{a}" }), "invalid_request", "channel must match"),
        (
            "both",
            json!({ "to": "999999999999999-7", "channel": "b" }),
            "unknown_position",
            "not the id of a message of b",
        ),
        ("one", json!({ "to": format!("{}0", b[0]) }), "unknown_position", "not the id of a message of a"),
        ("one", json!({ "to": 5 }), "invalid_request", "expected a string"),
        (
            "one",
            json!({ "to": "new", "chanel": "a" }),
            "invalid_request",
            "unknown member \"chanel\", did you mean \"channel\"?",
        ),
        ("one", json!({}), "invalid_request", "missing field `to`"),
        ("one", json!(["new"]), "invalid_request", "JSON object"),
        ("each", json!({ "to": "new", "channel": "a" }), "invalid_request", "leave channel out"),
    ] {
        let before = kit.redis_command(&["HGETALL", "galley:subscriptions"]).await;
        let (status, problem) = answer(&kit, Method::POST, &format!("/{name}/seek"), &seek).await;
        assert_eq!((status, &problem["code"]), (400, &json!(code)), "{seek}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(said)), "{seek}: {problem}");
        assert_eq!(kit.redis_command(&["HGETALL", "galley:subscriptions"]).await, before, "{seek}");
    }
    // Older than everything that is kept: what is missing is told as a gap when it is read
    let (status, _) = answer(&kit, Method::POST, "/one/seek", &json!({ "to": gone })).await;
    assert_eq!((status, lag("one").await), (200, 4));
}

#[tokio::test]
async fn secrets_are_shown_to_a_client_that_has_them_made_and_nowhere_else() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__LOG__LEVEL", "trace")]).await;
    let target = |more: Value| {
        let mut http = json!({ "url": "https://example.com/hooks", "headers": { "authorization": "Bearer geheim" } });
        http.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({ "channels": ["c"], "deliver": { "http": http } })
    };
    let response = send(&kit, Method::PUT, "/made", &target(json!({})).to_string()).await;
    assert_eq!(response.headers()["cache-control"], "no-store");
    let made: Value = response.json().await.expect("JSON");
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() > 40, "{secret}");
    let (status, given) = put(&kit, "given", &target(json!({ "secrets": [SECRET, PRIVATE_KEY] }))).await;
    assert_eq!((status, &given["secret"]), (201, &Value::Null), "its owner knows it");
    assert_eq!(
        (&given["subscription"]["public_keys"], &made["subscription"]["public_keys"]),
        (&json!([PUBLIC_KEY]), &Value::Null)
    );
    publish(&kit, "c", 1).await;
    let mut answers = vec![made["subscription"].to_string(), given.to_string()];
    for name in ["made", "given"] {
        let seen = shown(&kit, name).await;
        assert_eq!(seen.get("public_keys").is_some(), name == "given", "{seen}");
        assert_eq!(seen["deliver"]["http"]["headers"], json!({ "authorization": null }));
        // What is shown may be sent back, and keeps what is not shown
        answers.push(put(&kit, name, &seen).await.1.to_string());
        answers.push(seen.to_string());
        for what in ["pause", "resume"] {
            answers.push(answer(&kit, Method::POST, &format!("/{name}/{what}"), &Value::Null).await.1.to_string());
        }
        answers.push(answer(&kit, Method::POST, &format!("/{name}/seek"), &json!({ "to": "new" })).await.1.to_string());
    }
    for path in ["/v1/subscriptions", "/v1/channels/c", "/v1/channels", "/metrics", "/ojs/v1/events"] {
        answers.push(kit.get(path).await.text().await.expect("text"));
    }
    let stored = format!("{:?}", kit.redis_command(&["HGETALL", "galley:subscriptions"]).await);
    for hidden in ["geheim", SECRET, PRIVATE_KEY, &secret] {
        assert!(stored.contains(hidden), "it is kept");
        for text in &answers {
            assert!(!text.contains(hidden), "{text}");
        }
        let log = format!("{:?}", kit.gateway.log_entries());
        assert!(!log.contains(hidden), "the log has it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_that_change_one_at_once_leave_it_whole() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    put(&kit, "s", &log_of(&["a"])).await;
    let send = async |url: String, method: Method, body: String| {
        let request = kit.http.request(method, url).header("content-type", "application/json").body(body);
        request.send().await.expect("an answer").status().as_u16()
    };
    for number in 1..=20 {
        let mut body = log_of(&["a"]);
        body["max_in_flight"] = json!(number);
        let (what, state) = if number % 2 == 0 { ("resume", "active") } else { ("pause", "paused") };
        let both = tokio::join!(
            send(kit.gateway.url("/v1/subscriptions/s"), Method::PUT, body.to_string()),
            send(other.url(&format!("/v1/subscriptions/s/{what}")), Method::POST, String::new()),
        );
        assert_eq!(both, (200, 200));
        let seen = shown(&kit, "s").await;
        assert_eq!((&seen["max_in_flight"], &seen["state"]), (&json!(number), &json!(state)));
    }
    let body = log_of(&["a"]).to_string();
    let url = |of: &ServiceProcess| of.url("/v1/subscriptions/new");
    let made = tokio::join!(
        send(url(&kit.gateway), Method::PUT, body.clone()),
        send(url(&other), Method::PUT, body.clone()),
        send(url(&kit.gateway), Method::PUT, body.clone()),
    );
    let made = [made.0, made.1, made.2];
    assert_eq!(made.iter().filter(|status| **status == 201).count(), 1, "{made:?}");
}

#[tokio::test]
async fn there_are_no_more_than_there_may_be_and_lists_go_page_by_page() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__SUBSCRIPTIONS__MAX", "5")]).await;
    for name in ["e", "b", "d", "a", "c"] {
        assert_eq!(put(&kit, name, &log_of(&["x*"])).await.0, 201);
    }
    let (status, problem) = put(&kit, "f", &log_of(&["x*"])).await;
    assert_eq!((status, &problem["code"]), (422, &json!("too_many_subscriptions")), "{problem}");
    assert_eq!(put(&kit, "e", &log_of(&["x*"])).await.0, 200, "it is there already");
    publish(&kit, "xx", 2).await;
    let (mut path, mut names) = ("/v1/subscriptions?limit=2".to_owned(), Vec::new());
    loop {
        let page: Value = kit.get(&path).await.json().await.expect("JSON");
        for subscription in page["items"].as_array().expect("subscriptions") {
            assert_eq!(
                (&subscription["progress"]["lag"], &subscription["progress"]["channels"]),
                (&json!(2), &Value::Null)
            );
            names.push(subscription["name"].as_str().expect("a name").to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/subscriptions?limit=2&after={next}");
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    answer(&kit, Method::DELETE, "/a", &Value::Null).await;
    assert_eq!(put(&kit, "f", &log_of(&["x*"])).await.0, 201, "there is room again");
}

#[tokio::test]
async fn a_channel_shows_the_subscriptions_that_have_it() {
    let kit = GalleyKit::start().await;
    publish(&kit, "orders.new", 1).await;
    put(&kit, "by-name", &log_of(&["orders.new"])).await;
    put(&kit, "other", &log_of(&["invoices"])).await;
    let mut by_pattern = log_of(&["orders.*"]);
    by_pattern["start"] = json!("earliest");
    put(&kit, "by-pattern", &by_pattern).await;
    let mut each = log_of(&["*"]);
    each["mode"] = json!("broadcast");
    put(&kit, "each", &each).await;
    answer(&kit, Method::POST, "/each/pause", &Value::Null).await;
    publish(&kit, "orders.new", 2).await;
    let channel: Value = kit.get("/v1/channels/orders.new").await.json().await.expect("JSON");
    let expected = json!([
        { "name": "by-name", "mode": "shared", "state": "active", "lag": 2, "in_flight": 0 },
        { "name": "by-pattern", "mode": "shared", "state": "active", "lag": 3, "in_flight": 0 },
        { "name": "each", "mode": "broadcast", "state": "paused", "lag": 0, "in_flight": 0 },
    ]);
    assert_eq!(
        (&channel["channel"]["subscriptions"], &channel["channel"]["subscriptions_total"]),
        (&expected, &json!(3))
    );
    let list: Value = kit.get("/v1/channels").await.json().await.expect("JSON");
    assert_eq!(list["items"][0]["subscriptions"], Value::Null, "the list stays cheap");
}

#[tokio::test]
async fn what_holds_up_a_channel_in_order_and_who_is_behind_in_a_broadcast_is_shown() {
    let kit = GalleyKit::start().await;
    let mut in_order = log_of(&["c"]);
    in_order["ordering"] = json!("channel");
    put(&kit, "ordered", &in_order).await;
    let ids = publish(&kit, "c", 3).await;
    let now = "1792000000000";
    kit.redis_command(&["HSET", "galley:{ch:c}:sub:ordered", "d", &ids[0], "n", "4", "w", now, "e", "it answered 500"])
        .await;
    let progress = shown(&kit, "ordered").await["progress"].clone();
    assert_eq!(
        progress["channels"][0]["held_up"],
        json!({
            "failures": 4, "next_attempt_at": "2026-10-14T17:46:40.000Z", "problem": "it answered 500",
        })
    );
    assert_eq!((&progress["lag"], &progress["channels"][0]["position"]), (&json!(2), &json!(ids[0])));
    let mut each = log_of(&["c"]);
    each["mode"] = json!("broadcast");
    put(&kit, "each", &each).await;
    let redis::Value::BulkString(stored) = kit.redis_command(&["HGET", "galley:subscriptions", "each"]).await else {
        panic!("it is stored")
    };
    let stored: Value = serde_json::from_slice(&stored).expect("JSON");
    let generation = stored["generation"].to_string();
    for (worker, position) in [("near", &ids[2]), ("far", &ids[0])] {
        kit.redis_command(&["HSET", &format!("galley:sub:each:at:{worker}"), "", &generation, "c", position]).await;
        kit.redis_command(&["ZADD", "galley:sub:each:workers", now, worker]).await;
    }
    let progress = shown(&kit, "each").await["progress"].clone();
    let seen_at = "2026-10-14T17:46:40.000Z";
    assert_eq!(
        progress["workers"],
        json!([
            { "worker": "far", "seen_at": seen_at, "lag": 2 },
            { "worker": "near", "seen_at": seen_at, "lag": 0 },
        ])
    );
    assert_eq!((&progress["lag"], &progress["workers_total"]), (&json!(2), &json!(2)));
}

#[tokio::test]
async fn a_list_asks_redis_a_bounded_number_of_questions() {
    let kit = GalleyKit::start().await;
    for number in 0..600 {
        publish(&kit, &format!("load.{number}"), 1).await;
    }
    for name in ["a", "b", "c", "d"] {
        assert_eq!(put(&kit, name, &log_of(&["load.*"])).await.0, 201);
    }
    let commands = async || {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("stats").query_async(&mut kit.redis.connection().await).await.expect("redis runs");
        info.get::<u64>("total_commands_processed").expect("a number")
    };
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let before = commands().await;
        let (status, page) = answer(&kit, Method::GET, &format!("?limit=100{after}"), &Value::Null).await;
        let asked = commands().await - before;
        assert!(status == 200 && asked < 8000, "{asked} commands for {page}");
        names.extend(page["items"].as_array().expect("a list").iter().map(|one| one["name"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(names, ["a", "b", "c", "d"]);
}
