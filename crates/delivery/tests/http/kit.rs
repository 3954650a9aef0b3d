//! Endpoints and networks for tests, and the receiver that they are pushed to.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use delivery::http::{
    DnsResolver, Endpoint, EndpointSettings, Network, PushAnswer, PushError, PushRequest, ScriptedDns, Secret,
};
use model::url_template::UrlTemplate;
pub(crate) use testkit::{ReceivedRequest, WebhookReceiver as Server, WebhookReply};

/// A secret that anybody may know.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(crate) fn secret() -> Secret {
    SECRET.parse().expect("a secret")
}

/// Names as they are on this machine, no certificates.
pub(crate) fn system_network() -> Network {
    Network::new(DnsResolver::System, []).expect("TLS")
}

/// A network with names of a test's own.
pub(crate) fn scripted_network(script: ScriptedDns) -> Network {
    Network::new(DnsResolver::Scripted(script), []).expect("TLS")
}

pub(crate) fn template(url: &str) -> UrlTemplate {
    UrlTemplate::parse(url, &["type"]).expect(url)
}

/// Settings for a receiver on this machine.
pub(crate) fn settings(url: &str) -> EndpointSettings {
    EndpointSettings {
        allow_private: true,
        timeout: testkit::TEST_TIMEOUT,
        connect_timeout: testkit::TEST_TIMEOUT,
        ..EndpointSettings::new(template(url))
    }
}

/// An endpoint for a receiver on this machine.
pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(settings(url), &system_network()).expect("allowed")
}

/// The time by the clock of this machine.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}

/// Sends something.
pub(crate) async fn post(endpoint: &Endpoint) -> Result<PushAnswer, PushError> {
    let body = Bytes::from_static(br#"{"args":[1]}"#);
    endpoint.post(PushRequest { id: "job-1", values: &[("type", "a.b")], headers: &[], body, sent_at: now_ms() }).await
}

/// Sends something that is not answered with 2xx.
pub(crate) async fn post_error(endpoint: &Endpoint) -> PushError {
    post(endpoint).await.expect_err("a failure")
}
