//! The admin API: lists, searches and actions, as `spec/ojs-admin-api.md` of the Open Job Spec has them.

use reqwest::Method;
use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::GalleyKit;

async fn ask(kit: &GalleyKit, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let request = kit.http.request(method, kit.gateway.url(&format!("/ojs/v1/admin{path}")));
    let request = match body {
        Value::Null => request,
        body => request.header("content-type", "application/json").body(body.to_string()),
    };
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn get(kit: &GalleyKit, path: &str) -> Value {
    let (status, answer) = ask(kit, Method::GET, path, &Value::Null).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn post(kit: &GalleyKit, path: &str, body: &Value) -> Value {
    let (status, answer) = ask(kit, Method::POST, path, body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

fn ids(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap_or_else(|| panic!("{list}"));
    items.iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
}

/// Fetches a job of a queue and reports that it failed for good.
async fn fail(kit: &GalleyKit, queue: &str, message: &str) -> String {
    let job = kit.fetch(queue).await.expect("a job waits");
    let error = json!({ "code": "handler_error", "message": message, "retryable": false });
    let body = json!({ "job_id": job["id"], "token": job["token"], "error": error });
    assert_eq!(kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
    job["id"].as_str().expect("an id").to_owned()
}

async fn enqueue_dead(kit: &GalleyKit, queue: &str, message: &str) -> String {
    let retry = json!({ "max_attempts": 1, "on_exhaustion": "dead_letter" });
    kit.enqueue(&json!({ "type": "mail.send", "args": [1], "queue": queue, "retry": retry })).await;
    fail(kit, queue, message).await
}

#[tokio::test]
async fn jobs_are_listed_in_pages_by_state_queue_type_and_time() {
    let kit = GalleyKit::start().await;
    let mut enqueued = Vec::new();
    for number in 0..5 {
        // Of jobs of the same millisecond the list has those of the highest priority first
        let body = json!({ "type": format!("a.n{number}"), "args": [], "queue": "q", "priority": number / 3 });
        enqueued.push(kit.enqueue(&body).await);
    }
    let scheduled = kit.enqueue(&json!({ "type": "b", "args": [], "queue": "q", "scheduled_at": "+PT1H" })).await;
    enqueued.reverse();
    let first = get(&kit, "/jobs?state=available&per_page=2").await;
    assert_eq!(ids(&first), enqueued[..2]);
    assert_eq!(first["pagination"], json!({ "total": 5, "page": 1, "per_page": 2 }));
    assert_eq!(ids(&get(&kit, "/jobs?state=available&per_page=2&page=3").await), enqueued[4..]);
    let mut oldest = enqueued.clone();
    oldest.reverse();
    assert_eq!(ids(&get(&kit, "/jobs?state=available&order=asc").await), oldest);
    let by_priority = get(&kit, "/jobs?state=available&sort=priority").await;
    let priorities: Vec<_> =
        by_priority["items"].as_array().expect("jobs").iter().map(|job| &job["priority"]).collect();
    assert_eq!(priorities, [1, 1, 0, 0, 0]);
    assert_eq!(ids(&get(&kit, "/jobs").await)[0], scheduled, "the newest of all states");
    assert_eq!(get(&kit, "/jobs").await["pagination"]["total"], 6);
    assert_eq!(ids(&get(&kit, "/jobs?type=a.n3").await).len(), 1);
    assert_eq!(ids(&get(&kit, "/jobs?type=a.*&queue=q&since=-PT1H").await).len(), 5);
    assert_eq!(ids(&get(&kit, "/jobs?until=-PT1H").await), Vec::<String>::new());
    let searched = get(&kit, "/jobs?q=state:scheduled%20type:b&limit=10").await;
    assert_eq!(
        (ids(&searched), &searched["next"], &searched["complete"]),
        (vec![scheduled], &json!(null), &json!(true))
    );
    // A cursor goes through all of them, each once
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = get(&kit, &format!("/jobs?state=available&limit=2{after}")).await;
        seen.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, enqueued);
    assert_eq!(ask(&kit, Method::GET, "/jobs?queue=unknown", &Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_job_is_shown_whole_and_can_be_cancelled_changed_rescheduled_retried_and_deleted() {
    let kit = GalleyKit::start().await;
    let body = json!({ "type": "a", "args": [1], "meta": { "k": "v" }, "metadata": { "own": 1 }, "retry": { "max_attempts": 9 } });
    let id = kit.enqueue(&body).await;
    let path = format!("/jobs/{id}");
    let detail = get(&kit, &path).await;
    assert_eq!((&detail["id"], &detail["type"], &detail["state"]), (&json!(id), &json!("a"), &json!("available")));
    assert_eq!((&detail["specversion"], &detail["meta"]["k"]), (&json!("1.0"), &json!("v")));
    assert_eq!((&detail["errors"], &detail["result"]), (&json!([]), &json!(null)));
    assert_eq!((&detail["retry_policy"]["max_attempts"], &detail["metadata"]["own"]), (&json!(9), &json!(1)));
    assert_eq!(detail["metadata"]["created_at"], detail["created_at"]);

    let (status, changed) = ask(&kit, Method::PATCH, &path, &json!({ "args": [2], "priority": 7 })).await;
    assert_eq!((status, &changed["args"], &changed["priority"]), (200, &json!([2]), &json!(7)));
    let later = post(&kit, &format!("{path}/reschedule"), &json!({ "scheduled_at": "2999-01-01T00:00:00Z" })).await;
    assert_eq!((&later["state"], &later["scheduled_at"]), (&json!("scheduled"), &json!("2999-01-01T00:00:00Z")));
    for body in [
        json!({}),
        json!({ "args": {} }),
        json!({ "priority": 101 }),
        json!({ "scheduled_at": "soon" }),
        json!({ "x": 1 }),
    ] {
        assert_eq!(ask(&kit, Method::PATCH, &path, &body).await.0, 400, "{body}");
    }
    let cancelled = post(&kit, &format!("{path}/cancel"), &Value::Null).await;
    assert_eq!(cancelled["job"]["state"], "cancelled");
    let (status, _) = ask(&kit, Method::PATCH, &path, &json!({ "args": ["mended"] })).await;
    assert_eq!(status, 200, "before it is retried");
    let retried = post(&kit, &format!("{path}/retry"), &Value::Null).await;
    assert_eq!((&retried["job"]["state"], &retried["job"]["args"]), (&json!("available"), &json!(["mended"])));
    let running = kit.fetch("default").await.expect("a job");
    assert_eq!(ask(&kit, Method::PATCH, &path, &json!({ "priority": 1 })).await.0, 409);
    assert_eq!(ask(&kit, Method::DELETE, &format!("{path}?confirm=true"), &Value::Null).await.0, 409);
    let ack = json!({ "job_id": id, "token": running["token"], "result": { "n": 1 } });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    assert_eq!(ask(&kit, Method::PATCH, &path, &json!({ "priority": 1 })).await.0, 409);
    let (status, refused) = ask(&kit, Method::DELETE, &path, &Value::Null).await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("confirmation_required")));
    assert_eq!(ask(&kit, Method::DELETE, &format!("{path}?confirm=true"), &Value::Null).await.0, 200);
    assert_eq!(ask(&kit, Method::GET, &path, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn many_jobs_are_counted_then_acted_on_within_a_bound_and_only_when_confirmed() {
    let kit = GalleyKit::start().await;
    for number in 0..5 {
        enqueue_dead(&kit, "mail", if number < 3 { "Connection Reset by peer" } else { "no such user" }).await;
    }
    let filter = json!({ "queue": "mail", "state": "discarded", "error": "connection reset" });
    let bulk = async |action: &str, more: Value| {
        let mut body = json!({ "filter": filter.clone() });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        ask(&kit, Method::POST, &format!("/jobs/bulk/{action}"), &body).await
    };
    for action in ["retry", "cancel", "delete"] {
        let (status, refused) = bulk(action, json!({ "confirm": false })).await;
        assert_eq!((status, &refused["error"]["code"]), (400, &json!("confirmation_required")), "{action}");
    }
    assert_eq!(ask(&kit, Method::POST, "/jobs/bulk/delete", &json!({ "confirm": true })).await.0, 400, "no filter");
    let (status, counted) = bulk("retry", json!({ "dry_run": true })).await;
    assert_eq!((status, &counted["matched"], &counted["succeeded"]), (200, &json!(3), &json!(0)));
    let (status, _) = bulk("retry", json!({ "confirm": true, "max_matched": 2 })).await;
    assert_eq!(status, 409, "more than the client counted");
    let (_, some) = bulk("retry", json!({ "confirm": true, "limit": 2 })).await;
    assert_eq!((&some["matched"], &some["succeeded"], &some["failed"]), (&json!(2), &json!(2), &json!(0)));
    assert!(some["next"].is_string(), "one is left: {some}");
    let (_, rest) = bulk("retry", json!({ "confirm": true })).await;
    assert_eq!((&rest["action"], &rest["matched"], &rest["next"]), (&json!("retry"), &json!(1), &json!(null)));
    let waiting = get(&kit, "/jobs?state=available&queue=mail").await;
    assert_eq!(waiting["pagination"]["total"], 3);
    let cancelled = post(&kit, "/jobs/bulk/cancel", &json!({ "filter": { "queue": "mail" }, "confirm": true })).await;
    assert_eq!((&cancelled["matched"], &cancelled["succeeded"]), (&json!(3), &json!(3)));
    let (status, _) = bulk("cancel", json!({ "confirm": true })).await;
    assert_eq!(status, 400, "ended jobs cannot be cancelled");
    let deleted =
        post(&kit, "/jobs/bulk/delete", &json!({ "filter": { "state": "cancelled,discarded" }, "confirm": true }))
            .await;
    assert_eq!(deleted["succeeded"], 5);
    assert_eq!(get(&kit, "/jobs").await["pagination"]["total"], 0);
}

#[tokio::test]
async fn queues_are_listed_paused_limited_and_purged() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "a" })).await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "b", "retry": { "initial_interval": "PT1H" } })).await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "b", "scheduled_at": "+PT1H" })).await;
    let job = kit.fetch("b").await.expect("a job");
    let error = json!({ "code": "x", "message": "again" });
    kit.post("/ojs/v1/workers/nack", &json!({ "job_id": job["id"], "token": job["token"], "error": error })).await;
    let list = get(&kit, "/queues?per_page=1&page=2").await;
    assert_eq!(list["pagination"], json!({ "total": 2, "page": 2, "per_page": 1 }));
    let b = &list["items"][0];
    assert_eq!((&b["name"], &b["state"], &b["paused"]), (&json!("b"), &json!("active"), &json!(false)));
    let counts = &b["counts"];
    assert_eq!((&counts["scheduled"], &counts["retryable"], &counts["available"]), (&json!(1), &json!(1), &json!(0)));
    let detail = get(&kit, "/queues/a").await;
    assert!(detail["oldest_available_at"].is_string() && detail["configuration"]["retention"]["completed"].is_string());

    let paused = post(&kit, "/queues/a/pause", &Value::Null).await;
    assert_eq!((&paused["name"], &paused["paused"]), (&json!("a"), &json!(true)));
    assert!(paused["paused_at"].is_string() && kit.fetch("a").await.is_none());
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "a" })).await;
    assert_eq!(get(&kit, "/queues/a").await["counts"]["available"], 2, "jobs may come");
    assert_eq!(post(&kit, "/queues/a/resume", &Value::Null).await["paused"], false);
    let job = kit.fetch("a").await.expect("it hands out jobs again");
    let ack = json!({ "job_id": job["id"], "token": job["token"] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);

    let config =
        json!({ "concurrency": 30, "rate_limit": { "limit": 2000, "period": "PT1H" }, "priority_aging": "PT2M" });
    let (status, changed) = ask(&kit, Method::PUT, "/queues/a/config", &config).await;
    assert_eq!((status, &changed["configuration"]["concurrency"]), (200, &json!(30)));
    assert_eq!(changed["configuration"]["rate_limit"]["limit"], 2000);
    assert_eq!(changed["configuration"]["priority_aging"], "PT120S");
    let shown = changed["configuration"].clone();
    assert_eq!(ask(&kit, Method::PUT, "/queues/a/config", &shown).await.0, 200, "what is shown can be sent back");
    let retention = json!({ "retention": { "completed": "P14D" } });
    assert_eq!(ask(&kit, Method::PUT, "/queues/a/config", &retention).await.0, 400);

    for body in [json!({ "states": ["completed"] }), json!({ "states": ["completed"], "confirm": false })] {
        let (status, refused) = ask(&kit, Method::DELETE, "/queues/a/jobs", &body).await;
        assert_eq!((status, &refused["error"]["code"]), (400, &json!("confirmation_required")), "{body}");
    }
    let old = json!({ "states": ["completed"], "older_than": "-PT1H", "confirm": true });
    let (_, none) = ask(&kit, Method::DELETE, "/queues/a/jobs", &old).await;
    assert_eq!(none["purged_count"], 0);
    let all = json!({ "states": ["completed", "available"], "confirm": true });
    let (status, purged) = ask(&kit, Method::DELETE, "/queues/a/jobs", &all).await;
    assert_eq!((status, &purged["purged_count"], &purged["states"]), (200, &json!(2), &all["states"]));
    assert_eq!(ids(&get(&kit, "/jobs?queue=a&state=available,completed").await), Vec::<String>::new());
    assert_eq!(
        ask(&kit, Method::DELETE, "/queues/a/jobs", &json!({ "states": ["active"], "confirm": true })).await.0,
        400
    );
    assert_eq!(get(&kit, "/system/config").await["jobs"]["completed_max"], 100_000);
}

#[tokio::test]
async fn queues_show_what_happened_in_them_lately() {
    let flushing = [("GALLEY__STATISTICS__FLUSH_MS", "100")];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &flushing).await;
    let idle = json!({ "p50": null, "p95": null, "p99": null });
    kit.enqueue(&json!({ "type": "test.echo", "args": [], "queue": "other" })).await;
    let _worker = kit.start_worker(&flushing).await;
    let id = kit.enqueue(&json!({ "type": "test.echo", "args": [] })).await;
    kit.wait_for_state(&id, "completed").await;
    let shown = eventually("the sums have arrived", || async {
        let list = get(&kit, "/queues").await;
        (list["items"][0]["throughput"]["processed_per_minute"].as_f64() > Some(0.0)).then_some(list)
    })
    .await;
    let (busy, other) = (&shown["items"][0], &shown["items"][1]);
    assert_eq!((&busy["name"], &busy["throughput"]["failed_per_minute"]), (&json!("default"), &json!(0.0)));
    assert!(busy["latency_ms"]["p99"].is_number(), "{busy}");
    assert_eq!((&other["latency_ms"], &other["throughput"]["processed_per_minute"]), (&idle, &json!(0.0)));
    let detail = get(&kit, "/queues/default").await;
    assert_eq!(detail["latency_ms"], busy["latency_ms"]);
}

#[tokio::test]
async fn dead_letters_are_listed_changed_retried_and_purged() {
    let kit = GalleyKit::start().await;
    let mut dead = Vec::new();
    for number in 0..4 {
        dead.push(enqueue_dead(&kit, "mail", &format!("error {number}")).await);
    }
    dead.reverse();
    let list = get(&kit, "/dead-letter?queue=mail").await;
    assert_eq!((ids(&list), &list["pagination"]["total"]), (dead.clone(), &json!(4)));
    let stats = get(&kit, "/dead-letter/stats").await;
    assert_eq!((&stats["total"], &stats["by_queue"]["mail"]), (&json!(4), &json!(4)));
    assert_eq!(get(&kit, &format!("/dead-letter/{}", dead[0])).await["errors"][0]["message"], "error 3");
    let retried = post(&kit, &format!("/dead-letter/{}/retry", dead[0]), &Value::Null).await;
    assert_eq!((&retried["job"]["state"], &retried["job"]["attempt"]), (&json!("available"), &json!(0)));
    let many = post(&kit, "/dead-letter/retry", &json!({ "filter": { "error": "error 2" }, "confirm": true })).await;
    assert_eq!((&many["matched"], &many["succeeded"]), (&json!(1), &json!(1)));
    assert_eq!(ask(&kit, Method::DELETE, &format!("/dead-letter/{}", dead[2]), &Value::Null).await.0, 200);
    assert_eq!(ask(&kit, Method::DELETE, "/dead-letter", &json!({})).await.0, 400);
    let none = ask(&kit, Method::DELETE, "/dead-letter", &json!({ "older_than": "-PT1H", "confirm": true })).await.1;
    assert_eq!(none["purged_count"], 0);
    let (_, purged) = ask(&kit, Method::DELETE, "/dead-letter", &json!({ "confirm": true })).await;
    assert_eq!((&purged["purged_count"], &purged["more"]), (&json!(1), &json!(false)));
    assert_eq!(get(&kit, "/dead-letter").await["pagination"]["total"], 0);
}

#[tokio::test]
async fn workers_are_listed_quieted_and_a_dead_one_is_removed_and_its_jobs_go_on() {
    let kit = GalleyKit::start().await;
    // Nobody waits for the end of the dead worker's lease
    let worker = kit.start_worker(&[("GALLEY__JOBS__LEASE_MS", "3600000")]).await;
    let id = kit.enqueue(&json!({ "type": "test.timeout", "args": [] })).await;
    kit.wait_for_state(&id, "active").await;
    let list = eventually("the worker is listed", || async {
        let list = get(&kit, "/workers").await;
        (list["summary"]["total"] == 1).then_some(list)
    })
    .await;
    assert_eq!(list["summary"], json!({ "total": 1, "running": 1, "quiet": 0, "stale": 0 }));
    let shown = &list["items"][0];
    assert!(shown["last_heartbeat_at"].is_string() && shown["started_at"].is_string() && shown["queues"].is_array());
    let name = shown["id"].as_str().expect("an id").to_owned();
    assert_eq!(get(&kit, &format!("/workers/{name}")).await["id"], json!(name));
    let path = format!("/workers/{name}");
    assert_eq!(ask(&kit, Method::DELETE, &path, &Value::Null).await.0, 409, "it reports");
    assert_eq!(post(&kit, &format!("{path}/quiet"), &Value::Null).await["directive"], "quiet");
    eventually("the worker is quiet", || async {
        (get(&kit, "/workers").await["summary"]["quiet"] == 1).then_some(())
    })
    .await;
    worker.kill();
    // As if the three intervals of its last report had passed: shorter ones would make it stale when the machine is busy
    kit.redis_command(&["ZINCRBY", "galley:workers", "-15000", &name]).await;
    eventually("the worker is noticed missing", || async {
        (get(&kit, "/workers").await["summary"]["stale"] == 1).then_some(())
    })
    .await;
    assert_eq!(get(&kit, &path).await["state"], "stale");
    let (status, removed) = ask(&kit, Method::DELETE, &path, &Value::Null).await;
    assert_eq!((status, &removed["rescheduled_jobs"]), (200, &json!(1)), "{removed}");
    kit.wait_for_state(&id, "available").await;
    assert_eq!(get(&kit, "/workers").await["summary"]["total"], 0);
    assert_eq!(ask(&kit, Method::GET, &path, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn in_maintenance_mode_nothing_starts_and_jobs_may_come_and_what_operators_paused_stays_paused() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "old" })).await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "paused" })).await;
    post(&kit, "/queues/paused/pause", &Value::Null).await;
    assert_eq!(get(&kit, "/system/maintenance").await["maintenance"], false);
    let body = json!({ "enabled": true, "reason": "migration", "estimated_duration": "PT30M" });
    let on = post(&kit, "/system/maintenance", &body).await;
    assert_eq!((&on["maintenance"], &on["reason"]), (&json!(true), &json!("migration")));
    assert!(on["enabled_at"].is_string() && on["estimated_end"].is_string());
    assert_eq!(get(&kit, "/system/maintenance").await, on);

    let scheduled = kit.enqueue(&json!({ "type": "a", "args": [], "queue": "old", "scheduled_at": "+PT0.2S" })).await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "new" })).await;
    for queue in ["old", "new", "paused"] {
        assert!(kit.fetch(queue).await.is_none(), "{queue}");
        assert_eq!(get(&kit, &format!("/queues/{queue}")).await["paused"], true, "{queue}");
    }
    let entry = json!({ "name": "each-second", "cron": "* * * * * *", "job_template": { "type": "a", "args": [], "queue": "cron" } });
    assert_eq!(kit.post("/ojs/v1/cron", &entry).await.status(), 201);
    post(&kit, "/queues/paused/resume", &Value::Null).await;
    assert_eq!(get(&kit, "/queues/paused").await["paused"], true, "the mode is on");
    post(&kit, "/queues/paused/pause", &Value::Null).await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "old", "scheduled_at": "+PT0.2S" })).await;
    eventually("both jobs and the cron entry are overdue", || async {
        let now: (u64, u64) =
            testkit::redis::cmd("TIME").query_async(&mut kit.redis.connection().await).await.expect("redis runs");
        let now = (now.0 * 1000 + now.1 / 1000).to_string();
        let jobs = kit.redis_command(&["ZCOUNT", "galley:{old}:due", "-inf", &now]).await;
        let entries = kit.redis_command(&["ZCOUNT", "galley:{cron}:next", "-inf", &now]).await;
        ((jobs, entries) == (testkit::redis::Value::Int(2), testkit::redis::Value::Int(1))).then_some(())
    })
    .await;
    assert_eq!(kit.job(&scheduled).await["state"], json!("scheduled"));
    let entry: Value = kit.get("/ojs/v1/cron/each-second").await.json().await.expect("JSON");
    assert_eq!(entry["cron"]["run_count"].as_u64().unwrap_or(0), 0, "{entry}");

    assert_eq!(post(&kit, "/system/maintenance", &json!({ "enabled": false })).await["maintenance"], false);
    kit.wait_for_state(&scheduled, "available").await;
    assert!(kit.fetch("old").await.is_some() && kit.fetch("new").await.is_some());
    eventually("the cron entry runs", || async { kit.fetch("cron").await }).await;
    assert!(kit.fetch("paused").await.is_none(), "an operator paused it");
}
