//! The whole interface, described for programs as an `OpenAPI` 3.1 document, which is embedded in the binary.

use actix_web::HttpResponse;

/// The document, in which [`crate::request_check`] looks up what a route reads.
pub(crate) const DOCUMENT: &str = include_str!("../../openapi.json");

pub(super) async fn document() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::routes::table::rules;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    /// The routes of the table: `get /ojs/v1/jobs/{id}`. GET has HEAD beside it where the router answers it.
    fn routes() -> BTreeSet<String> {
        // Pages for people are not part of the interface for programs
        let rules = rules().filter(|rule| !rule.path.starts_with("/ui"));
        let names = rules.flat_map(|rule| {
            let method = rule.method.to_ascii_lowercase();
            let head = Some(format!("head {}", rule.path)).filter(|_| rule.answers_head);
            [Some(format!("{method} {}", rule.path)), head]
        });
        names.flatten().collect()
    }

    fn visit(value: &Value, look: &mut impl FnMut(&str, &Value)) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    look(name, member);
                    visit(member, look);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| visit(item, look)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let document = document();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for method in operations.as_object().expect("operations").keys() {
                described.insert(format!("{method} {path}"));
            }
        }
        let routes = routes();
        assert!(routes.len() > 70, "the source was read: {routes:?}");
        assert_eq!(routes.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "not described");
        assert_eq!(described.difference(&routes).collect::<Vec<_>>(), Vec::<&String>::new(), "no such route");
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_part_is_used() {
        let document = document();
        let mut used = BTreeSet::new();
        visit(&document, &mut |name, value| {
            if name == "$ref" {
                let target = value.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference inside");
                assert!(document.pointer(target).is_some(), "{target} does not exist");
                used.insert(target.to_owned());
            }
        });
        let components = document["components"].as_object().expect("components");
        for (kind, parts) in components.iter().filter(|(kind, _)| *kind != "securitySchemes") {
            for part in parts.as_object().expect("parts").keys() {
                assert!(used.contains(&format!("/components/{kind}/{part}")), "{kind}/{part} is not used");
            }
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_answers_and_its_parameters_of_the_path() {
        let document = document();
        let mut names = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for operation in operations.as_object().expect("operations").values() {
                let name = operation["operationId"].as_str().expect("a name");
                assert!(names.insert(name.to_owned()), "{name} twice");
                assert!(operation["responses"].as_object().is_some_and(|answers| !answers.is_empty()), "{name}");
                let parameters: Vec<&Value> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|parameter| {
                        let reference = parameter["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
                        reference.and_then(|target| document.pointer(target)).unwrap_or(parameter)
                    })
                    .collect();
                let in_path: BTreeSet<&str> =
                    parameters.iter().filter(|p| p["in"] == "path").filter_map(|p| p["name"].as_str()).collect();
                let wanted: BTreeSet<&str> =
                    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
                assert_eq!(in_path, wanted, "{name}");
            }
        }
    }

    #[test]
    fn the_error_codes_are_those_of_the_table_each_with_its_status() {
        let document = document();
        let table = crate::error::ErrorCode::all();
        let names: BTreeSet<&str> = table.iter().map(|(code, _)| *code).collect();
        let listed = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().expect("codes");
        assert_eq!(listed.iter().filter_map(Value::as_str).collect::<Vec<_>>(), Vec::from_iter(names));

        let responses = document["components"]["responses"].as_object().expect("responses");
        let described = responses.iter().flat_map(|(name, response)| {
            let status = name.strip_prefix('E').and_then(|status| status.parse().ok()).expect("E and a status");
            response["description"].as_str().expect("codes").split(", ").map(move |code| (code, status))
        });
        // Every path answers 405 to other methods: no operation lists it
        let expected = table.iter().copied().filter(|(code, _)| *code != "method_not_allowed");
        assert_eq!(described.collect::<BTreeSet<_>>(), expected.collect::<BTreeSet<_>>());
    }
}
