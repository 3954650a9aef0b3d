//! The page of the dashboard that checks stored data.

use serde_json::json;
use testkit::{eventually, redis};

use crate::{dashboard::Visitor, keyed_gateway::KeyedGateway, kit::GalleyKit};

const RECORD_WITHOUT_PLACE: &str = "A job waits in no set, so nothing would ever start it.";

#[tokio::test]
async fn what_cannot_be_is_said_in_words_and_repaired_from_the_page() {
    // The maintenance must not be faster
    let slow = [("GALLEY__MAINTENANCE__SWEEP_MS", "600000")];
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &slow).await;
    // A leader sweeps when it begins
    let leads =
        || async { (kit.redis_command(&["EXISTS", "galley:leader"]).await == redis::Value::Int(1)).then_some(()) };
    eventually("there is a leader", leads).await;
    let mut visitor = Visitor::new(&kit.gateway);
    let job = |queue: &str| json!({ "type": "a", "args": [], "queue": queue, "scheduled_at": "+PT1H" });
    let id = kit.enqueue(&job("mails")).await;
    kit.enqueue(&job("other")).await;
    let (status, page) = visitor.page("/ui/check").await;
    assert!(status == 200 && page.contains("<option value=\"mails\">") && !page.contains("Nothing is wrong"), "{page}");
    assert!(visitor.page("/ui/check?queue=mails").await.1.contains("Nothing is wrong"));

    kit.redis_command(&["ZREM", "galley:{mails}:due", &id]).await;
    for path in ["/ui/check?queue=mails", "/ui/check?all=1"] {
        let (_, page) = visitor.page(path).await;
        assert!(
            page.contains(RECORD_WITHOUT_PLACE) && page.contains(&id) && page.contains("1 contradictions"),
            "{page}"
        );
    }
    assert_eq!(kit.redis_command(&["ZSCORE", "galley:{mails}:due", &id]).await, redis::Value::Nil);
    let repaired = visitor.form("/ui/check/repair", "queue=&all=1").await;
    assert_eq!(repaired.status(), 200);
    let repaired = repaired.text().await.expect("text");
    assert!(repaired.contains("1 were repaired") && !repaired.contains("contradictions were found"), "{repaired}");
    assert!(visitor.page("/ui/check?all=1").await.1.contains("Nothing is wrong"));
    assert_eq!(kit.job(&id).await["state"], "scheduled");
    for (path, status) in [("queue=nowhere", 404), ("queue=A%20b", 400), ("queue=mails&cursor=x", 400)] {
        assert_eq!(visitor.page(&format!("/ui/check?{path}")).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn a_reader_checks_and_repairs_nothing_and_a_key_of_some_queues_sees_those() {
    let keyed = KeyedGateway::start(&[]).await;
    for queue in ["mine.a", "other.b"] {
        keyed.enqueue(queue).await;
    }
    let reader = json!({ "name": "reader", "scopes": ["admin:read"], "queues": ["mine.*"] });
    let (reader, _) = keyed.make_key(&reader).await;
    let mut visitor = Visitor::new(&keyed.kit.gateway);
    visitor.log_in(&reader).await;
    let (status, page) = visitor.page("/ui/check?all=1").await;
    assert!(status == 200 && page.contains("mine.a") && !page.contains("other.b"), "{page}");
    assert_eq!(visitor.page("/ui/check?queue=other.b").await.0, 403);
    assert_eq!(visitor.form("/ui/check/repair", "queue=mine.a").await.status(), 403);
}
