//! The buttons of lists: queues, cron, workers, subscriptions, workflows and keys, over HTTP.

use serde_json::{Value, json};
use testkit::eventually;

use crate::{
    dashboard::Visitor,
    kit::{GalleyKit, job_body},
    subscriptions_delivery::put,
};

/// Sends a form that is answered with a page to go to.
async fn press(visitor: &mut Visitor, path: &str, fields: &str) -> String {
    let response = visitor.form(path, fields).await;
    assert_eq!(response.status(), 303, "{path}");
    response.headers()["location"].to_str().expect("text").to_owned()
}

async fn get(kit: &GalleyKit, path: &str) -> Value {
    let response = kit.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.expect("JSON")
}

#[tokio::test]
async fn a_queue_is_drained_emptied_and_deleted_when_its_name_is_confirmed() {
    let kit = GalleyKit::start().await;
    let mails = |number: u64| json!({ "type": "a", "args": [number], "options": { "queue": "mails" } });
    let id = kit.enqueue(&mails(1)).await;
    let mut visitor = Visitor::new(&kit.gateway);
    press(&mut visitor, "/ui/queues/mails/drain", "").await;
    let refuses = || async { (kit.post("/ojs/v1/jobs", &mails(2)).await.status() == 503).then_some(()) };
    eventually("it takes no new jobs", refuses).await;
    assert!(visitor.page("/ui/queues").await.1.contains("draining"));
    press(&mut visitor, "/ui/queues/mails/resume", "").await;
    assert_eq!(visitor.form("/ui/queues/mails/purge", "").await.status(), 400, "nobody confirmed it");
    assert_eq!(kit.job(&id).await["state"], "available");
    press(&mut visitor, "/ui/queues/mails/purge", "confirm=mails").await;
    assert_eq!(kit.job(&id).await["state"], "cancelled");
    press(&mut visitor, "/ui/queues/mails/delete", "confirm=mails").await;
    assert_eq!(visitor.page("/ui/queues/mails").await.0, 404);
}

#[tokio::test]
async fn a_cron_entry_runs_now_rests_and_goes() {
    let kit = GalleyKit::start().await;
    let entry = json!({ "name": "nightly", "cron": "0 9-17 * * 1-5", "type": "report" });
    assert_eq!(kit.post("/ojs/v1/cron", &entry).await.status(), 201);
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, page) = visitor.page("/ui/cron").await;
    assert!(page.contains("every hour from 09:00 to 17:00, Monday to Friday"), "{page}");
    let job = press(&mut visitor, "/ui/cron/nightly/run", "").await;
    let (status, page) = visitor.page(&job).await;
    assert!(status == 200 && page.contains("report"), "{job}");
    press(&mut visitor, "/ui/cron/nightly/pause", "").await;
    assert!(visitor.page("/ui/cron").await.1.contains("paused"));
    press(&mut visitor, "/ui/cron/nightly/resume", "").await;
    assert_eq!(visitor.form("/ui/cron/nightly/delete", "").await.status(), 400, "nobody confirmed it");
    press(&mut visitor, "/ui/cron/nightly/delete", "confirm=nightly").await;
    assert!(visitor.page("/ui/cron").await.1.contains("No cron entry yet"));
}

#[tokio::test]
async fn a_worker_says_what_it_does_becomes_quiet_and_stops() {
    let kit = GalleyKit::start().await;
    // It is listed for three of its heartbeats, five seconds each
    let mut worker = kit.start_worker(&[]).await;
    let id = kit.enqueue(&job_body("test.slow", &json!([600_000]))).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let page = eventually("the worker reports its job", || async {
        let mut visitor = Visitor::new(&kit.gateway);
        let (_, page) = visitor.page("/ui/workers").await;
        page.contains(&format!("/ui/jobs/{id}")).then_some(page)
    })
    .await;
    let path = page.split("action=\"").find_map(|rest| rest.split("/quiet\"").next().filter(|path| path.len() < 200));
    let path = path.expect("a form").to_owned();
    assert!(path.starts_with("/ui/workers/"), "{path}");
    press(&mut visitor, &format!("{path}/quiet"), "").await;
    assert!(visitor.page("/ui/workers").await.1.contains("state-quiet"));
    press(&mut visitor, &format!("{path}/resume"), "").await;
    press(&mut visitor, &format!("{path}/stop"), "").await;
    assert!(visitor.page("/ui/workers").await.1.contains("state-terminating"));
    kit.cancel(&id).await;
    assert!(worker.wait_for_exit().await.success());
}

#[tokio::test]
async fn a_subscription_rests_moves_and_goes_and_a_workflow_is_cancelled() {
    let kit = GalleyKit::start().await;
    let target = json!({ "queue": { "queue": "mails", "type": "m" } });
    put(&kit, "s", &json!({ "channels": ["c"], "deliver": target })).await;
    let mut visitor = Visitor::new(&kit.gateway);
    press(&mut visitor, "/ui/subscriptions/s/pause", "").await;
    assert_eq!(get(&kit, "/v1/subscriptions/s").await["subscription"]["state"], "paused");
    press(&mut visitor, "/ui/subscriptions/s/resume", "").await;
    press(&mut visitor, "/ui/subscriptions/s/seek", "to=earliest").await;
    assert_eq!(visitor.form("/ui/subscriptions/s/seek", "to=somewhere").await.status(), 400);
    press(&mut visitor, "/ui/subscriptions/s/delete", "").await;
    assert_eq!(visitor.page("/ui/subscriptions/s").await.0, 404);
    let flow =
        json!({ "type": "chain", "name": "order", "steps": [job_body("a", &json!([1])), job_body("b", &json!([2]))] });
    let flow: Value = kit.post("/ojs/v1/workflows", &flow).await.json().await.expect("JSON");
    let id = flow["workflow"]["id"].as_str().or_else(|| flow["id"].as_str()).expect("an id").to_owned();
    let (_, page) = visitor.page(&format!("/ui/workflows/{id}")).await;
    let job = page.split("/ui/jobs/").nth(1).and_then(|rest| rest.split('"').next()).expect("a job").to_owned();
    // The page of one of its jobs draws it, too
    let (_, page) = visitor.page(&format!("/ui/jobs/{job}")).await;
    assert!(page.contains("class=\"graph\"") && page.contains(" current\""), "{page}");
    press(&mut visitor, &format!("/ui/workflows/{id}/cancel"), "").await;
    assert_eq!(kit.job(&job).await["state"], "cancelled");
}
