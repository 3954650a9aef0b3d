//! Limits of a key, limits of a queue, and turns.

use serde_json::{Value, json};
use testkit::{RedisServer, eventually};

use crate::kit::GalleyKit;

const WORK: (&str, &str) = ("GALLEY__QUEUE_WORKER__QUEUES", "work");

fn slow(ms: u64, key: &str, concurrency: u32) -> Value {
    let limit = json!({ "key": key, "concurrency": concurrency });
    json!({ "type": "test.slow", "args": [ms], "queue": "work", "rate_limit": limit })
}

async fn stats(kit: &GalleyKit, queue: &str) -> Value {
    let answer: Value = kit.get(&format!("/ojs/v1/queues/{queue}")).await.json().await.expect("JSON");
    answer["queue"].clone()
}

/// Waits until all are completed and gives the most that ran at the same time, by what each says of itself.
async fn max_concurrency(kit: &GalleyKit, ids: &[String]) -> usize {
    let mut runs = Vec::new();
    for id in ids {
        let done = kit.wait_for_state(id, "completed").await;
        let time = |name: &str| done[name].as_str().expect("a time").to_owned();
        runs.push((time("started_at"), time("completed_at")));
    }
    let running_at = |moment: &String| runs.iter().filter(|(from, to)| from <= moment && moment < to).count();
    runs.iter().map(|(from, _)| running_at(from)).max().unwrap_or_default()
}

/// Enqueues three endless jobs where two may run at once, waits until two do, and gives the ids of all.
async fn occupy_both_places(kit: &GalleyKit, endless: &Value) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(endless).await);
    }
    eventually("both places are used", || async { (stats(kit, "work").await["active"] == 2).then_some(()) }).await;
    ids
}

#[tokio::test]
async fn jobs_of_a_key_never_run_more_than_its_limit_at_once_in_all_workers_together() {
    let kit = GalleyKit::start().await;
    let (_one, _two) = (kit.start_worker(&[WORK]).await, kit.start_worker(&[WORK]).await);
    let endless = occupy_both_places(&kit, &slow(600_000, "tenant", 2)).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(kit.enqueue(&slow(150, "tenant", 2)).await);
    }
    for id in &endless {
        kit.cancel(id).await;
    }
    assert!((1..=2).contains(&max_concurrency(&kit, &ids).await));
}

#[tokio::test]
async fn a_tenant_with_many_slow_jobs_does_not_delay_another() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[WORK, ("GALLEY__QUEUE_WORKER__CONCURRENCY", "4")]).await;
    let mut many = Vec::new();
    for _ in 0..50 {
        many.push(kit.enqueue(&slow(600_000, "a", 2)).await);
    }
    eventually("as many run as may", || async { (stats(&kit, "work").await["active"] == 2).then_some(()) }).await;
    for _ in 0..3 {
        let other = kit.enqueue(&slow(1, "b", 2)).await;
        kit.wait_for_state(&other, "completed").await;
    }
    let now = stats(&kit, "work").await;
    assert_eq!((&now["active"], &now["completed"]), (&json!(2), &json!(3)), "{now}");
    // Cancelling one that runs makes room for the next of its key
    let url = kit.gateway.url(&format!("/ojs/v1/jobs/{}", many[0]));
    assert_eq!(kit.http.delete(url).send().await.expect("an answer").status(), 200);
    kit.wait_for_state(&many[2], "active").await;
    assert_eq!(kit.job(&many[3]).await["state"], "available");
}

#[tokio::test]
async fn keys_hold_over_http_too_and_a_job_that_vanished_gives_its_place_back() {
    let kit = GalleyKit::start().await;
    let keyed = json!({ "type": "a", "args": [], "rate_limit": { "key": "k", "concurrency": 1 } });
    let [first, second, third] = [kit.enqueue(&keyed).await, kit.enqueue(&keyed).await, kit.enqueue(&keyed).await];
    let ack = async |job: &Value| {
        let ack = json!({ "job_id": job["id"], "token": job["token"] });
        assert_eq!(kit.post("/ojs/v1/workers/ack", &ack).await.status(), 200);
    };
    let one = kit.fetch("default").await.expect("a job");
    assert_eq!((&one["id"], kit.fetch("default").await), (&json!(first), None));
    ack(&one).await;
    let short = json!({ "queues": ["default"], "worker_id": "puller", "visibility_timeout_ms": 1000 });
    let vanishing = eventually("the next one's turn comes", || async {
        let answer: Value = kit.post("/ojs/v1/workers/fetch", &short).await.json().await.ok()?;
        answer["jobs"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(vanishing["id"], json!(second));
    // Nobody says a word: the lease runs out, and the job comes back to the place it has
    let again = eventually("it comes back", || async { kit.fetch("default").await }).await;
    assert_eq!((&again["id"], &again["attempt"]), (&json!(second), &json!(2)));
    ack(&again).await;
    let next = eventually("the last one's turn comes", || async { kit.fetch("default").await }).await;
    assert_eq!(next["id"], json!(third));
}

#[tokio::test]
async fn a_queues_concurrency_holds_in_all_workers_together() {
    let limit = ("GALLEY__QUEUES__WORK__CONCURRENCY", "2");
    let kit = GalleyKit::start_with(RedisServer::start(), &[limit]).await;
    let (_one, _two) = (kit.start_worker(&[WORK, limit]).await, kit.start_worker(&[WORK, limit]).await);
    let slow = |ms: u64| json!({ "type": "test.slow", "args": [ms], "queue": "work" });
    let endless = occupy_both_places(&kit, &slow(600_000)).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(kit.enqueue(&slow(150)).await);
    }
    for id in &endless {
        kit.cancel(id).await;
    }
    assert!((1..=2).contains(&max_concurrency(&kit, &ids).await));
}

#[tokio::test]
async fn a_rate_lets_no_more_start_than_it_says() {
    let kit = GalleyKit::start().await;
    let _worker = kit.start_worker(&[WORK]).await;
    let limited = json!({ "type": "test.noop", "args": [], "queue": "work", "rate_limit": { "key": "k", "rate": { "limit": 3, "period": "PT1H" } } });
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(kit.enqueue(&limited).await);
    }
    for id in &ids[..3] {
        kit.wait_for_state(id, "completed").await;
    }
    // Others go through meanwhile
    let other = kit.enqueue(&json!({ "type": "test.noop", "args": [], "queue": "work" })).await;
    kit.wait_for_state(&other, "completed").await;
    for id in &ids[3..] {
        assert_eq!(kit.job(id).await["state"], "available");
    }
}

#[tokio::test]
async fn a_queue_of_little_weight_is_not_starved_by_a_busy_one() {
    let kit = GalleyKit::start().await;
    let mut ids = Vec::new();
    for n in 0..300 {
        let queue = if n < 3 { "calm" } else { "busy" };
        ids.push(kit.enqueue(&json!({ "type": "test.slow", "args": [20], "queue": queue })).await);
    }
    let _worker = kit
        .start_worker(&[
            ("GALLEY__QUEUE_WORKER__QUEUES", "busy,calm"),
            ("GALLEY__QUEUE_WORKER__CONCURRENCY", "1"),
            ("GALLEY__QUEUE_WORKER__WEIGHTS__BUSY", "9"),
        ])
        .await;
    let mut calm = Vec::new();
    for id in &ids[..3] {
        let done = kit.wait_for_state(id, "completed").await;
        calm.push(done["completed_at"].as_str().expect("a time").to_owned());
    }
    // It may have ended since
    let last_busy = kit.job(&ids[299]).await;
    let is_later = |start: &str| calm.iter().all(|end| end.as_str() <= start);
    assert!(last_busy["started_at"].as_str().is_none_or(is_later), "while the busy one was still waiting: {last_busy}");
}
