//! Requests for jobs, workflows and cron entries.

use common::json::{self, Object};
use model::{
    cron::{CronDefinition, CronSchedule, expression::CronExpression},
    job::NewJob,
    workflow::NewWorkflow,
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

pub(crate) fn workflow_request(data: &[u8]) {
    if let Ok(body) = common::json_members::parse_request::<Object>(data, DEPTH_LIMIT) {
        let _ = NewWorkflow::mentions_time(&body);
        let _ = NewWorkflow::parse(&body, 1000, NOW);
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
