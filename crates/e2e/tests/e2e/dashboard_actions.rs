//! What the forms of the dashboard do, over HTTP.

use serde_json::{Value, json};
use testkit::{RedisServer, WebhookReceiver, WebhookReply, eventually};

use crate::{
    dashboard::Visitor,
    kit::{GalleyKit, job_body},
    push_handlers::pushing,
    subscriptions_delivery::{publish, put, started},
};

const TRACE_URL: (&str, &str) = ("GALLEY__DASHBOARD__TRACE_URL", "http://tempo.example/trace/{trace_id}");

async fn settle(kit: &GalleyKit, id: &str, how: &str, more: Value) {
    let claimed = kit.fetch("default").await.expect("the job");
    assert_eq!(claimed["id"], id);
    let mut body = json!({ "job_id": id, "token": claimed["token"] });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    assert_eq!(kit.post(&format!("/ojs/v1/workers/{how}"), &body).await.status(), 200);
}

fn failure() -> Value {
    json!({ "error": { "code": "e", "message": "no such invoice", "retryable": false } })
}

#[tokio::test]
async fn a_job_is_changed_and_rescheduled_in_place_and_deleted_when_it_has_ended() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("x", &json!([1]))).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(page.contains(&format!("/ui/jobs/{id}/change")) && page.contains("name=\"scheduled_at\""), "{page}");
    // Digits that no float has, and blanks that only the field shows
    let change = format!("/ui/jobs/{id}/change");
    let done = visitor.form(&change, "args=%5B+12345678901234567890123%2C+%7B%22a%22%3A1%7D+%5D&priority=7").await;
    assert_eq!(done.status(), 303);
    let text = kit.get(&format!("/ojs/v1/jobs/{id}")).await.text().await.expect("text");
    assert!(text.contains(r#""args":[12345678901234567890123,{"a":1}]"#) && text.contains(r#""priority":7"#), "{text}");
    let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
    assert!(page.contains("12345678901234567890123"), "{page}");
    assert_eq!(visitor.form(&change, "args=%7B%7D").await.status(), 400);
    assert_eq!(visitor.form(&change, "scheduled_at=%2BPT1H").await.status(), 303);
    assert_eq!(kit.job(&id).await["state"], "scheduled");
    assert_eq!(visitor.form(&change, "scheduled_at=tomorrow").await.status(), 400);
    assert_eq!(visitor.form(&format!("/ui/jobs/{id}/delete"), "").await.status(), 409, "it has not ended");
    assert_eq!(visitor.form(&format!("/ui/jobs/{id}/retry"), "").await.status(), 303);
    settle(&kit, &id, "nack", failure()).await;
    // A dead letter gets other arguments and runs again, in one click
    let again = visitor.form(&change, "args=%5B2%5D&priority=7&then=retry").await;
    assert_eq!(again.status(), 303);
    let job = kit.job(&id).await;
    assert_eq!((&job["state"], &job["args"]), (&json!("available"), &json!([2])));
    settle(&kit, &id, "ack", json!({ "result": { "sent": true } })).await;
    assert_eq!(visitor.form(&format!("/ui/jobs/{id}/delete"), "").await.status(), 303);
    assert_eq!(visitor.page(&format!("/ui/jobs/{id}")).await.0, 404);
}

#[tokio::test]
async fn an_ended_job_keeps_its_trace_and_says_why_its_arguments_are_gone() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[TRACE_URL]).await;
    let mut visitor = Visitor::new(&kit.gateway);
    for (how, more, keeps_args) in [("ack", json!({}), false), ("nack", failure(), true)] {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
        let request = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
        let answer = request.body(job_body("x", &json!(["secret-argument"])).to_string()).send().await;
        let answer: Value = answer.expect("an answer").json().await.expect("JSON");
        let id = answer["job"]["id"].as_str().expect("an id").to_owned();
        settle(&kit, &id, how, more).await;
        let (_, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
        assert!(page.contains(&format!("http://tempo.example/trace/{trace}")), "{how}: {page}");
        assert_eq!(page.contains("secret-argument"), keeps_args, "{how}");
        assert_eq!(page.contains("keep_envelope"), !keeps_args, "{how}");
        assert!(!page.contains("null"), "{how}: {page}");
    }
}

#[tokio::test]
async fn the_log_of_a_job_shows_the_newest_lines_first_and_leads_to_the_oldest() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&job_body("x", &json!([]))).await;
    let token = kit.fetch("default").await.expect("the job")["token"].clone();
    let lines: Vec<String> = (0..450).map(|number| format!("line-{number:03} <b>")).collect();
    let body = json!({ "job_id": id, "token": token, "lines": lines });
    assert_eq!(kit.post("/ojs/v1/workers/log", &body).await.status(), 200);
    let mut visitor = Visitor::new(&kit.gateway);
    let (mut path, mut seen) = (format!("/ui/jobs/{id}"), Vec::new());
    loop {
        let (_, page) = visitor.page(&path).await;
        assert!(!page.contains("<b>line") && !page.contains("line-000 <b>"));
        let shown = page.split("line-").skip(1).filter_map(|rest| rest.get(..3)?.parse::<usize>().ok());
        seen.extend(shown);
        let Some(older) = page.split("?log_before=").nth(1).and_then(|rest| rest.split('#').next()) else { break };
        path = format!("/ui/jobs/{id}?log_before={older}");
    }
    assert_eq!(seen, (0..450).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn attempts_of_a_subscription_stand_on_its_page_and_one_is_sent_again() {
    let (kit, _worker) = started().await;
    let replies = [WebhookReply::new(500, "", "<script>no"), WebhookReply::ok("1"), WebhookReply::ok("2")];
    let receiver = WebhookReceiver::start(replies).await;
    let retry = json!({ "initial_interval": "PT0.05S", "jitter": false, "max_attempts": 3 });
    let target = json!({ "http": { "url": receiver.url("/hook") } });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    publish(&kit, "c", "text/plain", "1").await;
    let mut visitor = Visitor::new(&kit.gateway);
    let page = eventually("both attempts are logged", || async {
        let mut visitor = Visitor::new(&kit.gateway);
        let (_, page) = visitor.page("/ui/subscriptions/hook").await;
        (page.matches("name=\"attempt\"").count() == 2).then_some(page)
    })
    .await;
    assert!(page.contains(">500<") && page.contains(">200<") && page.contains("&#60;script&#62;no"), "{page}");
    let (_, failed) = visitor.page("/ui/subscriptions/hook?outcome=failed").await;
    let attempt = failed.split("name=\"attempt\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let attempt = attempt.expect("the failed one");
    let sent = visitor.form("/ui/subscriptions/hook/resend", &format!("attempt={attempt}")).await;
    assert_eq!(sent.status(), 303);
    receiver.wait_for_requests(3).await;
    assert_eq!(visitor.form("/ui/subscriptions/hook/resend", "attempt=d1-1").await.status(), 404);
}

#[tokio::test]
async fn push_rules_are_listed_with_their_attempts_and_a_failed_job_is_sent_again() {
    let kit = GalleyKit::start().await;
    let mut visitor = Visitor::new(&kit.gateway);
    assert!(visitor.page("/ui/push-rules").await.1.contains("No rule has sent a job yet"));
    let receiver = WebhookReceiver::start([WebhookReply::new(422, "", "not like this"), WebhookReply::ok("{}")]).await;
    let (_worker, _folder) = pushing(&kit, &receiver, "").await;
    let refused = kit.enqueue(&job_body("email.send", &json!([]))).await;
    kit.wait_for_state(&refused, "discarded").await;
    let page = eventually("the attempt is logged", || async {
        let mut visitor = Visitor::new(&kit.gateway);
        let (_, page) = visitor.page("/ui/push-rules/%2A").await;
        page.contains("name=\"attempt\"").then_some(page)
    })
    .await;
    assert!(page.contains(">422<") && page.contains("not like this") && page.contains(&refused), "{page}");
    assert!(visitor.page("/ui/push-rules").await.1.contains("/ui/push-rules/%2A"));
    let attempt = page.split("name=\"attempt\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let again = visitor.form("/ui/push-rules/%2A/resend", &format!("attempt={}", attempt.expect("one"))).await;
    assert_eq!(again.status(), 303);
    kit.wait_for_state(&refused, "completed").await;
    assert_eq!(visitor.page("/ui/push-rules/%3Cscript%3E").await.0, 404);
}

#[tokio::test]
async fn maintenance_mode_is_said_on_every_page_and_ended_there() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&job_body("x", &json!([]))).await;
    let mut visitor = Visitor::new(&kit.gateway);
    assert_eq!(visitor.form("/ui/maintenance/on", "reason=new+%3Cb%3Edisks&until=%2BPT1H").await.status(), 303);
    for path in ["/", "/ui/jobs", "/ui/queues", "/ui/queues/default", "/ui/workers", "/ui/keys"] {
        let (_, page) = visitor.page(path).await;
        assert!(page.contains("Maintenance mode is on") && page.contains("new &#60;b&#62;disks"), "{path}: {page}");
    }
    assert!(kit.fetch("default").await.is_none(), "no queue hands out jobs");
    let done = visitor.form("/ui/maintenance/off", "to=%2Fui%2Fworkers").await;
    assert_eq!(done.headers()["location"], "/ui/workers?note=maintenance_off&of=");
    assert!(!visitor.page("/ui/jobs").await.1.contains("Maintenance mode is on"));
    assert!(kit.fetch("default").await.is_some());
}

#[tokio::test]
async fn many_jobs_are_changed_only_as_confirmed_and_what_is_planned_is_not_started_with_them() {
    let kit = GalleyKit::start().await;
    let planned = kit.enqueue(&json!({ "type": "a", "args": [], "scheduled_at": "+PT1H" })).await;
    let first = kit.enqueue(&job_body("a", &json!([1]))).await;
    settle(&kit, &first, "nack", failure()).await;
    let second = kit.enqueue(&job_body("a", &json!([2]))).await;
    settle(&kit, &second, "nack", failure()).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let asked = visitor.form("/ui/jobs/retry", "q=type%3Aa&everything=1").await.text().await.expect("text");
    assert!(asked.contains("Retry 2 jobs"), "{asked}");
    // One more than was confirmed matches by now: it is left alone
    assert_eq!(visitor.form("/ui/jobs/retry", "q=type%3Aa&everything=1&sure=1").await.status(), 303);
    let states = [kit.job(&first).await["state"].clone(), kit.job(&second).await["state"].clone()];
    assert_eq!(states.iter().filter(|state| **state == "available").count(), 1, "{states:?}");
    assert_eq!(kit.job(&planned).await["state"], "scheduled");
    assert_eq!(visitor.form("/ui/jobs/cancel", "q=type%3Aa&everything=1&sure=9").await.status(), 303);
    assert_eq!(kit.job(&planned).await["state"], "cancelled");
    let asked = visitor.form("/ui/jobs/delete", "q=type%3Aa&everything=1").await.text().await.expect("text");
    assert!(asked.contains("Delete 3 jobs"), "{asked}");
    assert_eq!(visitor.form("/ui/jobs/delete", "q=type%3Aa&everything=1&sure=3").await.status(), 303);
    assert_eq!(kit.get(&format!("/ojs/v1/jobs/{planned}")).await.status(), 404);
}

#[tokio::test]
async fn queues_get_limits_in_place_and_have_a_page_with_their_history() {
    let kit = GalleyKit::start().await;
    let queue = "a-very-long-name-of-a-queue.".repeat(4) + "x";
    kit.enqueue(&json!({ "type": "a", "args": [], "options": { "queue": queue } })).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let limits = format!("/ui/queues/{queue}/limits");
    assert_eq!(visitor.form(&limits, "concurrency=3&rate=100&period=PT1M").await.status(), 303);
    for path in ["/ui/queues".to_owned(), format!("/ui/queues/{queue}")] {
        let (_, page) = visitor.page(&path).await;
        assert!(page.contains("3 at a time, 100 starts a minute") && page.contains("<svg"), "{path}: {page}");
    }
    let (_, page) = visitor.page(&format!("/ui/queues/{queue}")).await;
    assert!(page.contains("no worker serves this queue") && page.matches("class=\"plot\"").count() == 4, "{page}");
    assert_eq!(visitor.form(&limits, "concurrency=&rate=&period=PT1M").await.status(), 303);
    let shown: Value = kit.get(&format!("/ojs/v1/admin/queues/{queue}")).await.json().await.expect("JSON");
    assert_eq!(shown["configuration"]["concurrency"], Value::Null, "{shown}");
    assert_eq!(visitor.form(&limits, "concurrency=no").await.status(), 400);
    assert_eq!(visitor.page("/ui/queues/none").await.0, 404);
    // The first look already knows all of a small installation
    let (_, page) = visitor.page("/").await;
    assert!(page.contains(&queue) && !page.contains("were looked at so far"), "{page}");
}
