//! Refuses what a route does not read: query parameters that it does not have or has once, a second header of a kind that
//! is read once, and a body where it takes none. A client that misspells a filter must not get the answer to another question.
//!
//! `openapi.json` says what each route reads, so a new route cannot forget the check. Names inside a JSON body are
//! checked where the body is parsed: [`common::json_members::parse_request`] and [`common::json::Object::check_names`].
//!
//! Event streams ignore unknown parameters: an error there is final for browsers, and client libraries add parameters.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::LazyLock,
};

use actix_web::{
    Error, FromRequest, HttpRequest,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderName},
    },
    middleware::Next,
    web::Query,
};
use common::{health::is_probe, known_names};
use serde_json::Value;

use crate::{auth::Caller, body::RawBody, error::ApiError, routes::OPENAPI_DOCUMENT};

/// Headers of which one is read, and what people call them.
const SINGLE_HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_TYPE, "Content-Type"),
    (header::CONTENT_ENCODING, "Content-Encoding"),
    (HeaderName::from_static("idempotency-key"), "Idempotency-Key"),
    (HeaderName::from_static("last-event-id"), "Last-Event-ID"),
];

/// What a route reads.
#[derive(Debug, Default)]
struct RouteInputs {
    /// The query parameters, and whether each may be given several times.
    query: BTreeMap<String, bool>,
    has_body: bool,
    is_event_stream: bool,
}

/// The inputs of each route by path pattern and method.
type Routes = HashMap<String, HashMap<Method, RouteInputs>>;

static ROUTES: LazyLock<Routes> = LazyLock::new(|| described_routes(OPENAPI_DOCUMENT));

fn described_routes(document: &str) -> Routes {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flatten();
    let inputs_of_path = |operations: &Value| {
        let operations = operations.as_object().into_iter().flatten();
        let inputs = operations.filter_map(|(method, operation)| {
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?;
            Some((method, described_inputs(&document, operation)))
        });
        inputs.collect()
    };
    paths.map(|(path, operations)| (path.clone(), inputs_of_path(operations))).collect()
}

fn described_inputs(document: &Value, operation: &Value) -> RouteInputs {
    let mut inputs = RouteInputs { has_body: operation.get("requestBody").is_some(), ..RouteInputs::default() };
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let reference = parameter["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
        let parameter = reference.and_then(|target| document.pointer(target)).unwrap_or(parameter);
        if let Some(name) = parameter["name"].as_str().filter(|_| parameter["in"] == "query") {
            inputs.query.insert(name.to_owned(), parameter["schema"]["type"] == "array");
        }
    }
    let answers = operation["responses"].as_object().into_iter().flatten();
    inputs.is_event_stream = answers.into_iter().any(|(_, answer)| !answer["content"]["text/event-stream"].is_null());
    inputs
}

/// Wraps every route.
pub(crate) async fn request_check(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match check(&mut request).await {
        Ok(()) => Ok(next.call(request).await?.map_into_boxed_body()),
        Err(refused) => Ok(request.error_response(refused).map_into_boxed_body()),
    }
}

async fn check(request: &mut ServiceRequest) -> Result<(), ApiError> {
    if is_probe(request.path()) {
        return Ok(());
    }
    // An unknown path or method has no inputs: the router answers
    let Some(inputs) = inputs_of(request.request()) else { return Ok(()) };
    check_query(request.query_string(), inputs, inputs.is_event_stream)?;
    if let Some((_, name)) = SINGLE_HEADERS.iter().find(|(name, _)| request.headers().get_all(name).count() > 1) {
        return Err(ApiError::invalid(format!("{name} must be given once")));
    }
    let has_body = request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
        || request.headers().contains_key(header::TRANSFER_ENCODING);
    if has_body && !inputs.has_body {
        if request.headers().contains_key(header::UPGRADE) {
            // What follows is the other protocol, without an end
            return Err(ApiError::invalid("a request to upgrade takes no body"));
        }
        let (http, payload) = request.parts_mut();
        check_no_body(&RawBody::from_request(http, payload).await?.0)?;
    }
    Ok(())
}

fn inputs_of(request: &HttpRequest) -> Option<&'static RouteInputs> {
    ROUTES.get(Caller::of(request).ok()?.path()?)?.get(request.method())
}

/// Checks the query of a list at a path that has an event stream too.
pub(crate) fn check_list_query(request: &HttpRequest) -> Result<(), ApiError> {
    inputs_of(request).map_or(Ok(()), |inputs| check_query(request.query_string(), inputs, false))
}

fn check_query(query: &str, inputs: &RouteInputs, ignores_unknown: bool) -> Result<(), ApiError> {
    let mut seen = HashSet::new();
    for (name, _) in query_pairs(query) {
        match inputs.query.get(&name) {
            None if ignores_unknown => {}
            None => {
                let known: Vec<&str> = inputs.query.keys().map(String::as_str).collect();
                return Err(ApiError::invalid(known_names::unknown("query parameter", &name, &known)));
            }
            Some(true) => {}
            Some(false) if seen.contains(&name) => {
                return Err(ApiError::invalid(format!("query parameter {name} must be given once")));
            }
            Some(false) => drop(seen.insert(name)),
        }
    }
    Ok(())
}

/// The parameters of a query in their order, decoded.
pub(crate) fn query_pairs(query: &str) -> Vec<(String, String)> {
    Query::<Vec<(String, String)>>::from_query(query).map(Query::into_inner).unwrap_or_default()
}

/// Many clients send `{}` when they have nothing to say.
fn check_no_body(body: &[u8]) -> Result<(), ApiError> {
    let said: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).take(5).collect();
    if [&b""[..], b"{}", b"null"].contains(&said.as_slice()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("this route takes no body, got {} bytes", body.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_route_reads_is_what_its_description_says() {
        let list = &ROUTES["/ojs/v1/dead-letter"][&Method::GET];
        assert!(list.query.contains_key("error_type") && !list.has_body && !list.is_event_stream);
        assert!(
            ROUTES["/ojs/v1/jobs"][&Method::POST].has_body
                && !ROUTES["/ojs/v1/jobs/{id}/activate"][&Method::POST].has_body
        );
        assert!(
            ROUTES["/v1/stream"][&Method::GET].is_event_stream && ROUTES["/v1/stream"][&Method::GET].query["channel"]
        );
    }

    #[test]
    fn an_unknown_or_repeated_parameter_is_named_and_so_is_the_one_that_was_meant() {
        let list = &ROUTES["/ojs/v1/dead-letter"][&Method::GET];
        for (query, said) in [
            ("", ""),
            ("limit=1&queue=a&type=b.*", ""),
            ("limt=1", r#"unknown query parameter "limt", did you mean "limit"? known are after, error_type"#),
            ("job_type=a", r#"unknown query parameter "job_type", did you mean "type"?"#),
            ("queue=a&%6cimit=1&limit=2", "query parameter limit must be given once"),
            ("dry_run", r#"unknown query parameter "dry_run", known are"#),
        ] {
            let refused = check_query(query, list, false).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.starts_with(said) && refused.is_empty() == said.is_empty(), "{query}: {refused}");
        }
        let stream = &ROUTES["/v1/stream"][&Method::GET];
        check_query("channel=a&channel=b&cache=1&cache=2", stream, true).expect("ignored by a stream");
        check_query("since=-PT1H&since=-PT2H", stream, true).expect_err("which one?");
    }

    #[test]
    fn a_body_where_none_is_read_is_refused_unless_it_says_nothing() {
        for empty in ["", " \n", "{}", "{ }", "null"] {
            check_no_body(empty.as_bytes()).expect(empty);
        }
        for body in ["{\"until\":1}", "[]", "until=1", "{}{}"] {
            check_no_body(body.as_bytes()).expect_err(body);
        }
    }
}
