//! URLs with placeholders: `https://example.com/jobs/{type}`.
//!
//! Scheme, host and port are fixed, so no value can choose where a request goes. A value becomes part of one segment of
//! the path or of one value of the query, with any characters. A template is an `http` or `https` URL without user and
//! password.

use std::fmt;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Host, Url};

use common::name::quoted;

/// Longest URL, in bytes, with all values in it. Many servers refuse longer ones.
const MAX_URL_BYTES: usize = 8192;

/// Characters to encode in a value: all that have a meaning anywhere in a URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A URL that cannot be used. The message says what is allowed. It shows a wrong placeholder, and nothing else of the
/// URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("url must {0}")]
pub struct UrlError(String);

fn invalid<T>(allowed: impl Into<String>) -> Result<T, UrlError> {
    Err(UrlError(allowed.into()))
}

#[derive(Clone, PartialEq, Eq)]
enum UrlPart {
    Text(String),
    Placeholder(String),
}

/// A URL with placeholders for values that come with each request.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlTemplate {
    /// Scheme, host and port in the spelling of the URL standard, so an address has one spelling.
    origin: String,
    host: Host,
    is_https: bool,
    /// Path and query.
    parts: Vec<UrlPart>,
}

impl UrlTemplate {
    /// Reads a URL in which each `{name}` is one of `allowed`.
    ///
    /// # Errors
    /// Not an allowed URL, or an unknown placeholder.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Self, UrlError> {
        // The URL standard accepts these, and reads some of them as other characters
        if text.bytes().any(|byte| byte <= b' ' || byte == b'\\' || byte == 0x7f) {
            return invalid("have no spaces, control characters or backslashes: percent-encode them");
        }
        let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
            return invalid("begin with http:// or https://");
        };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains(['{', '}']) {
            return invalid("have placeholders in path and query only: host and port are fixed");
        }
        if authority.contains('@') {
            return invalid("have no user and password: a header can carry credentials");
        }
        let origin = &text[..text.len() - tail.len()];
        let url = if authority.is_empty() { None } else { Url::parse(origin).ok() };
        let Some((host, url)) = url.as_ref().and_then(|url| Some((url.host()?.to_owned(), url))) else {
            return invalid("have a host, and a port from 1 to 65535 if any");
        };
        if url.port() == Some(0) {
            return invalid("have a host, and a port from 1 to 65535 if any");
        }
        let template = Self {
            origin: url.origin().ascii_serialization(),
            host,
            is_https: url.scheme() == "https",
            parts: parse_parts(tail, allowed)?,
        };
        let probes: Vec<(&str, &str)> = allowed.iter().map(|name| (*name, "x")).collect();
        template.expand(&probes)?;
        Ok(template)
    }

    /// The URL with values in place of its placeholders.
    ///
    /// # Errors
    /// A value is missing, empty, or would lead to another path, or the URL becomes too long.
    pub fn expand(&self, values: &[(&str, &str)]) -> Result<Uri, UrlError> {
        let mut path = String::with_capacity(64);
        for part in &self.parts {
            match part {
                UrlPart::Text(text) => path.push_str(text),
                UrlPart::Placeholder(name) => match values.iter().find(|(known, _)| known == name) {
                    Some((_, value)) if !value.is_empty() => path.extend(utf8_percent_encode(value, ENCODED)),
                    _ => return invalid(format!("have a value that is not empty for {{{name}}}")),
                },
            }
        }
        // Receivers resolve such segments, encoded or not
        let segments = path.split('?').next().unwrap_or_default().split('/');
        if segments.map(|segment| segment.to_ascii_lowercase().replace("%2e", ".")).any(|s| s == "." || s == "..") {
            return invalid("have no segment . or .. in its path, whatever the values");
        }
        let separator = if path.starts_with('/') { "" } else { "/" };
        let text = format!("{}{separator}{path}", self.origin);
        if text.len() > MAX_URL_BYTES {
            return invalid(format!("have at most {MAX_URL_BYTES} bytes, values included"));
        }
        text.parse().or_else(|_| invalid("have percent-encoded what is not allowed in a path or query"))
    }

    /// Scheme, host and port, which may be shown.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The host, as the URL standard reads it.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether it needs TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.is_https
    }
}

impl fmt::Debug for UrlTemplate {
    /// Paths and queries may contain secrets of the receiver.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UrlTemplate({}/…)", self.origin)
    }
}

/// Path and query, cut at their placeholders.
fn parse_parts(mut tail: &str, allowed: &[&str]) -> Result<Vec<UrlPart>, UrlError> {
    let mut parts = Vec::new();
    while let Some(start) = tail.find(['{', '}']) {
        let Some(end) = tail[start..].find('}').filter(|end| *end > 0) else {
            return invalid("have each placeholder in a pair of braces, and no other braces");
        };
        let name = &tail[start + 1..start + end];
        if !allowed.contains(&name) {
            let known: Vec<String> = allowed.iter().map(|name| format!("{{{name}}}")).collect();
            let known = if known.is_empty() { "no placeholders".to_owned() } else { known.join(", ") };
            return invalid(format!("have only known placeholders ({known}), got {}", quoted(name)));
        }
        parts.push(UrlPart::Text(check_literal(&tail[..start])?));
        parts.push(UrlPart::Placeholder(name.to_owned()));
        tail = &tail[start + end + 1..];
    }
    parts.push(UrlPart::Text(check_literal(tail)?));
    Ok(parts)
}

fn check_literal(text: &str) -> Result<String, UrlError> {
    if text.contains('#') {
        return invalid("have no fragment: it would not be sent");
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)) {
        return invalid("have percent-encoded what is not allowed in a path or query");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(template: &str, value: &str) -> Result<String, UrlError> {
        let template = UrlTemplate::parse(template, &["type", "queue"])?;
        template.expand(&[("type", value), ("queue", "q")]).map(|uri| uri.to_string())
    }

    #[test]
    fn a_value_is_part_of_one_segment_or_of_one_value_of_the_query() {
        for (template, value, expected) in [
            ("https://a.test/jobs/{type}", "email.send", "https://a.test/jobs/email.send"),
            ("https://a.test/{queue}/{type}", "a/b?c#d", "https://a.test/q/a%2Fb%3Fc%23d"),
            ("http://a.test:81?t={type}&x=1", "a&b=c d", "http://a.test:81/?t=a%26b%3Dc%20d&x=1"),
            ("http://a.test/{type}", "饭", "http://a.test/%E9%A5%AD"),
            ("http://a.test/{type}", "../x", "http://a.test/..%2Fx"),
            ("http://a.test/{type}", "%2e\r\n", "http://a.test/%252e%0D%0A"),
            ("http://a.test", "x", "http://a.test/"),
            ("http://BÜCHER.test:80/a%20b", "x", "http://xn--bcher-kva.test/a%20b"),
            ("https://[::ffff:127.0.0.1]:8080/", "x", "https://[::ffff:7f00:1]:8080/"),
        ] {
            assert_eq!(expanded(template, value).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn addresses_have_one_spelling() {
        for text in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "017700000001",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "127。0。0。1",
            "①②⑦.0.0.1",
        ] {
            let template = UrlTemplate::parse(&format!("http://{text}/"), &[]).expect(text);
            assert_eq!(template.origin(), "http://127.0.0.1", "{text}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        for (template, message) in [
            ("ftp://a.test/", "begin with"),
            ("file:///etc/passwd", "begin with"),
            ("HTTP://a.test/", "begin with"),
            ("//a.test/", "begin with"),
            ("{type}://a.test/", "begin with"),
            ("http://", "have a host"),
            ("http:///a.test", "have a host"),
            ("http://?x", "have a host"),
            ("http://a.test:0/", "have a host"),
            ("http://a.test:65536/", "have a host"),
            ("http://256.0.0.1/", "have a host"),
            ("http://[::1/", "have a host"),
            ("http://{type}/", "have placeholders in path"),
            ("http://a.{type}/", "have placeholders in path"),
            ("http://a.test:{type}/", "have placeholders in path"),
            ("http://{type}@a.test/", "have placeholders in path"),
            ("http://user:pass@a.test/", "have no user"),
            ("http://a.test@b.test/", "have no user"),
            ("http://a.test\\@b.test/", "have no spaces"),
            ("http://a.test/a b", "have no spaces"),
            ("http://a.test/\n", "have no spaces"),
            ("http://a.test/#x", "have no fragment"),
            ("http://a.test/é", "have percent-encoded"),
            ("http://a.test/{typo}", r#"have only known placeholders ({type}, {queue}), got "typo""#),
            ("http://a.test/{}", "have only known"),
            ("http://a.test/{type", "have each placeholder"),
            ("http://a.test/type}", "have each placeholder"),
            ("http://a.test/{{type}}", "have only known"),
            ("http://a.test/a/../{type}", "have no segment"),
            ("http://a.test/%2E%2e/{type}", "have no segment"),
        ] {
            let error = UrlTemplate::parse(template, &["type", "queue"]).expect_err(template).to_string();
            assert!(error.starts_with(&format!("url must {message}")), "{template}: {error}");
        }
    }

    #[test]
    fn values_that_would_lead_elsewhere_are_refused() {
        for (template, value) in [
            ("http://a.test/x/{type}", ".."),
            ("http://a.test/x/{type}/y", "."),
            ("http://a.test/x/.{type}", "."),
            ("http://a.test/x/{type}{type}", "."),
            ("http://a.test/x/{type}", ""),
            ("http://a.test/x/{type}", &"x".repeat(MAX_URL_BYTES)),
        ] {
            assert!(expanded(template, value).is_err(), "{template}");
        }
        let template = UrlTemplate::parse("http://a.test/{type}", &["type"]).expect("allowed");
        assert!(template.expand(&[("queue", "q")]).is_err(), "a value is missing");
    }

    #[test]
    fn path_and_query_are_not_shown() {
        let template = UrlTemplate::parse("https://a.test/hooks/geheim?token=geheim", &[]).expect("allowed");
        assert_eq!(format!("{template:?}"), "UrlTemplate(https://a.test/…)");
    }

    proptest! {
        #[test]
        fn no_value_changes_the_host_or_the_number_of_segments(value in "\\PC{1,40}") {
            if let Ok(text) = expanded("http://a.test/x/{type}/y?q={type}", &value) {
                let url = Url::parse(&text).expect("a URL");
                prop_assert_eq!(url.host_str(), Some("a.test"));
                prop_assert_eq!(url.path_segments().map(Iterator::count), Some(3));
                prop_assert_eq!(url.query_pairs().count(), 1);
                prop_assert_eq!(url.query_pairs().next().map(|(_, v)| v.into_owned()), Some(value));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(http://)?[a-z{}%@:/?#.\\[\\]]{0,40}") {
            let _ = UrlTemplate::parse(&text, &["type"]);
        }
    }
}
