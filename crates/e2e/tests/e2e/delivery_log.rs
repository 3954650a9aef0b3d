//! The log of attempts: what endpoints answered to messages and jobs, and sending a message again.

use serde_json::{Value, json};
use testkit::{WebhookReceiver, WebhookReply, eventually};

use crate::{
    kit::{GalleyKit, job_body},
    push_handlers::pushing,
    subscriptions_delivery::{publish, put, started},
};

async fn attempts(kit: &GalleyKit, owner: &str, query: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} attempts of {owner}"), || async {
        let response = kit.get(&format!("/v1/{owner}/attempts{query}")).await;
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.ok()?;
        answer["items"].as_array().filter(|items| items.len() == count).cloned()
    })
    .await
}

#[tokio::test]
async fn attempts_of_a_subscription_are_shown_and_one_is_sent_again_under_its_id() {
    let (kit, _worker) = started().await;
    let secret_answer = "no: /hooks/SECRET-PATH?key=SECRET-QUERY SECRET-HEADER <script>\u{202e}";
    let replies = [WebhookReply::new(500, "", secret_answer), WebhookReply::ok("\"thanks\""), WebhookReply::ok("2")];
    let receiver = WebhookReceiver::start(replies).await;
    let url = receiver.url("/hooks/SECRET-PATH?key=SECRET-QUERY");
    let target = json!({ "http": { "url": url, "headers": { "x-key": "SECRET-HEADER" } } });
    let retry = json!({ "initial_interval": "PT0.05S", "jitter": false, "max_attempts": 3 });
    put(&kit, "hook", &json!({ "channels": ["c"], "deliver": target, "retry": retry })).await;
    let message = publish(&kit, "c", "text/plain", "1").await;
    let shown = attempts(&kit, "subscriptions/hook", "", 2).await;
    let [delivered, failed] = &shown[..] else { panic!("two attempts") };
    assert_eq!(
        (&delivered["outcome"], &failed["outcome"]),
        (&json!("delivered"), &json!("failed")),
        "the newest first"
    );
    assert_eq!((&delivered["status"], &delivered["response"]), (&json!(200), &json!("\"thanks\"")));
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!(500), &json!("push_server_error")));
    assert!(failed["response"].as_str().is_some_and(|text| text.contains("no: ")), "{failed}");
    let sent = receiver.requests()[0].header("webhook-id").map(str::to_owned).expect("it is signed");
    for attempt in [delivered, failed] {
        assert_eq!((&attempt["webhook_id"], &attempt["message_id"]), (&json!(sent), &json!(message)));
        assert!(!attempt.to_string().contains("SECRET"), "{attempt}");
    }
    let id = failed["id"].as_str().expect("an id");
    let resend = kit.post(&format!("/v1/subscriptions/hook/attempts/{id}/resend"), &json!({})).await;
    assert_eq!(resend.status(), 202);
    let job: Value = resend.json().await.expect("JSON");
    kit.wait_for_state(job["job"]["id"].as_str().expect("an id"), "completed").await;
    receiver.wait_for_requests(3).await;
    assert_eq!(receiver.requests()[2].header("webhook-id"), Some(sent.as_str()));
    let delivered = attempts(&kit, "subscriptions/hook", "?outcome=delivered", 2).await;
    let page = attempts(&kit, "subscriptions/hook", "?limit=2", 2).await;
    assert_eq!(page[0], delivered[0]);
    let older = page[1]["id"].as_str().expect("an id");
    assert_eq!(attempts(&kit, "subscriptions/hook", &format!("?after={older}"), 1).await[0]["id"], failed["id"]);
}

#[tokio::test]
async fn attempts_of_a_rule_are_shown_and_a_flood_leaves_the_newest() {
    let kit = GalleyKit::start().await;
    let receiver = WebhookReceiver::start([WebhookReply::new(422, "", "not like this")]).await;
    let (_worker, _folder) = pushing(&kit, &receiver, "").await;
    let refused = kit.enqueue(&job_body("email.send", &json!([]))).await;
    kit.wait_for_state(&refused, "discarded").await;
    let failed = attempts(&kit, "push-rules/*", "?outcome=failed", 1).await;
    assert_eq!((&failed[0]["job_id"], &failed[0]["status"]), (&json!(refused), &json!(422)));
    assert_eq!(failed[0]["response"], "not like this");
    for _ in 0..120 {
        receiver.reply_with(WebhookReply::ok("1"));
    }
    let jobs: Vec<Value> = (0..120).map(|_| job_body("email.send", &json!([]))).collect();
    assert_eq!(kit.post("/ojs/v1/jobs/batch", &json!({ "jobs": jobs })).await.status(), 201);
    attempts(&kit, "push-rules/*", "?outcome=delivered&limit=1000", 100).await;
    assert_eq!(attempts(&kit, "push-rules/*", "?outcome=failed", 1).await, failed, "successes do not push it out");
    let rules: Value = kit.get("/v1/push-rules").await.json().await.expect("JSON");
    let shown: Value = kit.get("/v1/push-rules/*").await.json().await.expect("JSON");
    for rule in [&rules["items"][0], &shown] {
        assert_eq!((&rule["rule"], &rule["attempts"]), (&json!("*"), &json!({ "delivered": 100, "failed": 1 })));
    }
    assert_eq!((rules["items"].as_array().map(Vec::len), &rules["next"]), (Some(1), &json!(null)));

    // The job of a failed attempt is sent again, that of a delivered one is over
    let resend = async |id: &Value| {
        let id = id.as_str().expect("an id");
        kit.post(&format!("/v1/push-rules/*/attempts/{id}/resend"), &json!({})).await
    };
    receiver.reply_with(WebhookReply::ok("2"));
    let accepted = resend(&failed[0]["id"]).await;
    assert_eq!(accepted.status(), 202);
    let accepted: Value = accepted.json().await.expect("JSON");
    assert_eq!(accepted["job"]["id"], json!(refused));
    assert_eq!(kit.wait_for_state(&refused, "completed").await["result"], 2);
    let delivered = attempts(&kit, "push-rules/*", "?outcome=delivered&limit=1", 1).await;
    assert_eq!(resend(&delivered[0]["id"]).await.status(), 409);
    for unknown in ["f1-1", "x", "d99999999999999-0"] {
        assert_eq!(resend(&json!(unknown)).await.status(), 404, "{unknown}");
    }
}

#[tokio::test]
async fn attempts_that_do_not_exist_are_not_found_and_wrong_questions_are_refused() {
    let (kit, _worker) = started().await;
    let receiver = WebhookReceiver::start([WebhookReply::ok("1")]).await;
    let target = json!({ "http": { "url": receiver.url("/") } });
    let body = json!({ "channels": ["c"], "deliver": target });
    put(&kit, "hook", &body).await;
    publish(&kit, "c", "text/plain", "1").await;
    let id = attempts(&kit, "subscriptions/hook", "", 1).await[0]["id"].as_str().expect("an id").to_owned();
    for (path, status) in [
        ("subscriptions/nobody/attempts", 404),
        ("subscriptions/hook/attempts?outcome=maybe", 400),
        ("subscriptions/hook/attempts?after=x", 400),
        ("subscriptions/hook/attempts?limit=0", 400),
        ("push-rules/NO/attempts", 404),
        ("push-rules/nothing/attempts", 200),
        ("push-rules/nothing", 404),
        ("push-rules/NO", 404),
        ("push-rules?limit=0", 400),
    ] {
        assert_eq!(kit.get(&format!("/v1/{path}")).await.status(), status, "{path}");
    }
    let resend = async |id: &str| {
        kit.post(&format!("/v1/subscriptions/hook/attempts/{id}/resend"), &json!({})).await.status().as_u16()
    };
    assert_eq!((resend("x").await, resend("f1-1").await, resend("d99999999999999-0").await), (404, 404, 404));
    kit.redis_command(&["DEL", "galley:{ch:c}:m"]).await;
    assert_eq!(resend(&id).await, 404, "its message is not kept any more");
    // Another subscription of that name has another log
    let deleted = kit.http.delete(kit.gateway.url("/v1/subscriptions/hook")).send().await.expect("an answer");
    assert_eq!(deleted.status(), 200);
    put(&kit, "hook", &body).await;
    attempts(&kit, "subscriptions/hook", "", 0).await;
    assert_eq!(resend(&id).await, 404);
}
