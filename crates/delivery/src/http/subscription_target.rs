//! The endpoint of a subscription's target.

use std::time::Duration;

use model::{
    subscription::{HttpTarget, PLACEHOLDERS},
    url_template::UrlTemplate,
};

use super::{
    Endpoint, EndpointError, EndpointSettings, FixedHeaders, Network,
    signature::{Secret, SecretError},
};

/// Maximum size of an answer in bytes: only its status matters.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// The public keys of the private keys that sign a target's requests: `whpk_` and base64 each.
#[must_use]
pub fn public_keys(target: &HttpTarget) -> Vec<String> {
    target.secrets.iter().filter_map(|secret| secret.parse::<Secret>().ok()?.public_key()).collect()
}

impl Endpoint {
    /// An endpoint for a subscription's target, with its own connections.
    ///
    /// # Errors
    /// Something in the target is not allowed; the message says what.
    pub fn for_target(target: &HttpTarget, allow_private: bool, network: &Network) -> Result<Self, String> {
        let url = UrlTemplate::parse(&target.url, &PLACEHOLDERS).map_err(|error| error.to_string())?;
        let headers = target.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let readable = |error: EndpointError| error.to_string();
        let settings = EndpointSettings {
            secrets: target
                .secrets
                .iter()
                .map(|secret| secret.parse())
                .collect::<Result<_, SecretError>>()
                .map_err(|error| error.to_string())?,
            timeout: Duration::from_millis(target.timeout_ms),
            allow_private,
            concurrency: target.concurrency,
            headers: FixedHeaders::parse(headers).map_err(readable)?,
            answer_limit_bytes: ANSWER_LIMIT_BYTES,
            ..EndpointSettings::new(url)
        };
        Self::new(settings, network).map_err(readable)
    }
}
