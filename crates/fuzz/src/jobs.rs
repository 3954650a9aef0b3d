//! Requests for jobs, workflows and cron entries.

use common::json::{self, Object};
use model::{
    cron::{CronDefinition, CronSchedule, expression::CronExpression},
    job::NewJob,
    workflow::{NewWorkflow, NewWorkflowMember, StoredStep},
};
use serde_json::value::RawValue;

use crate::{DEPTH_LIMIT, NOW};

/// What is accepted is stored as JSON, and can be read back.
fn check_job(body: &Object<'_>) {
    let Ok(job) = NewJob::parse(body, NOW) else { return };
    let stored: Object = serde_json::from_str(job.envelope.as_str()).expect("an envelope is a JSON object");
    assert!(stored.get("type").is_some() && stored.get("args").is_some(), "{}", job.envelope.as_str());
    let fields = job.envelope.fields().expect("an envelope that was written can be read");
    assert_eq!(fields.summary().job_type, job.summary.job_type);
    let _ = NewJob::mentions_time(body);
}

pub(crate) fn job_request(data: &[u8]) {
    if let Ok(body) = common::json_members::parse_request::<Object>(data, DEPTH_LIMIT) {
        check_job(&body);
    }
}

/// Both forms of many jobs: `{"jobs": [...]}`, and a job on each line.
pub(crate) fn batch(data: &[u8]) {
    #[derive(serde::Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        jobs: Vec<&'a RawValue>,
    }
    if let Ok(batch) = common::json_members::parse_request::<Batch>(data, DEPTH_LIMIT) {
        for job in batch.jobs {
            if let Ok(body) = json::parse::<Object>(job.get().as_bytes(), DEPTH_LIMIT) {
                check_job(&body);
            }
        }
    }
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(body) = json::parse::<Object>(line, DEPTH_LIMIT) {
            check_job(&body);
        }
    }
}

/// A step that is a workflow can be read back, and made for an element.
fn check_nested(member: &NewWorkflowMember) {
    let step =
        StoredStep::parse(&member.stored_text()).expect("a step that was accepted is stored so that it can be read");
    let read = step.parse_member(NOW).expect("what was accepted is accepted again");
    assert_eq!(read.job_count(), member.job_count(), "{}", member.json);
    let element: &RawValue = serde_json::from_str(r#"{"k":1.0}"#).expect("JSON");
    // The uniqueness of a job may be of what its arguments no longer are
    let Ok(group) = step.group_of(&[element, element], NOW) else { return };
    assert_eq!(group.job_count(), 2 * member.job_count(), "{}", member.json);
}

pub(crate) fn workflow_request(data: &[u8]) {
    if let Ok(body) = common::json_members::parse_request::<Object>(data, DEPTH_LIMIT) {
        let _ = NewWorkflow::mentions_time(&body);
        let Ok(workflow) = NewWorkflow::parse(&body, 1000, NOW) else { return };
        for member in workflow.all_members().filter(|member| member.job().is_none()) {
            check_nested(member);
        }
    }
}

pub(crate) fn cron_request(data: &[u8]) {
    if let Ok(body) = common::json_members::parse_request::<Object>(data, DEPTH_LIMIT) {
        let _ = CronDefinition::parse(&body, NOW);
    }
}

/// `EXPRESSION` or `EXPRESSION<line feed>ZONE`: every run is later than the one before.
pub(crate) fn cron_expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (expression, zone) = text.split_once('\n').unwrap_or((text, "Europe/Berlin"));
    let _ = CronExpression::parse(expression);
    let Ok(schedule) = CronSchedule::parse(expression, zone, NOW) else { return };
    let mut after = NOW;
    for _ in 0..3 {
        let Some(next) = schedule.next(after, NOW) else { break };
        assert!(next > after, "{expression:?} {zone:?}: {next} does not follow {after}");
        let _ = schedule.format_local(next);
        after = next;
    }
}
