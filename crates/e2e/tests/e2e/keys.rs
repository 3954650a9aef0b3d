//! Keys: who may use a gateway, and what for.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, eventually};

use crate::{
    keyed_gateway::{EVERY_SCOPE, KeyedGateway, create_key, outcome, send_to},
    kit::{GalleyKit, TestFolder},
    waiting_for_results::wait_for_waiters,
};

/// The table for people: every route beside what it needs.
const SCOPES_PAGE: &str = include_str!("../../../../docs/reference/scopes.md");

/// A row of the page: the route, and its cells by column.
pub(crate) fn rows() -> Vec<(Method, String, HashMap<String, String>)> {
    let mut lines = SCOPES_PAGE.lines().filter(|line| line.starts_with("| "));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let columns = cells(lines.next().expect("a head"));
    let rows = lines.map(|line| {
        let cells = cells(line);
        let (method, path) = cells[0].split_once(' ').expect("a method and a path");
        let by_column = columns.iter().cloned().zip(cells.iter().cloned()).skip(1).collect();
        (method.parse().expect("a method"), path.to_owned(), by_column)
    });
    rows.collect()
}

/// The path with names and ids of nothing that exists.
fn filled(path: &str) -> String {
    path.replace("{id}", "019539a4-b68c-7def-8000-1a2b3c4d5e6f")
        .replace("{queue}", "default")
        .replace("{channel}", "a")
        .replace("{name}", "n")
}

/// With several threads, because there are some thousand requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cell_of_scope_and_route_is_as_the_page_says() {
    let folder = TestFolder::new();
    let (mut valid, mut expired) = (HashMap::new(), HashMap::new());
    for scope in EVERY_SCOPE.split(',') {
        valid.insert(scope, create_key(&folder, &["--scopes", scope]).await);
        expired.insert(scope, create_key(&folder, &["--scopes", scope, "--expires-at", "-PT1H"]).await);
    }
    let keyed = KeyedGateway::start_in(folder, valid["admin:write"].clone(), &[]).await;
    let (rest, last) = valid["work"].split_at(valid["work"].len() - 1);
    let wrong = format!("{rest}{}", if last == "x" { "y" } else { "x" });
    let rows = rows();
    assert!(rows.len() > 80, "the page was read: {}", rows.len());
    let checks = rows.iter().map(async |(method, path, cells)| {
        let needs_none = cells["no key"] == "yes";
        let ask = async |key: &str| {
            let body = (method != Method::GET).then(|| json!({}));
            keyed.outcome(key, method.clone(), &filled(path), body.as_ref()).await
        };
        // A form of the dashboard also needs a token of its page, which has nothing to do with keys
        let is_form = |code: &str| path.starts_with("/ui/") && code == "cross_site_request";
        let is_refused = |(status, code): &(u16, String)| [401, 403].contains(status) && !is_form(code);
        let cases = [("", "key_required"), (wrong.as_str(), "invalid_key")];
        let cases = cases.into_iter().chain(expired.values().map(|key| (key.as_str(), "invalid_key")));
        for (key, code) in cases {
            let got = ask(key).await;
            assert_eq!(is_refused(&got), !needs_none, "{method} {path} {key}: {got:?}");
            assert!(needs_none || got == (401, code.to_owned()), "{method} {path} {key}: {got:?}");
        }
        for (scope, key) in &valid {
            let got = ask(key).await;
            match cells[*scope].as_str() {
                "yes" => assert!(!is_refused(&got), "{method} {path} {scope}: {got:?}"),
                _ => assert_eq!(got, (403, "scope_required".to_owned()), "{method} {path} {scope}"),
            }
        }
    });
    stream::iter(checks).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_refusal_says_how_to_authenticate_and_which_scope_is_missing() {
    let folder = TestFolder::new();
    let reader = create_key(&folder, &["--scopes", "jobs:read"]).await;
    let keyed = KeyedGateway::start_in(folder, reader.clone(), &[]).await;
    let challenge = async |key: &str, path: &str| {
        let response = keyed.send(key, Method::POST, path, Some(&json!({}))).await;
        let header = response.headers().get("www-authenticate").expect("a challenge");
        (response.status().as_u16(), header.to_str().expect("text").to_owned())
    };
    for path in ["/ojs/v1/jobs", "/v1/channels/a/messages"] {
        assert_eq!(challenge("", path).await, (401, "Bearer realm=\"galley\"".to_owned()));
        assert_eq!(
            challenge("nonsense", path).await,
            (401, "Bearer realm=\"galley\", error=\"invalid_token\"".to_owned())
        );
    }
    let missing = challenge(&reader, "/ojs/v1/jobs").await;
    assert_eq!(missing.0, 403);
    assert!(missing.1.ends_with("error=\"insufficient_scope\", scope=\"jobs:write\""), "{missing:?}");
    let log = keyed.kit.gateway.raw_log();
    assert!(!log.contains(&reader) && !log.contains(reader.rsplit('_').next().expect("a secret")), "a key in the log");
}

#[tokio::test]
async fn a_path_that_is_written_otherwise_is_no_way_around() {
    let keyed = KeyedGateway::start(&[]).await;
    let client = reqwest::Client::new();
    for path in ["/%6fjs/v1/queues", "/ojs/v1/%71ueues", "/ojs/v1/queue%73/default/stats", "/%6detrics"] {
        let response = client.get(keyed.kit.gateway.url(path)).send().await.expect("an answer");
        assert_eq!(response.status(), 401, "{path}");
    }
    let visit = client.get(keyed.kit.gateway.url("/%70rodcons")).header("sec-fetch-site", "cross-site");
    assert_eq!(visit.send().await.expect("an answer").status(), 403);
    let list = keyed.kit.redis_command(&["EXISTS", "task:prodcons:queue"]).await;
    assert_eq!(list, testkit::redis::Value::Int(0), "nothing was pushed");
}

#[tokio::test]
async fn a_key_in_redis_is_made_rotated_and_revoked_and_other_gateways_hear_it() {
    let keyed = KeyedGateway::start(&[]).await;
    let file = keyed.folder.path_text("keys.toml");
    let other = ServiceProcess::start("gateway", &keyed.kit.redis, &[("GALLEY__AUTH__KEYS_FILE", file.as_str())]).await;
    other.wait_until_ready().await;
    let (key, id) = keyed.make_key(&json!({ "name": "reader", "scopes": ["jobs:read"] })).await;
    let ask = async |key: &str| outcome(send_to(&other, key, Method::GET, "/ojs/v1/workflows", None).await).await;
    assert_eq!(ask(&key).await.0, 200, "at once at another gateway");

    let path = format!("/v1/admin/keys/{id}");
    let shown: Value = keyed.send(&keyed.admin, Method::GET, &path, None).await.json().await.expect("JSON");
    assert_eq!(shown["api_key"]["scopes"], json!(["jobs:read"]));
    let listed = keyed.send(&keyed.admin, Method::GET, "/v1/admin/keys", None).await.text().await.expect("text");
    let secret = key.rsplit('_').next().expect("a secret");
    assert!(listed.contains(&id) && !listed.contains(secret) && !listed.contains("sha256"), "{listed}");
    eventually("the use is recorded", || async {
        let shown: Value = keyed.send(&keyed.admin, Method::GET, &path, None).await.json().await.ok()?;
        shown["api_key"]["last_used_at"].is_string().then_some(())
    })
    .await;

    let rotate = format!("{path}/rotate");
    let grace = json!({ "grace_ms": 3_600_000 });
    let rotated: Value =
        keyed.send(&keyed.admin, Method::POST, &rotate, Some(&grace)).await.json().await.expect("JSON");
    let new = rotated["key"].as_str().expect("a key").to_owned();
    eventually("the new secret is known", || async { (ask(&new).await.0 == 200).then_some(()) }).await;
    assert_eq!(ask(&key).await.0, 200, "the old one has its grace");
    let again: Value = keyed.send(&keyed.admin, Method::POST, &rotate, None).await.json().await.expect("JSON");
    let newest = again["key"].as_str().expect("a key").to_owned();
    eventually("both older secrets are over", || async {
        let (first, second) = (ask(&key).await, ask(&new).await);
        (first.0 == 401 && second.0 == 401).then_some(())
    })
    .await;
    assert_eq!(ask(&newest).await.0, 200);

    let revoked = keyed.send(&keyed.admin, Method::DELETE, &path, None).await;
    assert_eq!(revoked.status(), 200);
    assert_eq!(keyed.outcome(&newest, Method::GET, "/ojs/v1/workflows", None).await, (401, "invalid_key".to_owned()));
    eventually("the other gateway has heard it", || async { (ask(&newest).await.0 == 401).then_some(()) }).await;
    assert_eq!(keyed.outcome(&keyed.admin, Method::DELETE, &path, None).await.0, 404);
}

#[tokio::test]
async fn a_key_expires_and_its_time_can_be_changed() {
    let keyed = KeyedGateway::start(&[]).await;
    let body = json!({ "name": "short", "scopes": ["jobs:read"], "expires_at": "+PT1S" });
    let (key, id) = keyed.make_key(&body).await;
    let expired = (401, "invalid_key".to_owned());
    eventually("it expires", || async {
        (keyed.outcome(&key, Method::GET, "/ojs/v1/workflows", None).await == expired).then_some(())
    })
    .await;
    let path = format!("/v1/admin/keys/{id}");
    let never = json!({ "expires_at": null, "name": "long" });
    let changed = keyed.send(&keyed.admin, Method::PATCH, &path, Some(&never)).await;
    assert_eq!(changed.status(), 200);
    assert_eq!(keyed.outcome(&key, Method::GET, "/ojs/v1/workflows", None).await.0, 200);
    let past = json!({ "expires_at": "-PT1S" });
    assert_eq!(keyed.outcome(&keyed.admin, Method::PATCH, &path, Some(&past)).await.0, 400);
}

#[tokio::test]
async fn a_key_in_use_costs_no_round_trip() {
    let keyed = KeyedGateway::start(&[]).await;
    let (key, _) = keyed.make_key(&json!({ "name": "busy", "scopes": ["jobs:read"] })).await;
    let reads = async || {
        let info = keyed.kit.redis_command(&["INFO", "commandstats"]).await;
        let text: String = testkit::redis::from_redis_value(info).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("cmdstat_hget:calls="));
        line.and_then(|rest| rest.split(',').next()).map_or(0, |count| count.parse::<u64>().expect("a number"))
    };
    assert_eq!(keyed.outcome(&key, Method::GET, "/ojs/manifest", None).await.0, 200);
    let before = reads().await;
    for _ in 0..200 {
        assert_eq!(keyed.outcome(&key, Method::GET, "/ojs/manifest", None).await.0, 200);
    }
    // One every few seconds, and the leader's own, of which there are more while a slow machine answers
    let after = reads().await;
    assert!(after - before < 150, "{} reads for 200 requests", after - before);
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_when_it_changes_and_a_bad_one_changes_nothing() {
    let keyed = KeyedGateway::start(&[]).await;
    let late = create_key(&keyed.folder, &["--scopes", "jobs:read"]).await;
    let ask = async |key: &str| keyed.outcome(key, Method::GET, "/ojs/v1/workflows", None).await.0;
    eventually("a new key is known", || async { (ask(&late).await == 200).then_some(()) }).await;
    keyed.folder.write("keys.toml", "keys = nonsense");
    keyed.kit.gateway.wait_for_event("keys.reload_failed").await;
    assert_eq!(ask(&late).await, 200);
    keyed.folder.write("keys.toml", "");
    eventually("no key is known", || async { (ask(&late).await == 401).then_some(()) }).await;
    assert_eq!(ask(&keyed.admin).await, 401);
}

#[tokio::test]
async fn without_keys_strangers_are_not_served() {
    let kit = GalleyKit::start().await;
    let listen = ("GALLEY__GATEWAY__LISTEN", "0.0.0.0:0");
    let refused = kit.run_binary("gateway", &[], &[listen]).await;
    let said = [refused.stdout, refused.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!refused.status.success() && said.contains("gateway.listen"), "{said}");
    assert!(said.contains("gateway keys create") && said.contains("GALLEY__AUTH__MODE=none"), "{said}");
    for settings in [
        ("GALLEY__AUTH__MODE", "none"),
        ("GALLEY__AUTH__FIRST_KEY", "glk_first_0123456789012345678901234567890123456789012"),
    ] {
        let served = ServiceProcess::start("gateway", &kit.redis, &[listen, settings]).await;
        assert!(served.terminate().await.success(), "{settings:?}");
    }
    let bad = kit.run_binary("gateway", &[], &[("GALLEY__AUTH__FIRST_KEY", "glk_short_secret")]).await;
    let said = [bad.stdout, bad.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!bad.status.success() && said.contains("auth.first_key") && !said.contains("short_secret"), "{said}");
}

#[tokio::test]
async fn the_first_key_may_do_everything_and_needs_no_redis() {
    let key = "glk_first_0123456789012345678901234567890123456789012";
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__AUTH__FIRST_KEY", key)]).await;
    let ask = async |key: &str, path: &str| outcome(send_to(&kit.gateway, key, Method::GET, path, None).await).await.0;
    assert_eq!(ask(key, "/ojs/v1/queues").await, 200);
    assert_eq!(ask("", "/ojs/v1/queues").await, 401);
    assert_eq!(ask("", "/metrics").await, 401);
    assert_eq!(ask("", "/ojs/v1/health").await, 401);
    assert_eq!(ask("", "/health/ready").await, 200);
    let unknown = "glk_other_0123456789012345678901234567890123456789012";
    assert_eq!(ask(unknown, "/ojs/manifest").await, 401);
    let mut kit = kit;
    kit.redis.kill();
    assert_eq!(ask_of(&kit, key, "/ojs/manifest").await, 200);
    assert_eq!(ask_of(&kit, unknown, "/ojs/manifest").await, 503, "nobody knows whether it is a key");
}

async fn ask_of(kit: &GalleyKit, key: &str, path: &str) -> u16 {
    outcome(send_to(&kit.gateway, key, Method::GET, path, None).await).await.0
}

#[tokio::test]
async fn health_and_metrics_are_open_where_settings_say_so() {
    let open = [("GALLEY__AUTH__OPEN_METRICS", "true"), ("GALLEY__AUTH__OPEN_HEALTH", "true")];
    let keyed = KeyedGateway::start(&open).await;
    for path in ["/metrics", "/ojs/v1/health", "/health/live", "/", "/openapi.json"] {
        assert_eq!(keyed.outcome("", Method::GET, path, None).await.0, 200, "{path}");
    }
    assert_eq!(keyed.outcome("", Method::GET, "/ojs/v1/queues", None).await.0, 401);
}

#[tokio::test]
async fn the_demo_can_be_switched_off() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__DEMO_ROUTES", "false")]).await;
    for path in ["/prodcons", "/pubsub"] {
        assert_eq!(kit.get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let page = kit.get("/").await.text().await.expect("text");
    assert!(!page.contains("prodcons"), "{page}");
    let list = kit.redis_command(&["EXISTS", "task:prodcons:queue"]).await;
    assert_eq!(list, testkit::redis::Value::Int(0), "nothing was pushed");
}

#[tokio::test]
async fn requests_that_wait_end_with_their_key_and_get_nothing_that_comes_later() {
    let settings = [("GALLEY__QUEUES__SMALL__MAX_DEPTH", "1"), ("GALLEY__AUTH__OPEN_METRICS", "true")];
    let keyed = KeyedGateway::start(&settings).await;
    let scopes = json!(["work", "jobs:read", "jobs:write", "channels:subscribe"]);
    let (key, id) = keyed.make_key(&json!({ "name": "waits", "scopes": scopes })).await;
    let waiting = keyed.enqueue("small").await;
    let published = keyed.send(&keyed.admin, Method::POST, "/v1/channels/c/messages", Some(&json!(1))).await;
    let published: Value = published.json().await.expect("JSON");
    let after =
        format!("/v1/channels/c/messages?after={}&wait_ms=60000", published["id"].as_str().expect("a position"));
    let shown = format!("/ojs/v1/jobs/{waiting}?wait_ms=60000");
    let fetch = json!({ "queues": ["later"], "wait_ms": 60_000 });
    let one_too_many = json!({ "type": "a", "args": [], "options": { "queue": "small" } });
    let enqueue = async {
        let request = keyed.kit.http.post(keyed.kit.gateway.url("/ojs/v1/jobs")).header("prefer", "wait=60");
        let request =
            request.header("authorization", format!("Bearer {key}")).header("content-type", "application/json");
        outcome(request.body(one_too_many.to_string()).send().await.expect("an answer")).await
    };
    let revoke = async {
        wait_for_waiters(&keyed.kit, 4).await;
        let path = format!("/v1/admin/keys/{id}");
        assert_eq!(keyed.send(&keyed.admin, Method::DELETE, &path, None).await.status(), 200);
    };
    let (fetched, shown, read, enqueued, ()) = tokio::join!(
        keyed.outcome(&key, Method::POST, "/ojs/v1/workers/fetch", Some(&fetch)),
        keyed.outcome(&key, Method::GET, &shown, None),
        keyed.outcome(&key, Method::GET, &after, None),
        enqueue,
        revoke
    );
    for (what, got) in [("fetch", fetched), ("a job", shown), ("messages", read), ("room in a queue", enqueued)] {
        assert_eq!(got, (401, "invalid_key".to_owned()), "{what}");
    }
}
