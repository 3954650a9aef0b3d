//! Attacks on the dashboard: other sites, stolen and planted cookies, addresses that lead away, a Redis that dies.

use reqwest::{Client, Method};
use serde_json::json;
use testkit::eventually;

use crate::{
    dashboard::Visitor,
    keyed_gateway::KeyedGateway,
    kit::{GalleyKit, job_body},
};

#[tokio::test]
async fn pages_cannot_be_framed_kept_or_sniffed_and_lead_nowhere_else() {
    let keyed = KeyedGateway::start(&[]).await;
    let mut visitor = Visitor::new(&keyed.kit.gateway);
    for path in ["/", "/ui/login", "/ui/queues", "/ui/nothing"] {
        let response = visitor.send(Method::GET, path, None).await;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert!(header("content-security-policy").contains("form-action 'self'"), "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert!(header("server-timing").starts_with("page;dur="), "{path}");
    }
    // After the login a browser stays here, whatever the address said
    for to in ["https://evil.example", "//evil.example", "/%5Cevil.example", "%09//evil.example", "javascript:alert(1)"]
    {
        let done = visitor.form("/ui/login", &format!("key={}&to={to}", keyed.admin)).await;
        assert_eq!((done.status().as_u16(), &done.headers()["location"]), (303, &"/".parse().expect("text")), "{to}");
    }
    let moved = visitor.send(Method::GET, "/ui/preferences?theme=dark&to=https://evil.example", None).await;
    assert_eq!(moved.headers()["location"], "/");
    let done = visitor.form("/ui/maintenance/off", "to=%2F%2Fevil.example").await;
    assert_eq!(done.headers()["location"], "/?note=maintenance_off&of=");
}

#[tokio::test]
async fn a_cookie_that_somebody_planted_is_worth_nothing_after_the_login() {
    let keyed = KeyedGateway::start(&[]).await;
    let mut attacker = Visitor::new(&keyed.kit.gateway);
    attacker.page("/ui/login").await;
    let planted = attacker.cookie.clone().expect("a cookie");
    // The victim's browser has the attacker's cookie, and logs in
    let mut victim = Visitor::new(&keyed.kit.gateway);
    victim.cookie = Some(planted.clone());
    assert_eq!(victim.log_in(&keyed.admin).await.status(), 303);
    assert_ne!(victim.cookie.as_ref(), Some(&planted), "a login makes another cookie");
    assert_eq!(victim.page("/ui/queues").await.0, 200);
    assert_eq!(attacker.page("/ui/queues").await.0, 401);
    // Another site cannot send forms, with whatever cookie
    let client = Client::new();
    let request = client.post(keyed.kit.gateway.url("/ui/maintenance/on")).header("origin", "https://evil.example");
    let request = request.header("cookie", victim.cookie.clone().expect("a cookie"));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(request.body("reason=x").send().await.expect("an answer").status(), 403);
    // The cookie opens no interface for programs
    assert_eq!(victim.send(Method::DELETE, "/v1/admin/keys/x", None).await.status(), 401);
}

#[tokio::test]
async fn a_stream_ends_with_the_key_and_the_pages_with_it() {
    let keyed = KeyedGateway::start(&[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "200")]).await;
    let (reader, id) = keyed.make_key(&json!({ "name": "reader", "scopes": ["admin:read", "jobs:read"] })).await;
    let mut visitor = Visitor::new(&keyed.kit.gateway);
    visitor.log_in(&reader).await;
    let stream = visitor.send(Method::GET, "/ui/live?page=overview", None).await;
    assert_eq!(stream.status(), 200);
    let path = format!("/v1/admin/keys/{id}");
    assert_eq!(keyed.send(&keyed.admin, Method::DELETE, &path, None).await.status(), 200);
    let rest = tokio::time::timeout(testkit::TEST_TIMEOUT, stream.text()).await;
    assert!(rest.expect("the stream ends").expect("text").contains("access_ended"));
    assert_eq!(visitor.page("/ui/jobs").await.0, 401);
}

#[tokio::test]
async fn addresses_and_names_that_somebody_else_chose_stay_text() {
    let kit = GalleyKit::start().await;
    let url = "https://example.com/\"><script>alert(1)</script>?'onmouseover=alert(1)";
    let body =
        json!({ "channels": ["c"], "deliver": { "http": { "url": url } }, "description": "</p><script>x</script>" });
    let put = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
    let answer = put.body(body.to_string()).send().await.expect("an answer");
    let mut visitor = Visitor::new(&kit.gateway);
    if answer.status() == 201 {
        let (_, page) = visitor.page("/ui/subscriptions/s").await;
        assert!(!page.contains("<script>") && !page.contains("\"><"), "{page}");
    }
    for path in [
        "/ui/jobs?q=%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/ui/queues?q=%3Cscript%3E",
        "/ui/login?to=%22%3E%3Cscript%3E",
        "/ui/jobs?note=job_retried&of=%3Cscript%3E",
        "/ui/channels?after=%3Cscript%3E",
        "/ui/try?from=%3Cscript%3E",
        "/ui/live?page=%3Cscript%3E",
    ] {
        let (_, page) = visitor.page(path).await;
        assert!(!page.contains("<script>") && !page.contains("\"><script"), "{path}: {page}");
    }
}

#[tokio::test]
async fn an_open_page_survives_the_death_of_redis_and_goes_on_when_it_is_back() {
    let mut kit = GalleyKit::start_durable(&[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "200")]).await;
    let id = kit.enqueue(&job_body("x", &json!([]))).await;
    let open = |page: &str| Client::new().get(kit.gateway.url(&format!("/ui/live?page={page}")));
    let streams = [open("overview").send().await, open(&format!("job&id={id}")).send().await];
    for stream in streams.iter().flatten() {
        assert_eq!(stream.status(), 200);
    }
    kit.redis.kill();
    let mut visitor = Visitor::new(&kit.gateway);
    assert_eq!(visitor.page("/ui/jobs").await.0, 503);
    kit.redis.restart();
    eventually("the pages are back", || async {
        let mut visitor = Visitor::new(&kit.gateway);
        let (status, page) = visitor.page(&format!("/ui/jobs/{id}")).await;
        (status == 200 && page.contains("available")).then_some(())
    })
    .await;
    drop(streams);
    // A new stream moves as before
    let mut stream = open("overview").send().await.expect("a stream");
    let mut seen = String::new();
    while !seen.contains("event: parts") {
        let chunk = tokio::time::timeout(testkit::TEST_TIMEOUT, stream.chunk()).await.expect("in time");
        seen.push_str(&String::from_utf8_lossy(&chunk.expect("it is open").expect("more")));
    }
}

/// The token of forms in the first parts that a stream sends to a visitor.
async fn streamed_token(visitor: &mut Visitor) -> String {
    let mut stream = visitor.send(Method::GET, "/ui/live?page=overview", None).await;
    let mut seen = String::new();
    loop {
        let chunk = tokio::time::timeout(testkit::TEST_TIMEOUT, stream.chunk()).await.expect("in time");
        seen.push_str(&String::from_utf8_lossy(&chunk.expect("it is open").expect("more")));
        assert!(!seen.contains("<csrf>"), "every form has a token: {seen}");
        if let Some((_, rest)) = seen.split_once(r#"name=\"csrf\" value=\""#)
            && let Some((token, _)) = rest.split_once('\\')
        {
            return token.to_owned();
        }
    }
}

#[tokio::test]
async fn the_overview_that_all_viewers_share_has_a_token_of_each_in_its_forms() {
    let kit = GalleyKit::start().await;
    kit.enqueue(&json!({ "type": "a", "args": [], "queue": "mails" })).await;
    assert_eq!(kit.post("/ojs/v1/queues/mails/pause", &json!({})).await.status(), 200);
    let (mut first, mut second) = (Visitor::new(&kit.gateway), Visitor::new(&kit.gateway));
    for visitor in [&mut first, &mut second] {
        let (_, page) = visitor.page("/").await;
        assert!(page.contains("/ui/queues/mails/resume") && !page.contains("<csrf>"), "{page}");
    }
    let (of_first, of_second) = (streamed_token(&mut first).await, streamed_token(&mut second).await);
    assert_ne!(of_first, of_second);
    let resume = async |visitor: &mut Visitor, token: &str| {
        let body = Some(format!("csrf={token}"));
        visitor.send(Method::POST, "/ui/queues/mails/resume", body).await.status().as_u16()
    };
    assert_eq!(resume(&mut second, &of_first).await, 403);
    assert_eq!(resume(&mut second, &of_second).await, 303);
}
