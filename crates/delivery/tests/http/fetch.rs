//! Documents that an operator names, such as the keys of an issuer of tokens.

use std::time::Duration;

use delivery::http::{Network, fetch::Fetcher};
use testkit::{TEST_TIMEOUT, WebhookReceiver, WebhookReply};

const MAX_BYTES: usize = 1000;

async fn fetch(reply: WebhookReply) -> Result<Vec<u8>, String> {
    let is_slow = matches!(reply, WebhookReply::Trickle(_) | WebhookReply::Hang);
    let timeout = if is_slow { Duration::from_secs(1) } else { TEST_TIMEOUT };
    let receiver = WebhookReceiver::start([reply]).await;
    let fetcher = Fetcher::new(&Network::system().expect("TLS"), TEST_TIMEOUT);
    fetcher.get(&receiver.url("/keys"), MAX_BYTES, timeout).await
}

#[tokio::test]
async fn a_document_is_fetched_as_a_whole_or_not_at_all() {
    assert_eq!(fetch(WebhookReply::ok("{}")).await, Ok(b"{}".to_vec()));
    let large = "x".repeat(MAX_BYTES + 1);
    for (reply, why) in [
        (WebhookReply::ok(&large), "more than 1000 bytes"),
        (WebhookReply::Endless("HTTP/1.1 200 OK\r\n\r\n"), "more than 1000 bytes"),
        (WebhookReply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec()), "broke off"),
        (WebhookReply::Trickle("HTTP/1.1 200 OK\r\n\r\n"), "within 1000 ms"),
        (WebhookReply::Hang, "within 1000 ms"),
        (WebhookReply::new(404, "", "{}"), "status 404"),
        // Not followed: the issuer is the one that the settings name
        (WebhookReply::new(302, "location: http://127.0.0.1:1/\r\n", ""), "status 302"),
    ] {
        let refused = fetch(reply).await.expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }
}
