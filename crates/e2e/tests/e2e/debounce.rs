//! `unique.on_conflict: debounce`: a series of requests makes one job, which runs with the last arguments.

use serde_json::{Value, json};
use testkit::eventually;

use crate::kit::GalleyKit;

fn request(args: &Value, unique: &Value) -> Value {
    let mut policy = json!({ "on_conflict": "debounce", "keys": ["meta"], "meta_keys": ["doc"] });
    policy.as_object_mut().expect("an object").extend(unique.as_object().expect("an object").clone());
    json!({ "type": "index.build", "args": args, "meta": { "doc": 7 }, "options": { "scheduled_at": "+PT1H", "unique": policy } })
}

#[tokio::test]
async fn a_series_of_requests_makes_one_job_with_the_last_arguments() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&request(&json!([1]), &json!({ "max_wait": "PT2H" }))).await;
    let first = kit.job(&id).await["scheduled_at"].as_str().expect("a time").to_owned();
    for args in 2..5 {
        let response = kit.post("/ojs/v1/jobs", &request(&json!([args]), &json!({ "max_wait": "PT2H" }))).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["location"].to_str().expect("text")),
            (200, &*format!("/ojs/v1/jobs/{id}"))
        );
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(
            (&answer["job"]["id"], &answer["job"]["args"], &answer["job"]["state"]),
            (&json!(id), &json!([args]), &json!("scheduled"))
        );
        // Both have the same form, so the later time is the larger text
        assert!(answer["job"]["scheduled_at"].as_str().expect("a time") >= first.as_str(), "{answer}");
    }
    let events = eventually("the events are written", || async {
        let listed: Value = kit.get("/ojs/v1/events?types=job.debounced").await.json().await.ok()?;
        (listed["events"].as_array()?.len() == 3).then(|| listed["events"].clone())
    })
    .await;
    assert!(events.to_string().contains(&id), "{events}");
    assert_eq!(kit.post(&format!("/ojs/v1/jobs/{id}/retry"), &json!({})).await.status(), 200);
    let fetched = kit.fetch("default").await.expect("it is available");
    assert_eq!((&fetched["id"], &fetched["args"]), (&json!(id), &json!([4])));
    let running = kit.post("/ojs/v1/jobs", &request(&json!([5]), &json!({}))).await;
    assert_eq!(running.status(), 201, "a job that runs is left alone");
}

#[tokio::test]
async fn a_request_with_a_key_is_answered_alike_and_puts_the_job_off_once() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&request(&json!([1]), &json!({}))).await;
    let body = request(&json!([2]), &json!({})).to_string();
    let send = || async {
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
        request.header("idempotency-key", "second").body(body.clone()).send().await.expect("an answer")
    };
    assert_eq!(send().await.status(), 200);
    assert_eq!(kit.post("/ojs/v1/jobs", &request(&json!([3]), &json!({}))).await.status(), 200);
    // As if the gateway had died after it carried the request out and before it noted the answer
    for key in kit.redis_keys().await.iter().filter(|key| key.starts_with("galley:idempotency:")) {
        kit.redis_command(&["HDEL", key, "status", "answer"]).await;
    }
    assert_eq!(send().await.status(), 200);
    assert_eq!(kit.job(&id).await["args"], json!([3]), "the newer request counts");
}

#[tokio::test]
async fn what_cannot_be_debounced_is_refused_with_its_reason() {
    let kit = GalleyKit::start().await;
    let job = request(&json!([1]), &json!({}));
    let (mut without_time, mut with_id) = (job.clone(), job.clone());
    without_time["options"].as_object_mut().expect("an object").remove("scheduled_at");
    with_id["id"] = json!("019539a4-b68c-7def-8000-1a2b3c4d5e6f");
    let entry = json!({ "name": "c", "expression": "* * * * *", "job_template": job });
    for (path, body, reason) in [
        ("/ojs/v1/jobs", without_time, "debounce needs scheduled_at"),
        ("/ojs/v1/jobs", with_id, "debounce needs a job without id"),
        ("/ojs/v1/jobs", request(&json!([1]), &json!({ "max_wait": "PT1M" })), "unique.max_wait must not be shorter"),
        ("/ojs/v1/jobs", request(&json!([1]), &json!({ "period": "PT1M" })), "unique.period cannot be given"),
        ("/ojs/v1/jobs/batch", json!({ "jobs": [job] }), "debounce needs \"mode\": \"per_item\""),
        ("/ojs/v1/workflows", json!({ "type": "chain", "steps": [job] }), "unique does not debounce"),
        ("/ojs/v1/cron", entry, "unique must not debounce"),
    ] {
        let response = kit.post(path, &body).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer = response.text().await.expect("text");
        assert!(answer.replace("\\\"", "\"").contains(reason), "{answer}");
    }
    let batch = json!({ "jobs": [job, request(&json!([2]), &json!({}))], "mode": "per_item" });
    let answer: Value = kit.post("/ojs/v1/jobs/batch", &batch).await.json().await.expect("JSON");
    let [first, second] = [&answer["results"][0], &answer["results"][1]];
    assert_eq!(first["job"]["id"], second["job"]["id"], "{answer}");
    assert_eq!(kit.job(first["job"]["id"].as_str().expect("an id")).await["args"], json!([2]));
}
