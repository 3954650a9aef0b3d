//! Encryption at rest: what Redis and its files hold, and processes without the right keys.

use std::collections::BTreeSet;

use serde_json::json;
use testkit::{ServiceProcess, eventually};

use crate::{
    canaries::Scenario,
    kit::{GalleyKit, TestFolder},
};

pub(crate) const KEYS_FILE: &str = "GALLEY__ENCRYPTION__KEYS_FILE";
const OLD: &str = "old = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"\n";
pub(crate) const NEW: &str = "new = \"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=\"\n";
/// What a rule holds is in a file of the operator and never in Redis. A key of a request is stored as a hash, a token of
/// an attempt as it is: it is worth nothing without access to the gateway, and ends with the attempt.
const NOT_STORED: [&str; 9] = [
    "secret of a rule",
    "header of a rule",
    "path of a rule",
    "idempotency key",
    "key of a request",
    "token in a query",
    "wrong token of an attempt",
    "secret that is none",
    "header that is none",
];
const STORED_PLAIN: &str = "token of an attempt";

pub(crate) fn write_keys(folder: &TestFolder, name: &str, current: &str, keys: &[&str]) -> String {
    let text = format!(
        "current = \"{current}\"\nfingerprint_key = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDI=\"\n[keys]\n{}",
        keys.concat()
    );
    folder.write(name, &text);
    folder.path_text(name)
}

/// What of the scenario is in the memory of Redis, its append-only file and a dump.
async fn stored(variables: &[(&str, &str)]) -> (Scenario, BTreeSet<&'static str>) {
    let scenario = Scenario::start(variables).await;
    scenario.run().await;
    scenario.kit.redis_command(&["SAVE"]).await;
    let found = scenario.canaries.found_in(&scenario.kit.redis.file_contents());
    (scenario, found)
}

#[tokio::test]
async fn with_keys_neither_redis_nor_its_files_hold_what_clients_sent() {
    let folder = TestFolder::new();
    let keys = write_keys(&folder, "keys.toml", "new", &[NEW]);
    let (_scenario, found) = stored(&[(KEYS_FILE, &keys)]).await;
    assert_eq!(found, BTreeSet::from([STORED_PLAIN]));
}

#[tokio::test]
async fn without_keys_the_same_search_finds_everything() {
    let (scenario, found) = stored(&[]).await;
    let mut expected = scenario.canaries.places();
    for place in NOT_STORED {
        expected.remove(place);
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_process_without_the_keys_of_what_is_stored_does_not_start_and_says_which_it_lacks() {
    let folder = TestFolder::new();
    let both = write_keys(&folder, "both.toml", "new", &[OLD, NEW]);
    let first = write_keys(&folder, "first.toml", "old", &[OLD, NEW]);
    let old = write_keys(&folder, "old.toml", "old", &[OLD]);
    let new = write_keys(&folder, "new.toml", "new", &[NEW]);
    let renamed = write_keys(&folder, "renamed.toml", "old", &[&NEW.replace("new", "old")]);
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[(KEYS_FILE, &old)]).await;
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": ["kept"] })).await;
    for (file, said) in [("", "name the file with that key"), (&renamed, "another key of that name"), (&new, "lacks")] {
        for service in ["gateway", "queue-worker", "pubsub-worker"] {
            let variables = [(KEYS_FILE, file), ("GALLEY__GATEWAY__LISTEN", "127.0.0.1:0")];
            let output = kit.run_binary(service, &[], &variables).await;
            let shown = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success() && shown.contains(said) && shown.contains("old"), "{service}: {shown}");
        }
    }
    // The key is replaced: first every process gets both
    let _worker = kit.start_worker(&[(KEYS_FILE, &first)]).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], json!(["kept"]));
    let second = ServiceProcess::start("gateway", &kit.redis, &[(KEYS_FILE, &both)]).await;
    second.wait_until_ready().await;
    // A gateway that has not got the new key yet says so, and nothing is lost
    let url = second.url("/ojs/v1/jobs");
    let body = json!({ "type": "waits.here", "queue": "waiting", "args": ["new"] }).to_string();
    let request = kit.http.post(url).header("content-type", "application/json").body(body);
    let answer: serde_json::Value = request.send().await.expect("an answer").json().await.expect("JSON");
    let id = answer["job"]["id"].as_str().expect("an id");
    let refused = kit.get(&format!("/ojs/v1/jobs/{id}")).await;
    assert_eq!(refused.status(), 503);
    let refused: serde_json::Value = refused.json().await.expect("JSON");
    assert_eq!(refused["error"]["code"], "sealed_data");
    let shown = kit.http.get(second.url(&format!("/ojs/v1/jobs/{id}"))).send().await.expect("an answer");
    assert_eq!(shown.json::<serde_json::Value>().await.expect("JSON")["job"]["args"], json!(["new"]));
}

#[tokio::test]
async fn a_key_is_replaced_while_everything_runs_and_a_file_that_would_lose_data_changes_nothing() {
    let folder = TestFolder::new();
    let file = write_keys(&folder, "keys.toml", "old", &[OLD]);
    let variables = [(KEYS_FILE, file.as_str()), ("GALLEY__RELOAD__INTERVAL_MS", "100")];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &variables).await;
    let worker = kit.start_worker(&variables).await;
    let both = async |event: &str, count: usize| {
        for service in [&kit.gateway, &worker] {
            eventually(event, || async { (service.events(event).len() >= count).then_some(()) }).await;
        }
    };
    // As a whole, so that nobody reads half of it
    let replace = |current: &str, keys: &[&str]| {
        write_keys(&folder, "keys.new", current, keys);
        std::fs::rename(folder.path("keys.new"), folder.path("keys.toml")).expect("renamed");
    };
    let kept = kit.enqueue(&json!({ "type": "waits.here", "queue": "waiting", "args": ["under the old key"] })).await;
    replace("old", &[OLD, NEW]);
    both("files.reloaded", 1).await;
    replace("new", &[OLD, NEW]);
    both("files.reloaded", 2).await;
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": ["under the new key"] })).await;
    assert_eq!(kit.wait_for_state(&id, "completed").await["result"], json!(["under the new key"]));
    let known = kit.redis_command(&["HKEYS", "galley:encryption"]).await;
    let mut known: Vec<String> = testkit::redis::from_redis_value(known).expect("names");
    known.sort();
    assert_eq!(known, ["new", "old"]);

    replace("new", &[NEW]);
    both("files.reload_failed", 1).await;
    assert!(kit.gateway.raw_log().contains("lacks"), "{}", kit.gateway.raw_log());
    folder.write("keys.toml", "nonsense");
    both("files.reload_failed", 2).await;
    let shown = kit.job(&kept).await;
    assert_eq!(shown["args"], json!(["under the old key"]));
    // The operator says that nothing is left of the old key, and takes it away
    replace("new", &[OLD, NEW]);
    both("files.reloaded", 3).await;
    kit.redis_command(&["HDEL", "galley:encryption", "old"]).await;
    replace("new", &[NEW]);
    both("files.reloaded", 4).await;
    let refused = kit.get(&format!("/ojs/v1/jobs/{kept}")).await;
    assert_eq!(refused.status(), 503, "it was wrong, and the job is not damaged");
}
