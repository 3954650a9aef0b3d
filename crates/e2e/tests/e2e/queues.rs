//! Queues: looking at them, holding them back, emptying and deleting them.

use serde_json::{Value, json};
use testkit::{RedisServer, eventually};

use crate::kit::GalleyKit;

const QUEUES: (&str, &str) = ("GALLEY__QUEUE_WORKER__QUEUES", "orders");

fn order(job_type: &str) -> Value {
    json!({ "type": job_type, "args": [], "queue": "orders" })
}

async fn ask(kit: &GalleyKit, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
    let request = kit.http.request(method, kit.gateway.url(path)).header("content-type", "application/json");
    let response = request.body(body.to_string()).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn post(kit: &GalleyKit, what: &str) -> Value {
    let (status, answer) = ask(kit, reqwest::Method::POST, &format!("/ojs/v1/queues/orders/{what}"), &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    answer["queue"].clone()
}

async fn stats(kit: &GalleyKit) -> Value {
    let answer: Value = kit.get("/ojs/v1/queues/orders").await.json().await.expect("JSON");
    answer["queue"].clone()
}

#[tokio::test]
async fn queues_are_listed_page_by_page_with_what_is_in_them() {
    let kit = GalleyKit::start().await;
    for (queue, count) in [("a", 1), ("b", 2), ("c", 3)] {
        for _ in 0..count {
            kit.enqueue(&json!({ "type": "t", "args": [], "queue": queue })).await;
        }
    }
    kit.enqueue(&json!({ "type": "t", "args": [], "queue": "c", "scheduled_at": "+PT1H" })).await;
    kit.enqueue(&json!({ "type": "t", "args": [], "queue": "c", "pending": true })).await;
    kit.fetch("c").await.expect("a job");
    let list = async |query: &str| -> Value {
        let answer: Value = kit.get(&format!("/ojs/v1/queues{query}")).await.json().await.expect("JSON");
        answer
    };
    let all = list("").await;
    let shown: Vec<_> = all["queues"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|q| (q["name"].clone(), q["available"].clone()))
        .collect();
    assert_eq!(shown, [(json!("a"), json!(1)), (json!("b"), json!(2)), (json!("c"), json!(2))]);
    let c = &all["queues"][2];
    assert_eq!((&c["active"], &c["waiting"], &c["pending"]), (&json!(1), &json!(1), &json!(1)), "{c}");
    let page = list("?limit=1&after=a").await;
    assert_eq!((&page["queues"][0]["name"], &page["more"]), (&json!("b"), &json!(true)));
    assert_eq!(list("?after=b").await["more"], json!(false));
    let one: Value = kit.get("/ojs/v1/queues/c/stats").await.json().await.expect("JSON");
    assert_eq!(&one["queue"], c);
    for wrong in ["?limit=0", "?limit=1001", "?limit=x"] {
        assert_eq!(kit.get(&format!("/ojs/v1/queues{wrong}")).await.status(), 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_paused_queue_takes_jobs_and_hands_out_none() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "orders,default")]).await;
    assert_eq!(post(&kit, "pause").await["paused"], true);
    let waiting = kit.enqueue(&order("test.noop")).await;
    assert_eq!(kit.fetch("orders").await, None);
    // The worker has heard of it when a job of another queue goes through, and of this one none
    for _ in 0..3 {
        let other = kit.enqueue(&json!({ "type": "test.noop", "args": [] })).await;
        kit.wait_for_state(&other, "completed").await;
    }
    assert_eq!(kit.job(&waiting).await["state"], "available");
    assert_eq!(post(&kit, "pause").await["paused"], true, "twice is once");
    assert_eq!(post(&kit, "resume").await["paused"], false);
    kit.wait_for_state(&waiting, "completed").await;
}

#[tokio::test]
async fn a_queue_that_is_drained_takes_no_new_jobs_and_works_off_the_old() {
    let kit = GalleyKit::start().await;
    let mut old = Vec::new();
    for _ in 0..5 {
        old.push(kit.enqueue(&order("test.noop")).await);
    }
    assert_eq!(post(&kit, "drain").await["closed"], true);
    let refused = eventually("new jobs are refused", || async {
        let response = kit.post("/ojs/v1/jobs", &order("test.noop")).await;
        (response.status() == 503).then_some(response)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.expect("JSON");
    assert_eq!((&error["error"]["code"], &error["error"]["retryable"]), (&json!("queue_closed"), &json!(true)));
    let batch = json!({ "jobs": [{ "type": "test.noop", "args": [] }, order("test.noop")] });
    assert_eq!(kit.post("/ojs/v1/jobs/batch", &batch).await.status(), 503);
    let _worker = kit.start_worker(&[QUEUES]).await;
    for id in &old {
        kit.wait_for_state(id, "completed").await;
    }
    assert_eq!(stats(&kit).await["available"], 0);
    assert_eq!(post(&kit, "resume").await["closed"], false);
    eventually("it takes jobs again", || async {
        (kit.post("/ojs/v1/jobs", &order("test.noop")).await.status() == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn limits_can_be_set_and_taken_away_at_run_time() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[QUEUES]).await;
    let set = async |limits: Value| ask(&kit, reqwest::Method::PUT, "/ojs/v1/queues/orders/limits", &limits).await;
    for wrong in [
        json!({ "concurrency": -1 }),
        json!({ "concurrency": "2" }),
        json!({ "rate": { "limit": 0, "period": "PT1S" } }),
        json!({ "rate": { "limit": 1 } }),
        json!({ "max_depth": 5 }),
    ] {
        let (status, answer) = set(wrong.clone()).await;
        assert_eq!(status, 400, "{wrong}: {answer}");
    }
    let (status, answer) = set(json!({ "concurrency": 0 })).await;
    assert_eq!((status, &answer["queue"]["limits"]["concurrency"]), (200, &json!(0)), "{answer}");
    let stopped = kit.enqueue(&order("test.noop")).await;
    assert_eq!(kit.fetch("orders").await, None, "nobody gets it");
    assert_eq!(kit.job(&stopped).await["state"], "available");
    let (_, answer) = set(json!({ "rate": { "limit": 1, "period": "PT1H" } })).await;
    let limits = &answer["queue"]["limits"];
    assert_eq!(
        (&limits["concurrency"], &limits["rate"]),
        (
            &Value::Null,
            &json!({ "limit": 1, "period": "PT3600S", "period_ms": 3_600_000, "burst": 1, "strict": false })
        )
    );
    kit.wait_for_state(&stopped, "completed").await;
    let second = kit.enqueue(&order("test.noop")).await;
    assert_eq!(kit.fetch("orders").await, None, "one an hour is used up");
    assert_eq!(kit.job(&second).await["state"], "available");
    set(json!({})).await;
    kit.wait_for_state(&second, "completed").await;
}

#[tokio::test]
async fn what_waits_in_a_queue_is_cancelled_only_when_somebody_means_it() {
    let kit = GalleyKit::start().await;
    let ids = [
        kit.enqueue(&order("t")).await,
        kit.enqueue(&order("t")).await,
        kit.enqueue(&json!({ "type": "t", "args": [], "queue": "orders", "scheduled_at": "+PT1H" })).await,
        kit.enqueue(&json!({ "type": "t", "args": [], "queue": "orders", "pending": true })).await,
        kit.enqueue(
            &json!({ "type": "t", "args": [], "queue": "orders", "rate_limit": { "key": "k", "concurrency": 0 } }),
        )
        .await,
    ];
    let running = kit.fetch("orders").await.expect("a job");
    assert_eq!(running["id"], json!(ids[0]));
    let purge = async |body: Value| ask(&kit, reqwest::Method::DELETE, "/ojs/v1/queues/orders/jobs", &body).await;
    for wrong in [json!({}), json!({ "confirm": "other" }), json!({ "confirm": true })] {
        assert_eq!(purge(wrong.clone()).await.0, 400, "{wrong}");
    }
    let (_, answer) = purge(json!({})).await;
    assert_eq!(answer["error"]["code"], "confirmation_required");
    for wrong in [json!({ "states": ["active"] }), json!({ "states": [] }), json!({ "limit": 0 })] {
        let mut body = wrong;
        body["confirm"] = json!("orders");
        assert_eq!(purge(body.clone()).await.0, 400, "{body}");
    }
    assert_eq!(purge(json!({ "confirm": "orders", "states": ["scheduled"] })).await.1["purged"], 1);
    assert_eq!(kit.job(&ids[2]).await["state"], "cancelled");
    let (status, answer) = purge(json!({ "confirm": "orders" })).await;
    assert_eq!((status, &answer["purged"], &answer["more"]), (200, &json!(3), &json!(false)), "{answer}");
    for id in [&ids[1], &ids[3], &ids[4]] {
        assert_eq!(kit.job(id).await["state"], "cancelled");
    }
    assert_eq!(kit.job(&ids[0]).await["state"], "active", "what runs is left alone");
}

#[tokio::test]
async fn a_queue_is_deleted_when_it_holds_no_jobs() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&order("t")).await;
    let delete = async |body: Value| ask(&kit, reqwest::Method::DELETE, "/ojs/v1/queues/orders", &body).await;
    assert_eq!(delete(json!({})).await.0, 400);
    let (status, answer) = delete(json!({ "confirm": "orders" })).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("queue_not_empty")));
    let job = kit.fetch("orders").await.expect("a job");
    assert_eq!(delete(json!({ "confirm": "orders" })).await.0, 409, "a job runs");
    let ack = json!({ "job_id": job["id"], "token": job["token"] });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let (status, answer) = delete(json!({ "confirm": "orders" })).await;
    assert_eq!((status, &answer["deleted"]), (200, &json!(true)), "{answer}");
    let listed: Value = kit.get("/ojs/v1/queues").await.json().await.expect("JSON");
    assert_eq!(listed["queues"], json!([]));
    // It comes to be again with its next job
    let id = kit.enqueue(&order("test.noop")).await;
    let _worker = kit.start_worker(&[QUEUES]).await;
    kit.wait_for_state(&id, "completed").await;
}

#[tokio::test]
async fn a_producer_can_wait_for_room_in_a_full_queue() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__QUEUES__ORDERS__MAX_DEPTH", "1")]).await;
    kit.enqueue(&order("t")).await;
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let request = request.body(order("t").to_string());
    let refused = request.try_clone().expect("clones").header("prefer", "wait=0").send().await.expect("an answer");
    assert_eq!(refused.status(), 429);
    let waiting = tokio::spawn(request.header("prefer", "wait=20").send());
    // A client that takes the first job makes room for the second; then there are two to be had
    let first = kit.fetch("orders").await.expect("a job");
    let second = eventually("the other one comes in", || async { kit.fetch("orders").await }).await;
    assert_ne!(first["id"], second["id"]);
    let ack = json!({ "job_id": second["id"], "token": second["token"], "result": 7 });
    assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 201);
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!((&answer["job"]["id"], &answer["job"]["result"]), (&second["id"], &json!(7)));
}

#[tokio::test]
async fn a_queue_that_does_not_exist_is_not_found_and_not_made_unless_asked_for() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&order("t")).await;
    let confirmed = json!({ "confirm": "oders" });
    for (method, path, body) in [
        ("GET", "/ojs/v1/queues/oders", json!({})),
        ("GET", "/ojs/v1/queues/oders/stats", json!({})),
        ("POST", "/ojs/v1/queues/oders/pause", json!({})),
        ("POST", "/ojs/v1/queues/oders/resume", json!({})),
        ("POST", "/ojs/v1/queues/oders/drain", json!({})),
        ("PUT", "/ojs/v1/queues/oders/limits", json!({ "concurrency": 1 })),
        ("DELETE", "/ojs/v1/queues/oders/jobs", confirmed.clone()),
        ("DELETE", "/ojs/v1/queues/oders", confirmed),
        ("GET", "/ojs/v1/dead-letter?queue=oders", json!({})),
        ("POST", "/ojs/v1/dead-letter/retry", json!({ "confirm": true, "filter": { "queue": "oders" } })),
        ("GET", "/ojs/v1/admin/fsck?queue=oders", json!({})),
        ("POST", "/ojs/v1/admin/fsck", json!({ "queue": "oders" })),
    ] {
        let (status, answer) = ask(&kit, method.parse().expect("a method"), path, &body).await;
        assert_eq!(status, 404, "{method} {path}: {answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.starts_with(r#"queue "oders" does not exist, did you mean "orders"?"#), "{path}: {message}");
    }
    let listed: Value = kit.get("/ojs/v1/queues").await.json().await.expect("JSON");
    assert_eq!(listed["queues"].as_array().map(Vec::len), Some(1), "{listed}");
    let (status, answer) = ask(&kit, reqwest::Method::POST, "/ojs/v1/queues/new/pause?create=true", &json!({})).await;
    assert_eq!((status, &answer["queue"]["paused"]), (200, &json!(true)), "{answer}");
    assert_eq!(kit.get("/ojs/v1/queues/new").await.status(), 200);
    let (status, _) = ask(&kit, reqwest::Method::GET, "/ojs/v1/queues/newer?create=yes", &json!({})).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn the_limits_of_a_queue_can_be_set_as_they_are_shown() {
    let (name, queue) = ("GALLEY__QUEUES__ORDERS__MAX_DEPTH", "GALLEY__QUEUES__ORDERS__CONCURRENCY");
    let kit = GalleyKit::start_with(RedisServer::start(), &[(name, "1000"), (queue, "7")]).await;
    let set = async |limits: &Value| ask(&kit, reqwest::Method::PUT, "/ojs/v1/queues/orders/limits", limits).await;
    let limits = json!({ "rate": { "limit": 5, "period": "PT1.5S" }, "priority_aging": "PT1M" });
    let (status, answer) = set(&limits).await;
    assert_eq!(status, 200, "a queue of the settings exists: {answer}");
    let shown = answer["queue"]["limits"].clone();
    let expected = json!({
        "max_depth": 1000, "concurrency": 7,
        "rate": { "limit": 5, "period": "PT1.5S", "period_ms": 1500, "burst": 5, "strict": false },
        "priority_aging": "PT60S",
    });
    assert_eq!(shown, expected);
    let (status, again) = set(&shown).await;
    assert_eq!((status, &again["queue"]["limits"]), (200, &shown), "{again}");
    let (status, none) =
        set(&json!({ "max_depth": null, "concurrency": null, "rate": null, "priority_aging": null })).await;
    let limits = &none["queue"]["limits"];
    assert_eq!((status, &limits["rate"], &limits["priority_aging"]), (200, &json!(null), &json!(null)), "{none}");
    for wrong in [
        json!({ "max_depth": 5 }),
        json!({ "rate": { "limit": 5, "period": "PT1S", "period_ms": 2000 } }),
        json!({ "rate": { "limit": 5 } }),
        json!({ "priority_aging": 60 }),
        json!({ "priority_aging": "PT0S" }),
        json!({ "priority_aging": "P8D" }),
    ] {
        assert_eq!(set(&wrong).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_fetch_and_events_of_a_queue_that_does_not_exist_work_and_say_which_name_was_perhaps_meant() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&json!({ "type": "x", "args": [], "queue": "billing" })).await;
    let fetch = async |queues: &[&str]| -> Value {
        let response = kit.post("/ojs/v1/workers/fetch", &json!({ "queues": queues })).await;
        assert_eq!(response.status(), 200);
        response.json().await.expect("JSON")
    };
    let meant = json!(["queue \"biling\" does not exist before its first job, did you mean \"billing\"?"]);
    let answer = fetch(&["biling"]).await;
    assert_eq!((&answer["jobs"], &answer["warnings"]), (&json!([]), &meant));
    let answer = fetch(&["tomorrow"]).await;
    assert_eq!(answer["warnings"], json!(["queue \"tomorrow\" does not exist before its first job"]));
    for path in ["/ojs/v1/events?queues=biling,billing", "/ojs/v1/queues/biling/events"] {
        let request = kit.http.get(kit.gateway.url(path)).header("accept", "application/json");
        let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!(answer["warnings"], meant, "{path}");
    }
    // What exists, and what is found, needs no warning
    assert_eq!(fetch(&["biling", "billing"]).await["jobs"][0]["queue"], "billing");
    assert_eq!(fetch(&["billing"]).await, json!({ "jobs": [] }));
    // The first job may come later than its worker
    let waiting = json!({ "queues": ["tomorrow"], "wait_ms": 60_000 });
    let waiting = async {
        let answer: Value = kit.post("/ojs/v1/workers/fetch", &waiting).await.json().await.expect("JSON");
        answer["jobs"][0]["type"].clone()
    };
    let first = json!({ "type": "y", "args": [], "queue": "tomorrow" });
    assert_eq!(tokio::join!(waiting, kit.enqueue(&first)).0, "y");
}
