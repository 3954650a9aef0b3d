//! The list of workers, and telling them to be quiet, to go on and to end.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{ServiceProcess, eventually, redis};

use crate::{
    kit::{GalleyKit, RULES_VARIABLE, TestFolder, job_body},
    worker_life::gated,
};

/// The next beat is out of reach: what happens sooner happens because of a call.
const SLOW: (&str, &str) = ("GALLEY__QUEUE_WORKER__HEARTBEAT_MS", "600000");
/// Soon enough to wait for. A worker is taken for lost after three of them, which a busy machine does not miss.
const QUICK: (&str, &str) = ("GALLEY__QUEUE_WORKER__HEARTBEAT_MS", "2000");

async fn workers(kit: &GalleyKit) -> Vec<Value> {
    let answer: Value = kit.get("/ojs/v1/workers").await.json().await.expect("JSON");
    answer["items"].as_array().expect("an array").clone()
}

async fn worker(kit: &GalleyKit, id: &str) -> Value {
    let answer: Value = kit.get(&format!("/ojs/v1/workers/{id}")).await.json().await.expect("JSON");
    answer["worker"].clone()
}

async fn direct(kit: &GalleyKit, id: &str, directive: &str) {
    let response = kit.post(&format!("/ojs/v1/workers/{id}/{directive}"), &json!({})).await;
    assert_eq!(response.status(), 200, "{directive}");
}

/// Waits until a worker is in that state.
async fn is(kit: &GalleyKit, id: &str, state: &str) -> Value {
    eventually(&format!("{id} is {state}"), || async {
        Some(worker(kit, id).await).filter(|worker| worker["state"] == state)
    })
    .await
}

async fn named(kit: &GalleyKit, name: &str, more: &[(&str, &str)]) -> ServiceProcess {
    let mut variables = vec![("GALLEY__QUEUE_WORKER__NAME", name)];
    variables.extend(more);
    let service = kit.start_worker(&variables).await;
    is(kit, name, "running").await;
    service
}

#[tokio::test]
async fn the_list_tells_who_is_there_and_what_they_run() {
    let kit = GalleyKit::start().await;
    assert!(workers(&kit).await.is_empty());
    let _eater = named(&kit, "eater", &[QUICK, ("GALLEY__QUEUE_WORKER__CONCURRENCY", "7")]).await;
    let id = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    let listed = eventually("the job is shown", || async {
        workers(&kit).await.into_iter().find(|worker| worker["active_jobs"] == 1)
    })
    .await;
    let running = &listed["jobs"][0];
    assert_eq!((&running["id"], &running["type"]), (&json!(id), &json!("test.slow")));
    assert_eq!((&running["queue"], &running["attempt"]), (&json!("default"), &json!(1)));
    assert!(running["started_at"].is_string());
    assert_eq!((&listed["name"], &listed["kind"]), (&json!("eater"), &json!("queue-worker")));
    assert_eq!((&listed["concurrency"], &listed["state"]), (&json!(7), &json!("running")));
    assert_eq!(listed["queues"], json!(["default", "demo", "prodcons"]));
    for member in ["hostname", "version", "started_at", "last_seen_at", "consumer"] {
        assert!(listed[member].is_string(), "{member} of {listed}");
    }
    assert!(listed["pid"].is_u64());
    let by_id = worker(&kit, listed["id"].as_str().expect("an id")).await;
    assert_eq!(by_id["name"], "eater");
}

#[tokio::test]
async fn a_quiet_worker_finishes_what_it_has_and_takes_nothing_new_until_it_is_resumed() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    folder.write_rules(&gated("slow", &folder));
    // Renewed after half of it at the latest: in time also on a machine that stands still for ten seconds
    let lease = ("GALLEY__JOBS__LEASE_MS", "24000");
    let _eater = named(&kit, "eater", &[SLOW, lease, (RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let running = kit.enqueue(&job_body("slow", &json!([]))).await;
    kit.wait_for_state(&running, "active").await;
    direct(&kit, "eater", "quiet").await;
    is(&kit, "eater", "quiet").await;
    let waiting = kit.enqueue(&job_body("test.noop", &json!([]))).await;
    eventually("its lease is renewed, which notes who runs it", || async {
        (kit.redis_command(&["HLEN", "galley:{default}:active"]).await == redis::Value::Int(1)).then_some(())
    })
    .await;
    folder.touch("gate");
    let done = kit.wait_for_state(&running, "completed").await;
    assert_eq!(done["attempt"], 1);
    assert_eq!(kit.job(&waiting).await["state"], "available");
    direct(&kit, "eater", "resume").await;
    kit.wait_for_state(&waiting, "completed").await;
    assert_eq!(is(&kit, "eater", "running").await["directive"], "running");
}

#[tokio::test]
async fn a_worker_that_is_told_to_terminate_finishes_what_it_has_and_ends() {
    let kit = GalleyKit::start().await;
    let folder = TestFolder::new();
    folder.write_rules(&gated("slow", &folder));
    let mut eater = named(&kit, "eater", &[SLOW, (RULES_VARIABLE, &folder.path_text("rules.toml"))]).await;
    let id = kit.enqueue(&job_body("slow", &json!([]))).await;
    kit.wait_for_state(&id, "active").await;
    direct(&kit, "eater", "terminate").await;
    is(&kit, "eater", "terminating").await;
    // The first signal after that is still the first: it may finish
    eater.signal(Signal::SIGTERM);
    eater.wait_for_event("process.stopping").await;
    folder.touch("gate");
    assert!(eater.wait_for_exit().await.success());
    assert_eq!(kit.job(&id).await["state"], "completed");
    assert!(workers(&kit).await.is_empty(), "who says goodbye is not on the list any more");
    assert_eq!(kit.get("/ojs/v1/workers/eater").await.status(), 404);
}

#[tokio::test]
async fn sigtstp_makes_a_worker_quiet_and_sigcont_lets_it_go_on() {
    let kit = GalleyKit::start().await;
    let eater = named(&kit, "eater", &[SLOW]).await;
    for _ in 0..3 {
        eater.signal(Signal::SIGTSTP);
        is(&kit, "eater", "quiet").await;
        let id = kit.enqueue(&job_body("test.noop", &json!([]))).await;
        assert_eq!(kit.job(&id).await["state"], "available");
        eater.signal(Signal::SIGCONT);
        kit.wait_for_state(&id, "completed").await;
    }
    // The last word counts, a client that said it
    eater.signal(Signal::SIGTSTP);
    is(&kit, "eater", "quiet").await;
    direct(&kit, "eater", "resume").await;
    is(&kit, "eater", "running").await;
    direct(&kit, "eater", "quiet").await;
    is(&kit, "eater", "quiet").await;
    eater.signal(Signal::SIGCONT);
    is(&kit, "eater", "running").await;
    direct(&kit, "eater", "quiet").await;
    is(&kit, "eater", "quiet").await;
    assert!(eater.terminate().await.success(), "a quiet worker ends like any other");
}

#[tokio::test]
async fn a_directive_whose_call_was_missed_is_found_with_the_next_report() {
    let kit = GalleyKit::start().await;
    let _eater = named(&kit, "eater", &[QUICK]).await;
    let consumer = worker(&kit, "eater").await["consumer"].as_str().expect("a consumer").to_owned();
    kit.redis_command(&["SET", &format!("galley:directive:{consumer}"), "quiet 1"]).await;
    is(&kit, "eater", "quiet").await;
    // An emptied Redis has forgotten the worker and the directive; the worker has not
    kit.redis_command(&["FLUSHALL"]).await;
    is(&kit, "eater", "quiet").await;
    direct(&kit, "eater", "resume").await;
    is(&kit, "eater", "running").await;
}

#[tokio::test]
async fn who_vanishes_drops_off_the_list_and_who_is_frozen_comes_back() {
    let kit = GalleyKit::start().await;
    let doomed = named(&kit, "doomed", &[QUICK]).await;
    let frozen = named(&kit, "frozen", &[QUICK]).await;
    doomed.kill();
    frozen.signal(Signal::SIGSTOP);
    eventually("both are gone", || async { workers(&kit).await.is_empty().then_some(()) }).await;
    frozen.signal(Signal::SIGCONT);
    is(&kit, "frozen", "running").await;
    assert_eq!(workers(&kit).await.len(), 1);
}

#[tokio::test]
async fn workers_of_the_same_name_are_told_apart_by_their_ids_and_listed_page_by_page() {
    let kit = GalleyKit::start().await;
    let (_one, _two) = (
        kit.start_worker(&[QUICK, ("GALLEY__QUEUE_WORKER__NAME", "twin")]).await,
        kit.start_worker(&[QUICK, ("GALLEY__QUEUE_WORKER__NAME", "twin")]).await,
    );
    let both = eventually("both are there", || async { Some(workers(&kit).await).filter(|all| all.len() == 2) }).await;
    assert_eq!(kit.post("/ojs/v1/workers/twin/quiet", &json!({})).await.status(), 409);
    let (first, second) = (both[0]["id"].as_str().expect("an id"), both[1]["id"].as_str().expect("an id"));
    direct(&kit, second, "quiet").await;
    is(&kit, second, "quiet").await;
    assert_eq!(worker(&kit, first).await["state"], "running");
    let page: Value = kit.get("/ojs/v1/workers?limit=1").await.json().await.expect("JSON");
    assert_eq!((&page["items"][0]["id"], &page["total"], &page["next"]), (&json!(first), &json!(2), &json!(first)));
    let page: Value = kit.get(&format!("/ojs/v1/workers?after={first}")).await.json().await.expect("JSON");
    assert_eq!((&page["items"][0]["id"], &page["next"]), (&json!(second), &Value::Null));
    for (path, status) in [("?limit=0", 400), ("?limit=501", 400), ("?after=a%20b", 400), ("/nobody", 404)] {
        assert_eq!(kit.get(&format!("/ojs/v1/workers{path}")).await.status(), status, "{path}");
    }
    assert_eq!(kit.post("/ojs/v1/workers/nobody/terminate", &json!({})).await.status(), 404);
}

#[tokio::test]
async fn a_program_that_fetches_is_on_the_list_and_hears_directives_with_its_heartbeat() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("any.type", &json!([]))).await;
    kit.fetch("default").await.expect("a job");
    let beat = json!({ "worker_id": "puller", "active_jobs": [id], "state": "running", "hostname": "h", "pid": 5 });
    let said = async || {
        let response = kit.post("/ojs/v1/workers/heartbeat", &beat).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.expect("JSON");
        answer["state"].as_str().expect("a state").to_owned()
    };
    assert_eq!(said().await, "running");
    let listed = worker(&kit, "puller").await;
    assert_eq!((&listed["kind"], &listed["queues"]), (&json!("pull"), &json!(["default"])));
    assert_eq!((&listed["hostname"], &listed["pid"], &listed["active_jobs"]), (&json!("h"), &json!(5), &json!(1)));
    assert_eq!(listed["jobs"][0]["id"], json!(id));
    for (directive, heard, state) in
        [("quiet", "quiet", "quiet"), ("resume", "running", "running"), ("terminate", "terminate", "terminating")]
    {
        direct(&kit, "puller", directive).await;
        assert_eq!(said().await, heard);
        assert_eq!(worker(&kit, "puller").await["state"], state);
    }
    let bad = json!({ "worker_id": "a b", "active_jobs": [] });
    assert_eq!(kit.post("/ojs/v1/workers/heartbeat", &bad).await.status(), 400);
}

#[tokio::test]
async fn programs_that_fetch_cannot_fill_redis() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[("GALLEY__JOBS__MAX_PULL_WORKERS", "3")]).await;
    for number in 0..10 {
        let body = json!({ "queues": ["default"], "worker_id": format!("w{number}") });
        assert_eq!(kit.post("/ojs/v1/workers/fetch", &body).await.status(), 200);
    }
    assert_eq!(workers(&kit).await.len(), 3);
    // Queue-workers are not held back by them
    let _eater = named(&kit, "eater", &[]).await;
    assert_eq!(workers(&kit).await.len(), 4);
}

#[tokio::test]
async fn workers_are_listed_and_quiet_again_after_redis_was_away() {
    let mut kit = GalleyKit::start_durable(&[]).await;
    let _eater = named(&kit, "eater", &[QUICK]).await;
    direct(&kit, "eater", "quiet").await;
    is(&kit, "eater", "quiet").await;
    kit.redis.kill();
    assert_eq!(kit.get("/ojs/v1/workers").await.status(), 503);
    kit.redis.restart();
    eventually("it reports again", || async {
        let answer: Value = kit.get("/ojs/v1/workers/eater").await.json().await.ok()?;
        (answer["worker"]["state"] == "quiet").then_some(())
    })
    .await;
    let id = eventually("a job is taken again", || async {
        let answer: Value = kit.post("/ojs/v1/jobs", &job_body("test.noop", &json!([]))).await.json().await.ok()?;
        answer["job"]["id"].as_str().map(ToOwned::to_owned)
    })
    .await;
    assert_eq!(kit.job(&id).await["state"], "available");
    direct(&kit, "eater", "resume").await;
    kit.wait_for_state(&id, "completed").await;
}

#[tokio::test]
async fn a_program_that_starts_again_under_its_old_id_is_not_told_to_terminate() {
    let kit = GalleyKit::start().await;
    let said = async |id: &str, more: Value| {
        let mut beat = json!({ "worker_id": id, "active_jobs": [] });
        beat.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer: Value = kit.post("/ojs/v1/workers/heartbeat", &beat).await.json().await.expect("JSON");
        answer["state"].as_str().expect("a state").to_owned()
    };
    let (old, new) = (json!({ "hostname": "h", "pid": 5 }), json!({ "hostname": "h", "pid": 6 }));
    // It says who it is, or how far it is, or it asks for jobs again
    assert_eq!(said("by-pid", old.clone()).await, "running");
    direct(&kit, "by-pid", "terminate").await;
    assert_eq!(
        (said("by-pid", old.clone()).await, said("by-pid", old).await),
        ("terminate".into(), "terminate".into())
    );
    assert_eq!((said("by-pid", new.clone()).await, said("by-pid", new).await), ("running".into(), "running".into()));

    assert_eq!(said("by-state", json!({ "state": "running" })).await, "running");
    direct(&kit, "by-state", "terminate").await;
    assert_eq!(said("by-state", json!({ "state": "running" })).await, "terminate");
    assert_eq!(said("by-state", json!({ "state": "terminate" })).await, "terminate");
    assert_eq!(said("by-state", json!({ "state": "running" })).await, "running");

    assert_eq!(said("by-fetch", json!({})).await, "running");
    direct(&kit, "by-fetch", "terminate").await;
    assert_eq!(said("by-fetch", json!({})).await, "terminate");
    kit.post("/ojs/v1/workers/fetch", &json!({ "queues": ["default"], "worker_id": "by-fetch" })).await;
    assert_eq!(said("by-fetch", json!({})).await, "running");
}
