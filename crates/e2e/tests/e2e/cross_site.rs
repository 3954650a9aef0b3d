//! What pages of other sites, and pages whose name resolves to a gateway, can do: nothing.

use reqwest::{Method, Response};
use serde_json::Value;
use testkit::RedisServer;

use crate::kit::GalleyKit;

async fn send(kit: &GalleyKit, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = kit.http.request(method, kit.gateway.url(path)).body("x");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, *value));
    request.send().await.expect("an answer")
}

/// The code of an error, in either shape.
async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap_or_default();
    let code = answer["error"]["code"].as_str().or(answer["code"].as_str()).unwrap_or_default().to_owned();
    (status, code)
}

/// What changes something without a body of JSON, or holds a stream.
const EXPOSED: [(Method, &str); 8] = [
    (Method::POST, "/ojs/v1/queues/default/pause"),
    (Method::POST, "/ojs/v1/queues/default/drain"),
    (Method::POST, "/ojs/v1/workers/w/terminate"),
    (Method::POST, "/v1/channels/a/messages"),
    (Method::GET, "/prodcons"),
    (Method::GET, "/pubsub"),
    (Method::GET, "/v1/stream?channel=a"),
    (Method::GET, "/ojs/v1/events/stream"),
];

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let kit = GalleyKit::start().await;
    let pages: [&[(&str, &str)]; 4] = [
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        // Over plain HTTP browsers send no Sec-Fetch-Site
        &[("origin", "http://evil.example"), ("content-type", "text/plain")],
        &[("origin", "null")],
    ];
    for headers in pages {
        for (method, path) in EXPOSED {
            let refused = code(send(&kit, method, path, headers).await).await;
            assert_eq!(refused, (403, "cross_site_request".to_owned()), "{path} {headers:?}");
        }
        // Links to a page are followed from anywhere
        assert_eq!(
            kit.http
                .get(kit.gateway.url("/"))
                .header(headers[0].0, headers[0].1)
                .send()
                .await
                .expect("an answer")
                .status(),
            200
        );
    }
    assert_eq!(kit.redis_keys().await, Vec::<String>::new(), "something was written");
    let own = format!("http://{}", kit.gateway.address());
    let allowed: [&[(&str, &str)]; 4] =
        [&[], &[("sec-fetch-site", "same-origin")], &[("sec-fetch-site", "none")], &[("origin", &own)]];
    for headers in allowed {
        assert_ne!(send(&kit, Method::POST, EXPOSED[0].1, headers).await.status(), 403, "{headers:?}");
        assert_eq!(send(&kit, Method::POST, EXPOSED[3].1, headers).await.status(), 201, "{headers:?}");
    }
}

#[tokio::test]
async fn a_page_whose_name_resolves_to_the_gateway_is_refused() {
    let kit = GalleyKit::start().await;
    // To the browser it is the same site
    let rebound =
        [("host", "evil.example:8080"), ("origin", "http://evil.example:8080"), ("sec-fetch-site", "same-origin")];
    for (method, path) in EXPOSED.into_iter().chain([(Method::GET, "/ojs/v1/queues"), (Method::GET, "/metrics")]) {
        let refused = code(send(&kit, method, path, &rebound).await).await;
        assert_eq!(refused, (403, "host_not_allowed".to_owned()), "{path}");
    }
    assert_eq!(kit.redis_keys().await, Vec::<String>::new(), "something was written");
    for host in ["localhost:8080", "gateway:8080", "galley-gateway.jobs.svc.cluster.local", "10.1.2.3", "[::1]:8080"] {
        let sent = send(&kit, Method::POST, "/v1/channels/a/messages", &[("host", host)]).await;
        assert_eq!(sent.status(), 201, "{host}");
    }
    assert_eq!(send(&kit, Method::GET, "/health/live", &rebound).await.status(), 200, "probes name any host");
}

#[tokio::test]
async fn the_settings_name_the_hosts_under_which_a_gateway_is_known() {
    let hosts = [("GALLEY__GATEWAY__ALLOWED_HOSTS", "galley.example.com,*.apps.example.com")];
    let kit = GalleyKit::start_with(RedisServer::start(), &hosts).await;
    for (host, status) in [
        ("galley.example.com", 201),
        ("one.apps.example.com:443", 201),
        ("apps.example.com", 403),
        ("evil.example", 403),
    ] {
        let sent = send(&kit, Method::POST, "/v1/channels/a/messages", &[("host", host)]).await;
        assert_eq!(sent.status(), status, "{host}");
    }
    // A proxy that puts its own name into Host, over plain HTTP
    let proxied = [("host", "gateway:8080"), ("origin", "http://galley.example.com")];
    assert_eq!(send(&kit, Method::POST, "/v1/channels/a/messages", &proxied).await.status(), 201);
    let any = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__ALLOWED_HOSTS", "*")]).await;
    let named = [("host", "any.example")];
    assert_eq!(send(&any, Method::POST, "/v1/channels/a/messages", &named).await.status(), 201);
    let foreign = [("host", "any.example"), ("origin", "http://evil.example")];
    assert_eq!(send(&any, Method::POST, "/v1/channels/a/messages", &foreign).await.status(), 403);
}
