//! Pages of other sites, as browsers let them: they ask first, and what they may read has to say so.

use reqwest::{Method, Response};
use serde_json::Value;
use testkit::RedisServer;

use crate::kit::GalleyKit;

const APP: &str = "https://app.example.com";
const ELSEWHERE: &str = "https://elsewhere.example";
const STREAM: &str = "/v1/channels/orders/stream";
const READ: [&str; 5] =
    ["/v1/channels", "/v1/channels/orders", "/v1/channels/orders/messages", STREAM, "/v1/stream?channel=orders"];

async fn ask(kit: &GalleyKit, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = kit.http.request(method, kit.gateway.url(path));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, *value));
    request.send().await.expect("an answer")
}

fn allowed(response: &Response) -> Option<&str> {
    response.headers().get("access-control-allow-origin").map(|value| value.to_str().expect("text"))
}

async fn kit() -> GalleyKit {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__ALLOWED_ORIGINS", APP)]).await;
    let sent = ask(&kit, Method::POST, "/v1/channels/orders/messages", &[]).await;
    assert_eq!(sent.status(), 201);
    kit
}

#[tokio::test]
async fn a_page_of_a_site_that_is_allowed_may_read_channels_and_no_other_may() {
    let kit = kit().await;
    for path in READ {
        let answer = ask(&kit, Method::GET, path, &[("origin", APP), ("sec-fetch-site", "cross-site")]).await;
        assert_eq!((answer.status().as_u16(), allowed(&answer)), (200, Some(APP)), "{path}");
        assert!(answer.headers()["vary"].to_str().expect("text").to_lowercase().contains("origin"), "{path}");
        let answer = ask(&kit, Method::GET, path, &[("origin", ELSEWHERE)]).await;
        assert_eq!(allowed(&answer), None, "{path}");
    }
    // Also why something cannot be read
    let answer = ask(&kit, Method::GET, "/v1/channels/none", &[("origin", APP)]).await;
    assert_eq!((answer.status().as_u16(), allowed(&answer)), (404, Some(APP)));
    let problem: Value = answer.json().await.expect("JSON");
    assert_eq!(problem["code"], "not_found", "{problem}");
}

#[tokio::test]
async fn a_browser_that_asks_first_is_told_what_it_may() {
    let kit = kit().await;
    let preflight = async |path: &str, origin: &str, method: &str, header: &str| {
        let asked = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", header),
            ("sec-fetch-site", "cross-site"),
        ];
        ask(&kit, Method::OPTIONS, path, &asked).await
    };
    for path in READ {
        let answer = preflight(path, APP, "GET", "last-event-id").await;
        assert_eq!((answer.status().as_u16(), allowed(&answer)), (200, Some(APP)), "{path}");
        let headers = answer.headers()["access-control-allow-headers"].to_str().expect("text").to_lowercase();
        assert!(headers.contains("last-event-id"), "{headers}");
    }
    for (path, origin, method, header) in [
        (STREAM, ELSEWHERE, "GET", "last-event-id"),
        (STREAM, APP, "GET", "x-other"),
        ("/v1/channels/orders/messages", APP, "POST", "content-type"),
        ("/ojs/v1/jobs", APP, "POST", "content-type"),
    ] {
        let answer = preflight(path, origin, method, header).await;
        assert!(answer.status().is_client_error(), "{path} {origin} {method} {header}: {answer:?}");
    }
    let headers = [("origin", APP), ("sec-fetch-site", "cross-site")];
    let refused = ask(&kit, Method::POST, "/v1/channels/orders/messages", &headers).await;
    assert_eq!(refused.status(), 403, "a page of another site publishes nothing");
}

#[tokio::test]
async fn nothing_is_said_to_other_sites_if_none_is_allowed() {
    let kit = GalleyKit::start().await;
    let answer = ask(&kit, Method::GET, "/v1/channels", &[("origin", APP)]).await;
    assert_eq!((answer.status().as_u16(), allowed(&answer)), (200, None));
    let asked = [("origin", APP), ("access-control-request-method", "GET")];
    assert_eq!(ask(&kit, Method::OPTIONS, STREAM, &asked).await.status(), 405);
}
