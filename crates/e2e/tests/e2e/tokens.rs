//! Tokens of an issuer and of the gateway, against forgers.

use std::{
    fmt::Debug,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::{
    OtlpReceiver, TEST_TIMEOUT, TestAuthority, TokenIssuer, WebhookReceiver, WebhookReply, eventually, hs256_token,
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{
    keyed::{KeyRing, KeyedKit, TOKEN_SECRET, outcome},
    kit::TestFolder,
};

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A file with the keys of an issuer.
fn keys_file(issuer: &TokenIssuer) -> TestFolder {
    let folder = TestFolder::new();
    folder.write("jwks.json", &issuer.keys().to_string());
    folder
}

async fn start_with_issuer(issuer: &TokenIssuer) -> (KeyedKit, TestFolder) {
    let folder = keys_file(issuer);
    let path = folder.path_text("jwks.json");
    let variables = [
        ("GALLEY__AUTH__JWT__JWKS_FILE", path.as_str()),
        ("GALLEY__AUTH__JWT__ISSUER", "https://id.example"),
        ("GALLEY__AUTH__JWT__AUDIENCE", "galley"),
        ("GALLEY__AUTH__JWT__LEEWAY_MS", "0"),
    ];
    (KeyedKit::start(&variables).await, folder)
}

fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://id.example", "aud": "galley", "sub": "ada", "exp": now() + 3600,
        "scopes": ["channels:publish", "channels:subscribe", "jobs:write"], "channels": ["orders.*"],
    });
    for (name, value) in changes.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    claims
}

#[tokio::test]
async fn a_token_of_the_issuer_may_do_what_it_claims_and_nothing_else() {
    let issuer = TokenIssuer::new("id");
    let (keyed, _folder) = start_with_issuer(&issuer).await;
    let message = json!({ "n": 1 });
    for token in [issuer.ed_token(&claims(&json!({}))), issuer.rsa_token(&claims(&json!({})))] {
        let published = keyed.post(&token, "/v1/channels/orders.eu/messages", &message).await;
        assert_eq!(published.status(), 201);
        let elsewhere = outcome(keyed.post(&token, "/v1/channels/mails/messages", &message).await).await;
        assert_eq!(elsewhere, (403, "name_not_allowed".to_owned()));
        let other_scope = outcome(keyed.get(&token, "/ojs/v1/queues").await).await;
        assert_eq!(other_scope, (403, "scope_required".to_owned()));
    }
}

#[tokio::test]
async fn forged_old_cut_and_bloated_tokens_are_answered_with_401() {
    let issuer = TokenIssuer::new("id");
    let (keyed, _folder) = start_with_issuer(&issuer).await;
    let good = issuer.ed_token(&claims(&json!({})));
    let head = |alg: &str| json!({ "alg": alg, "kid": issuer.rsa_id() });
    let unsigned = testkit::signed(&json!({ "alg": "none" }), &claims(&json!({})), |_| b"x".to_vec());
    let bad = [
        ("another issuer's key", TokenIssuer::new("id").ed_token(&claims(&json!({})))),
        ("alg none", unsigned.clone()),
        ("alg none without a signature", format!("{}.", unsigned.rsplit_once('.').expect("parts").0)),
        ("a public key as a secret", hs256_token(&issuer.rsa_public_key(), &head("HS256"), &claims(&json!({})))),
        ("signed with the gateway's secret", hs256_token(TOKEN_SECRET.as_bytes(), &head("HS256"), &claims(&json!({})))),
        ("cut", good[..good.len() - 10].to_owned()),
        ("expired", issuer.ed_token(&claims(&json!({ "exp": now() - 1 })))),
        ("not valid yet", issuer.ed_token(&claims(&json!({ "nbf": now() + 600 })))),
        ("another issuer", issuer.ed_token(&claims(&json!({ "iss": "https://other.example" })))),
        ("for another service", issuer.ed_token(&claims(&json!({ "aud": "other" })))),
        ("without an end", issuer.ed_token(&claims(&json!({ "exp": null })))),
        ("too long", issuer.ed_token(&claims(&json!({ "x": "y".repeat(9000) })))),
    ];
    for (what, token) in &bad {
        let refused = keyed.post(token, "/v1/channels/orders.eu/messages", &json!({})).await;
        let challenge = refused.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        assert!(challenge.is_some_and(|text| text.contains("invalid_token")), "{what}: {challenge:?}");
        let text = refused.text().await.expect("text");
        assert!(text.contains("\"invalid_token\"") && !text.contains(token.as_str()), "{what}: {text}");
    }
    let log = keyed.kit.gateway.raw_log();
    for (what, token) in bad.iter().chain([&("good", good)]) {
        assert!(!log.contains(token.as_str()), "{what} is in the log");
    }
    // A header as large as the gateway reads at all, and larger
    for length in [100_000, 1_000_000] {
        // openapi.json does not describe what is refused before it is a request
        let long = reqwest::Client::new().post(keyed.kit.gateway.url("/v1/channels/orders.eu/messages"));
        let sent = long.header("authorization", format!("Bearer {}", "a".repeat(length))).body("x").send().await;
        // A connection that is cut is an answer too
        assert!(sent.is_err() || sent.is_ok_and(|answer| answer.status().is_client_error()), "{length}");
    }
    assert_eq!(keyed.get(&keyed.admin, "/v1/channels").await.status(), 200, "the gateway lives");
}

#[tokio::test]
async fn keys_of_the_issuer_are_fetched_and_stay_while_its_url_is_away() {
    let (old, new) = (TokenIssuer::new("old"), TokenIssuer::new("new"));
    let keys = |issuer: &TokenIssuer| WebhookReply::ok(&issuer.keys().to_string());
    let receiver = WebhookReceiver::start([keys(&old)]).await;
    let url = receiver.url("/jwks");
    let variables = [("GALLEY__AUTH__JWT__JWKS_URL", url.as_str()), ("GALLEY__AUTH__JWT__UNKNOWN_KEY_PAUSE_MS", "100")];
    let keyed = KeyedKit::start(&variables).await;
    let publish = async |token: &str| {
        let sent = keyed.post(token, "/v1/channels/orders.eu/messages", &json!({})).await;
        outcome(sent).await.0
    };
    assert_eq!(publish(&old.ed_token(&claims(&json!({})))).await, 201);
    receiver.reply_with(WebhookReply::new(503, "", ""));
    let rotated = new.ed_token(&claims(&json!({})));
    eventually("an unknown key makes the gateway ask again", || async {
        (publish(&rotated).await == 401 && !keyed.kit.gateway.events("token_keys.unavailable").is_empty()).then_some(())
    })
    .await;
    assert_eq!(publish(&old.ed_token(&claims(&json!({})))).await, 201, "the keys that are known stay");
    receiver.reply_with(keys(&new));
    eventually("the new key is accepted", || async { (publish(&rotated).await == 201).then_some(()) }).await;
    assert_eq!(publish(&old.ed_token(&claims(&json!({})))).await, 401, "the old key is withdrawn");
}

#[tokio::test]
async fn keys_of_the_issuer_are_fetched_over_tls_from_a_server_that_is_trusted_and_from_no_other() {
    let (old, new) = (TokenIssuer::new("old"), TokenIssuer::new("new"));
    let keys = |issuer: &TokenIssuer| WebhookReply::ok(&issuer.keys().to_string());
    let authority = TestAuthority::new();
    let acceptor = TestAuthority::acceptor(&authority.issue("issuer", &["localhost"]));
    let receiver = WebhookReceiver::start_with_tls([keys(&old)], acceptor).await;
    let url = format!("https://localhost:{}/jwks", receiver.address.port());
    let start = async |ca_file: &str| {
        let variables = [
            ("GALLEY__AUTH__JWT__JWKS_URL", url.as_str()),
            ("GALLEY__AUTH__JWT__REFRESH_MS", "1000"),
            ("GALLEY__AUTH__JWT__UNKNOWN_KEY_PAUSE_MS", "100"),
            ("SSL_CERT_FILE", ca_file),
        ];
        KeyedKit::start(&variables).await
    };
    let publish = async |keyed: &KeyedKit, token: &str| {
        let sent = keyed.post(token, "/v1/channels/orders.eu/messages", &json!({})).await;
        outcome(sent).await.0
    };
    let old_token = old.ed_token(&claims(&json!({})));
    let trusting = start(&authority.ca_file()).await;
    assert_eq!(publish(&trusting, &old_token).await, 201);
    // The issuer replaces its key: nobody has to show one of the new ones first
    receiver.reply_with(keys(&new));
    eventually("the old key is withdrawn", || async { (publish(&trusting, &old_token).await == 401).then_some(()) })
        .await;
    assert_eq!(publish(&trusting, &new.rsa_token(&claims(&json!({})))).await, 201);

    receiver.reply_with(keys(&old));
    drop(trusting);
    let before = receiver.requests().len();
    let distrusting = start(&TestAuthority::new().ca_file()).await;
    assert!([401, 503].contains(&publish(&distrusting, &old_token).await), "it trusts a stranger");
    distrusting.kit.gateway.wait_for_event("token_keys.unavailable").await;
    assert!(receiver.requests().len() - before <= 1, "at most the last request of the other gateway");
}

#[tokio::test]
async fn a_file_with_the_keys_of_the_issuer_is_read_again_when_it_changes() {
    let (old, new) = (TokenIssuer::new("old"), TokenIssuer::new("new"));
    let folder = keys_file(&old);
    let path = folder.path_text("jwks.json");
    let variables = [
        ("GALLEY__AUTH__JWT__JWKS_FILE", path.as_str()),
        // What an unknown key asks for would hide the look
        ("GALLEY__AUTH__JWT__UNKNOWN_KEY_PAUSE_MS", "3600000"),
        ("GALLEY__RELOAD__INTERVAL_MS", "100"),
    ];
    let keyed = KeyedKit::start(&variables).await;
    let token = old.ed_token(&claims(&json!({})));
    let publish = async |token: &str| {
        let sent = keyed.post(token, "/v1/channels/orders.eu/messages", &json!({})).await;
        outcome(sent).await.0
    };
    assert_eq!(publish(&token).await, 201);
    folder.write("jwks.json", "{");
    eventually("a broken file is told", || async {
        (!keyed.kit.gateway.events("token_keys.unavailable").is_empty()).then_some(())
    })
    .await;
    assert_eq!(publish(&token).await, 201, "the keys that are known stay");
    folder.write("jwks.json", &new.keys().to_string());
    eventually("the old key is withdrawn", || async { (publish(&token).await == 401).then_some(()) }).await;
    assert_eq!(publish(&new.ed_token(&claims(&json!({})))).await, 201);
}

/// The text of a stream of events until it ends.
async fn stream_to_its_end(keyed: &KeyedKit, path: &str) -> String {
    let response = keyed.kit.http.get(keyed.kit.gateway.url(path)).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    tokio::time::timeout(TEST_TIMEOUT, response.text()).await.expect("it ends").expect("whole")
}

#[tokio::test]
async fn a_stream_ends_with_a_reason_when_its_token_expires_also_while_messages_flow() {
    let keyed = KeyedKit::start(&[("GALLEY__AUTH__JWT__LEEWAY_MS", "0")]).await;
    let asked = json!({ "scopes": ["channels:subscribe", "jobs:read"], "lifetime_ms": 12_000 });
    let token = async || {
        let made = keyed.post(&keyed.admin, "/v1/tokens", &asked).await;
        assert_eq!(made.status(), 201);
        assert_eq!(made.headers()["cache-control"], "no-store");
        let made: Value = made.json().await.expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    };
    let flow = async {
        loop {
            let sent = keyed.post(&keyed.admin, "/v1/channels/busy/messages", &json!({})).await;
            assert_eq!(sent.status(), 201);
        }
    };
    let (busy, all, events) = (token().await, token().await, token().await);
    let paths = [
        format!("/v1/channels/busy/stream?token={busy}"),
        format!("/v1/stream?channel=b*&token={all}"),
        format!("/ojs/v1/events/stream?token={events}"),
    ];
    let ends = futures_util::future::join_all(paths.iter().map(|path| stream_to_its_end(&keyed, path)));
    let texts = tokio::select! {
        texts = ends => texts,
        () = flow => unreachable!("it has no end"),
    };
    for text in &texts {
        let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
        assert!(last.starts_with("event: access_ended\ndata: {\"reason\":\"expired\""), "{last}");
    }
    assert!(texts[0].matches("event: message").count() > 1, "nothing flowed: {}", texts[0]);
    // A browser that connects again learns that it needs another
    let again = keyed.kit.http.get(keyed.kit.gateway.url(&paths[0])).send().await.expect("an answer");
    assert_eq!(outcome(again).await, (401, "invalid_token".to_owned()));
}

/// The last frame that says something, and the code of the close.
async fn socket_to_its_end<E: Debug>(mut socket: impl Stream<Item = Result<Message, E>> + Unpin) -> (Value, u16) {
    let (mut last, mut code) = (Value::Null, 0);
    let reading = async {
        while let Some(frame) = socket.next().await {
            match frame.expect("no broken connection") {
                Message::Text(text) => last = serde_json::from_str(&text).expect("JSON"),
                Message::Close(frame) => code = frame.map_or(0, |frame| frame.code.into()),
                _ => {}
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, reading).await.expect("it ends");
    (last, code)
}

#[tokio::test]
async fn a_websocket_ends_with_a_reason_when_its_token_expires_or_the_key_that_made_it_is_revoked() {
    let mut ring = KeyRing::new();
    let maker = ring.add("scopes = [\"channels:subscribe\"]\nchannels = [\"orders.*\"]");
    let mut keyed = ring.start(&[("GALLEY__AUTH__JWT__LEEWAY_MS", "0")]).await;
    let token = async |keyed: &KeyedKit, lifetime: u64| {
        let made = keyed.post(&maker, "/v1/tokens", &json!({ "lifetime_ms": lifetime })).await;
        let made: Value = made.json().await.expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    };
    let url = |token: &str| keyed.kit.gateway.url(&format!("/v1/ws?token={token}")).replacen("http", "ws", 1);
    let (open, _) = connect_async(url(&token(&keyed, 12_000).await)).await.expect("a websocket");
    let (frame, code) = socket_to_its_end(open).await;
    assert_eq!((&frame["type"], &frame["reason"], code), (&json!("access_ended"), &json!("expired"), 1008));
    let long = token(&keyed, 600_000).await;
    let (open, _) = connect_async(url(&long)).await.expect("a websocket");
    keyed.revoke(&maker);
    let (frame, code) = socket_to_its_end(open).await;
    assert_eq!((&frame["type"], &frame["reason"], code), (&json!("access_ended"), &json!("revoked"), 1008));
    let stream = keyed.kit.http.get(keyed.kit.gateway.url(&format!("/v1/channels/orders.eu/stream?token={long}")));
    assert_eq!(outcome(stream.send().await.expect("an answer")).await, (401, "invalid_token".to_owned()));
}

#[tokio::test]
async fn a_token_never_does_more_or_lives_longer_than_what_made_it() {
    let mut ring = KeyRing::new();
    let maker =
        ring.add("scopes = [\"channels:subscribe\", \"jobs:write\"]\nchannels = [\"orders.*\"]\nqueues = [\"a\"]");
    let keyed = ring.start(&[("GALLEY__AUTH__TOKENS__MAX_LIFETIME_MS", "60000")]).await;
    for (asked, refused) in [
        (json!({ "scopes": ["admin:write"] }), 403),
        (json!({ "scopes": ["channels:subscribe", "work"] }), 403),
        (json!({ "channels": ["*"] }), 403),
        (json!({ "channels": ["orders.eu", "mails"] }), 403),
        (json!({ "channels": ["order*"] }), 403),
        (json!({ "queues": ["b"] }), 403),
        (json!({ "scopes": ["all"] }), 400),
        (json!({ "lifetime_ms": 60_001 }), 400),
        (json!({ "lifetime_ms": 0 }), 400),
        (json!({ "subject": "a b" }), 400),
        (json!({ "namespace": "A" }), 400),
        (json!({ "key": "x" }), 400),
        (json!({ "channels": ["orders.eu"], "scopes": ["channels:subscribe"], "subject": "page-1" }), 201),
        (json!({ "namespace": "acme" }), 201),
        (json!({}), 201),
    ] {
        assert_eq!(keyed.post(&maker, "/v1/tokens", &asked).await.status().as_u16(), refused, "{asked}");
    }
    let token = |answer: Value| answer["token"].as_str().expect("a token").to_owned();
    let asked = json!({ "channels": ["orders.eu"], "lifetime_ms": 30_000 });
    let first: Value = keyed.post(&maker, "/v1/tokens", &asked).await.json().await.expect("JSON");
    let first_end = first["expires_at"].as_str().expect("a time").to_owned();
    let first = token(first);
    // A token makes tokens too, which end with it
    let wider = keyed.post(&first, "/v1/tokens", &json!({ "channels": ["orders.us"] })).await;
    assert_eq!(outcome(wider).await, (403, "name_not_allowed".to_owned()));
    let second: Value =
        keyed.post(&first, "/v1/tokens", &json!({ "lifetime_ms": 60_000 })).await.json().await.expect("JSON");
    let second_end = second["expires_at"].as_str().expect("a time");
    let all = token(keyed.post(&keyed.admin, "/v1/tokens", &json!({})).await.json().await.expect("JSON"));
    let asked = json!({ "name": "k", "scopes": ["jobs:write"] });
    assert_eq!(keyed.post(&all, "/v1/admin/keys", &asked).await.status(), 403, "a key would outlive it");
    assert!(second_end <= first_end.as_str(), "{second_end} is after {first_end}");
}

#[tokio::test]
async fn a_token_in_an_address_is_accepted_for_streams_alone_and_is_never_shown() {
    let otlp = OtlpReceiver::start(([127, 0, 0, 1], 0).into());
    let endpoint = otlp.url();
    let every_trace = ("GALLEY__TELEMETRY__SAMPLER", "always_on");
    let keyed = KeyedKit::start(&[("GALLEY__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()), every_trace]).await;
    let made: Value = keyed.post(&keyed.admin, "/v1/tokens", &json!({})).await.json().await.expect("JSON");
    let token = made["token"].as_str().expect("a token").to_owned();
    let get = async |path: String| {
        let request = keyed.kit.http.get(keyed.kit.gateway.url(&path));
        request.send().await.expect("an answer")
    };
    for path in ["/v1/channels", "/v1/channels/a/messages", "/ojs/v1/jobs/x", "/ojs/v1/queues", "/v1/admin/audit"] {
        let refused = outcome(get(format!("{path}?token={token}")).await).await;
        assert_eq!(refused, (401, "key_required".to_owned()), "{path}");
    }
    for path in ["/v1/stream?channel=a", "/v1/channels/a/stream?x=y", "/ojs/v1/events/stream?x=y"] {
        let stream = get(format!("{path}&token={token}")).await;
        assert_eq!(stream.status(), 200, "{path}");
    }
    // A key lives long, and addresses are kept in many places
    let key = keyed.admin.clone();
    let refused = get(format!("/v1/stream?channel=a&token={key}")).await.text().await.expect("text");
    assert!(refused.contains("invalid_token") && !refused.contains(&key), "{refused}");
    let twice = get(format!("/v1/stream?channel=a&token={token}&token={token}")).await;
    assert_eq!(outcome(twice).await, (401, "invalid_token".to_owned()));
    let bad = get(format!("/v1/stream?channel=a%20b&token={token}")).await.text().await.expect("text");
    assert!(bad.contains("invalid_request") && !bad.contains(&token), "{bad}");
    let metrics = keyed.get(&keyed.admin, "/metrics").await.text().await.expect("text");
    let (_, signature) = token.rsplit_once('.').expect("parts");
    for secret in [token.as_str(), signature, key.as_str()] {
        assert!(!metrics.contains(secret) && !keyed.kit.gateway.raw_log().contains(secret));
    }
    eventually("the spans of streams arrive", || async { (!otlp.spans().is_empty()).then_some(()) }).await;
    assert!(!otlp.received_text().contains(signature), "a span shows the token");
}

#[tokio::test]
async fn a_replayed_token_gives_no_more_than_it_did_and_nothing_after_its_end() {
    let issuer = TokenIssuer::new("id");
    let (keyed, _folder) = start_with_issuer(&issuer).await;
    let token = issuer.ed_token(&claims(&json!({ "exp": now() + 13, "jti": "1" })));
    let publish = async || {
        let sent = keyed.post(&token, "/v1/channels/orders.eu/messages", &json!({})).await;
        outcome(sent).await
    };
    assert_eq!(publish().await.0, 201);
    eventually("it expires", || async { (publish().await == (401, "invalid_token".to_owned())).then_some(()) }).await;
    // Not in another part of the request either
    let elsewhere = keyed.kit.http.request(Method::POST, keyed.kit.gateway.url("/v1/channels/orders.eu/messages"));
    let elsewhere = elsewhere.header("x-authorization", format!("Bearer {token}")).body("x").send().await;
    assert_eq!(outcome(elsewhere.expect("an answer")).await.0, 401);
}

#[tokio::test]
async fn a_stream_of_a_key_from_redis_ends_when_the_key_is_revoked() {
    let keyed = KeyedKit::start(&[]).await;
    let asked = json!({ "name": "reader", "scopes": ["channels:subscribe"] });
    let made: Value = keyed.post(&keyed.admin, "/v1/admin/keys", &asked).await.json().await.expect("JSON");
    let key = made["key"].as_str().expect("a key").to_owned();
    let stream = keyed.get(&key, "/v1/channels/a/stream").await;
    assert_eq!(stream.status(), 200);
    let id = key.split('_').nth(1).expect("an id");
    let revoked = keyed.send(&keyed.admin, Method::DELETE, &format!("/v1/admin/keys/{id}"), &Value::Null).await;
    assert!(revoked.status().is_success(), "{}", revoked.status());
    let text = tokio::time::timeout(TEST_TIMEOUT, stream.text()).await.expect("it ends").expect("whole");
    assert!(text.contains("event: access_ended\ndata: {\"reason\":\"revoked\""), "{text}");
}
