//! Publishing: one message, many, events, and what is refused. A client that subscribes with plain Redis gets the bytes.

use futures_util::StreamExt;
use reqwest::Response;
use serde_json::{Value, json};
use testkit::redis;

use crate::kit::GalleyKit;

const PATH: &str = "/v1/channels/orders/messages";

async fn publish(kit: &GalleyKit, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let request = kit.http.post(kit.gateway.url(path)).body(body.to_vec());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, *value));
    request.send().await.expect("an answer")
}

async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let problem: Value = response.json().await.expect("JSON");
    (status, problem["detail"].as_str().expect("a text").to_owned())
}

/// Plain Redis, as any program has it.
async fn subscriber(kit: &GalleyKit, channel: &str) -> redis::aio::PubSub {
    let client = redis::Client::open(kit.redis.url()).expect("a URL");
    let mut subscriber = client.get_async_pubsub().await.expect("redis runs");
    subscriber.subscribe(channel).await.expect("redis runs");
    subscriber
}

async fn next(subscriber: &mut redis::aio::PubSub) -> Vec<u8> {
    let message = tokio::time::timeout(testkit::TEST_TIMEOUT, subscriber.on_message().next()).await.expect("in time");
    message.expect("a message").get_payload_bytes().to_vec()
}

#[tokio::test]
async fn events_in_both_modes_are_checked_and_plain_subscribers_get_the_body_that_was_sent() {
    let kit = GalleyKit::start().await;
    let mut plain = subscriber(&kit, "orders").await;
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/demo"),
        ("ce-type", "dish.ready"),
    ];
    assert_eq!(publish(&kit, PATH, &binary, b"{\"a\": 1e400}").await.status(), 201);
    assert_eq!(next(&mut plain).await, b"{\"a\": 1e400}");
    let event = br#" {"specversion":"1.0", "id":"2","source":"/demo","type":"dish.ready","data":[1,  2]}"#;
    assert_eq!(
        publish(&kit, PATH, &[("content-type", "application/cloudevents+json; charset=UTF-8")], event).await.status(),
        201
    );
    assert_eq!(next(&mut plain).await, event);

    let before = kit.redis_command(&["XLEN", "galley:{ch:orders}:m"]).await;
    for (headers, body, status, said) in [
        (&binary[..4], &b"1"[..], 400, "must have the header ce-type"),
        (&binary[2..], b"1", 400, "must have the header ce-specversion"),
        (&[("ce-specversion", "0.3"), ("ce-id", "1"), ("ce-source", "/"), ("ce-type", "t")], b"1", 400, "must be 1.0"),
        (
            &[("content-type", "application/cloudevents+json")],
            b"{\"id\":\"1\"}",
            400,
            "must have the attribute specversion",
        ),
        (&[("content-type", "application/cloudevents+json")], b"[]", 400, "a JSON object"),
        (&[("content-type", "application/cloudevents-batch+json")], b"[]", 415, "/batch"),
        (&[("content-type", "application/cloudevents+avro")], b"x", 415, "application/cloudevents+json"),
    ] {
        let (got, detail) = problem(publish(&kit, PATH, headers, body).await).await;
        assert!(got == status && detail.contains(said), "{headers:?}: {got} {detail}");
    }
    let long = "x".repeat(256);
    assert_eq!(publish(&kit, PATH, &[("content-type", &long)], b"1").await.status(), 400);
    assert_eq!(publish(&kit, PATH, &[], &vec![b'x'; (1 << 20) + 1]).await.status(), 413);
    assert_eq!(kit.redis_command(&["XLEN", "galley:{ch:orders}:m"]).await, before, "nothing of it was published");
}

#[tokio::test]
async fn of_many_messages_each_has_its_outcome_and_a_bad_one_spoils_no_other() {
    let kit = GalleyKit::start().await;
    let mut plain = subscriber(&kit, "orders").await;
    let path = "/v1/channels/orders/messages/batch";
    let items = json!([{ "data": "7" }, { "data": 1, "data_base64": "" }, { "data_base64": "AP8=" },
        { "data": { "a": [] } }, { "data": "x".repeat((1 << 20) + 1) }, "no"]);
    let response = kit.post(path, &items).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.expect("JSON");
    let results = answer["results"].as_array().expect("an array");
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().expect("a status")).collect();
    assert_eq!(statuses, [201, 400, 201, 201, 413, 400], "{answer}");
    assert!(results[1]["error"]["message"].as_str().is_some_and(|text| text.contains("either data or data_base64")));
    let sequences: Vec<_> = [0, 2, 3].map(|index| results[index]["id"].as_str().expect("an id").split_once('-')).into();
    let epoch = sequences[0].expect("a position").0;
    assert_eq!(sequences, [Some((epoch, "0")), Some((epoch, "1")), Some((epoch, "2"))]);
    for body in [&b"7"[..], b"\x00\xff", b"{\"a\":[]}"] {
        assert_eq!(next(&mut plain).await, body);
    }

    let event = json!({ "specversion": "1.0", "id": "1", "source": "/k", "type": "t", "data": 1 });
    let events = json!([event, { "specversion": "1.0" }]).to_string();
    let response =
        publish(&kit, path, &[("content-type", "application/cloudevents-batch+json")], events.as_bytes()).await;
    let answer: Value = response.json().await.expect("JSON");
    assert_eq!((&answer["results"][0]["status"], &answer["results"][1]["status"]), (&json!(201), &json!(400)));
    assert_eq!(serde_json::from_slice::<Value>(&next(&mut plain).await).expect("JSON"), event);
}

#[tokio::test]
async fn a_batch_that_is_none_is_refused_as_a_whole() {
    let kit = GalleyKit::start().await;
    let path = "/v1/channels/orders/messages/batch";
    for (body, said) in [
        ("[]".to_owned(), "1 to 100"),
        (json!(vec![1; 101]).to_string(), "1 to 100"),
        ("{}".to_owned(), "expected a sequence"),
    ] {
        let headers = [("content-type", "application/json")];
        let (status, detail) = problem(publish(&kit, path, &headers, body.as_bytes()).await).await;
        assert!(status == 400 && detail.contains(said), "{body}: {status} {detail}");
    }
    let (status, detail) = problem(publish(&kit, path, &[("content-type", "text/plain")], b"[]").await).await;
    assert!(status == 415 && detail.contains("application/cloudevents-batch+json"), "{detail}");
    assert_eq!(kit.redis_command(&["EXISTS", "galley:{ch:orders}:m"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn the_same_key_publishes_many_messages_once() {
    let kit = GalleyKit::start().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let send = || publish(&kit, "/v1/channels/orders/messages/batch", &headers, b"[{\"data\":1},{\"data\":2}]");
    let first = send().await.text().await.expect("text");
    let again = send().await;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(again.text().await.expect("text"), first);
    assert_eq!(kit.redis_command(&["XLEN", "galley:{ch:orders}:m"]).await, redis::Value::Int(2));
}

#[tokio::test]
async fn there_are_no_more_channels_than_there_may_be() {
    let kit = GalleyKit::start_with(testkit::RedisServer::start(), &[("GALLEY__CHANNELS__MAX_CHANNELS", "1")]).await;
    assert_eq!(publish(&kit, PATH, &[], b"1").await.status(), 201);
    let response = publish(&kit, "/v1/channels/others/messages", &[], b"1").await;
    let (status, detail) = problem(response).await;
    assert!(status == 422 && detail.contains("channels.max_channels"), "{status} {detail}");
    assert_eq!(publish(&kit, PATH, &[], b"2").await.status(), 201, "those that are there go on");
}
