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

    /// Lists of the Open Job Spec have its shapes: `items` with `pagination` in its admin API, a name of their own in the
    /// core.
    const LISTS_OF_THE_SPECIFICATION: [(&str, &str); 12] = [
        ("adminListDeadLetters", "items"),
        ("adminListQueues", "items"),
        ("adminListWorkers", "items"),
        ("listCron", "crons"),
        ("listDeadLetters", "jobs"),
        ("listEvents", "events"),
        ("listJobs", "items"),
        ("listQueues", "queues"),
        ("statsHistory", "data"),
        ("streamJobEvents", "events"),
        ("streamQueueEvents", "events"),
        ("streamEvents", "events"),
    ];
    /// One thing that has lists, which are neither paged nor filtered.
    const ONE_THING: [&str; 7] =
        ["adminDeadLetter", "adminWorker", "checkQueue", "debug", "debugProcesses", "jobDetail", "nextRuns"];

    fn resolved<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
        let reference = part["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
        reference.and_then(|target| document.pointer(target)).unwrap_or(part)
    }

    /// What a list that is not Galley's own shape lacks; none if the operation is no list.
    fn fault_of_list(document: &Value, operation: &Value) -> Option<String> {
        let name = operation["operationId"].as_str().expect("a name");
        let parameters: BTreeSet<&str> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|parameter| resolved(document, parameter)["name"].as_str())
            .collect();
        let answer = operation["responses"]["200"]["content"].as_object()?.iter();
        let answer =
            answer.filter(|(media_type, _)| media_type.ends_with("json")).map(|(_, content)| content).next()?;
        let schema = resolved(document, &answer["schema"]);
        let members = schema["properties"].as_object().into_iter().flatten();
        let lists: Vec<&str> = members
            .filter(|(member, value)| *member != "warnings" && resolved(document, value)["type"] == "array")
            .map(|(member, _)| member.as_str())
            .collect();
        if lists.is_empty() && !parameters.contains("limit") || ONE_THING.contains(&name) {
            return None;
        }
        if let Some((_, list)) = LISTS_OF_THE_SPECIFICATION.iter().find(|(listed, _)| *listed == name) {
            return (lists != [*list]).then(|| format!("{name}: {lists:?} instead of {list}"));
        }
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let required: BTreeSet<&str> = required.collect();
        let is_own = lists == ["items"]
            && required.is_superset(&BTreeSet::from(["items", "next"]))
            && schema["properties"]["next"]["type"] == serde_json::json!(["string", "null"])
            && parameters.is_superset(&BTreeSet::from(["after", "limit"]));
        (!is_own).then(|| format!("{name}: lists {lists:?}, required {required:?}, parameters {parameters:?}"))
    }

    #[test]
    fn every_list_of_galley_itself_has_items_and_next_and_is_paged_with_after_and_limit() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths").values();
        let operations: Vec<&Value> = paths.filter_map(|operations| operations.get("get")).collect();
        let faults: Vec<String> =
            operations.iter().filter_map(|operation| fault_of_list(&document, operation)).collect();
        assert_eq!(faults, Vec::<String>::new());
        // The rule finds what it is for
        let own = operations.iter().find(|operation| operation["operationId"] == "listChannels").expect("described");
        let mut broken = (*own).clone();
        let content = &mut broken["responses"]["200"]["content"]["application/json"]["schema"];
        let items = content["properties"]["items"].take();
        content["properties"] = serde_json::json!({ "channels": items, "next": { "type": ["string", "null"] } });
        assert!(fault_of_list(&document, &broken).is_some_and(|fault| fault.starts_with("listChannels")));
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
