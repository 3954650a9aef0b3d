//! URLs that would reach what only this machine can reach. A canary listens there, and nobody may come.

use std::{net::IpAddr, time::Duration};

use delivery::http::{Endpoint, EndpointSettings, FixedHeaders, Network, PushError, PushRetry, ScriptedDns};
use testkit::TEST_TIMEOUT;

use crate::kit::{
    SECRET, Server, WebhookReply, endpoint, post, post_error, scripted_network, secret, settings, system_network,
    template,
};

/// Public, but of nobody: what was the 6bone is not given to anybody since 2006.
const PUBLIC: &str = "3ffe::1";
/// How long an answer from there is waited for, if this machine has a way to it.
const NOBODY_TIMEOUT: Duration = Duration::from_secs(1);

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// Tries to push to a URL as a stranger could have chosen it. Most are refused when the endpoint is made.
async fn push(url: &str, network: &Network, allow_private: bool) -> Result<(), Option<PushError>> {
    push_within(TEST_TIMEOUT, url, network, allow_private).await
}

/// The same where nobody may answer, with the longest wait for a connection.
async fn push_within(
    connect_timeout: Duration,
    url: &str,
    network: &Network,
    allow_private: bool,
) -> Result<(), Option<PushError>> {
    let settings = EndpointSettings { allow_private, connect_timeout, ..EndpointSettings::new(template(url)) };
    match Endpoint::new(settings, network) {
        Ok(endpoint) => post(&endpoint).await.map(drop).map_err(Some),
        Err(error) => {
            assert!(error.to_string().contains("is refused"), "{url}: {error}");
            Err(None)
        }
    }
}

async fn assert_refused(url: &str, network: &Network, allow_private: bool) {
    if let Some(error) = push(url, network, allow_private).await.expect_err(url) {
        assert_eq!((error.code, error.retry), ("push_address_refused", PushRetry::Never), "{url}: {}", error.message);
    }
}

#[tokio::test]
async fn the_canary_sings_when_it_is_reached() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    push(&canary.url("/"), &system_network(), true).await.expect("allowed");
    assert_eq!(canary.connections(), 1);
}

#[tokio::test]
async fn this_machine_in_every_spelling_is_not_reached() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    let port = canary.address.port();
    for host in [
        "127.0.0.1",
        "127.0.0.2",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "①②⑦.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::ffff:0:127.0.0.1]",
        "localhost",
        "LOCALHOST",
    ] {
        assert_refused(&format!("http://{host}:{port}/"), &system_network(), false).await;
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn metadata_services_are_not_reached_even_with_leave_for_private_networks() {
    for allow_private in [false, true] {
        for host in [
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[fd00:ec2::254]",
            "[fe80::a9fe:a9fe]",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert_refused(&format!("http://{host}/latest/meta-data/"), &system_network(), allow_private).await;
        }
        let names =
            ScriptedDns::default().with("metadata.test", [vec![address("169.254.169.254"), address("fd00:ec2::254")]]);
        assert_refused("http://metadata.test/", &scripted_network(names), allow_private).await;
    }
}

#[tokio::test]
async fn a_name_of_this_machine_is_not_reached() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    let port = canary.address.port();
    for text in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "::"] {
        let names = ScriptedDns::default().with("inside.test", [vec![address(text)]]);
        assert_refused(&format!("http://inside.test:{port}/"), &scripted_network(names), false).await;
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    for status in [300, 301, 302, 303, 307, 308] {
        let location = format!("location: {}\r\nrefresh: 0; url={}\r\n", canary.url("/"), canary.url("/"));
        let server = Server::start([WebhookReply::new(status, &location, "")]).await;
        let error = post_error(&endpoint(&server.url("/"))).await;
        assert_eq!((error.code, error.retry, error.status), ("push_redirected", PushRetry::Never, Some(status)));
        assert_eq!(server.requests().len(), 1);
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_address_after_the_look_does_not_reach_the_canary() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    let url = format!("http://rebind.test:{}/", canary.address.port());
    let names = ScriptedDns::default().with("rebind.test", [vec![address(PUBLIC)], vec![address("127.0.0.1")]]);
    let network = scripted_network(names);
    // The answer that was looked at is the one that is used: the public one, where nobody is
    let pushed = push_within(NOBODY_TIMEOUT, &url, &network, false).await;
    let error = pushed.expect_err("nobody is there").expect("it was tried");
    assert!(["push_connect_failed", "push_connect_timeout"].contains(&error.code), "{}: {}", error.code, error.message);
    // The second answer is looked at too
    assert_refused(&url, &network, false).await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn of_the_addresses_of_a_name_only_those_that_are_allowed_are_used() {
    let canary = Server::start([WebhookReply::ok("1")]).await;
    let url = format!("http://mixed.test:{}/", canary.address.port());
    let names = || {
        let before = ScriptedDns::default().with("mixed.test", [vec![address("127.0.0.1"), address(PUBLIC)]]);
        [before, ScriptedDns::default().with("mixed.test", [vec![address(PUBLIC), address("127.0.0.1")]])]
    };
    for names in names() {
        let pushed = push_within(NOBODY_TIMEOUT, &url, &scripted_network(names), false).await;
        let error = pushed.expect_err("nobody is there").expect("it was tried");
        assert!(error.code.starts_with("push_connect_"), "{}: {}", error.code, error.message);
    }
    assert_eq!(canary.connections(), 0);
    let names = ScriptedDns::default().with("mixed.test", [vec![address("169.254.169.254"), address("127.0.0.1")]]);
    push(&url, &scripted_network(names), true).await.expect("one of them is allowed");
    assert_eq!(canary.connections(), 1);
}

#[tokio::test]
async fn no_message_and_no_debug_shows_a_secret() {
    let headers = [("authorization", "Bearer geheim-1"), ("x-key", "geheim-2")];
    let hidden = ["geheim", &SECRET["whsec_".len()..]];
    let plain = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let mut shown = Vec::new();
    for (url, reply) in [
        ("/geheim-3?token=geheim-4", WebhookReply::Echo),
        ("/geheim-3", WebhookReply::Hang),
        ("/geheim-3", WebhookReply::Close),
        ("/geheim-3", WebhookReply::new(404, "", &format!("no such key: {SECRET}, geheim-2"))),
        ("/geheim-3", WebhookReply::Endless("HTTP/1.1 500 X\r\n\r\n")),
        ("/?geheim-4", WebhookReply::new(302, "location: /geheim-5\r\n", "")),
    ] {
        let is_silent = matches!(reply, WebhookReply::Hang);
        let server = Server::start([reply]).await;
        for url in [server.url(url), format!("http://{plain}/geheim-3")] {
            let mut settings = settings(&url);
            if is_silent {
                settings.timeout = Duration::from_secs(2);
            }
            settings.headers = FixedHeaders::parse(headers).expect("allowed");
            settings.secrets = vec![secret()];
            shown.push(format!("{settings:?}"));
            let endpoint = Endpoint::new(settings, &system_network()).expect("allowed");
            let error = post_error(&endpoint).await;
            shown.extend([format!("{endpoint:?} {error:?}"), error.to_string()]);
        }
    }
    for text in &shown {
        assert!(hidden.iter().all(|secret| !text.contains(secret)), "{text}");
    }
    assert!(shown.iter().any(|text| text.contains("authorization: ***")), "the echo came back, and was looked through");
}
