//! Checks answers against `openapi.json`: the status, the media type and the JSON. An answer that the document does not
//! describe fails the test that got it.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use jsonschema::{Draft, Validator};
use reqwest::Method;
use serde_json::{Value, json};

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../gateway/openapi.json")).expect("JSON"));

/// Schemas by their address in the document. Each is compiled once per process, when it is first needed.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// A route as the document describes it.
pub(crate) struct DescribedOperation {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) has_body: bool,
    pub(crate) is_event_stream: bool,
    /// The query parameters that are not lists.
    pub(crate) single_query_parameters: Vec<String>,
}

/// Every route.
pub(crate) fn described_operations() -> Vec<DescribedOperation> {
    let mut found = Vec::new();
    for (path, operations) in DOCUMENT["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let parameters = operation["parameters"].as_array().into_iter().flatten().map(|parameter| {
                let pointer = parameter["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
                pointer.and_then(|pointer| DOCUMENT.pointer(pointer)).unwrap_or(parameter)
            });
            let single = parameters.filter(|p| p["in"] == "query" && p["schema"]["type"] != "array");
            let answers = operation["responses"].as_object().expect("responses");
            found.push(DescribedOperation {
                method: method.clone(),
                path: path.clone(),
                has_body: operation.get("requestBody").is_some(),
                is_event_stream: answers.values().any(|answer| !answer["content"]["text/event-stream"].is_null()),
                single_query_parameters: single.filter_map(|p| p["name"].as_str()).map(ToOwned::to_owned).collect(),
            });
        }
    }
    found
}

/// The operations that need a key, without their twins for HEAD.
pub(crate) fn operations_that_need_a_key() -> Vec<String> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").values();
    let operations = paths.flat_map(|operations| operations.as_object().expect("operations"));
    let keyed = operations.filter(|(method, operation)| {
        *method != "head" && operation["security"].as_array().is_some_and(|needed| !needed.is_empty())
    });
    keyed.map(|(_, operation)| operation["operationId"].as_str().expect("a name").to_owned()).collect()
}

/// What a client got.
pub(crate) struct Answer<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) content_type: &'a str,
    /// None if the body is a stream, which has no end to wait for.
    pub(crate) body: Option<&'a [u8]>,
}

impl Answer<'_> {
    /// Checks the answer against the operation of its method and path.
    ///
    /// # Errors
    /// Why it does not fit.
    pub(crate) fn check(&self) -> Result<(), String> {
        // Pages for people are not part of the interface for programs
        if self.path.starts_with("/ui/") {
            return Ok(());
        }
        let Some(template) = find_template(self.path) else {
            return self.expect_error(404);
        };
        let pointer = format!("/paths/{}/{}", escape(template), self.method.as_str().to_ascii_lowercase());
        if DOCUMENT.pointer(&pointer).is_none() {
            return match (self.method.as_str(), self.status) {
                // The answer to a preflight request is in its headers; a refused one is an error like others
                ("OPTIONS", 200) if self.body.is_some_and(<[u8]>::is_empty) => Ok(()),
                ("OPTIONS", 400) => self.check_body("/components/responses/E400"),
                _ => self.expect_error(405),
            };
        }
        let pointer = resolve(&format!("{pointer}/responses/{}", self.status))
            .ok_or_else(|| format!("{} of {template} has no status {}", self.method, self.status))?;
        self.check_body(&pointer)
    }

    /// Of a path or a method that the document does not have.
    fn expect_error(&self, status: u16) -> Result<(), String> {
        // A page of another site is refused before the path is looked up
        if self.status != status && self.status != 403 {
            return Err(format!("{} {} is not described, and the answer is not {status}", self.method, self.path));
        }
        // Each error response has the same schema; there is none for 405
        self.check_body("/components/responses/E404")
    }

    /// Checks the body against a response of the document.
    fn check_body(&self, response: &str) -> Result<(), String> {
        let content = DOCUMENT.pointer(response).and_then(|response| response.get("content"));
        let Some(body) = self.body else { return self.media_type(content).map(|_| ()) };
        if content.is_none() || self.method == Method::HEAD {
            return if body.is_empty() { Ok(()) } else { Err("the body is not described".to_owned()) };
        }
        let media_type = self.media_type(content)?;
        if media_type != "application/json" && !media_type.ends_with("+json") {
            return Ok(());
        }
        let body: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        let validator = validator(&format!("{response}/content/{}/schema", escape(media_type)));
        let errors: Vec<String> =
            validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        if errors.is_empty() { Ok(()) } else { Err(format!("{} in {body}", errors.join("; "))) }
    }

    fn media_type(&self, content: Option<&Value>) -> Result<&str, String> {
        let media_type = self.content_type.split(';').next().unwrap_or_default().trim();
        let is_described = content.is_some_and(|content| content.get(media_type).is_some());
        if is_described { Ok(media_type) } else { Err(format!("the media type {media_type:?} is not described")) }
    }
}

/// The path of the document that a path of a request fits. One with fewer parameters comes first.
fn find_template(path: &str) -> Option<&'static str> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").keys().map(String::as_str);
    let fitting = paths.filter(|template| {
        let fit = |(part, given): (&str, &str)| part == given || part.starts_with('{') && !given.is_empty();
        template.split('/').count() == path.split('/').count() && template.split('/').zip(path.split('/')).all(fit)
    });
    fitting.min_by_key(|template| template.matches('{').count())
}

/// Follows a reference, if there is one at that pointer.
fn resolve(pointer: &str) -> Option<String> {
    let reference = DOCUMENT.pointer(pointer)?.get("$ref").and_then(Value::as_str);
    Some(reference.map_or_else(|| pointer.to_owned(), |reference| reference.trim_start_matches('#').to_owned()))
}

fn validator(pointer: &str) -> Arc<Validator> {
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        let schema = DOCUMENT.pointer(pointer).expect("every media type has a schema");
        // References begin at the root of the document
        let schema = json!({ "allOf": [schema], "components": DOCUMENT["components"] });
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        Arc::new(options.build(&schema).expect("a schema"))
    };
    validators.entry(pointer.to_owned()).or_insert_with(compile).clone()
}

/// A key as a part of a JSON pointer.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[test]
fn an_answer_that_the_document_does_not_describe_is_refused() {
    let check = |method: Method, path, status, content_type, body: &str| {
        Answer { method: &method, path, status, content_type, body: Some(body.as_bytes()) }.check()
    };
    let (ojs, deleted) = ("application/json", r#"{"deleted":true,"name":"a"}"#);
    assert_eq!(check(Method::DELETE, "/v1/subscriptions/a", 200, ojs, deleted), Ok(()));
    for (path, status, content_type, body) in [
        ("/v1/subscriptions/a", 201, ojs, deleted),
        ("/v1/subscriptions/a", 200, "text/plain", deleted),
        ("/v1/subscriptions/a", 200, ojs, r#"{"deleted":false,"name":"a"}"#),
        ("/v1/subscriptions/a", 200, ojs, r#"{"deleted":true}"#),
        ("/v1/subscriptions/a", 404, "application/problem+json", r#"{"detail":"a does not exist"}"#),
        ("/v1/nothing", 200, ojs, deleted),
        ("/v1/subscriptions", 200, ojs, deleted),
    ] {
        assert!(check(Method::DELETE, path, status, content_type, body).is_err(), "{path} {status} {body}");
    }
}
