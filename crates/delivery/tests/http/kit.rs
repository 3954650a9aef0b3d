//! Endpoints and networks for tests, and the receiver that they are pushed to.

use bytes::Bytes;
use delivery::http::{Answer, Endpoint, EndpointSettings, Names, Network, PushError, Request, Script, Secret};
use model::url_template::UrlTemplate;
pub(crate) use testkit::{Received, Receiver as Server, Reply};

/// A secret that anybody may know.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(crate) fn secret() -> Secret {
    SECRET.parse().expect("a secret")
}

/// Names as they are on this machine, no certificates.
pub(crate) fn network() -> Network {
    Network::new(Names::System, []).expect("TLS")
}

/// A network with names of a test's own.
pub(crate) fn scripted(script: Script) -> Network {
    Network::new(Names::Scripted(script), []).expect("TLS")
}

pub(crate) fn template(url: &str) -> UrlTemplate {
    UrlTemplate::parse(url, &["type"]).expect(url)
}

/// Settings for a receiver on this machine.
pub(crate) fn settings(url: &str) -> EndpointSettings {
    EndpointSettings {
        allow_private: true,
        timeout: testkit::LIMIT,
        connect_timeout: testkit::LIMIT,
        ..EndpointSettings::new(template(url))
    }
}

/// An endpoint for a receiver on this machine.
pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(settings(url), &network()).expect("allowed")
}

/// Sends something.
pub(crate) async fn post(endpoint: &Endpoint) -> Result<Answer, PushError> {
    let body = Bytes::from_static(br#"{"args":[1]}"#);
    endpoint.post(Request { id: "job-1", values: &[("type", "a.b")], headers: &[], body }).await
}

/// Sends something that is not answered with 2xx.
pub(crate) async fn failed(endpoint: &Endpoint) -> PushError {
    post(endpoint).await.expect_err("a failure")
}
