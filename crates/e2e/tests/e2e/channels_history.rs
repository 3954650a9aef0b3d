//! The history of a channel over HTTP.

use reqwest::Response;
use serde_json::{Value, json};

use crate::kit::GalleyKit;

async fn publish(kit: &GalleyKit, channel: &str, content_type: &str, body: &[u8]) -> String {
    let url = kit.gateway.url(&format!("/v1/channels/{channel}/messages"));
    let response = kit.http.post(url).header("content-type", content_type).body(body.to_vec()).send().await;
    let answer: Value = response.expect("an answer").json().await.expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

async fn json_of(response: Response) -> Value {
    assert_eq!(response.status(), 200);
    response.json().await.expect("JSON")
}

#[tokio::test]
async fn messages_are_shown_as_what_they_are_and_pages_lead_through_all_of_them() {
    let kit = GalleyKit::start().await;
    let mut ids = vec![publish(&kit, "c", "application/json", b"{\"z\":1,\"a\":9007199254740993}").await];
    ids.push(publish(&kit, "c", "text/plain", b"{no").await);
    ids.push(publish(&kit, "c", "application/octet-stream", b"\x00\xff").await);
    let event = r#"{"specversion":"1.0","id":"e","source":"/k","type":"t","data":[1]}"#;
    ids.push(publish(&kit, "c", "application/cloudevents+json", event.as_bytes()).await);
    let text = kit.get("/v1/channels/c/messages").await.text().await.expect("text");
    assert!(text.contains(r#""data":{"z":1,"a":9007199254740993}"#), "{text}");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let messages = all["items"].as_array().expect("an array");
    assert_eq!(messages.iter().map(|message| message["id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    assert_eq!((&messages[1]["data"], &messages[2]["data_base64"]), (&json!("{no"), &json!("AP8=")));
    assert_eq!(messages[3]["data"], serde_json::from_str::<Value>(event).expect("JSON"));
    assert_eq!(messages[3]["attributes"], json!({ "specversion": "1.0", "id": "e", "source": "/k", "type": "t" }));
    assert_eq!((&all["next"], &all["last_id"], all.get("gap")), (&Value::Null, &json!(ids[3]), None));

    let first = json_of(kit.get("/v1/channels/c/messages?limit=3").await).await;
    assert_eq!((&first["next"], &first["last_id"]), (&json!(ids[2]), &json!(ids[2])));
    let rest = json_of(kit.get(&format!("/v1/channels/c/messages?after={}", ids[2])).await).await;
    assert_eq!(rest["items"], json!([messages[3]]));
    let lately = json_of(kit.get("/v1/channels/c/messages?since=-PT1H").await).await;
    assert_eq!(lately["items"], all["items"]);
    let later = json_of(kit.get("/v1/channels/c/messages?since=2999-01-01T00:00:00Z").await).await;
    assert_eq!((&later["items"], &later["last_id"]), (&json!([]), &json!(ids[3])));

    kit.redis_command(&["XTRIM", "galley:{ch:c}:m", "MAXLEN", "1"]).await;
    let gap = json_of(kit.get(&format!("/v1/channels/c/messages?after={}", ids[0])).await).await;
    assert_eq!(gap["gap"], json!({ "from": ids[0], "to": ids[3], "count": 2 }));
    assert_eq!(gap["items"], json!([messages[3]]));
    let gap = json_of(kit.get("/v1/channels/c/messages?after=0-0").await).await;
    assert_eq!(gap["gap"], json!({ "from": "0-0", "to": ids[3], "count": 3 }));
    for asks_for_what_there_is in ["", "?since=-PT1H"] {
        let whole = json_of(kit.get(&format!("/v1/channels/c/messages{asks_for_what_there_is}")).await).await;
        assert_eq!((&whole["items"], whole.get("gap")), (&json!([messages[3]]), None));
    }
}

#[tokio::test]
async fn channels_are_listed_and_shown() {
    let kit = GalleyKit::start().await;
    assert_eq!(kit.get("/v1/channels/a").await.status(), 404);
    assert_eq!(json_of(kit.get("/v1/channels").await).await, json!({ "items": [], "next": null }));
    let id = publish(&kit, "a", "text/plain", b"1").await;
    publish(&kit, "b", "text/plain", b"1").await;
    let one = json_of(kit.get("/v1/channels/a").await).await;
    assert_eq!((&one["channel"]["head"], &one["channel"]["first"]), (&json!(id), &json!(id)));
    assert_eq!((&one["channel"]["length"], &one["channel"]["messages_per_minute"]), (&json!(1), &json!(1)));
    assert_eq!(one["channel"]["retention"], json!({ "messages": 10000, "age_ms": null, "bytes": null }));
    let page = json_of(kit.get("/v1/channels?limit=1").await).await;
    assert_eq!((&page["items"][0]["name"], &page["next"]), (&json!("a"), &json!("a")));
    let page = json_of(kit.get("/v1/channels?after=a").await).await;
    assert_eq!((&page["items"][0]["name"], &page["next"]), (&json!("b"), &Value::Null));
}

#[tokio::test]
async fn a_position_or_a_time_that_cannot_be_is_refused_with_what_is_allowed() {
    let kit = GalleyKit::start().await;
    let id = publish(&kit, "a", "text/plain", b"1").await;
    let (epoch, _) = id.split_once('-').expect("a position");
    // As if the other channel had begun much later
    kit.redis_command(&["XADD", "galley:{ch:b}:m", "9999999999999-0", "b", "x"]).await;
    for (query, code, said) in [
        ("after=x".to_owned(), "invalid_request", "position must be the id of a message"),
        ("after=1".to_owned(), "invalid_request", "position must be the id of a message"),
        (format!("after={epoch}-7"), "unknown_position", "of another channel"),
        ("after=9999999999999-0".to_owned(), "unknown_position", "of another channel"),
        ("since=yesterday".to_owned(), "invalid_request", "since must be an RFC 3339 time"),
        ("since=PT1H".to_owned(), "invalid_request", "since must be an RFC 3339 time"),
        (format!("after={id}&since=-PT1H"), "invalid_request", "either after or since"),
        ("limit=0".to_owned(), "invalid_request", "1 to 1000"),
        ("limit=1001".to_owned(), "invalid_request", "1 to 1000"),
        ("form=x".to_owned(), "invalid_request", "unknown query parameter \"form\""),
    ] {
        let response = kit.get(&format!("/v1/channels/a/messages?{query}")).await;
        assert_eq!(response.status(), 400, "{query}");
        let problem: Value = response.json().await.expect("JSON");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(problem["code"] == code && detail.contains(said), "{query}: {problem}");
    }
}
