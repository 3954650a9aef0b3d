//! What a key may use: requests, bytes and streams.

use serde_json::{Value, json};
use testkit::ServiceProcess;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::keyed::{KeyRing, KeyedKit, outcome};

/// Sends requests until one is refused, and says how many were not.
async fn served_before_429(keyed: &KeyedKit, key: &str) -> usize {
    for served in 0..200 {
        let answer = keyed.get(key, "/v1/channels").await;
        if answer.status() == 429 {
            let wait = answer.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
            assert!((1..=2).contains(&wait), "{wait}");
            assert_eq!(outcome(answer).await, (429, "key_limit_exceeded".to_owned()));
            return served;
        }
        assert_eq!(answer.status(), 200);
    }
    panic!("no request is refused");
}

#[tokio::test]
async fn a_key_sends_as_many_requests_as_it_may_at_all_gateways_together() {
    let mut ring = KeyRing::new();
    let limited = ring.add("scopes = [\"channels:subscribe\"]\nrequests_per_second = 5");
    let free = ring.add("scopes = [\"channels:subscribe\"]");
    let mut keyed = ring.start(&[]).await;
    // A machine that is slow gets tokens back meanwhile: far fewer than requests
    assert!(served_before_429(&keyed, &limited).await >= 5);
    for _ in 0..50 {
        assert_eq!(keyed.get(&free, "/v1/channels").await.status(), 200, "another key");
    }
    served_before_429(&keyed, &limited).await;
    // Another gateway knows nothing of it by itself
    let file = keyed.keys_file();
    let variables = [("GALLEY__AUTH__KEYS_FILE", file.as_str())];
    let other = ServiceProcess::start("gateway", &keyed.kit.redis, &variables).await;
    other.wait_until_ready().await;
    let first = std::mem::replace(&mut keyed.kit.gateway, other);
    let mut served = 0;
    for n in 0..60 {
        let url = if n % 2 == 0 { first.url("/v1/channels") } else { keyed.kit.gateway.url("/v1/channels") };
        let request = keyed.kit.http.get(url).header("authorization", format!("Bearer {limited}"));
        served += usize::from(request.send().await.expect("an answer").status() == 200);
    }
    assert!(served < 60, "both gateways together serve all");
}

#[tokio::test]
async fn a_key_sends_as_many_bytes_as_it_may_and_a_body_without_a_length_counts_too() {
    let mut ring = KeyRing::new();
    let limited = ring.add("scopes = [\"channels:publish\"]\nbytes_per_second = 1024");
    let keyed = ring.start(&[]).await;
    let large = json!({ "text": "x".repeat(200_000) });
    let path = "/v1/channels/a/messages";
    assert_eq!(keyed.post(&limited, path, &large).await.status(), 201, "let in, and paid for later");
    let refused = keyed.post(&limited, path, &json!({})).await;
    let wait = refused.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
    assert!((100..=200).contains(&wait), "{wait}");
    assert_eq!(outcome(refused).await, (429, "key_limit_exceeded".to_owned()));
    let mut stream = TcpStream::connect(keyed.kit.gateway.address()).await.expect("a connection");
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {limited}\r\nconnection: close\r\n");
    let chunked =
        format!("{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
    stream.write_all(chunked.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert_eq!(keyed.post(&keyed.admin, path, &large).await.status(), 201, "another key");
}

#[tokio::test]
async fn a_key_has_as_many_streams_as_it_may_and_gets_the_place_of_one_that_ended() {
    let keyed = KeyedKit::start(&[("GALLEY__AUTH__LIMITS__STREAMS", "2")]).await;
    let open = async |key: &str| keyed.get(key, "/v1/channels/a/stream").await;
    let (first, second) = (open(&keyed.admin).await, open(&keyed.admin).await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    assert_eq!(outcome(open(&keyed.admin).await).await, (429, "too_many_streams_of_key".to_owned()));
    let answer: Value =
        keyed.post(&keyed.admin, "/v1/tokens", &json!({ "subject": "page" })).await.json().await.expect("JSON");
    let token = answer["token"].as_str().expect("a token");
    assert_eq!(open(token).await.status(), 200, "a token counts for itself");
    drop(first);
    testkit::eventually("a place is free", || async { (open(&keyed.admin).await.status() == 200).then_some(()) }).await;
}
