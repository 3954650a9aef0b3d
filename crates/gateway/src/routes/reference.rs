//! The reference of the interface for people at `/docs`: the `OpenAPI` document as one page, rendered when it is first asked
//! for. It is in English, as the document is; it runs no script and loads nothing from elsewhere.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use askama::Template;
use serde_json::Value;

use super::openapi::DOCUMENT;

/// Objects inside objects are members with dotted names, this deep.
const MAX_DEPTH: usize = 4;

static PAGE: LazyLock<Result<String, askama::Error>> = LazyLock::new(|| {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    ReferencePage { chapters: chapters(&document), schemas: schemas(&document) }.render()
});

pub(super) async fn page() -> HttpResponse {
    match &*PAGE {
        Ok(page) => HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page.as_str()),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

#[derive(Template)]
#[template(path = "reference/page.html")]
struct ReferencePage<'a> {
    chapters: Vec<Chapter<'a>>,
    schemas: Vec<Schema<'a>>,
}

/// The routes with one tag.
struct Chapter<'a> {
    tag: &'a str,
    operations: Vec<DescribedRoute<'a>>,
}

struct DescribedRoute<'a> {
    id: &'a str,
    method: String,
    path: &'a str,
    summary: &'a str,
    description: &'a str,
    /// What a key needs: scopes, or nothing.
    scopes: Vec<&'a str>,
    parameters: Vec<DescribedMember<'a>>,
    bodies: Vec<Content<'a>>,
    answers: Vec<DescribedAnswer<'a>>,
}

struct Content<'a> {
    media_type: &'a str,
    shape: Shape,
}

struct DescribedAnswer<'a> {
    status: &'a str,
    description: &'a str,
    contents: Vec<Content<'a>>,
}

struct Schema<'a> {
    name: &'a str,
    description: &'a str,
    shape: Shape,
    members: Vec<DescribedMember<'a>>,
}

/// A parameter, or a member of an object.
struct DescribedMember<'a> {
    name: String,
    /// Where a parameter is.
    place: &'a str,
    is_required: bool,
    shape: Shape,
    description: &'a str,
    bounds: String,
}

/// What kind of value it is. Parts that name a schema lead to it.
#[derive(Default)]
struct Shape {
    parts: Vec<ShapePart>,
}

struct ShapePart {
    text: String,
    is_schema: bool,
}

impl Shape {
    fn of(text: impl Into<String>) -> Self {
        Self { parts: vec![ShapePart { text: text.into(), is_schema: false }] }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn items<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member))
}

/// What a reference leads to, or the value itself.
fn resolved<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    let pointer = part["$ref"].as_str().and_then(|target| target.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(part)
}

fn chapters(document: &Value) -> Vec<Chapter<'_>> {
    let mut chapters: Vec<Chapter<'_>> =
        items(document, "tags").map(|tag| Chapter { tag: text(tag, "name"), operations: Vec::new() }).collect();
    for (path, operations) in entries(&document["paths"]) {
        for (method, operation) in entries(operations).filter(|(method, _)| *method != "head") {
            let tag = items(operation, "tags").find_map(Value::as_str).unwrap_or_default();
            let described = self::operation(document, path, method, operation);
            match chapters.iter_mut().find(|chapter| chapter.tag == tag) {
                Some(chapter) => chapter.operations.push(described),
                None => chapters.push(Chapter { tag, operations: vec![described] }),
            }
        }
    }
    chapters
}

fn operation<'a>(document: &'a Value, path: &'a str, method: &'a str, operation: &'a Value) -> DescribedRoute<'a> {
    let scopes = items(operation, "security").flat_map(|way| items(way, "key")).filter_map(Value::as_str);
    let answers = entries(&operation["responses"]).map(|(status, answer)| {
        let answer = resolved(document, answer);
        DescribedAnswer { status, description: text(answer, "description"), contents: contents(answer) }
    });
    DescribedRoute {
        id: text(operation, "operationId"),
        method: method.to_ascii_uppercase(),
        path,
        summary: text(operation, "summary"),
        description: text(operation, "description"),
        scopes: scopes.collect(),
        parameters: items(operation, "parameters").map(|given| parameter(resolved(document, given))).collect(),
        bodies: contents(resolved(document, &operation["requestBody"])),
        answers: answers.collect(),
    }
}

fn parameter(parameter: &Value) -> DescribedMember<'_> {
    let schema = &parameter["schema"];
    DescribedMember {
        name: text(parameter, "name").to_owned(),
        place: text(parameter, "in"),
        is_required: parameter["required"] == true,
        shape: shape(schema),
        description: [parameter, schema]
            .map(|part| text(part, "description"))
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
        bounds: bounds(schema),
    }
}

fn contents(of: &Value) -> Vec<Content<'_>> {
    entries(&of["content"])
        .map(|(media_type, content)| Content { media_type, shape: shape(&content["schema"]) })
        .collect()
}

fn schemas(document: &Value) -> Vec<Schema<'_>> {
    let described = entries(&document["components"]["schemas"]).map(|(name, schema)| {
        let mut rows = Vec::new();
        add_members(schema, "", 0, &mut rows);
        Schema { name, description: text(schema, "description"), shape: shape(schema), members: rows }
    });
    described.collect()
}

/// The members of an object, each before those inside it.
fn add_members<'a>(schema: &'a Value, before: &str, depth: usize, rows: &mut Vec<DescribedMember<'a>>) {
    for (name, member) in entries(&schema["properties"]) {
        let full = format!("{before}{name}");
        rows.push(DescribedMember {
            name: full.clone(),
            place: "",
            is_required: items(schema, "required").any(|required| required == name),
            shape: shape(member),
            description: text(member, "description"),
            bounds: bounds(member),
        });
        if depth < MAX_DEPTH {
            add_members(member, &format!("{full}."), depth + 1, rows);
            add_members(&member["items"], &format!("{full}[]."), depth + 1, rows);
        }
    }
    for part in ["allOf", "oneOf", "anyOf"].into_iter().flat_map(|kind| items(schema, kind)) {
        add_members(part, before, depth, rows);
    }
}

fn shape(schema: &Value) -> Shape {
    if let Some(name) = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next()) {
        return Shape { parts: vec![ShapePart { text: name.to_owned(), is_schema: true }] };
    }
    for (kind, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " with ")] {
        let mut joined = Shape::default();
        for part in items(schema, kind) {
            if !joined.parts.is_empty() {
                joined.parts.push(ShapePart { text: between.to_owned(), is_schema: false });
            }
            joined.parts.extend(shape(part).parts);
        }
        if !joined.parts.is_empty() {
            return joined;
        }
    }
    if !schema["const"].is_null() {
        return Shape::of(schema["const"].to_string());
    }
    let allowed: Vec<String> = items(schema, "enum").map(ToString::to_string).collect();
    if !allowed.is_empty() {
        return Shape::of(allowed.join(", "));
    }
    if schema["type"] == "array" {
        let mut list = Shape::of("list of ");
        list.parts.extend(shape(&schema["items"]).parts);
        return list;
    }
    match &schema["type"] {
        Value::String(name) => Shape::of(name.as_str()),
        Value::Array(names) => Shape::of(names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")),
        _ => Shape::of("any value"),
    }
}

/// Default, limits and pattern.
fn bounds(schema: &Value) -> String {
    let named = [
        ("default", "default"),
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "shortest"),
        ("maxLength", "longest"),
        ("maxItems", "most"),
        ("pattern", "pattern"),
    ];
    let facts = named.iter().filter(|(name, _)| !schema[*name].is_null()).map(|(name, words)| match &schema[*name] {
        Value::String(value) => format!("{words} {value}"),
        value => format!("{words} {value}"),
    });
    facts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> &'static str {
        PAGE.as_deref().expect("it can be rendered")
    }

    #[test]
    fn every_operation_and_every_schema_has_a_place_and_every_link_leads_to_one() {
        let (document, page) = (serde_json::from_str::<Value>(DOCUMENT).expect("JSON"), page());
        let paths = entries(&document["paths"]).flat_map(|(_, operations)| entries(operations));
        let mut ids: Vec<&str> = paths
            .filter(|(method, _)| *method != "head")
            .map(|(_, operation)| text(operation, "operationId"))
            .collect();
        assert!(ids.len() > 70, "{}", ids.len());
        ids.extend(entries(&document["components"]["schemas"]).map(|(name, _)| name));
        for id in ids {
            assert_eq!(page.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
        }
        for link in page.split("href=\"#").skip(1) {
            let target = link.split('"').next().expect("it ends");
            assert!(page.contains(&format!(" id=\"{target}\"")), "{target}");
        }
    }

    #[test]
    fn the_page_says_what_a_job_takes_and_loads_nothing() {
        let page = page();
        for said in [
            "/ojs/v1/jobs/{id}",
            "jobs:write",
            "options.retry",
            "RetryPolicy",
            "lower-case UUIDv7",
            "at most 100",
            "Idempotency-Key",
        ] {
            assert!(page.contains(said), "{said}");
        }
        for loaded in ["<script", "src=", "<link", "url("] {
            assert!(!page.contains(loaded), "{loaded}");
        }
    }

    #[test]
    fn texts_of_the_document_are_escaped() {
        let document = serde_json::json!({
            "paths": { "/a": { "get": { "operationId": "a", "tags": ["<b>"], "summary": "<script>" } } }
        });
        let page = ReferencePage { chapters: chapters(&document), schemas: schemas(&document) };
        let page = page.render().expect("it can be rendered");
        assert!(!page.contains("<script>") && page.contains("script"), "{page}");
    }
}
