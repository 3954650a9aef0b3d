//! Unique jobs of the Open Job Spec: which jobs are duplicates, and what happens to the second one.
//!
//! Two jobs of a queue are duplicates if their fingerprints are equal: SHA-256 over the canonical JSON (RFC 8785) of
//! the chosen dimensions. The type is always one of them, and the queue is the scope.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    JobState,
    canonical_json::{canonical, canonical_text, write_object},
    on_conflict::{OnConflict, parse_length},
};
use common::{
    json::Object,
    name::{JobType, quoted},
};

/// The states in which an older job conflicts if the policy names none.
const DEFAULT_STATES: [JobState; 5] =
    [JobState::Available, JobState::Active, JobState::Scheduled, JobState::Retryable, JobState::Pending];
/// Names in `args_keys` and `meta_keys`.
const MAX_KEYS: usize = 50;
/// What `keys` can name.
const DIMENSIONS: [&str; 4] = ["type", "queue", "args", "meta"];

/// A checked policy, applied to one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniquePolicy {
    /// The fingerprint: 64 hex digits.
    pub fingerprint: String,
    /// How long the older job conflicts after its creation; none for as long as its state is one of `states`.
    pub period: Option<Duration>,
    /// The states in which the older job conflicts.
    pub states: Vec<JobState>,
    /// What happens to the new job on a conflict.
    pub on_conflict: OnConflict,
}

/// The parts of a job that a policy can compare.
#[derive(Debug, Clone, Copy)]
pub struct UniqueDimensions<'a> {
    /// The job's type.
    pub job_type: &'a JobType,
    /// The queue's name.
    pub queue: &'a str,
    /// The arguments, a JSON array.
    pub args: &'a RawValue,
    /// The metadata, a JSON object.
    pub meta: Option<&'a RawValue>,
}

impl UniquePolicy {
    /// Reads a policy.
    ///
    /// # Errors
    /// The message says what is wrong and what is allowed.
    pub fn parse(raw: &RawValue, job: UniqueDimensions<'_>) -> Result<Self, String> {
        let policy: Object = serde_json::from_str(raw.get())
            .map_err(|_| format!("unique must be a JSON object, got {}", quoted(raw.get())))?;
        let known = ["keys", "key", "args_keys", "meta_keys", "period", "states", "on_conflict", "max_wait"];
        policy.check_names(&known).map_err(|unknown| format!("unique: {unknown}"))?;
        let on_conflict = OnConflict::parse(&policy)?;
        let standard_states = on_conflict.states().unwrap_or(&DEFAULT_STATES);
        Ok(Self {
            fingerprint: compute_fingerprint(&policy, job)?,
            period: policy.get("period").map(|raw| parse_length(raw, "period")).transpose()?,
            states: policy.get("states").map_or_else(|| Ok(standard_states.to_vec()), parse_states)?,
            on_conflict,
        })
    }
}

/// Whether two values are the same JSON, however they are written. What cannot be decoded is the same as nothing.
pub(crate) fn is_same_json(a: &RawValue, b: &RawValue) -> bool {
    canonical(a).is_ok_and(|a| canonical(b).is_ok_and(|b| a == b))
}

fn parse_states(raw: &RawValue) -> Result<Vec<JobState>, String> {
    let allowed = "unique.states must be a non-empty array of job states";
    let names: Vec<String> =
        serde_json::from_str(raw.get()).map_err(|_| format!("{allowed}, got {}", quoted(raw.get())))?;
    let states: Option<Vec<JobState>> = names.iter().map(|name| JobState::from_name(name)).collect();
    states.filter(|states| !states.is_empty()).ok_or_else(|| format!("{allowed}, got {}", quoted(raw.get())))
}

fn parse_names(policy: &Object, member: &str) -> Result<Option<Vec<String>>, String> {
    let Some(raw) = policy.get(member) else { return Ok(None) };
    let names: Option<Vec<String>> = serde_json::from_str(raw.get()).ok();
    names.filter(|names| names.len() <= MAX_KEYS).map(Some).ok_or_else(|| {
        format!("unique.{member} must be an array of at most {MAX_KEYS} strings, got {}", quoted(raw.get()))
    })
}

/// The dimensions, and which arguments count if not all do. They are in `keys` and `args_keys`, or in `key`.
fn parse_dimensions(policy: &Object, args: &RawValue) -> Result<(Vec<String>, Option<Vec<String>>), String> {
    if policy.get("key").is_some() {
        return parse_key(policy, args);
    }
    let dimensions = parse_names(policy, "keys")?.unwrap_or_default();
    if let Some(unknown) = dimensions.iter().find(|name| !DIMENSIONS.contains(&name.as_str())) {
        return Err(format!("unique.keys must name type, queue, args or meta, got {}", quoted(unknown)));
    }
    // Where the arguments do not count, nobody looks at which of them would
    let has_args = dimensions.iter().any(|name| name == "args");
    let chosen = if has_args { parse_names(policy, "args_keys")? } else { None };
    Ok((dimensions, chosen))
}

/// `key` names members of args in the specification, and dimensions in its SDKs. What could mean both is refused: a job
/// that is taken for a duplicate of another one is lost.
fn parse_key(policy: &Object, args: &RawValue) -> Result<(Vec<String>, Option<Vec<String>>), String> {
    if let Some(other) = ["keys", "args_keys"].into_iter().find(|name| policy.get(name).is_some()) {
        return Err(format!("unique.key stands for keys and args_keys; give it without {other}"));
    }
    let names = parse_names(policy, "key")?.unwrap_or_default();
    if names.is_empty() {
        return Err("unique.key must name at least one of type, queue, args, meta or members of args; \
                    [\"args\"] compares all arguments, [\"type\"] none"
            .to_owned());
    }
    let (mut dimensions, chosen): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| DIMENSIONS.contains(&name.as_str()));
    dimensions.sort_unstable();
    dimensions.dedup();
    if dimensions.iter().any(|name| name == "args") {
        return match chosen.first() {
            None => Ok((dimensions, None)),
            Some(name) => Err(format!("unique.key must name args or members of it, not both, got {}", quoted(name))),
        };
    }
    let (_, objects) = decode_args(args).map_err(|problem| format!("unique: {problem}"))?;
    let has_member = |name: &str| objects.iter().any(|object| object.get(name).is_some());
    if let Some(both) = dimensions.iter().find(|name| has_member(name)) {
        return Err(format!(
            "unique.key: {both} is a dimension and a member of args; say which with keys and args_keys"
        ));
    }
    if chosen.is_empty() {
        return Ok((dimensions, None));
    }
    dimensions.push("args".to_owned());
    Ok((dimensions, Some(chosen)))
}

fn compute_fingerprint(policy: &Object, job: UniqueDimensions<'_>) -> Result<String, String> {
    let (dimensions, chosen_args) = parse_dimensions(policy, job.args)?;
    let has = |name: &str| dimensions.iter().any(|dimension| dimension == name);
    let mut members: BTreeMap<&str, String> = BTreeMap::new();
    members.insert("type", canonical_text(job.job_type.as_str()));
    members.insert("queue", canonical_text(job.queue));
    if has("args") {
        members.insert("args", canonical_args(job.args, chosen_args).map_err(|problem| format!("unique: {problem}"))?);
    }
    if has("meta") {
        let chosen = parse_names(policy, "meta_keys")?.filter(|names| !names.is_empty());
        let chosen = chosen.ok_or("unique.meta_keys must name at least one member of meta when keys has \"meta\"")?;
        members.insert("meta", canonical_members(job.meta, &chosen)?);
    }
    let text = write_object(members.iter().map(|(name, value)| (*name, value.as_str())));
    Ok(Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// The arguments, and those that are objects. What cannot be decoded cannot be compared.
fn decode_args(args: &RawValue) -> Result<(Vec<&RawValue>, Vec<Object<'_>>), String> {
    let undecodable = |error: serde_json::Error| format!("args cannot be compared: {error}");
    let list: Vec<&RawValue> = serde_json::from_str(args.get()).map_err(undecodable)?;
    let objects = list.iter().filter(|argument| argument.get().starts_with('{'));
    let objects: Vec<Object> =
        objects.map(|object| serde_json::from_str(object.get()).map_err(undecodable)).collect::<Result<_, _>>()?;
    Ok((list, objects))
}

/// All arguments, or the chosen ones: a position (`"0"`) or a member of an argument that is an object.
fn canonical_args(args: &RawValue, chosen: Option<Vec<String>>) -> Result<String, String> {
    let canonical = |raw| canonical(raw).map_err(|problem| format!("args cannot be compared: {problem}"));
    let Some(chosen) = chosen else { return canonical(args) };
    let (list, objects) = decode_args(args)?;
    let mut members = BTreeMap::new();
    for name in &chosen {
        let by_position = name.parse::<usize>().ok().and_then(|position| list.get(position).copied());
        let found = by_position.or_else(|| objects.iter().find_map(|object| object.get(name)));
        let found = found.ok_or_else(|| {
            format!("args_keys must name positions or members of args, and {} is neither", quoted(name))
        })?;
        members.insert(name.as_str(), canonical(found)?);
    }
    Ok(write_object(members.iter().map(|(name, value)| (*name, value.as_str()))))
}

/// The chosen members; null for those that are absent. What cannot be decoded has no value, so it cannot be compared.
fn canonical_members(meta: Option<&RawValue>, chosen: &[String]) -> Result<String, String> {
    let undecodable = |problem: String| format!("unique: meta cannot be compared: {problem}");
    let meta: Option<Object> = meta
        .map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|error: serde_json::Error| undecodable(error.to_string()))?;
    let mut members = BTreeMap::new();
    for name in chosen {
        let value = meta.as_ref().and_then(|meta| meta.get(name));
        let value = value.map(canonical).transpose().map_err(undecodable)?;
        members.insert(name.as_str(), value.unwrap_or_else(|| "null".to_owned()));
    }
    Ok(write_object(members.iter().map(|(name, value)| (*name, value.as_str()))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    fn unique(policy: &str, args: &str, meta: &str) -> Result<UniquePolicy, String> {
        let (job_type, args, meta) = ("a.b".parse().expect("a type"), raw(args), raw(meta));
        let job = UniqueDimensions { job_type: &job_type, queue: "q", args: &args, meta: Some(&meta) };
        UniquePolicy::parse(&raw(policy), job)
    }

    fn same(policy: &str, a: &str, b: &str) -> bool {
        unique(policy, a, "{}").expect("a policy").fingerprint == unique(policy, b, "{}").expect("a policy").fingerprint
    }

    #[test]
    fn equal_arguments_are_equal_json() {
        let by_args = r#"{"keys":["type","args"]}"#;
        assert!(same(by_args, r#"[{"a":1,"b":[2,{"c":"é"}]}]"#, r#"[ {"b":[2.0,{"c":"e\u0301"}],"a":1e0} ]"#));
        for (a, b) in [
            ("[1]", "[2]"),
            ("[1]", "[\"1\"]"),
            ("[9007199254740992]", "[9007199254740993]"),
            ("[]", "[[]]"),
            ("[null]", "[]"),
        ] {
            assert!(!same(by_args, a, b), "{a} {b}");
        }
        assert!(same(r#"{"keys":["type"]}"#, "[1]", "[2]"), "by type alone");
    }

    #[test]
    fn chosen_arguments_are_positions_or_members() {
        assert!(same(r#"{"keys":["args"],"args_keys":["user"]}"#, r#"[{"user":1,"x":2}]"#, r#"[{"x":3,"user":1}]"#));
        assert!(!same(r#"{"keys":["args"],"args_keys":["user"]}"#, r#"[{"user":1}]"#, r#"[{"user":2}]"#));
        assert!(same(r#"{"keys":["args"],"args_keys":["0"]}"#, r#"["a",1]"#, r#"["a",2]"#));
        // Requests of before: without args in keys nobody looks at args_keys
        assert!(same(r#"{"args_keys":[2]}"#, r#"["a"]"#, r#"["b"]"#));
    }

    #[test]
    fn key_names_dimensions_or_members_of_args_and_nothing_that_could_be_both() {
        let fingerprint = |policy: &str, args: &str| unique(policy, args, "{}").map(|policy| policy.fingerprint);
        let args = r#"[{"to":"a","template":"t","type":"x"}]"#;
        for (key, keys) in [
            (r#"{"key":["to","template"]}"#, r#"{"keys":["args"],"args_keys":["to","template"]}"#),
            (r#"{"key":["type","queue","args"]}"#, r#"{"keys":["type","queue","args"]}"#),
            (r#"{"key":["queue","to"]}"#, r#"{"keys":["queue","args"],"args_keys":["to"]}"#),
            (r#"{"key":["queue","queue","to"]}"#, r#"{"keys":["queue","args"],"args_keys":["to"]}"#),
        ] {
            assert_eq!(fingerprint(key, args).expect(key), fingerprint(keys, args).expect(keys), "{key}");
        }
        assert!(!same(r#"{"key":["to"]}"#, r#"[{"to":"a"}]"#, r#"[{"to":"b"}]"#));
        let error = fingerprint(r#"{"key":["type"]}"#, args).expect_err("type could be both");
        assert_eq!(error, "unique.key: type is a dimension and a member of args; say which with keys and args_keys");
        // An object with more members than can be searched may have that one
        let members: Vec<String> = (0..256).map(|number| format!(r#""m{number}":1"#)).collect();
        let error = fingerprint(r#"{"key":["type"]}"#, &format!(r#"[{{{},"type":"x"}}]"#, members.join(",")));
        let error = error.expect_err("type could be both");
        assert!(error.starts_with("unique: args cannot be compared: more than 256 members"), "{error}");
    }

    #[test]
    fn strings_are_compared_as_they_are_meant_and_what_cannot_be_decoded_is_refused() {
        assert!(same(r#"{"keys":["args"]}"#, r#"["\u0061\/b"]"#, r#"["a/b"]"#));
        let written = r#"{"\u006beys":["\u0061rgs"],"on_conflict":"\u0069gnore","states":["\u0061ctive"]}"#;
        let policy = unique(written, "[1]", "{}").expect("allowed");
        assert_eq!((policy.on_conflict, policy.states), (OnConflict::Ignore, vec![JobState::Active]));
        let by_meta = r#"{"keys":["meta"],"meta_keys":["k"]}"#;
        for (policy, args, meta) in [
            (by_meta, "[]", r#"{"k":"\ud800"}"#),
            (by_meta, "[]", r#"{"k":1,"k":2}"#),
            (r#"{"keys":["args"]}"#, r#"["\ud800"]"#, "{}"),
            (r#"{"keys":["args"],"args_keys":["k"]}"#, r#"[{"k":"\ud800"}]"#, "{}"),
            (r#"{"keys":["args"],"args_keys":["k"]}"#, r#"[{"k":1,"k":2}]"#, "{}"),
        ] {
            let error = unique(policy, args, meta).expect_err(args);
            assert!(error.contains("cannot be compared"), "{args} {meta}: {error}");
        }
    }

    #[test]
    fn each_wrong_policy_is_refused_by_name() {
        for (policy, expected) in [
            ("[]", "unique must be a JSON object"),
            (r#"{"kyes":[]}"#, "unique: unknown member"),
            (r#"{"keys":["argz"]}"#, "unique.keys must name"),
            (r#"{"keys":"args"}"#, "unique.keys must be an array"),
            (r#"{"keys":["meta"]}"#, "unique.meta_keys must name"),
            (r#"{"keys":["args"],"args_keys":["nobody"]}"#, "unique: args_keys must name"),
            (r#"{"key":"to"}"#, "unique.key must be an array"),
            (r#"{"key":["nobody"]}"#, "unique: args_keys must name"),
            (
                r#"{"key":[]}"#,
                r#"unique.key must name at least one of type, queue, args, meta or members of args; ["args"]"#,
            ),
            (r#"{"key":["meta"]}"#, "unique.meta_keys must name"),
            (r#"{"key":["args","to"]}"#, "unique.key must name args or members of it, not both"),
            (r#"{"key":["type"],"keys":["args"]}"#, "unique.key stands for keys and args_keys; give it without keys"),
            (r#"{"key":["to"],"args_keys":["to"]}"#, "unique.key stands for keys and args_keys; give it without args"),
            (r#"{"period":"1s"}"#, "unique.period must be"),
            (r#"{"period":"PT0S"}"#, "unique.period must be"),
            (r#"{"states":[]}"#, "unique.states must be"),
            (r#"{"states":["waiting"]}"#, "unique.states must be"),
            (r#"{"on_conflict":"explode"}"#, "unique.on_conflict must be"),
            (r#"{"max_wait":"PT1M"}"#, "unique.max_wait needs on_conflict \"debounce\""),
            (r#"{"on_conflict":"debounce","max_wait":60}"#, "unique.max_wait must be an ISO 8601 duration"),
            (r#"{"on_conflict":"debounce","states":["active"]}"#, "unique.states cannot be given with"),
            (r#"{"on_conflict":"debounce","period":"PT1M"}"#, "unique.period cannot be given with"),
        ] {
            let error = unique(policy, "[1]", "{}").expect_err(policy);
            assert!(error.starts_with(expected), "{policy}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_fingerprint_panic(text in ".{0,60}", policy in r#"\{"keys":\["(args|meta|type)"\]\}"#) {
            let args = serde_json::json!([text, { (text.clone()): 1.5 }]).to_string();
            let _ = unique(&policy, &args, "{}");
        }
    }
}
