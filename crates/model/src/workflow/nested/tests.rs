use super::*;
use crate::workflow::MAX_WORKFLOW_DEPTH;

fn object(json: &str) -> Object<'_> {
    serde_json::from_str(json).expect("an object")
}

fn parse(json: &str) -> Result<NewWorkflow, String> {
    NewWorkflow::parse(&object(json), 6, 1_000).map_err(|error| error.to_string())
}

#[test]
fn steps_jobs_and_members_of_a_dag_may_be_workflows() {
    let group = r#"{"type":"group","jobs":[{"type":"b","args":[]},{"type":"c","args":[]}]}"#;
    for outer in [
        format!(r#"{{"type":"chain","steps":[{{"type":"a","args":[]}},{group}]}}"#),
        format!(r#"{{"type":"group","jobs":[{{"type":"a","args":[]}},{group}]}}"#),
        format!(
            r#"{{"type":"batch","jobs":[{{"type":"a","args":[]}},{group}],"callbacks":{{"on_complete":{{"type":"d","args":[]}}}}}}"#
        ),
        r#"{"type":"dag","steps":[{"id":"a","type":"a","args":[],"depends_on":[]},{"id":"x","depends_on":["a"],
            "type":"group","jobs":[{"type":"b","args":[]},{"type":"c","args":[]}]}]}"#
            .to_owned(),
    ] {
        let workflow = parse(&outer).expect(&outer);
        let types: Vec<String> = workflow.jobs().iter().map(|job| job.summary.job_type.to_string()).collect();
        assert_eq!(types[..3], ["a", "b", "c"], "{outer}");
        assert_eq!((workflow.members.len(), workflow.job_count()), (2, 3), "{outer}");
        let text = workflow.members[1].stored_text();
        let stored = StoredStep::parse(&text).expect("what was stored");
        assert_eq!((stored.for_each, stored.kind()), (None, WorkflowKind::Group));
        assert_eq!(stored.to_text(), text);
        assert_eq!(stored.parse_workflow(0).expect("a group").members.len(), 2);
    }
}

#[test]
fn each_job_of_a_step_for_each_element_has_it_as_its_last_argument_byte_for_byte() {
    let each =
        r#"{"type":"chain","steps":[{"type":"a","args":[1.0]},{"type":"group","jobs":[{"type":"b","args":[]}]}]}"#;
    let json = format!(
        r#"{{"steps":[{{"id":"s","type":"s","args":[],"depends_on":[]}},{{"id":"e","depends_on":["s"],"for_each":"s",{}]}}"#,
        &each[1..]
    );
    let workflow = parse(&json).expect("a chain");
    assert_eq!(workflow.kind, WorkflowKind::Chain);
    let stored = StoredStep::parse(&workflow.members[1].stored_text()).expect("what was stored");
    assert_eq!(stored.for_each, Some(0));
    let elements = elements_of(Some(r#"[{"z":1.0}, 9007199254740993]"#), 0, 5).expect("an array");
    let group = stored.group_of(&elements, 0).expect("a group");
    assert_eq!((group.kind, group.members.len(), group.job_count()), (WorkflowKind::Group, 2, 4));
    assert_eq!(
        group.members[0].json,
        r#"{"type":"chain","steps":[{"type":"a","args":[1.0,{"z":1.0}]},{"type":"group","jobs":[{"type":"b","args":[{"z":1.0}]}]}]}"#
    );
    assert!(group.members[1].json.contains(r#""args":[1.0,9007199254740993]"#), "{}", group.members[1].json);
    let chain =
        parse(r#"{"type":"chain","steps":[{"type":"a","args":[]},{"type":"b","args":[],"for_each":"previous"}]}"#);
    let stored = StoredStep::parse(&chain.expect("a chain").members[1].stored_text()).expect("what was stored");
    assert_eq!(stored.to_text(), r#"{"for_each":0,"each":{"type":"b","args":[]}}"#);
}

#[test]
fn a_step_with_for_each_that_several_precede_makes_a_dag_and_no_callback() {
    let job = |id: &str, rest: &str| format!(r#"{{"id":"{id}","type":"{id}","args":[]{rest}}}"#);
    let (a, b) = (job("a", r#","depends_on":[]"#), job("b", r#","depends_on":[]"#));
    let last = job("c", r#","depends_on":["a","b"],"for_each":"b""#);
    let workflow = parse(&format!(r#"{{"steps":[{a},{b},{last}]}}"#)).expect("a DAG");
    assert_eq!((workflow.kind, workflow.members.len()), (WorkflowKind::Dag, 3));
    let stored = StoredStep::parse(&workflow.members[2].stored_text()).expect("what was stored");
    assert_eq!(stored.for_each, Some(1));
    assert!(workflow.name_and_meta.contains(r#""depends_on":["a","b"],"for_each":"b""#), "{}", workflow.name_and_meta);
}

#[test]
fn what_cannot_be_nested_is_refused_with_what_is_allowed() {
    let job = r#"{"type":"a","args":[]}"#;
    let nested =
        |levels: usize| (1..levels).fold(job.to_owned(), |inner, _| format!(r#"{{"type":"chain","steps":[{inner}]}}"#));
    assert!(parse(&nested(MAX_WORKFLOW_DEPTH + 1)).is_ok());
    let step = |rest: &str| format!(r#"{{"type":"chain","steps":[{job},{{"type":"b","args":[],{rest}}}]}}"#);
    let dag = |rest: &str| {
        format!(
            r#"{{"type":"dag","steps":[{{"id":"a","type":"a","args":[],"depends_on":[]}},{{"id":"b","type":"b","args":[],{rest}}}]}}"#
        )
    };
    let deep = nested(MAX_WORKFLOW_DEPTH + 2);
    let five = [job; 5].join(",");
    for (json, expected) in [
        (deep, "workflows can be nested at most 5 levels deep".to_owned()),
        (
            nested(MAX_WORKFLOW_DEPTH + 1)
                .replace(job, &format!(r#"{job},{{"type":"b","args":[],"for_each":"previous"}}"#)),
            "for_each makes a group, and workflows can be nested at most 5 levels deep".to_owned(),
        ),
        (
            format!(
                r#"{{"type":"group","jobs":[{{"type":"group","jobs":[{five}]}},{{"type":"group","jobs":[{five}]}}]}}"#
            ),
            "a workflow can have at most 6 jobs, those of workflows in it among them, got 10".to_owned(),
        ),
        (step(r#""for_each":"x""#), "steps[1].for_each must be \"previous\" in a chain".to_owned()),
        (step(r#""for_each":7"#), "steps[1].for_each must be a string".to_owned()),
        (
            r#"{"type":"chain","steps":[{"type":"b","args":[],"for_each":"previous"}]}"#.to_owned(),
            "steps[0].for_each: no step is before the first step of a chain".to_owned(),
        ),
        (dag(r#""depends_on":["a"],"for_each":"b""#), "steps[1].for_each must be one of its depends_on".to_owned()),
        (dag(r#""depends_on":[],"for_each":"a""#), "steps[1].for_each must be one of its depends_on".to_owned()),
        (
            r#"{"type":"group","jobs":[{"type":"b","args":[],"for_each":"previous"}]}"#.to_owned(),
            "jobs[0]: for_each is for the steps of a \"chain\" or a \"dag\"".to_owned(),
        ),
        (
            format!(
                r#"{{"type":"batch","jobs":[{job}],"callbacks":{{"on_success":{{"type":"group","jobs":[{job}]}}}}}}"#
            ),
            "callbacks.on_success: must be a job, a callback cannot be a workflow".to_owned(),
        ),
        (
            format!(r#"{{"type":"chain","steps":[{{"type":"tree","jobs":[{job}]}}]}}"#),
            "steps[0]: type must be \"chain\", \"group\", \"batch\" or \"dag\"".to_owned(),
        ),
        (
            r#"{"type":"chain","steps":[{"type":"group","jobs":[]}]}"#.to_owned(),
            "steps[0]: jobs must be a JSON array of 1 to 6 jobs, got 0".to_owned(),
        ),
        (
            format!(r#"{{"type":"chain","steps":[{{"type":"group","args":[],"jobs":[{job}]}}]}}"#),
            "steps[0]: a group: unknown member \"args\"".to_owned(),
        ),
    ] {
        let error = parse(&json).expect_err(&json);
        assert!(error.contains(&expected), "{json}: {error}");
    }
}

#[test]
fn a_nested_workflow_may_have_an_id_of_any_form_which_is_not_used() {
    let json = r#"{"type":"chain","steps":[{"type":"group","id":"wf_1","name":"n","jobs":[{"type":"a","args":[]}]}]}"#;
    let workflow = parse(json).expect("as the Open Job Spec's examples");
    assert_eq!(workflow.warnings.len(), 1);
    assert!(workflow.warnings[0].starts_with("steps[0]: id "), "{:?}", workflow.warnings);
    assert_eq!(workflow.names(), ["n"]);
}

#[test]
fn a_version_that_knows_no_nested_steps_takes_none_for_a_job() {
    for step in
        [StoredStep::new(None, r#"{"type":"a","args":[]}"#), StoredStep::new(Some(0), r#"{"type":"a","args":[]}"#)]
    {
        let text = step.to_text();
        let refused = crate::job::NewJob::parse(&object(&text), 0).expect_err("no job");
        assert!(refused.to_string().contains("type is required"), "{refused}");
    }
    assert!(StoredStep::parse(r#"{"type":"a","args":[]}"#).is_err());
}

#[test]
fn what_is_no_array_of_allowed_length_says_so() {
    for (result, code) in [
        (None, "not_an_array"),
        (Some("null"), "not_an_array"),
        (Some(r#"{"a":[]}"#), "not_an_array"),
        (Some("7"), "not_an_array"),
        (Some(r#"{"omitted":true,"job_id":"x"}"#), "result_omitted"),
        (Some("[1,2,3]"), "too_many_elements"),
    ] {
        assert_eq!(elements_of(result, 0, 2).expect_err("refused").0, code, "{result:?}");
    }
    assert!(elements_of(Some("[]"), 0, 2).expect("an array").is_empty());
}

#[test]
fn results_are_gathered_by_the_kind_of_the_workflow() {
    let results = || vec![Some("1.0".to_owned()), None];
    assert_eq!(gather_results(WorkflowKind::Group, "{}", results()), "[1.0,null]");
    assert_eq!(gather_results(WorkflowKind::Batch, "{}", results()), "[1.0,null]");
    assert_eq!(gather_results(WorkflowKind::Chain, "{}", results()), "null");
    let about = r#"{"name":"n","steps":[{"id":"a","depends_on":[]},{"id":"b","depends_on":["a"]}]}"#;
    assert_eq!(gather_results(WorkflowKind::Dag, about, results()), r#"{"a":1.0,"b":null}"#);
}
