//! Which sites may use the gateway from a browser: one check of `Host`, `Origin` and the headers of browsers for every
//! request.
//!
//! A page can make a browser send requests to any address that the browser reaches, also to a gateway on the user's own
//! machine or network. Two checks stop it:
//!
//! - The host that the request names must be one of the gateway's. A page whose name suddenly resolves to the gateway's
//!   address (DNS rebinding) counts as the same site for the browser, and only its name gives it away.
//! - Whatever changes something, and every stream, must come from a page of the gateway's own site. Streams may also be
//!   read by pages of `gateway.allowed_origins`.
//!
//! Programs send neither `Origin` nor `Sec-Fetch-Site`, and pass.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::{
    dev::RequestHead,
    http::{
        Method,
        header::{self, HeaderMap, HeaderName},
    },
};
use common::{
    health::is_probe,
    name::{HostPattern, Origin, quoted},
    settings::{GatewaySettings, hostname},
};

use crate::error::{ApiError, ErrorCode};

/// Ends of names that nobody can register: this machine, the local network, a cluster.
const PRIVATE_SUFFIXES: [&str; 6] = [".localhost", ".local", ".internal", ".home.arpa", ".svc", ".cluster.local"];

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the check needs to know.
#[derive(Clone)]
pub(crate) struct SiteCheck {
    hosts: Vec<HostPattern>,
    origins: Vec<Origin>,
    machine: String,
}

impl SiteCheck {
    pub(crate) fn new(settings: &GatewaySettings) -> Self {
        Self {
            hosts: settings.allowed_hosts.clone(),
            origins: settings.allowed_origins.clone(),
            machine: hostname().to_ascii_lowercase(),
        }
    }

    /// Refuses a request for a host that is not ours, and a page of another site.
    ///
    /// `path` is decoded as the router reads it.
    pub(crate) fn check(&self, request: &RequestHead, path: &str) -> Result<(), ApiError> {
        if is_probe(path) {
            return Ok(());
        }
        let host = requested_host(request)?;
        if let Some(host) = &host
            && !self.is_ours(bare_name(host))
        {
            let message = format!(
                "this gateway is not known as {}: name it in gateway.allowed_hosts to serve it",
                quoted(bare_name(host))
            );
            return Err(ApiError::new(ErrorCode::HostNotAllowed, message));
        }
        if let Some(host) = host.as_deref().filter(|host| !is_host(host)) {
            return Err(ApiError::invalid(format!(
                "Host must be a name or an address, and a port, got {}",
                quoted(host)
            )));
        }
        // A browser asks with OPTIONS what it may do
        if request.method == Method::OPTIONS {
            return Ok(());
        }
        let is_safe = [Method::GET, Method::HEAD].contains(&request.method);
        let is_read = is_safe && is_stream(path);
        // A visit of the original demo changes something
        let is_visit = ["/prodcons", "/pubsub"].contains(&path);
        if (!is_safe || is_read || is_visit) && !self.is_own_site(&request.headers, host.as_deref(), is_read) {
            let message = "a page of another site must not change anything here, nor read a stream";
            return Err(ApiError::new(ErrorCode::CrossSiteRequest, message));
        }
        Ok(())
    }

    /// Whether a page of a stranger cannot have this name. An address is no name that a page can make resolve here.
    fn is_ours(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        // Nobody can register a name without a dot, however it is written: these are of compose files, clusters and local
        // networks
        let is_private = !name.contains(['.', '%']) || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        is_address || is_private || name == self.machine || self.hosts.iter().any(|host| host.matches(&name))
    }

    /// Whether the request comes from a page of this site, or from no page.
    fn is_own_site(&self, headers: &HeaderMap, host: Option<&str>, is_read: bool) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let origin = text(header::ORIGIN);
        if headers.get_all(header::ORIGIN).count() > 1 {
            return false;
        }
        if is_read && origin.is_some_and(|origin| self.origins.iter().any(|allowed| allowed.as_str() == origin)) {
            return true;
        }
        match text(SEC_FETCH_SITE) {
            // The browser has compared: it knows what it asked for, also behind a proxy that changes the host
            Some("same-origin" | "none") => true,
            Some(_) => false,
            // Browsers say nothing of the site over plain HTTP, but the origin of all that may change something
            None => origin.is_none_or(|origin| self.is_own_origin(origin, host)),
        }
    }

    /// Whether an origin is of the host that the request names, or of one that the settings name.
    fn is_own_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return false,
        };
        let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
        let name = bare_name(authority).to_ascii_lowercase();
        host.is_some_and(|host| bare(authority) == bare(host))
            || self.hosts.iter().any(|host| !host.is_any() && host.matches(&name))
    }
}

/// The host of the request line, else of the header. HTTP/1.0 clients may name none.
fn requested_host(request: &RequestHead) -> Result<Option<String>, ApiError> {
    let mut given = request.headers.get_all(header::HOST);
    let first = given.next().map(|value| value.to_str().unwrap_or("?").trim().to_owned());
    if given.next().is_some() {
        return Err(ApiError::invalid("Host must be given once"));
    }
    Ok(request.uri.authority().map(|authority| authority.as_str().to_owned()).or(first))
}

/// A host without its port.
fn bare_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Whether this is a name or an address, with or without a port. Without a host it is empty.
fn is_host(host: &str) -> bool {
    let name = bare_name(host);
    let port = host.get(name.len()..).unwrap_or_default().trim_start_matches(':');
    let is_name = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte)),
    };
    is_name && (port.is_empty() || port.parse::<u16>().is_ok())
}

/// Streams and requests that wait: a page of another site could hold all that a gateway may serve at a time.
fn is_stream(path: &str) -> bool {
    let ends = ["/stream", "/events", "/ws", "/messages", "/live"];
    ends.iter().any(|end| path.ends_with(end))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn site_check() -> SiteCheck {
        SiteCheck {
            hosts: ["galley.example.com", "*.apps.example.com"].map(|host| host.parse().expect("a host")).to_vec(),
            origins: vec!["https://app.b:8443".parse().expect("an origin")],
            machine: "box.corp.example".to_owned(),
        }
    }

    type SiteCase = (&'static [(&'static str, &'static str)], bool, bool);

    fn code(method: Method, path: &str, headers: &[(&'static str, &'static str)]) -> Option<ErrorCode> {
        let request = TestRequest::with_uri(path).method(method);
        let request = headers.iter().fold(request, |request, header| request.append_header(*header));
        let request = request.to_http_request();
        site_check().check(request.head(), request.path()).err().map(|error| error.code())
    }

    #[test]
    fn only_names_that_a_stranger_cannot_have_are_ours() {
        let ours = [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "localhost:8080",
            "LOCALHOST",
            "a.localhost",
            "gateway:8080",
            "galley-gateway.jobs.svc",
            "galley-gateway.jobs.svc.cluster.local:80",
            "nas.local",
            "box.corp.example",
            "galley.example.com",
            "galley.example.com.",
            "one.apps.example.com:443",
        ];
        for host in ours {
            assert_eq!(code(Method::POST, "/ojs/v1/jobs", &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil%2eexample",
            "127.0.0.1.nip.io:8080",
            "example.com",
            "apps.example.com",
            "localhost.evil.example",
        ] {
            for (method, path) in [(Method::POST, "/ojs/v1/jobs"), (Method::GET, "/ojs/v1/queues"), (Method::GET, "/")]
            {
                assert_eq!(code(method, path, &[("host", host)]), Some(ErrorCode::HostNotAllowed), "{host}");
            }
            assert_eq!(code(Method::GET, "/health/live", &[("host", host)]), None, "{host}");
        }
        assert_eq!(code(Method::POST, "/", &[]), None, "HTTP/1.0");
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(code(Method::POST, "/", &twice), Some(ErrorCode::InvalidRequest));
        assert_eq!(code(Method::GET, "http://evil.example/", &[("host", "a")]), Some(ErrorCode::HostNotAllowed));
    }

    #[test]
    fn a_page_of_another_site_is_known_by_its_headers() {
        // Headers, whether the page may change something, whether it may read a stream
        let cases: [SiteCase; 16] = [
            (&[("host", "a:1")], true, true),
            (&[("host", "a:1"), ("origin", "http://a:1")], true, true),
            (&[("host", "A"), ("origin", "https://a:443")], true, true),
            (&[("host", "a:80"), ("origin", "http://a")], true, true),
            (&[("host", "a:1"), ("origin", "http://a:2")], false, false),
            (&[("host", "localhost:8080"), ("origin", "http://localhost:3000")], false, false),
            (&[("host", "a"), ("origin", "http://a.b")], false, false),
            (&[("host", "a"), ("origin", "null")], false, false),
            (&[("host", "a"), ("origin", "http://a"), ("origin", "http://b")], false, false),
            // A proxy may have changed the host, and a page can leave its address out
            (&[("host", "a"), ("referer", "http://a.b/page")], true, true),
            (&[("host", "a"), ("origin", "http://a"), ("sec-fetch-site", "same-site")], false, false),
            (&[("host", "a"), ("origin", "https://public.b"), ("sec-fetch-site", "same-origin")], true, true),
            (&[("host", "a"), ("origin", "http://galley.example.com")], true, true),
            (&[("host", "a"), ("origin", "https://app.b:8443"), ("sec-fetch-site", "cross-site")], false, true),
            (&[("host", "a"), ("origin", "https://app.b")], false, false),
            (&[("host", "a"), ("sec-fetch-site", "cross-site")], false, false),
        ];
        let refused = Some(ErrorCode::CrossSiteRequest);
        for (headers, may_change, may_read) in cases {
            for (method, path) in [
                (Method::POST, "/ojs/v1/queues/default/pause"),
                (Method::DELETE, "/ojs/v1/jobs/x"),
                (Method::GET, "/prodcons"),
            ] {
                assert_eq!(code(method, path, headers), refused.filter(|_| !may_change), "{path} {headers:?}");
            }
            for path in ["/v1/ws", "/v1/stream?channel=a", "/v1/channels/a/stream", "/ojs/v1/jobs/x/events"] {
                assert_eq!(code(Method::GET, path, headers), refused.filter(|_| !may_read), "{path} {headers:?}");
            }
            assert_eq!(code(Method::GET, "/ojs/v1/queues", headers), None, "{headers:?}");
        }
    }
}
