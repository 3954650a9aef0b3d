//! Attacks on the admin API and races: hostile filters, cursors of others, bulk actions twice at once and interrupted, a job
//! that starts while it is changed, Ctrl-C in `galley`.

use std::{collections::BTreeMap, process::Stdio};

use nix::sys::signal::{Signal, kill};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{AnswerHoldProxy, RedisFill, RedisServer, ServiceProcess, TEST_TIMEOUT, binary_path, eventually, redis};

use crate::{admin_at_scale::fill, http_client::CheckedClient, keyed_gateway::KeyedGateway, kit::GalleyKit};

/// Jobs that failed for good, in one queue.
const FAILED: RedisFill = RedisFill { queues: 1, completed: 100, discarded: 1500, timed_out_every: 20 };

/// Texts that somebody may send as a search or a member of a filter.
fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "state:",
        "state:nothing",
        "queue:*",
        "queue:../..",
        "type:***",
        "error:\"",
        "\"\"\"\"",
        "meta:=",
        "meta:a=b=c",
        "id:x",
        "workflow:-",
        "since:-1",
        "since:9999999999999999999",
        "until:+P99999999Y",
        "ended_since:PT",
        "is:alive",
        "worker:\u{0}",
        "tag:\u{202e}gpj",
        "{{7*7}} ${7*7}",
        "'; DROP TABLE jobs; --",
        "<script>alert(1)</script>",
        "\u{0}\u{1}\u{7f}",
        "🦀🦀🦀",
        "state:discarded state:active state:discarded",
        "%s%n%x",
        "\\",
        "*",
        "(a+)+$",
    ]
    .map(str::to_owned)
    .into();
    texts.push("a".repeat(3000));
    texts.push("error:a ".repeat(300));
    texts.push("\"".repeat(2999));
    texts
}

#[tokio::test]
async fn hostile_filters_are_refused_or_find_nothing_and_harm_nobody() {
    let kit = GalleyKit::start().await;
    fill(&kit, RedisFill { discarded: 50, ..FAILED }).await;
    let client = Client::new();
    let url = kit.gateway.url("/ojs/v1/admin/jobs");
    let names =
        ["q", "type", "tag", "meta", "error", "error_type", "worker", "workflow", "since", "ended_until", "after"];
    for text in hostile_texts() {
        for name in names {
            let asked = reqwest::Url::parse_with_params(&url, &[(name, text.as_str()), ("limit", "5")]).expect("a URL");
            let response = client.get(asked).send().await.expect("an answer");
            let status = response.status().as_u16();
            assert!([200, 400, 404, 414, 431].contains(&status), "{name}={text:?}: {status}");
            assert!(response.json::<Value>().await.is_ok(), "{name}={text:?}");
        }
        // What nothing has is never changed
        let filter = json!({ "filter": { "error": text, "queue": "q0" }, "confirm": true });
        let response = kit.post("/ojs/v1/admin/jobs/bulk/delete", &filter).await;
        let status = response.status().as_u16();
        let answer: Value = response.json().await.expect("JSON");
        assert!(status == 400 || answer["matched"] == 0, "{text:?}: {answer}");
    }
    let deep = ["[".repeat(500), "]".repeat(500)].concat();
    for body in [
        "{}".to_owned(),
        "[]".to_owned(),
        r#"{"filter":[],"confirm":true}"#.to_owned(),
        r#"{"filter":{"state":7},"confirm":true}"#.to_owned(),
        r#"{"filter":{},"confirm":"true"}"#.to_owned(),
        r#"{"filter":{},"confirm":true,"limit":0}"#.to_owned(),
        r#"{"filter":{},"confirm":true,"limit":1e9}"#.to_owned(),
        r#"{"filter":{},"confirm":true,"max_matched":-1}"#.to_owned(),
        r#"{"filter":{"queue":"q0","queue":"q1"},"confirm":true,"limit":10001}"#.to_owned(),
        format!(r#"{{"filter":{deep},"confirm":true}}"#),
        format!(r#"{{"filter":{{"error":"{}"}},"confirm":true}}"#, "x".repeat(2_000_000)),
    ] {
        let request = client.post(format!("{url}/bulk/delete")).header("content-type", "application/json");
        let status = request.body(body.clone()).send().await.expect("an answer").status().as_u16();
        assert!([400, 413, 422].contains(&status), "{}: {status}", &body[..body.len().min(80)]);
    }
    // Nothing was deleted, and the gateway is as before
    let list: Value = kit.get("/ojs/v1/admin/jobs?per_page=1").await.json().await.expect("JSON");
    assert_eq!(list["pagination"]["total"], 150);
}

#[tokio::test]
async fn a_cursor_of_others_shows_nothing_that_the_key_does_not_see() {
    let keyed = KeyedGateway::start(&[]).await;
    for number in 0..6 {
        keyed.enqueue(if number % 2 == 0 { "mine.a" } else { "other.b" }).await;
    }
    let own = json!({ "name": "own", "scopes": ["admin:read", "admin:write", "jobs:read"], "queues": ["mine.*"] });
    let (own, _) = keyed.make_key(&own).await;
    let get = async |key: &str, query: &str| {
        let path = format!("/ojs/v1/admin/jobs?{query}");
        keyed.send(key, Method::GET, &path, None).await.json::<Value>().await.expect("JSON")
    };
    let mut cursors = Vec::new();
    let mut after = String::new();
    loop {
        let page = get(&keyed.admin, &format!("limit=1{after}")).await;
        let Some(next) = page["next"].as_str() else { break };
        cursors.push(next.to_owned());
        after = format!("&after={next}");
    }
    assert!(cursors.len() >= 5, "{cursors:?}");
    cursors.extend(["waiting:0/9999999999999/other.b/9999999999999-0", "completed/1/other.b/5:x"].map(str::to_owned));
    for cursor in cursors {
        let page = get(&own, &format!("limit=10&after={cursor}")).await;
        let seen = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(seen.iter().all(|job| job["queue"] == "mine.a"), "{cursor}: {page}");
        let body = json!({ "filter": { "state": "available" }, "confirm": true, "dry_run": true, "after": cursor });
        let counted = keyed.send(&own, Method::POST, "/ojs/v1/admin/jobs/bulk/cancel", Some(&body)).await;
        let counted: Value = counted.json().await.expect("JSON");
        assert!(counted["matched"].as_u64().is_none_or(|matched| matched <= 3), "{cursor}: {counted}");
    }
}

async fn bulk(gateway: &ServiceProcess, action: &str, more: Value) -> Option<Value> {
    let mut body = json!({ "filter": { "queue": "q0", "state": "discarded" }, "confirm": true, "limit": 10_000 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let request = Client::new().post(gateway.url(&format!("/ojs/v1/admin/jobs/bulk/{action}")));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.ok()?;
    assert_eq!(response.status(), 200, "{action}");
    response.json().await.ok()
}

/// How many jobs of the queue are in each state, from the lists.
async fn counts(kit: &GalleyKit) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for state in ["available", "discarded", "cancelled"] {
        let list = kit.get(&format!("/ojs/v1/admin/jobs?queue=q0&state={state}&per_page=1")).await;
        let list: Value = list.json().await.expect("JSON");
        counts.insert(state, list["pagination"]["total"].as_u64().expect("a number"));
    }
    counts
}

/// Checks that nothing is doubled or lost: the lists count what there is, and stored data has no contradictions.
async fn check(kit: &GalleyKit, wanted: [(&'static str, u64); 3]) {
    assert_eq!(counts(kit).await, BTreeMap::from(wanted));
    let report: Value = kit.get("/ojs/v1/admin/fsck?queue=q0").await.json().await.expect("JSON");
    assert_eq!(report["violations"], json!([]), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_action_that_is_sent_twice_at_once_acts_once_on_each_job() {
    let kit = GalleyKit::start().await;
    fill(&kit, FAILED).await;
    let number = |answer: &Value, name: &str| answer[name].as_u64().expect("a number");
    let retry = || bulk(&kit.gateway, "retry", json!({}));
    let (first, second) = tokio::join!(retry(), retry());
    let (first, second) = (first.expect("an answer"), second.expect("an answer"));
    assert_eq!(number(&first, "succeeded") + number(&second, "succeeded"), 1500, "{first} {second}");
    check(&kit, [("available", 1500), ("discarded", 0), ("cancelled", 0)]).await;

    // Retry and delete at once: each job is retried or deleted
    let other = GalleyKit::start().await;
    fill(&other, FAILED).await;
    let (retried, deleted) =
        tokio::join!(bulk(&other.gateway, "retry", json!({})), bulk(&other.gateway, "delete", json!({})));
    let (retried, deleted) = (retried.expect("an answer"), deleted.expect("an answer"));
    let (retried, deleted) = (number(&retried, "succeeded"), number(&deleted, "succeeded"));
    assert_eq!(retried + deleted, 1500);
    check(&other, [("available", retried), ("discarded", 0), ("cancelled", 0)]).await;
}

/// What Redis answers when it has retried a job, and to nothing that a gateway asks before.
const RETRIED: &[u8] = b"$4\r\ndone\r\n";

/// Starts a gateway that reaches Redis over that way, and waits as long as answers are held.
async fn start_behind(way: &AnswerHoldProxy) -> ServiceProcess {
    let patient = [("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "60000")];
    let gateway = ServiceProcess::start_with_redis_url("gateway", &way.url(), &patient).await;
    gateway.wait_until_ready().await;
    gateway
}

/// How many of the jobs have left the list of discarded ones.
async fn acted_on(kit: &GalleyKit) -> i64 {
    let left: i64 = redis::cmd("ZCARD")
        .arg("galley:{q0}:discarded")
        .query_async(&mut kit.redis.connection().await)
        .await
        .expect("redis runs");
    i64::try_from(FAILED.discarded).expect("a number") - left
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_action_whose_gateway_dies_half_way_is_finished_by_sending_it_again() {
    let kit = GalleyKit::start().await;
    fill(&kit, FAILED).await;
    let way = AnswerHoldProxy::start(&kit.redis).await;
    let dying = start_behind(&way).await;
    // It learns of no job that it retried, so it comes no further than those that it retries at once
    way.hold_from(RETRIED);
    let half_way = async {
        way.wait_until_held().await;
        kill(nix::unistd::Pid::from_raw(dying.process_id().cast_signed()), Signal::SIGKILL).expect("it runs");
    };
    let (answer, ()) = tokio::join!(bulk(&dying, "retry", json!({})), half_way);
    assert_eq!(answer, None, "it died before it could answer");
    let done = acted_on(&kit).await;
    assert!((1..1500).contains(&done), "{done}");
    let rest = bulk(&kit.gateway, "retry", json!({})).await.expect("an answer");
    assert_eq!((&rest["failed"], &rest["next"]), (&json!(0), &json!(null)));
    check(&kit, [("available", 1500), ("discarded", 0), ("cancelled", 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_starts_while_it_is_changed_runs_with_the_new_arguments_or_the_change_is_refused() {
    let kit = GalleyKit::start().await;
    let mut outcomes = BTreeMap::new();
    for number in 0..60 {
        let id = kit.enqueue(&json!({ "type": "a", "args": ["old"], "queue": "race" })).await;
        let url = kit.gateway.url(&format!("/ojs/v1/admin/jobs/{id}"));
        let change = Client::new().patch(url).header("content-type", "application/json");
        let change = async { change.body(r#"{"args":["new"]}"#).send().await.expect("an answer").status().as_u16() };
        // One of them a little earlier, in turn
        let (status, fetched) = if number % 2 == 0 {
            tokio::join!(change, kit.fetch("race"))
        } else {
            let (fetched, status) = tokio::join!(kit.fetch("race"), change);
            (status, fetched)
        };
        // A change takes the job away for a moment
        let job = match fetched {
            Some(job) => job,
            None => eventually("the job", || kit.fetch("race")).await,
        };
        let wanted = match status {
            200 => "new",
            409 => "old",
            other => panic!("{other}"),
        };
        assert_eq!((&job["id"], &job["args"]), (&json!(id), &json!([wanted])), "{status}");
        *outcomes.entry(status).or_insert(0) += 1;
        let ack = json!({ "job_id": id, "token": job["token"] });
        assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    }
    println!("{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_during_long_work_says_how_much_was_done_and_the_rest_is_done_later() {
    let redis = RedisServer::start();
    let way = AnswerHoldProxy::start(&redis).await;
    let kit = GalleyKit { gateway: start_behind(&way).await, http: CheckedClient::new(), redis };
    fill(&kit, FAILED).await;
    // The first of two requests is under way until then
    way.hold_from(RETRIED);
    let retry = ["jobs", "retry", "--matching", "queue:q0 state:discarded", "--yes"];
    let mut command = tokio::process::Command::new(binary_path("galley"));
    command.args(retry);
    command.env("GALLEY_URL", kit.gateway.url("")).stdin(Stdio::null()).kill_on_drop(true);
    let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("galley starts");
    let id = nix::unistd::Pid::from_raw(process.id().expect("it runs").cast_signed());
    way.wait_until_held().await;
    kill(id, Signal::SIGINT).expect("it runs");
    way.release();
    let output = tokio::time::timeout(TEST_TIMEOUT, process.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    let done = acted_on(&kit).await;
    assert!(said.contains(&format!("interrupted: {done} retried")), "{done}: {said}");
    assert!(done < 1500, "it did not go on");
    let rest = crate::galley::run_galley(&retry, &[("GALLEY_URL", &kit.gateway.url(""))], "").await.done();
    assert_eq!(rest.trim(), format!("{} retried", 1500 - done));
    check(&kit, [("available", 1500), ("discarded", 0), ("cancelled", 0)]).await;
}
