//! A request to register a cron entry, checked member by member.
//!
//! The job is in `job_template` or flat beside the other members. The expression is in `expression` or `cron`. The view
//! of an entry has `expression` and `job_template`, and is a valid request.

use serde::{Deserialize, Serialize};

use super::{
    CronSchedule, JobTemplate,
    request_checks::{invalid, require_object},
};
use crate::job::{RequestError, managed_member_warning, unique::is_same_json};
use common::{
    json::Object,
    known_names,
    name::{CronName, quoted},
    time::Millis,
};

/// Largest stored entry, in bytes. With `cron.max_entries` it bounds the memory of all entries.
pub const MAX_ENTRY_BYTES: usize = 65_536;

/// The members that a request may have. Those that Galley manages are ignored, any other is an error.
const ALLOWED_MEMBERS: [&str; 12] = [
    "name",
    "expression",
    "cron",
    "timezone",
    "overlap_policy",
    "enabled",
    "description",
    "job_template",
    "type",
    "args",
    "meta",
    "options",
];
const SYSTEM_MANAGED: [&str; 8] = [
    "next_run_at",
    "last_run_at",
    "last_job_id",
    "run_count",
    "skipped_count",
    "missed_count",
    "waiting_count",
    "created_at",
];

/// What happens when a run is due and the job of the last run is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlapPolicy {
    /// The run creates no job.
    #[default]
    Skip,
    /// The run creates a job anyway.
    Allow,
    /// The last job is cancelled, then the run creates a job.
    CancelPrevious,
    /// The run waits until the last job is finished.
    Enqueue,
}

/// A checked request, ready to register.
#[derive(Debug, Clone)]
pub struct CronDefinition {
    /// The name. Registering it again replaces the entry.
    pub name: CronName,
    /// The expression as it was sent.
    pub expression: String,
    /// The time zone as it was sent.
    pub timezone: String,
    /// The schedule of both.
    pub schedule: CronSchedule,
    /// What happens when runs overlap.
    pub overlap_policy: OverlapPolicy,
    /// Whether the entry is switched on.
    pub enabled: bool,
    /// A description, for people.
    pub description: Option<String>,
    /// The job that it creates.
    pub template: JobTemplate,
    /// What the request has and nothing acts on, for the answer.
    pub warnings: Vec<String>,
}

impl CronDefinition {
    /// Checks a request body.
    ///
    /// # Errors
    /// The first member that is missing or wrong.
    pub fn parse(body: &Object<'_>, now: Millis) -> Result<Self, RequestError> {
        if let Some((name, _)) =
            body.iter().find(|(name, _)| !ALLOWED_MEMBERS.contains(name) && !SYSTEM_MANAGED.contains(name))
        {
            return Err(invalid(known_names::unknown("member", name, &ALLOWED_MEMBERS)));
        }
        let name: CronName = parse_text(body, "name")?
            .ok_or_else(|| invalid("name is required: a string such as \"daily-report\""))?
            .parse()?;
        let expression = match (parse_text(body, "expression")?, parse_text(body, "cron")?) {
            (Some(a), Some(b)) if a != b => {
                return Err(invalid("expression and cron mean the same; give one of them"));
            }
            (a, b) => a.or(b).ok_or_else(|| invalid("expression is required: a string such as \"*/5 * * * *\""))?,
        };
        let timezone = parse_text(body, "timezone")?.unwrap_or_else(|| "UTC".to_owned());
        let schedule = CronSchedule::parse(&expression, &timezone, now).map_err(|error| invalid(error.to_string()))?;
        let (overlap_policy, enabled) = (parse_overlap_policy(body)?, parse_flag(body, "enabled")?.unwrap_or(true));
        let description = parse_text(body, "description")?;
        let (template, mut warnings) = parse_template(body, now)?;
        let managed = body.iter().filter(|(name, value)| SYSTEM_MANAGED.contains(name) && value.get() != "null");
        warnings.extend(managed.map(|(name, _)| managed_member_warning(name)));
        Ok(Self { name, expression, timezone, schedule, overlap_policy, enabled, description, template, warnings })
    }
}

/// Reads the only member of a request that switches an entry on or off.
///
/// # Errors
/// The member is missing or wrong.
pub fn parse_enabled(body: &Object<'_>) -> Result<bool, RequestError> {
    if let Some((name, _)) = body.iter().find(|(name, _)| *name != "enabled") {
        return Err(invalid(format!("{} cannot be changed alone: register the entry again", quoted(name))));
    }
    parse_flag(body, "enabled")?.ok_or_else(|| invalid("enabled is required: true or false"))
}

/// The template, and warnings about its members.
fn parse_template(body: &Object<'_>, now: Millis) -> Result<(JobTemplate, Vec<String>), RequestError> {
    let flat = || body.iter().filter(|(name, _)| matches!(*name, "type" | "args" | "meta" | "options"));
    let Some(nested) = body.get("job_template") else { return JobTemplate::parse(flat(), now) };
    require_object(nested, "job_template")?;
    let nested: Object =
        serde_json::from_str(nested.get()).map_err(|error| invalid(format!("job_template: {error}")))?;
    for (name, value) in flat().filter(|(_, value)| value.get() != "null") {
        if !nested.get(name).is_some_and(|other| is_same_json(other, value)) {
            return Err(invalid(format!("{name} is given both in job_template and beside it; give it once")));
        }
    }
    JobTemplate::parse(nested.iter(), now)
}

fn parse_overlap_policy(body: &Object<'_>) -> Result<OverlapPolicy, RequestError> {
    let Some(raw) = body.get("overlap_policy") else { return Ok(OverlapPolicy::default()) };
    serde_json::from_str(raw.get()).map_err(|_| {
        invalid(format!("overlap_policy must be skip, allow, cancel_previous or enqueue, got {}", quoted(raw.get())))
    })
}

fn parse_flag(body: &Object<'_>, name: &str) -> Result<Option<bool>, RequestError> {
    body.get(name)
        .map(|raw| {
            serde_json::from_str(raw.get())
                .map_err(|_| invalid(format!("{name} must be true or false, got {}", quoted(raw.get()))))
        })
        .transpose()
}

fn parse_text(body: &Object<'_>, name: &str) -> Result<Option<String>, RequestError> {
    body.get(name)
        .map(|raw| {
            serde_json::from_str(raw.get())
                .map_err(|_| invalid(format!("{name} must be a string, got {}", quoted(raw.get()))))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<CronDefinition, RequestError> {
        CronDefinition::parse(&serde_json::from_str(json).expect("an object"), 0)
    }

    #[test]
    fn both_shapes_mean_the_same() {
        let nested = parse(
            r#"{"name":"n","expression":"@daily","job_template":{"type":"a.b","args":[1],"options":{"queue":"q"}}}"#,
        )
        .expect("allowed");
        let flat =
            parse(r#"{"name":"n","cron":"@daily","type":"a.b","args":[1],"options":{"queue":"q"}}"#).expect("allowed");
        assert_eq!(nested.template.as_str(), flat.template.as_str());
        assert_eq!(
            (nested.timezone.as_str(), nested.overlap_policy, nested.enabled),
            ("UTC", OverlapPolicy::Skip, true)
        );
        assert_eq!(
            parse(r#"{"name":"n","cron":"@daily","type":"a","meta":{"k":1.0}}"#).expect("allowed").template.as_str(),
            r#"{"type":"a","meta":{"k":1.0},"args":[]}"#
        );
        assert_eq!(
            parse(r#"{"name":"n","cron":"@daily","type":"a"}"#).expect("allowed").template.as_str(),
            r#"{"type":"a","args":[]}"#
        );
    }

    #[test]
    fn what_nothing_acts_on_is_warned_about() {
        let json =
            r#"{"name":"n","cron":"@daily","job_template":{"type":"a","x":1},"next_run_at":"x","run_count":null}"#;
        assert_eq!(
            parse(json).expect("allowed").warnings,
            [
                r#"job_template: unknown member "x": it is kept with the job and changes nothing"#,
                r#"member "next_run_at" is managed by galley and was ignored"#,
            ]
        );
        parse(r#"{"name":"n","cron":"@daily","type":"\u0061","job_template":{"type":"a"}}"#).expect("the same type");
    }

    #[test]
    fn each_wrong_member_is_refused_by_name() {
        for (json, expected) in [
            (r"{}", "name is required"),
            (r#"{"name":"A"}"#, "name must match"),
            (r#"{"name":7}"#, "name must be a string"),
            (r#"{"name":"n"}"#, "expression is required"),
            (r#"{"name":"n","cron":"@daily","expression":"@hourly"}"#, "expression and cron mean the same"),
            (r#"{"name":"n","cron":"x"}"#, "expression must be five fields"),
            (r#"{"name":"n","cron":"0 0 30 2 *"}"#, "expression must match some time"),
            (r#"{"name":"n","cron":"@daily","timezone":"EST"}"#, "timezone must be UTC or the IANA name"),
            (r#"{"name":"n","cron":"@daily","overlap_policy":"queue"}"#, "overlap_policy must be skip, allow"),
            (r#"{"name":"n","cron":"@daily","enabled":"yes"}"#, "enabled must be true or false"),
            (r#"{"name":"n","cron":"@daily","description":1}"#, "description must be a string"),
            (r#"{"name":"n","cron":"@daily"}"#, "type is required"),
            (r#"{"name":"n","cron":"@daily","job_template":[]}"#, "job_template must be a JSON object"),
            (r#"{"name":"n","cron":"@daily","type":"a","job_template":{"type":"b"}}"#, "type is given both"),
            (
                r#"{"name":"n","cron":"@daily","type":"a","queue":"q"}"#,
                "unknown member \"queue\", known are name, expression",
            ),
        ] {
            let error = parse(json).expect_err(json).to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }
}
