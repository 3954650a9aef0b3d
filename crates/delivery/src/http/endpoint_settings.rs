//! The settings of an endpoint, validated once.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Host;

use super::{address, breaker::BreakerSettings, network::Network, signature::Secret};
use common::name::quoted;
use model::subscription::MAX_SECRETS;
use model::url_template::UrlTemplate;

/// Maximum number of fixed headers of an endpoint.
pub const MAX_HEADERS: usize = 32;
/// Maximum bytes of the fixed headers of an endpoint, names and values together: servers refuse more.
const MAX_FIXED_HEADER_BYTES: usize = 8 * 1024;
/// Maximum timeout of a push.
pub const MAX_TIMEOUT: Duration = Duration::from_hours(1);
/// Maximum number of concurrent requests to an endpoint.
pub const MAX_CONCURRENCY: usize = 10_000;
/// Maximum size of an answer in bytes.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Where and how to push.
#[derive(Debug, Clone)]
pub struct EndpointSettings {
    /// The URL.
    pub url: UrlTemplate,
    /// What signs requests: none, shared secrets and private keys, the old ones too during a rotation.
    pub secrets: Vec<Secret>,
    /// Timeout for everything: waiting for a slot, connecting, sending, the whole answer. 1 ms to an hour.
    pub timeout: Duration,
    /// Timeout for a connection, including DNS and TLS. 1 ms to an hour.
    pub connect_timeout: Duration,
    /// Whether this machine and private networks may be connected to.
    pub allow_private: bool,
    /// Concurrent requests: 1 to 10000. Others wait for a slot.
    pub concurrency: usize,
    /// When to stop sending to a failing receiver.
    pub breaker: BreakerSettings,
    /// Headers sent with every request, such as `authorization`.
    pub headers: FixedHeaders,
    /// Maximum size of an answer and of a result: 1 to 16777216 bytes.
    pub answer_limit_bytes: usize,
}

impl EndpointSettings {
    /// The defaults: timeout 15 s, of which 3 s to connect, 16 concurrent requests, answers up to 1 MiB, public
    /// addresses only, unsigned.
    #[must_use]
    pub fn new(url: UrlTemplate) -> Self {
        Self {
            url,
            secrets: Vec::new(),
            timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(3),
            allow_private: false,
            concurrency: 16,
            breaker: BreakerSettings::default(),
            headers: FixedHeaders::default(),
            answer_limit_bytes: 1024 * 1024,
        }
    }

    pub(super) fn check(&self, network: &Network) -> Result<(), EndpointError> {
        let timeouts = Duration::from_millis(1)..=MAX_TIMEOUT;
        let opens = Duration::from_millis(1)..=Duration::from_hours(24);
        for (is_allowed, allowed) in [
            (self.secrets.len() <= MAX_SECRETS, "at most 4 secrets"),
            (timeouts.contains(&self.timeout), "a timeout of 1 ms to an hour"),
            (timeouts.contains(&self.connect_timeout), "a connect_timeout of 1 ms to an hour"),
            ((1..=MAX_CONCURRENCY).contains(&self.concurrency), "a concurrency of 1 to 10000"),
            ((1..=1000).contains(&self.breaker.failures), "a breaker with 1 to 1000 failures"),
            (opens.contains(&self.breaker.open_for), "a breaker that is open for 1 ms to 24 hours"),
            ((1..=MAX_ANSWER_BYTES).contains(&self.answer_limit_bytes), "a limit of answers of 1 to 16777216 bytes"),
            (
                !self.url.is_https() || network.has_roots(),
                "root certificates to use https: install ca-certificates or set SSL_CERT_FILE",
            ),
        ] {
            if !is_allowed {
                return Err(EndpointError(allowed.to_owned()));
            }
        }
        // Addresses are checked again on connect; this check has the better message
        let spelled = match self.url.host() {
            Host::Ipv4(v4) => IpAddr::from(*v4),
            Host::Ipv6(v6) => IpAddr::from(*v6),
            Host::Domain(_) => return Ok(()),
        };
        address::check(spelled, self.allow_private).map_err(|error| EndpointError(format!("another address: {error}")))
    }
}

/// Invalid settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint must have {0}")]
pub struct EndpointError(String);

/// Headers sent with every request. Their values are never shown.
#[derive(Debug, Clone, Default)]
pub struct FixedHeaders(HeaderMap);

impl FixedHeaders {
    /// Parses headers by name and value.
    ///
    /// # Errors
    /// An invalid header, a reserved one, a duplicate, or too many.
    pub fn parse<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, EndpointError> {
        let mut map = HeaderMap::new();
        let mut bytes = 0;
        for (name, value) in headers {
            bytes += name.len() + value.len();
            if bytes > MAX_FIXED_HEADER_BYTES {
                return Err(EndpointError(format!("at most {MAX_FIXED_HEADER_BYTES} bytes of headers")));
            }
            let name = parse_header_name(name).map_err(EndpointError)?;
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| EndpointError(format!("visible characters in the value of header {name}")))?;
            value.set_sensitive(true);
            if map.insert(&name, value).is_some() {
                return Err(EndpointError(format!("header {name} once")));
            }
            if map.len() > MAX_HEADERS {
                return Err(EndpointError(format!("at most {MAX_HEADERS} headers")));
            }
        }
        Ok(Self(map))
    }

    pub(super) fn map(&self) -> &HeaderMap {
        &self.0
    }
}

/// Headers that follow from the request itself, or would change how it is sent.
const RESERVED: [&str; 14] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Parses the name of a header that is not reserved.
pub(super) fn parse_header_name(name: &str) -> Result<HeaderName, String> {
    let parsed = HeaderName::try_from(name).map_err(|_| format!("a header name of letters, got {}", quoted(name)))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(format!("no header {parsed}: it is set by Galley or not at all"));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::DnsResolver;

    fn check(url: &str, change: impl FnOnce(&mut EndpointSettings)) -> Result<(), String> {
        let mut settings = EndpointSettings::new(UrlTemplate::parse(url, &["type"]).expect(url));
        change(&mut settings);
        let network = Network::new(DnsResolver::System, []).expect("TLS");
        settings.check(&network).map_err(|error| error.to_string())
    }

    #[test]
    fn bounds_are_kept_and_named() {
        let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a secret");
        assert_eq!(check("http://a.test/", |_| ()), Ok(()));
        let refused = |result: Result<(), String>, word: &str| {
            let error = result.expect_err(word);
            assert!(error.starts_with("an endpoint must have ") && error.contains(word), "{error}");
        };
        refused(check("http://a.test/", |s| s.secrets = vec![secret; 5]), "at most 4 secrets");
        refused(check("http://a.test/", |s| s.timeout = Duration::ZERO), "a timeout");
        refused(check("http://a.test/", |s| s.timeout = Duration::from_secs(3601)), "a timeout");
        refused(check("http://a.test/", |s| s.connect_timeout = Duration::ZERO), "a connect_timeout");
        refused(check("http://a.test/", |s| s.concurrency = 0), "a concurrency");
        refused(check("http://a.test/", |s| s.breaker.failures = 0), "failures");
        refused(check("http://a.test/", |s| s.breaker.open_for = Duration::ZERO), "open for");
        refused(check("http://a.test/", |s| s.answer_limit_bytes = 0), "answers");
        refused(check("https://a.test/", |_| ()), "SSL_CERT_FILE");
    }

    #[test]
    fn an_address_that_will_be_refused_is_refused_at_once() {
        for url in ["http://127.0.0.1/", "http://[::1]:8080/{type}", "http://0x7f.1/", "http://[::ffff:10.0.0.1]/"] {
            assert!(check(url, |_| ()).expect_err(url).contains("is refused"));
            assert_eq!(check(url, |settings| settings.allow_private = true), Ok(()));
        }
        for url in ["http://169.254.169.254/", "http://2852039166/", "http://[fd00:ec2::254]/", "http://0/"] {
            assert!(check(url, |settings| settings.allow_private = true).expect_err(url).contains("is refused"));
        }
    }

    #[test]
    fn headers_are_ordinary_ones_and_their_values_are_not_shown() {
        for (name, value) in [
            ("Host", "a"),
            ("Webhook-Signature", "v1,x"),
            ("content-length", "1"),
            ("", "x"),
            ("a b", "x"),
            ("a", "x\r\nb: c"),
        ] {
            assert!(FixedHeaders::parse([(name, value)]).is_err(), "{name}");
        }
        assert!(FixedHeaders::parse([("a", "1"), ("A", "2")]).is_err(), "twice");
        let long = "x".repeat(MAX_FIXED_HEADER_BYTES);
        assert!(FixedHeaders::parse([("a", long.as_str())]).expect_err("long").to_string().contains("8192 bytes"));
        let headers = FixedHeaders::parse([("Authorization", "Bearer geheim")]).expect("allowed");
        assert!(!format!("{headers:?}").contains("geheim"));
    }
}
