//! Builds one HTTP request.

use std::borrow::Cow;

use bytes::Bytes;
use common::{time::Millis, trace_context::TraceContext};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{ACCEPT, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::Full;
use model::message::{MAX_ATTRIBUTES_BYTES, cloud_event};

use super::{
    EndpointSettings, endpoint_settings,
    error::{PushErrorKind, PushFailure},
    signature::sign,
};

/// Maximum bytes of a request's headers, names and values together: the attributes of any event that can be published,
/// and room for what Galley says itself. The trace comes on top.
pub const MAX_HEADER_BYTES: usize = MAX_ATTRIBUTES_BYTES + 8 * 1024;
/// Maximum length of a `webhook-id` in bytes.
pub const MAX_ID_BYTES: usize = 256;

const AGENT: &str = concat!("galley/", env!("CARGO_PKG_VERSION"));

/// One request.
#[derive(Debug, Clone)]
pub struct PushRequest<'a> {
    /// The `webhook-id`: the same for every attempt, so that receivers recognize repetitions.
    pub id: &'a str,
    /// Values for the placeholders of the URL.
    pub values: &'a [(&'a str, &'a str)],
    /// Headers such as `ce-*` and `content-type` (default `application/json`). The values of `ce-*` may
    /// be any text and are encoded as `CloudEvents` requires. The endpoint's fixed headers override these.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, signed and sent unchanged.
    pub body: Bytes,
    /// When it is sent, for `webhook-timestamp`: by Redis's clock, because this process's may be wrong.
    pub sent_at: Millis,
}

/// Builds the request; its signatures are valid from its time on.
pub(super) fn build(
    request: &PushRequest<'_>,
    settings: &EndpointSettings,
) -> Result<http::Request<Full<Bytes>>, PushFailure> {
    let invalid = |message: String| PushFailure::new(PushErrorKind::RequestInvalid, message);
    let uri = settings.url.expand(request.values).map_err(|error| invalid(error.to_string()))?;
    let mut built = http::Request::new(Full::new(request.body.clone()));
    *built.method_mut() = Method::POST;
    *built.uri_mut() = uri;
    let headers = built.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_headers(headers, request.headers).map_err(invalid)?;
    for (name, value) in settings.headers.map() {
        headers.insert(name, value.clone());
    }
    add_signature(headers, request, settings).map_err(invalid)?;
    Ok(built)
}

/// Adds what the receiver continues the trace by. The endpoint's fixed headers override it.
pub(super) fn add_trace(headers: &mut HeaderMap, trace: &TraceContext, settings: &EndpointSettings) {
    for (name, value) in trace.headers() {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value))
            && !settings.headers.map().contains_key(&name)
        {
            headers.insert(name, value);
        }
    }
}

fn add_headers(headers: &mut HeaderMap, given: &[(&str, &str)]) -> Result<(), String> {
    let mut bytes = 0;
    for (name, text) in given {
        let name =
            endpoint_settings::parse_header_name(name).map_err(|allowed| format!("a request must have {allowed}"))?;
        let value = match name.as_str().strip_prefix("ce-") {
            Some(attribute) => Cow::Owned(cloud_event::attribute_header(attribute, text).1),
            None => Cow::Borrowed(*text),
        };
        bytes += name.as_str().len() + value.len();
        let value = HeaderValue::from_str(&value).map_err(|_| format!("header {name} must have visible characters"))?;
        headers.insert(&name, value);
    }
    if bytes > MAX_HEADER_BYTES {
        return Err(format!("headers must have at most {MAX_HEADER_BYTES} bytes together, got {bytes}"));
    }
    Ok(())
}

fn add_signature(
    headers: &mut HeaderMap,
    request: &PushRequest<'_>,
    settings: &EndpointSettings,
) -> Result<(), String> {
    let id = request.id;
    // A full stop could move the border between id and timestamp in the signed text
    let is_allowed = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && b != b'.');
    if !is_allowed {
        return Err(format!(
            "an id must have 1 to {MAX_ID_BYTES} visible ASCII characters and no full stop, got {}",
            common::name::quoted(id)
        ));
    }
    let timestamp = u64::try_from(request.sent_at / 1000).unwrap_or_default();
    let mut insert = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
        headers.insert(HeaderName::from_static(name), value);
        Ok(())
    };
    insert("webhook-id", id)?;
    insert("webhook-timestamp", &timestamp.to_string())?;
    if settings.secrets.is_empty() {
        return Ok(());
    }
    insert("webhook-signature", &sign(&settings.secrets, id, timestamp, &request.body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::FixedHeaders;
    use model::url_template::UrlTemplate;

    fn headers(id: &str, given: &[(&str, &str)]) -> Result<HeaderMap, String> {
        let mut settings = EndpointSettings::new(UrlTemplate::parse("http://a.test/", &[]).expect("allowed"));
        settings.headers = FixedHeaders::parse([("authorization", "Bearer x")]).expect("allowed");
        let request = PushRequest { id, values: &[], headers: given, body: Bytes::new(), sent_at: 5_999 };
        build(&request, &settings).map(|built| built.headers().clone()).map_err(|failure| failure.message)
    }

    #[test]
    fn a_request_says_what_it_is_and_fixed_headers_come_first() {
        let sent = headers("j-1", &[("Authorization", "Bearer y"), ("traceparent", "00-1"), ("ce-type", "é \"%\n")]);
        let sent = sent.expect("allowed");
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("traceparent", "00-1"),
            ("ce-type", "%C3%A9%20%22%25%0A"),
            ("content-type", "application/json"),
            ("webhook-id", "j-1"),
            ("webhook-timestamp", "5"),
        ] {
            assert_eq!(sent.get(name).map(HeaderValue::as_bytes), Some(value.as_bytes()), "{name}");
        }
        assert!(!sent.contains_key("webhook-signature"), "there is no secret to sign with");
        let sent = headers("j-1", &[("content-type", "text/plain")]).expect("allowed");
        assert_eq!(sent["content-type"], "text/plain");
    }

    #[test]
    fn ids_and_headers_that_could_be_taken_for_something_else_are_refused() {
        for id in ["", "a.b", "a b", "a\r\nb", "é", &"a".repeat(257)] {
            assert!(headers(id, &[]).expect_err(id).starts_with("an id must"), "{id}");
        }
        let long = "x".repeat(MAX_HEADER_BYTES);
        for (name, value) in
            [("webhook-id", "x"), ("host", "x"), ("a\r\n", "x"), ("a", "x\r\ny: z"), ("ce-a", long.as_str())]
        {
            assert!(headers("a", &[(name, value)]).is_err(), "{name:?}");
        }
    }
}
