use super::*;

fn parse(json: &str) -> Result<NewWorkflow, RequestError> {
    NewWorkflow::parse(&serde_json::from_str(json).expect("an object"), 3, 1_000)
}

#[test]
fn jobs_keep_their_bytes_and_their_own_queues_priorities_and_policies() {
    let body = r#"{"type":"batch","name":"n","meta":{"k":1.0},"jobs":[{"type":"a", "args":[1.0],"priorty":1},
        {"type":"b","args":[],"options":{"queue":"q","priority":7,"retry":{"max_attempts":1}}}],
        "callbacks":{"on_failure":{"type":"c","args":[]},"on_complete":{"type":"d","args":[]}}}"#;
    let workflow = parse(body).expect("a workflow");
    assert_eq!(
        (workflow.kind, workflow.name_and_meta.as_str()),
        (WorkflowKind::Batch, r#"{"name":"n","meta":{"k":1.0}}"#)
    );
    assert_eq!(workflow.members[0].json, r#"{"type":"a", "args":[1.0],"priorty":1}"#);
    let second = workflow.members[1].job().expect("a job");
    assert_eq!((second.queue.as_str(), second.priority.get(), second.summary.max_attempts), ("q", 7, 1));
    assert_eq!(
        workflow.warnings,
        [r#"jobs[0]: unknown member "priorty", did you mean "priority"? it is kept with the job and changes nothing"#]
    );
    let callbacks: Vec<_> = workflow.callbacks.iter().map(|(callback, _)| *callback).collect();
    assert_eq!(callbacks, [BatchCallback::Complete, BatchCallback::Failure]);
}

#[test]
fn times_are_noticed_in_every_job_and_beside_callback_type() {
    for (json, expected) in [
        (r#"{"type":"group","jobs":[{"type":"a","args":[],"delay_until":"PT1S"}]}"#, true),
        (r#"{"type":"chain","steps":[{"type":"a","args":[],"options":{"expires_at":"PT1S"}}]}"#, true),
        (r#"{"steps":[{"id":"a"}],"options":{"scheduled_at":"PT1S"}}"#, true),
        (r#"{"type":"chain","steps":[{"type":"group","jobs":[{"type":"a","args":[],"delay_until":"PT1S"}]}]}"#, true),
        (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","delay_until":"PT1S"}}]}"#, true),
        (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","\u0064elay_until":"PT1S"}}]}"#, true),
        (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","delay_until":null}}]}"#, false),
        (r#"{"steps":[{"id":"a","options":{"callback_type":"on_failure","tags":["delay_until"]}}]}"#, false),
    ] {
        let body = serde_json::from_str(json).expect("an object");
        assert_eq!(NewWorkflow::mentions_time(&body), expected, "{json}");
    }
}

#[test]
fn each_wrong_workflow_is_refused_with_what_is_allowed() {
    let job = r#"{"type":"a","args":[]}"#;
    for (json, expected) in [
        ("{}".to_owned(), r#"type is required: "chain", "group", "batch" or "dag", or steps with depends_on"#),
        (r#"{"type":"tree"}"#.to_owned(), r#"type must be "chain", "group", "batch" or "dag""#),
        (r#"{"type":"dag"}"#.to_owned(), "steps is required"),
        (r#"{"type":"dag","jobs":[]}"#.to_owned(), "a workflow by steps: unknown member \"jobs\""),
        (r#"{"type":1}"#.to_owned(), "type must be"),
        (r#"{"type":"chain"}"#.to_owned(), "steps is required: a JSON array of 1 to 3 jobs"),
        (r#"{"type":"chain","steps":[]}"#.to_owned(), "steps must be a JSON array of 1 to 3 jobs, got 0"),
        (r#"{"type":"group","jobs":{}}"#.to_owned(), "jobs must be a JSON array of 1 to 3 jobs, got"),
        (
            format!(r#"{{"type":"group","jobs":[{job},{job},{job},{job}]}}"#),
            "jobs must be a JSON array of 1 to 3 jobs, got 4",
        ),
        (
            format!(r#"{{"type":"chain","jobs":[{job}]}}"#),
            "a chain: unknown member \"jobs\", known are id, type, name, meta, steps",
        ),
        (format!(r#"{{"type":"group","jobs":[{job}],"callbacks":{{}}}}"#), "a group: unknown member"),
        (format!(r#"{{"type":"group","jobs":[{job},7]}}"#), "jobs[1]: must be a job"),
        (r#"{"type":"chain","steps":[{"type":"A","args":[]}]}"#.to_owned(), "steps[0]: type must match"),
        (
            r#"{"type":"chain","steps":[{"type":"a","args":[],"depends_on":[]}]}"#.to_owned(),
            "steps[0]: must be a job without depends_on",
        ),
        (
            r#"{"type":"chain","steps":[{"type":"group","jobs":[]}]}"#.to_owned(),
            "steps[0]: jobs must be a JSON array of 1 to 3 jobs, got 0",
        ),
        (
            r#"{"type":"chain","steps":[{"type":"a","args":[],"id":"x"}]}"#.to_owned(),
            "steps[0]: must be a job without id",
        ),
        (
            r#"{"type":"chain","steps":[{"type":"a","args":[],"retry":{"max_attempts":-1}}]}"#.to_owned(),
            "steps[0]: retry.max_attempts",
        ),
        (format!(r#"{{"type":"batch","jobs":[{job}]}}"#), "callbacks is required: a JSON object with on_complete"),
        (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":[]}}"#), "callbacks must be"),
        (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{}}}}"#), "callbacks must be"),
        (format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{"on_end":{job}}}}}"#), "callbacks: unknown"),
        (
            format!(r#"{{"type":"batch","jobs":[{job}],"callbacks":{{"on_success":{{}}}}}}"#),
            "callbacks.on_success: type is required",
        ),
        (format!(r#"{{"type":"group","id":"x","jobs":[{job}]}}"#), "id must be a lower-case UUIDv7"),
        (format!(r#"{{"type":"group","name":7,"jobs":[{job}]}}"#), "name must be a string"),
        (format!(r#"{{"type":"group","meta":7,"jobs":[{job}]}}"#), "meta must be a JSON object"),
    ] {
        let error = parse(&json).expect_err(&json).to_string();
        assert!(error.starts_with(expected), "{json}: {error}");
    }
}
