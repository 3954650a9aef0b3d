//! What becomes of an answer.

use std::time::Duration;

use delivery::http::{Endpoint, EndpointSettings, PushAnswer, PushResult, PushRetry};

use crate::kit::{Server, WebhookReply, endpoint, post, post_error, settings, system_network};

async fn answered(reply: WebhookReply) -> PushAnswer {
    let server = Server::start([reply]).await;
    post(&endpoint(&server.url("/"))).await.expect("a success")
}

fn json(result: &PushResult) -> Option<&str> {
    match result {
        PushResult::Json(json) => Some(json.get()),
        PushResult::Empty => None,
        PushResult::Dropped(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn a_success_has_its_status_and_its_body() {
    for (reply, status, body) in [
        (WebhookReply::ok(r#"{"n": 9007199254740993}"#), 200, Some(r#"{"n": 9007199254740993}"#)),
        (WebhookReply::new(202, "", r#"{"later":true}"#), 202, Some(r#"{"later":true}"#)),
        (WebhookReply::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()), 204, None),
        (WebhookReply::ok(""), 200, None),
        (WebhookReply::new(200, "content-type: text/plain\r\n", "OK"), 200, Some(r#""OK""#)),
        (
            WebhookReply::Raw(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n".to_vec(),
            ),
            200,
            Some("[1]"),
        ),
        (
            WebhookReply::Raw(
                b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 1\r\n\r\n7".to_vec(),
            ),
            201,
            Some("7"),
        ),
    ] {
        let answer = answered(reply.clone()).await;
        assert_eq!((answer.status, json(&answer.result)), (status, body), "{reply:?}");
    }
}

#[tokio::test]
async fn a_request_has_method_path_and_body_and_a_connection_is_used_again() {
    let server = Server::start([WebhookReply::ok("1")]).await;
    let endpoint = endpoint(&server.url("/jobs/{type}?q={type}"));
    post(&endpoint).await.expect("a success");
    post(&endpoint).await.expect("a success");
    let requests = server.requests();
    assert!(requests[0].head.starts_with("POST /jobs/a.b?q=a.b HTTP/1.1\r\n"), "{}", requests[0].head);
    assert_eq!(requests[0].body, br#"{"args":[1]}"#);
    assert_eq!(requests[0].header("host"), Some(server.address.to_string().as_str()));
    assert_eq!(requests[0].header("accept-encoding"), None);
    assert_eq!((requests.len(), server.connections()), (2, 1));
}

#[tokio::test]
async fn a_failure_has_the_code_of_its_status_and_says_what_follows() {
    let seconds = |seconds| PushRetry::After(Duration::from_secs(seconds));
    for (status, headers, code, retry) in [
        (301, "location: /x\r\n", "push_redirected", PushRetry::Never),
        (304, "", "push_redirected", PushRetry::Never),
        (400, "", "push_rejected", PushRetry::Never),
        (404, "retry-after: 5\r\n", "push_rejected", PushRetry::Never),
        (410, "", "push_rejected", PushRetry::Never),
        (408, "", "push_deferred", PushRetry::ByPolicy),
        (409, "", "push_deferred", PushRetry::ByPolicy),
        (425, "", "push_deferred", PushRetry::ByPolicy),
        (429, "", "push_rate_limited", PushRetry::ByPolicy),
        (429, "retry-after: 7\r\n", "push_rate_limited", seconds(7)),
        (500, "", "push_server_error", PushRetry::ByPolicy),
        (503, "Retry-After: 1000000\r\n", "push_server_error", seconds(86_400)),
        (503, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "push_server_error", PushRetry::ByPolicy),
        (503, "retry-after: Mon, 06 Nov 2180 08:49:37 GMT\r\n", "push_server_error", seconds(86_400)),
        (799, "", "push_server_error", PushRetry::ByPolicy),
    ] {
        let server = Server::start([WebhookReply::new(status, headers, "because\x1b\r\nof that")]).await;
        let error = post_error(&endpoint(&server.url("/"))).await;
        assert_eq!((error.code, error.retry, error.status), (code, retry, Some(status)), "{status} {headers}");
        if status != 304 {
            let expected = format!("push to http://{}: answered with status {status}: because of that", server.address);
            assert_eq!(error.message, expected);
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_is_told_apart() {
    for (reply, code) in [
        (WebhookReply::Close, "push_answer_broken"),
        (WebhookReply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "push_answer_broken"),
        (WebhookReply::Raw([b"HTTP/1.1 500 X\r\nx: ".to_vec(), vec![b'x'; 100_000]].concat()), "push_answer_broken"),
        (
            WebhookReply::Raw(b"HTTP/1.1 500 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12".to_vec()),
            "push_answer_broken",
        ),
        (WebhookReply::Cut(b"HTTP/1.1 200 OK\r\nx: ".to_vec()), "push_answer_broken"),
    ] {
        let server = Server::start([reply]).await;
        let error = post_error(&endpoint(&server.url("/"))).await;
        assert_eq!((error.code, error.retry, error.status), (code, PushRetry::ByPolicy, None), "{}", error.message);
    }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n";

async fn assert_dropped(reply: WebhookReply, said: &str) {
    let timeout = if matches!(reply, WebhookReply::Trickle(_)) { TIMEOUT } else { testkit::TEST_TIMEOUT };
    let server = Server::start([reply]).await;
    let settings = EndpointSettings { timeout, ..settings(&server.url("/")) };
    let answer = post(&Endpoint::new(settings, &system_network()).expect("allowed")).await.expect("a success");
    let PushResult::Dropped(why) = answer.result else { panic!("{said}: {answer:?}") };
    assert!(answer.status == 200 && why.contains(said), "{said}: {why}");
    testkit::eventually("a closed connection", || async { (server.closed_connections() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_2xx_is_a_success_whatever_its_body() {
    let raw = |text: &str| WebhookReply::Raw(text.as_bytes().to_vec());
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{";
    assert_dropped(raw(&format!("{chunked}zz\r\n")), "broke off").await;
    assert_dropped(raw(&format!("{chunked}2\r\n[1]]\r\n0\r\n\r\n")), "broke off").await;
    assert_dropped(WebhookReply::Cut(cut.as_bytes().to_vec()), "broke off").await;
    assert_dropped(WebhookReply::Cut(format!("{chunked}2\r\n[1").into_bytes()), "broke off").await;
    assert_dropped(WebhookReply::Trickle("HTTP/1.1 200 OK\r\n\r\n"), "no whole answer").await;
    for head in ["content-length: 1\r\ncontent-length: 2", "content-length: many", "content-length: -1"] {
        assert_dropped(raw(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n12")), "the connection broke").await;
    }
    assert_dropped(WebhookReply::Raw([b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 100_000]].concat()), "broke")
        .await;
    let odd = "HTTP/1.1 200 OK\r\nbad header\r\nspace : x\r\ncontent-length: 1\r\n\r\n7";
    assert_eq!(json(&answered(raw(odd)).await.result), Some("7"));
    let deep = "[".repeat(100);
    assert_eq!(json(&answered(WebhookReply::ok(&deep)).await.result), Some(format!("\"{deep}\"").as_str()));
}

#[tokio::test]
async fn a_huge_and_an_endless_answer_end_at_the_limit() {
    let huge = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    for reply in [WebhookReply::ok(&"1".repeat(1_048_577)), WebhookReply::Endless(CHUNKED), WebhookReply::Endless(huge)]
    {
        assert_dropped(reply, "more than 1048576 bytes").await;
    }
    let most = "1".repeat(1_048_576);
    assert_eq!(json(&answered(WebhookReply::ok(&most)).await.result).map(str::len), Some(most.len()));
}

#[tokio::test]
async fn an_endless_failure_is_a_failure_with_an_excerpt() {
    let server = Server::start([WebhookReply::Endless("HTTP/1.1 500 X\r\n\r\n")]).await;
    let error = post_error(&endpoint(&server.url("/"))).await;
    assert_eq!((error.code, error.status), ("push_server_error", Some(500)));
    assert!(error.message.ends_with(&format!(": {}", "x".repeat(256))), "{}", error.message);
}

/// Long enough for a head to come on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(5);

async fn ends_with_the_time(reply: WebhookReply, code: &str, status: Option<u16>) {
    let server = Server::start([reply]).await;
    let settings = EndpointSettings { timeout: TIMEOUT, ..settings(&server.url("/")) };
    let endpoint = Endpoint::new(settings, &system_network()).expect("allowed");
    let error = post_error(&endpoint).await;
    assert_eq!((error.code, error.retry, error.status), (code, PushRetry::ByPolicy, status), "{}", error.message);
    testkit::eventually("a closed connection", || async { (server.closed_connections() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn silence_and_a_trickle_end_with_the_time() {
    tokio::join!(
        ends_with_the_time(WebhookReply::Hang, "push_timeout", None),
        ends_with_the_time(WebhookReply::Trickle("HTTP/1.1 200 OK\r\nx: "), "push_timeout", None),
        ends_with_the_time(WebhookReply::Trickle("HTTP/1.1 500 X\r\n\r\n"), "push_server_error", Some(500)),
    );
}
