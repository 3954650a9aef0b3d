//! The settings as JSON Schema 2020-12: editors check and complete a settings file with it.

use config::ValueKind;
use serde_json::{Map, Value, json};

use super::{declare::SettingText, kinds::shown, render::sections};

/// The schema of a settings file.
#[must_use]
pub fn json_schema() -> Value {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of Galley",
        "type": "object",
        "properties": {},
        "additionalProperties": false,
    });
    for section in sections() {
        let table = descend(&mut root, section.name.split('.'));
        // Neighbours of the same name share a table: the first one says what it is
        table.entry("description").or_insert_with(|| section.about.join("\n").into());
        for setting in &section.settings {
            let (key, placeholder) = super::declare::split_placeholder(setting.key);
            let property = property(setting);
            let properties = properties(table);
            if setting.is_secret {
                let about = format!("A file that holds `{key}`. Set one of the two.");
                properties.insert(format!("{key}_file"), json!({ "type": "string", "description": about }));
            }
            let property = match placeholder {
                Some(_) => json!({
                    "type": "object",
                    "description": property["description"],
                    "additionalProperties": property,
                }),
                None => property,
            };
            properties.insert(key.to_owned(), property);
        }
    }
    root
}

/// The table at a path, which is made if it is not there. `<name>` stands for any name.
fn descend<'a>(root: &'a mut Value, path: impl Iterator<Item = &'a str>) -> &'a mut Map<String, Value> {
    let mut table = root;
    for part in path {
        let new = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
        let parent = members(table);
        table = if part.starts_with('<') {
            let entry = parent.entry("additionalProperties").or_insert_with(new);
            if !entry.is_object() {
                *entry = new();
            }
            entry
        } else {
            properties(parent).entry(part).or_insert_with(new)
        };
    }
    members(table)
}

fn members(value: &mut Value) -> &mut Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => unreachable!("every table of the schema is an object"),
    }
}

fn properties(table: &mut Map<String, Value>) -> &mut Map<String, Value> {
    members(table.entry("properties").or_insert_with(|| json!({})))
}

fn property(setting: &SettingText) -> Value {
    let mut property = match setting.unit {
        "Boolean" => json!({ "type": "boolean" }),
        "List" => json!({ "type": ["array", "string"], "items": { "type": "string" } }),
        _ => match &setting.range {
            Some(range) => json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
            None => json!({ "type": "string" }),
        },
    };
    property["description"] = format!("{}\n{}: {}", setting.doc.join("\n"), setting.unit, setting.allowed).into();
    if setting.default != ValueKind::Nil {
        // TOML and JSON write these the same
        property["default"] = serde_json::from_str(&shown(&setting.default)).unwrap_or_default();
    }
    property
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_schema_with_its_type_bounds_and_default() {
        let schema = json_schema();
        let of = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
        let lease = of("/properties/jobs/properties/lease_ms");
        assert_eq!((&lease["minimum"], &lease["default"]), (&json!(1000), &json!(30_000)));
        let depth = of("/properties/queues/additionalProperties/properties/max_depth");
        assert_eq!((&depth["type"], depth.get("default")), (&json!("integer"), None));
        assert_eq!(of("/properties/queues/additionalProperties/additionalProperties"), &json!(false));
        let weights = of("/properties/queue_worker/properties/weights/additionalProperties");
        assert_eq!(weights["maximum"], 1000);
        assert_eq!(of("/properties/redis/properties/password_file/type"), "string");
        assert_eq!(of("/properties/auth/properties/jwt/type"), "object");
        let mut missing = Vec::new();
        for section in sections() {
            let mut table = &schema;
            for part in section.name.split('.') {
                let inner =
                    if part.starts_with('<') { &table["additionalProperties"] } else { &table["properties"][part] };
                table = inner;
            }
            let keys = section.settings.iter().map(|setting| setting.key.split(".<").next().unwrap_or_default());
            missing.extend(keys.filter(|key| !table["properties"][*key].is_object()).map(|key| (section.name, key)));
        }
        assert_eq!(missing, []);
    }
}
