//! The middleware of every request: a request id, a span, metrics, standard headers, the check of the site that it comes
//! from, and the shape of errors.

use std::{cell::RefCell, collections::HashMap, time::Instant};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{RequestHead, ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web::Data,
};
use common::{
    health::is_probe,
    prometheus::handles_epoch,
    settings::GatewaySettings,
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, SpanDescription},
    },
    trace_context::TraceContext,
};

use crate::{
    answer_budget::CountedBody,
    audit::AdminAction,
    body_limits, dashboard,
    error::{ApiError, ErrorCode},
    routes::table::{PathRules, rules_of, rules_of_fixed},
    services::Services,
    site_check::SiteCheck,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const OJS_VERSION: HeaderName = HeaderName::from_static("ojs-version");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The trace that a request belongs to.
#[derive(Clone)]
pub(crate) struct RequestTrace(TraceContext);

impl RequestTrace {
    /// The trace of a request. The jobs that the request creates continue it.
    pub(crate) fn from_request(request: &HttpRequest) -> TraceContext {
        request.extensions().get::<Self>().map(|trace| trace.0.clone()).unwrap_or_default()
    }
}

/// Wraps every request.
pub(crate) async fn request_middleware(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let request_id = request_id(request.headers());
    let path = request.path().to_owned();
    let given = given_trace(request.headers());
    let rules = matched_rules(&request);
    let mut span = request_span(&request, &given, rules, &request_id);
    let trace = span.as_ref().map_or(&given, ActiveSpan::context).clone();
    let work = WorkScope::of_request(&request_id, trace.clone());
    request.extensions_mut().insert(RequestTrace(trace));
    let rule = rules.and_then(|rules| rules.of_method(request.method()));
    let action = rule.and_then(|rule| AdminAction::of(request.request(), rule));
    let mut response = if let Err(refused) = check_sender(&request, rules).await {
        let page = dashboard::error_page(request.request(), &refused, &request_id);
        request.into_response(page.unwrap_or_else(|| refused.render(&path, &request_id)))
    } else {
        // Errors of handlers and extractors arrive as responses; the router has no others
        let response = work.run(next.call(request)).await?.map_into_boxed_body();
        let response = count_answer(render_error(response, &path, &request_id), &path, &request_id);
        match response.request().app_data::<Data<Services>>().cloned() {
            Some(services) => services.streams.count(response, &path, &request_id),
            None => response,
        }
    };
    if let Some(action) = action {
        Box::pin(action.record(&response, &request_id)).await;
    }
    add_standard_headers(response.headers_mut(), &path, &request_id);
    if let Some(span) = &mut span {
        span.set_http_status(response.status().as_u16(), 500);
    }
    record_metrics(&response, rules, started);
    Ok(response)
}

/// The rules of the path that the router will match. As the router does, it reads the path after decoding what is
/// percent-encoded without need: `/%6fjs` is `/ojs`.
fn matched_rules(request: &ServiceRequest) -> Option<&'static PathRules> {
    let path = request.match_info().as_str();
    rules_of_fixed(path).or_else(|| rules_of(&request.resource_map().match_pattern(path)?))
}

/// Checks the site that the request comes from, and its key.
async fn check_sender(request: &ServiceRequest, rules: Option<&'static PathRules>) -> Result<(), ApiError> {
    if let Some(site) = request.app_data::<SiteCheck>() {
        site.check(request.head(), request.match_info().as_str())?;
    }
    match request.app_data::<Data<Services>>() {
        Some(services) => services.auth.admit(request, rules).await,
        None => Err(ApiError::internal("no services")),
    }
}

/// Counts a large answer until it is sent, or refuses it.
fn count_answer(response: ServiceResponse, path: &str, request_id: &str) -> ServiceResponse {
    let services = response.request().app_data::<Data<Services>>().cloned();
    let Some(services) = services else { return response };
    let only_reads = [Method::GET, Method::HEAD].contains(response.request().method());
    match services.answers.lease(response.response().body().size(), only_reads) {
        Ok(None) => response,
        Ok(Some(lease)) => response.map_body(|_, body| BoxBody::new(CountedBody::new(body, lease))),
        Err(error) => {
            let (request, _) = response.into_parts();
            ServiceResponse::new(request, error.render(path, request_id))
        }
    }
}

/// Answers a client that waits for leave to send its body (`Expect: 100-continue`), if the body is too large. Such a
/// request does not reach the middleware.
pub(crate) fn refuse_early(head: &RequestHead, settings: &GatewaySettings) -> Option<HttpResponse> {
    let path = head.uri.path();
    let error = body_limits::check_length(head, settings).err()?;
    let request_id = request_id(&head.headers);
    let mut response = error.render(path, &request_id);
    add_standard_headers(response.headers_mut(), path, &request_id);
    let status = response.status().as_u16().to_string();
    let labels =
        [("route", "unknown".to_owned()), ("method", standard_method(&head.method).to_owned()), ("status", status)];
    metrics::counter!("galley_http_requests_total", &labels).increment(1);
    Some(response)
}

/// The span of a request. Health probes and scrapes have none: they would hide everything else.
fn request_span(
    request: &ServiceRequest,
    given: &TraceContext,
    rules: Option<&PathRules>,
    request_id: &str,
) -> Option<ActiveSpan> {
    let (method, path) = (standard_method(request.method()), request.path());
    if is_probe(path) || path == "/metrics" {
        return None;
    }
    Some(ActiveSpan::start(given, || {
        let route = rules.map_or("", |rules| rules.path);
        SpanDescription::server(method, route, path).with("galley.request.id", request_id.to_owned())
    }))
}

/// Renders errors, also those of actix-web, in the shape that the path's part of the interface uses.
fn render_error(response: ServiceResponse, path: &str, request_id: &str) -> ServiceResponse {
    let status = response.status();
    let ours = response.response().error().and_then(|error| error.as_error::<ApiError>().cloned());
    let error = match (ours, status) {
        (Some(error), _) => error,
        // An error of actix-web is rendered even if it has a body; a handler's answer stays as it is
        _ if response.response().error().is_none() && response.headers().contains_key(header::CONTENT_TYPE) => {
            return response;
        }
        (None, StatusCode::NOT_FOUND) => ApiError::not_found(common::name::quoted(path)),
        (None, StatusCode::METHOD_NOT_ALLOWED) => {
            let method = match standard_method(response.request().method()) {
                "other" => common::name::quoted(response.request().method().as_str()),
                known => known.to_owned(),
            };
            ApiError::new(
                ErrorCode::MethodNotAllowed,
                format!("{method} is not allowed on {}", common::name::quoted(path)),
            )
        }
        (None, status) if status.is_client_error() => ApiError::invalid("the request cannot be read"),
        _ => return response,
    };
    if let Some(cause) = error.cause() {
        tracing::error!(request_id, path, cause, "request failed with an internal error");
    }
    let page = dashboard::error_page(response.request(), &error, request_id);
    let mut rendered = page.unwrap_or_else(|| error.render(path, request_id));
    for (name, value) in response.headers() {
        // A page of another site that may read the answer may also read the error
        if [header::ALLOW, header::VARY].contains(name) || name.as_str().starts_with("access-control-") {
            rendered.headers_mut().append(name.clone(), value.clone());
        }
    }
    let (request, _) = response.into_parts();
    ServiceResponse::new(request, rendered)
}

/// The method as a bounded set of words for metrics: clients may send any word of any length.
fn standard_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Pages other than those of the dashboard have no scripts, load nothing, and no other page may show them in a frame, where a click could be led to their links.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn add_standard_headers(headers: &mut HeaderMap, path: &str, request_id: &str) {
    let is_ojs = path.starts_with("/ojs");
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
        }
    }
    if is_ojs {
        headers.insert(OJS_VERSION, HeaderValue::from_static("1.0"));
    }
}

fn record_metrics(response: &ServiceResponse, rules: Option<&'static PathRules>, started: Instant) {
    let status = response.status().as_u16();
    // The pattern, not the path: each id in a path would make another time series
    let route = rules.map_or("unknown", |rules| rules.path);
    let method = standard_method(response.request().method());
    RequestMetrics::with(route, method, status, |kept| {
        kept.count.increment(1);
        kept.seconds.record(started.elapsed().as_secs_f64());
    });
}

/// The metrics of one kind of requests. Each thread keeps those that it used: looking one up by its labels costs more than
/// counting. There are as many as routes, methods and statuses.
struct RequestMetrics {
    method: &'static str,
    status: u16,
    count: metrics::Counter,
    seconds: metrics::Histogram,
}

impl RequestMetrics {
    fn new(route: &str, method: &'static str, status: u16) -> Self {
        let labels = [("route", route.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
        let count = metrics::counter!("galley_http_requests_total", &labels);
        let seconds = metrics::histogram!("galley_http_request_seconds", &labels[..1]);
        Self { method, status, count, seconds }
    }

    fn with(route: &'static str, method: &'static str, status: u16, record: impl FnOnce(&Self)) {
        thread_local! {
            static BY_ROUTE: RefCell<(u64, HashMap<&'static str, Vec<RequestMetrics>>)> = RefCell::default();
        }
        BY_ROUTE.with_borrow_mut(|(epoch, by_route)| {
            let current = handles_epoch();
            if std::mem::replace(epoch, current) != current {
                by_route.clear();
            }
            if let Some(kept) = by_route.get(route).into_iter().flatten().find(|kept| kept.is_of(method, status)) {
                return record(kept);
            }
            let new = Self::new(route, method, status);
            record(&new);
            by_route.entry(route).or_default().push(new);
        });
    }

    fn is_of(&self, method: &str, status: u16) -> bool {
        self.method == method && self.status == status
    }
}

/// The client's request id if logs and headers can hold it, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_valid = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    given.filter(is_valid).map_or_else(new_request_id, ToOwned::to_owned)
}

/// A `UUIDv7`. Its random bits need no call of the kernel: an id names a request and protects nothing.
fn new_request_id() -> String {
    let millis = u64::try_from(store::local_now()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid().to_string()
}

/// The trace that a client says its request belongs to. Two `traceparent` contradict each other and count as none; the
/// other headers may come in parts.
fn given_trace(headers: &HeaderMap) -> TraceContext {
    let texts = |name| headers.get_all(name).filter_map(|value: &HeaderValue| value.to_str().ok()).collect::<Vec<_>>();
    let joined = |name| Some(texts(name).join(",")).filter(|text| !text.is_empty());
    let parents = texts(TRACEPARENT);
    let parent = parents.first().filter(|_| parents.len() == 1);
    TraceContext::new(parent.copied(), joined(TRACESTATE).as_deref(), joined(BAGGAGE).as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_of_a_trace_are_read_together() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            given_trace(&map)
        };
        let whole = read(&[("traceparent", good), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "k=v")]);
        assert_eq!(whole, TraceContext::new(Some(good), Some("a=1,b=2"), Some("k=v")));
        let contradiction =
            read(&[("traceparent", good), ("traceparent", good), ("baggage", "k=v"), ("baggage", "l=w")]);
        assert_eq!(contradiction, TraceContext::new(None, None, Some("k=v,l=w")));
        assert!(read(&[]).is_empty());
    }
}
