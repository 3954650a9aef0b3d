//! Places, the breaker, and being dropped.

use std::{sync::Arc, time::Duration};

use delivery::http::{BreakerSettings, Endpoint, EndpointSettings, PushRetry};
use futures_util::future::join_all;
use testkit::TEST_TIMEOUT;
use tokio::sync::Semaphore;

use crate::kit::{Server, WebhookReply, post, post_error, settings, system_network};

fn endpoint(server: &Server, change: impl FnOnce(&mut EndpointSettings)) -> Arc<Endpoint> {
    let mut settings = settings(&server.url("/"));
    change(&mut settings);
    Arc::new(Endpoint::new(settings, &system_network()).expect("allowed"))
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1";

#[tokio::test]
async fn no_more_requests_are_under_way_than_there_are_places() {
    let gate = Arc::new(Semaphore::new(0));
    let server = Server::start([WebhookReply::Gated(gate.clone(), OK.to_vec())]).await;
    let endpoint = endpoint(&server, |settings| settings.concurrency = 2);
    let all = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { join_all((0..5).map(|_| post(&endpoint))).await }
    });
    for sent in 2..=5 {
        server.wait_for_requests(sent).await;
        gate.add_permits(1);
    }
    gate.add_permits(1);
    let answers = all.await.expect("no panic");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(server.max_in_flight(), 2);
}

#[tokio::test]
async fn who_finds_no_place_in_time_is_not_sent_and_says_nothing_of_the_receiver() {
    let server = Server::start([WebhookReply::Hang, WebhookReply::ok("1")]).await;
    let endpoint = endpoint(&server, |settings| {
        settings.concurrency = 1;
        settings.breaker.failures = 1;
    });
    {
        // Not polled any more once it is sent, so it keeps its place beyond its time
        let mut first = std::pin::pin!(post(&endpoint));
        tokio::select! {
            _ = &mut first => panic!("nobody answers"),
            () = server.wait_for_requests(1) => {}
        }
        // Nothing else is to be done, so its time passes at once
        tokio::time::pause();
        let error = post_error(&endpoint).await;
        tokio::time::resume();
        assert_eq!((error.code, error.retry), ("push_no_place", PushRetry::ByPolicy));
        assert_eq!(server.requests().len(), 1);
    }
    post(&endpoint).await.expect("a place, and a closed breaker");
}

#[tokio::test]
async fn a_receiver_that_fails_again_and_again_is_left_alone_until_one_request_succeeds() {
    let fail = || WebhookReply::new(500, "", "");
    let server = Server::start([fail(), fail(), fail(), WebhookReply::ok("1")]).await;
    let open = Duration::from_mins(30);
    let endpoint = endpoint(&server, |settings| settings.breaker = BreakerSettings { failures: 2, open_for: open });
    for code in ["push_server_error", "push_server_error", "push_breaker_open", "push_breaker_open"] {
        let error = post_error(&endpoint).await;
        assert_eq!(error.code, code);
        if let ("push_breaker_open", retry) = (code, error.retry) {
            assert!(matches!(retry, PushRetry::After(wait) if wait <= open && !wait.is_zero()), "{retry:?}");
        }
    }
    assert_eq!(server.requests().len(), 2, "an open breaker sends nothing");
    pass(open).await;
    assert_eq!(post_error(&endpoint).await.code, "push_server_error", "one tries");
    assert_eq!(post_error(&endpoint).await.code, "push_breaker_open", "and opens it again");
    pass(open).await;
    post(&endpoint).await.expect("closed again");
    post(&endpoint).await.expect("closed again");
    assert_eq!(server.requests().len(), 5);
}

/// Moves the clock. It stands still only for that long, because a server is at work.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_receiver_that_asks_to_be_left_alone_is() {
    let server = Server::start([WebhookReply::new(429, "retry-after: 600\r\n", ""), WebhookReply::ok("1")]).await;
    let endpoint = endpoint(&server, |_| ());
    assert_eq!(post_error(&endpoint).await.retry, PushRetry::After(Duration::from_mins(10)));
    let error = post_error(&endpoint).await;
    assert_eq!(error.code, "push_breaker_open");
    assert!(matches!(error.retry, PushRetry::After(wait) if wait > Duration::from_mins(5)), "{:?}", error.retry);
    pass(Duration::from_mins(10)).await;
    post(&endpoint).await.expect("it may be asked again");
}

#[tokio::test]
async fn refusals_do_not_open_the_breaker() {
    let server = Server::start([WebhookReply::new(404, "", "")]).await;
    let endpoint = endpoint(&server, |settings| settings.breaker.failures = 1);
    for _ in 0..3 {
        assert_eq!(post_error(&endpoint).await.code, "push_rejected");
    }
}

#[tokio::test]
async fn dropping_a_push_closes_its_connection_and_frees_its_place() {
    for reply in [WebhookReply::Hang, WebhookReply::Endless("HTTP/1.1 200 OK\r\n\r\n")] {
        let server = Server::start([reply, WebhookReply::ok("1")]).await;
        let endpoint = endpoint(&server, |settings| {
            settings.concurrency = 1;
            settings.breaker.failures = 1;
            settings.answer_limit_bytes = 16 * 1024 * 1024;
        });
        let push = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { post(&endpoint).await }
        });
        // Without a pause, in which it might read to its limit
        let sent = async {
            while server.requests().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, sent).await.expect("a request");
        push.abort();
        assert!(push.await.is_err_and(|error| error.is_cancelled()));
        testkit::eventually("a closed connection", || async { (server.closed_connections() == 1).then_some(()) }).await;
        post(&endpoint).await.expect("a place, and a closed breaker");
    }
}

#[tokio::test]
async fn a_trial_that_is_dropped_leaves_its_turn_to_another() {
    let server = Server::start([WebhookReply::new(500, "", ""), WebhookReply::Hang, WebhookReply::ok("1")]).await;
    let open = Duration::from_mins(30);
    let endpoint = endpoint(&server, |settings| settings.breaker = BreakerSettings { failures: 1, open_for: open });
    assert_eq!(post_error(&endpoint).await.code, "push_server_error");
    pass(open).await;
    let trial = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { post(&endpoint).await }
    });
    server.wait_for_requests(2).await;
    assert_eq!(post_error(&endpoint).await.code, "push_breaker_open", "one tries at a time");
    trial.abort();
    assert!(trial.await.is_err_and(|error| error.is_cancelled()));
    post(&endpoint).await.expect("another may try");
}
