//! The job that a cron entry creates: an enqueue request, stored as it was sent and checked again for each job.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::request_checks::{invalid, require_object};
use crate::job::{NewJob, RequestError};
use common::{
    id::JobId,
    json::{Object, ObjectWriter},
    name::{CronName, QueueName},
    time::{self, Millis},
};

/// Members of `metadata` that name the entry and the run of a job.
const NAME_MEMBER: &str = "cron_name";
const RUN_MEMBER: &str = "cron_triggered_at";

/// A JSON object with `type`, `args` and the other members of an enqueue request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobTemplate(Box<RawValue>);

impl JobTemplate {
    /// Checks the members of a template as an enqueue request. Without `args` the job has no arguments. Returns also
    /// warnings about members that nothing acts on.
    ///
    /// # Errors
    /// The enqueue request would be refused, or it has an id, which only one job can have.
    pub fn parse<'a>(
        members: impl Iterator<Item = (&'a str, &'a RawValue)>,
        now: Millis,
    ) -> Result<(Self, Vec<String>), RequestError> {
        let (mut out, mut has_args) = (ObjectWriter::with_capacity(256), false);
        for (name, value) in members.filter(|(_, value)| value.get() != "null") {
            if name == "id" {
                return Err(invalid("job_template must have no id: each run makes another job"));
            }
            has_args |= name == "args";
            out.raw(name, value.get());
        }
        if !has_args {
            out.raw("args", "[]");
        }
        let template = Self(RawValue::from_string(out.finish()).map_err(|error| invalid(error.to_string()))?);
        let warnings = template.check(now)?;
        Ok((template, warnings))
    }

    fn check(&self, now: Millis) -> Result<Vec<String>, RequestError> {
        let job = NewJob::parse(&self.members()?, now)?;
        if job.is_debounced() {
            return Err(invalid("job_template: unique must not debounce: each run makes a job of its own"));
        }
        // Also checks that the metadata of a run can be added
        self.enqueue_request(&"a".parse()?, now)?;
        Ok(job.warnings.iter().map(|warning| format!("job_template: {warning}")).collect())
    }

    fn members(&self) -> Result<Object<'_>, RequestError> {
        serde_json::from_str(self.0.get()).map_err(|error| invalid(format!("job_template: {error}")))
    }

    /// The job of one run. A relative start or expiry counts from `now`.
    ///
    /// # Errors
    /// The enqueue request is no longer valid.
    pub fn new_job(&self, name: &CronName, run: Millis, now: Millis) -> Result<NewJob, RequestError> {
        let request = self.enqueue_request(name, run)?;
        let members: Object = serde_json::from_str(&request).map_err(|error| invalid(error.to_string()))?;
        NewJob::parse(&members, now)
    }

    /// The enqueue request of one run, with the entry's name and the run in the metadata.
    fn enqueue_request(&self, name: &CronName, run: Millis) -> Result<String, RequestError> {
        let members = self.members()?;
        let mut out = ObjectWriter::with_capacity(self.0.get().len() + 128);
        let mut metadata = ObjectWriter::default();
        for (member, value) in members.iter() {
            match member {
                "metadata" => copy_metadata(&mut metadata, value)?,
                "options" => {
                    let options: Object =
                        serde_json::from_str(value.get()).map_err(|error| invalid(format!("options: {error}")))?;
                    let mut rest = ObjectWriter::default();
                    for (option, value) in options.iter() {
                        if option == "metadata" && value.get() != "null" {
                            copy_metadata(&mut metadata, value)?;
                        } else if option != "metadata" {
                            rest.raw(option, value.get());
                        }
                    }
                    out.raw("options", &rest.finish());
                }
                _ => {
                    out.raw(member, value.get());
                }
            }
        }
        metadata.text(NAME_MEMBER, name.as_str()).text(RUN_MEMBER, &time::format(run));
        out.raw("metadata", &metadata.finish());
        Ok(out.finish())
    }

    /// A member as it was sent, to show it.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&RawValue> {
        self.members().ok()?.get(name)
    }

    /// The whole template as it was sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

fn copy_metadata(metadata: &mut ObjectWriter, given: &RawValue) -> Result<(), RequestError> {
    require_object(given, "metadata")?;
    let given: Object = serde_json::from_str(given.get()).map_err(|error| invalid(format!("metadata: {error}")))?;
    for (member, value) in given.iter().filter(|(member, _)| ![NAME_MEMBER, RUN_MEMBER].contains(member)) {
        metadata.raw(member, value.get());
    }
    Ok(())
}

/// The id of the job of one run. It is always the same, so a run creates only one job even if several processes try or
/// retry.
#[must_use]
pub fn run_job_id(name: &CronName, run: Millis, queue: &QueueName) -> JobId {
    JobId::for_purpose(u64::try_from(run).unwrap_or_default(), queue, &format!("cron {name} {run} {queue}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(json: &str) -> Result<JobTemplate, RequestError> {
        let members: Object = serde_json::from_str(json).expect("an object");
        JobTemplate::parse(members.iter(), 0).map(|(template, _)| template)
    }

    fn envelope(json: &str) -> String {
        let job = template(json).expect("allowed").new_job(&"tick".parse().expect("a name"), 60_000, 60_000);
        job.expect("a job").envelope.as_str().to_owned()
    }

    #[test]
    fn a_job_carries_the_name_of_its_entry_and_its_run_among_its_metadata() {
        assert_eq!(
            envelope(r#"{"type":"a","args":[9007199254740993,1.0],"options":{"queue":"q","tags":["t"]}}"#),
            r#"{"type":"a","args":[9007199254740993,1.0],"metadata":{"cron_name":"tick","cron_triggered_at":"1970-01-01T00:01:00.000Z"},"tags":["t"]}"#
        );
        for given in
            [r#"{"type":"a","metadata":{"x":1,"cron_name":"y"}}"#, r#"{"type":"a","options":{"metadata":{"x":1}}}"#]
        {
            let envelope = envelope(given);
            assert!(envelope.contains(r#""metadata":{"x":1,"cron_name":"tick","#), "{envelope}");
        }
    }

    #[test]
    fn relative_times_count_from_the_run() {
        let template = template(r#"{"type":"a","options":{"delay_until":"+PT2S"}}"#).expect("allowed");
        let job = template.new_job(&"tick".parse().expect("a name"), 60_000, 60_005).expect("a job");
        assert_eq!(job.start_at, Some(62_005));
    }

    #[test]
    fn what_an_enqueue_would_refuse_is_refused() {
        for (json, expected) in [
            (r"{}", "type is required"),
            (r#"{"type":"A"}"#, "type must match"),
            (r#"{"type":"a","args":{}}"#, "args must be"),
            (r#"{"type":"a","options":[]}"#, "options must be"),
            (r#"{"type":"a","options":{"queue":"{x}"}}"#, "queue must match"),
            (r#"{"type":"a","metadata":1}"#, "metadata must be"),
            (r#"{"type":"a","metadata":{"a":1,"a":2}}"#, "metadata: duplicate member"),
            (r#"{"type":"a","id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f"}"#, "job_template must have no id"),
        ] {
            let error = template(json).expect_err(json).to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }
}
