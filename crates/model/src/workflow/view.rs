//! A workflow as clients see it: its state, its counters and all its jobs in one JSON object.

use std::fmt;

use serde_json::value::RawValue;

use super::{BatchCallback, Membership, WorkflowKind, WorkflowState};
use crate::job::JobState;
use common::{
    id::{JobId, WorkflowId},
    json::{Object, ObjectWriter},
    time::{self, Millis},
};

/// The id of a member: of its job, or of the workflow that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkflowMemberId {
    /// A job.
    Job(JobId),
    /// A workflow.
    Workflow(WorkflowId),
}

impl fmt::Display for WorkflowMemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => id.fmt(f),
            Self::Workflow(id) => id.fmt(f),
        }
    }
}

/// What else there is of a member that is a workflow.
#[derive(Debug, Clone, Default)]
pub struct NestedView {
    /// The index of the member for each element of whose result it has a job.
    pub for_each: Option<usize>,
    /// Whether it can be looked up: it has started, and is not gone yet.
    pub exists: bool,
    /// Why it could not start, as a JSON object.
    pub error: Option<String>,
}

/// A job of a workflow, or a workflow in it, and its state.
#[derive(Debug, Clone)]
pub struct WorkflowJobView {
    /// Its index.
    pub index: usize,
    /// The callback that it is, if any.
    pub callback: Option<BatchCallback>,
    /// Its id, which it has before it starts.
    pub id: WorkflowMemberId,
    /// Its type, or the kind of workflow.
    pub job_type: String,
    /// Its queue; empty for a workflow.
    pub queue: String,
    /// Its state, that of a job or that of a workflow; none before it starts.
    pub state: Option<&'static str>,
    /// Its result, as JSON.
    pub result: Option<String>,
    /// The id of the job that was in its way, if it was refused as a duplicate.
    pub blocked_by: Option<String>,
    /// What else there is if it is a workflow.
    pub nested: Option<NestedView>,
}

/// What is said about a job that was refused because there is one like it.
#[must_use]
pub fn duplicate_message(known: &impl std::fmt::Display) -> String {
    format!("there is a job like it already: {known}")
}

/// All members of a workflow's view.
#[derive(Debug, Clone)]
pub struct WorkflowView {
    /// Its id.
    pub id: WorkflowId,
    /// Its kind.
    pub kind: WorkflowKind,
    /// Its state.
    pub state: WorkflowState,
    /// `name` and `meta`, as a JSON object; of a workflow by steps also `steps`, their ids and order.
    pub name_and_meta: String,
    /// The workflow that it is a step of, and its index there.
    pub parent: Option<Membership>,
    /// When it was created.
    pub created_at: Millis,
    /// When it finished, if it did.
    pub ended_at: Option<Millis>,
    /// The number of its members.
    pub total: usize,
    /// Members that succeeded, failed for good, were cancelled or will not start.
    pub counts: [usize; 3],
    /// Of each member of a DAG, those that it depends on. Empty for the other kinds.
    pub depends_on: Vec<Vec<usize>>,
    /// Its members and callbacks; empty in a list of workflows.
    pub jobs: Vec<WorkflowJobView>,
}

impl WorkflowView {
    /// The JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = ObjectWriter::default();
        out.text("id", &self.id.to_string()).text("type", self.kind.as_str()).text("state", self.state.as_str());
        let steps = self.write_name_and_meta(&mut out);
        if let Some(Membership { workflow, index }) = self.parent {
            out.text("parent_workflow_id", &workflow.to_string()).number("parent_workflow_index", index);
        }
        let number = |count: usize| i128::try_from(count).unwrap_or_default();
        let [completed, failed, cancelled] = self.counts.map(number);
        if self.kind == WorkflowKind::Chain {
            out.number("steps_total", number(self.total)).number("steps_completed", completed);
        }
        out.number("jobs_total", number(self.total)).number("jobs_completed", completed);
        out.number("jobs_failed", failed).number("jobs_cancelled", cancelled);
        out.text("created_at", &time::format(self.created_at));
        if let Some(at) = self.ended_at {
            let name = if self.state == WorkflowState::Cancelled { "cancelled_at" } else { "completed_at" };
            out.text(name, &time::format(at));
        }
        if !self.jobs.is_empty() {
            let over = self.state != WorkflowState::Running;
            let list = |callbacks: bool| {
                let jobs = self.jobs.iter().filter(|job| job.callback.is_some() == callbacks);
                format!("[{}]", jobs.map(|job| job.to_json(over)).collect::<Vec<_>>().join(","))
            };
            out.raw("members", &list(false));
            if self.kind == WorkflowKind::Batch {
                out.raw("callbacks", &list(true));
            }
            if let Some(steps) = steps {
                let steps = steps.iter().zip(&self.jobs).map(|(step, job)| job.to_step_json(step, over));
                out.raw("steps", &format!("[{}]", steps.collect::<Vec<_>>().join(",")));
            }
        }
        out.finish()
    }

    /// Adds `name` and `meta`. Returns the steps of a workflow by steps: they are in the order of its jobs.
    fn write_name_and_meta(&self, out: &mut ObjectWriter) -> Option<Vec<Object<'_>>> {
        let about = Some(&self.name_and_meta).filter(|about| about.contains("\"steps\":"));
        let about: Option<Object> = about.and_then(|about| serde_json::from_str(about).ok());
        let Some((about, steps)) = about.and_then(|about| about.get("steps").map(|steps| (about.clone(), steps)))
        else {
            out.splice(&self.name_and_meta);
            return None;
        };
        for (name, value) in about.iter().filter(|(name, _)| *name != "steps") {
            out.raw(name, value.get());
        }
        serde_json::from_str(steps.get()).ok()
    }
}

impl WorkflowJobView {
    /// The same as a step of the Open Job Spec's HTTP binding.
    fn to_step_json(&self, step: &Object<'_>, over: bool) -> String {
        let mut out = ObjectWriter::default();
        out.raw("id", step.get("id").map_or("null", RawValue::get)).text("type", &self.job_type);
        let unstarted = if over { JobState::Cancelled } else { JobState::Pending };
        out.text("state", self.state.unwrap_or(unstarted.as_str()));
        let name = if self.nested.is_some() { "workflow_id" } else { "job_id" };
        match self.state {
            Some(_) => out.text(name, &self.id.to_string()),
            None => out.raw(name, "null"),
        };
        if let Some(result) = &self.result {
            out.raw("result", result);
        }
        out.raw("depends_on", step.get("depends_on").map_or("[]", RawValue::get));
        if let Some(for_each) = step.get("for_each") {
            out.raw("for_each", for_each.get());
        }
        out.finish()
    }

    /// A job that has not started is waiting, or `cancelled` if the workflow is finished.
    fn to_json(&self, over: bool) -> String {
        let mut out = ObjectWriter::default();
        match self.callback {
            Some(callback) => out.text("on", callback.as_str()),
            None => out.number("index", i128::try_from(self.index).unwrap_or_default()),
        };
        let unstarted = if over { JobState::Cancelled.as_str() } else { "waiting" };
        out.text("id", &self.id.to_string()).text("type", &self.job_type);
        match &self.nested {
            None => out.text("queue", &self.queue),
            Some(nested) => {
                if let Some(source) = nested.for_each {
                    out.number("for_each", i128::try_from(source).unwrap_or_default());
                }
                out.raw("workflow", "true")
            }
        };
        out.text("state", self.state.unwrap_or(unstarted));
        if let Some(result) = &self.result {
            out.raw("result", result);
        }
        if let Some(known) = &self.blocked_by {
            let mut error = ObjectWriter::default();
            error.text("code", "duplicate").text("message", &duplicate_message(known)).text("job_id", known);
            out.raw("error", &error.finish());
        }
        if let Some(error) = self.nested.as_ref().and_then(|nested| nested.error.as_ref()) {
            out.raw("error", error);
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_tells_the_status_of_every_job() {
        let id = WorkflowId::new();
        let queue = "q".parse().expect("a name");
        let job = |index: u32, state, result: Option<&str>| WorkflowJobView {
            index: index as usize,
            callback: None,
            id: WorkflowMemberId::Job(id.job_id(index, &queue)),
            job_type: "a".into(),
            queue: "q".into(),
            state,
            result: result.map(str::to_owned),
            blocked_by: None,
            nested: None,
        };
        let mut view = WorkflowView {
            id,
            kind: WorkflowKind::Chain,
            state: WorkflowState::Running,
            name_and_meta: r#"{"name":"n"}"#.into(),
            parent: None,
            created_at: 0,
            ended_at: None,
            total: 2,
            counts: [1, 0, 0],
            depends_on: Vec::new(),
            jobs: vec![job(0, Some("completed"), Some("1.0")), job(1, None, None)],
        };
        let json = view.to_json();
        assert!(json.contains(r#""steps_total":2,"steps_completed":1"#) && json.contains(r#""name":"n""#), "{json}");
        assert!(json.contains(r#""result":1.0"#) && json.contains(r#""state":"waiting""#), "{json}");
        assert!(!json.contains(r#""steps":"#), "{json}");
        view.name_and_meta =
            r#"{"meta":{"k":1},"steps":[{"id":"x","depends_on":[]},{"id":"y","depends_on":["x"]}]}"#.into();
        let (json, first) = (view.to_json(), &view.jobs[0].id);
        let steps = format!(
            r#""steps":[{{"id":"x","type":"a","state":"completed","job_id":"{first}","result":1.0,"depends_on":[]}},{{"id":"y","type":"a","state":"pending","job_id":null,"depends_on":["x"]}}]"#
        );
        assert!(json.ends_with(&format!("{steps}}}")) && json.contains(r#","meta":{"k":1},"#), "{json}");
        view.jobs.clear();
        assert!(!view.to_json().contains(r#""steps":"#), "a list shows no steps");
        view.jobs = vec![job(0, Some("completed"), None), job(1, None, None)];
        (view.state, view.ended_at) = (WorkflowState::Failed, Some(5));
        let json = view.to_json();
        assert!(json.contains(r#""state":"cancelled""#) && json.contains("completed_at"), "{json}");
    }

    #[test]
    fn a_member_that_is_a_workflow_leads_to_it_and_back() {
        let (id, inner) = (WorkflowId::new(), WorkflowId::new());
        let error = r#"{"code":"not_an_array","message":"m"}"#.to_owned();
        let mut member = WorkflowJobView {
            index: 1,
            callback: None,
            id: WorkflowMemberId::Workflow(inner),
            job_type: "group".into(),
            queue: String::new(),
            state: Some("running"),
            result: None,
            blocked_by: None,
            nested: Some(NestedView { for_each: Some(0), exists: true, error: None }),
        };
        let json = member.to_json(false);
        let expected =
            format!(r#"{{"index":1,"id":"{inner}","type":"group","for_each":0,"workflow":true,"state":"running"}}"#);
        assert_eq!(json, expected);
        let step = serde_json::from_str(r#"{"id":"x","depends_on":["y"]}"#).expect("an object");
        assert!(member.to_step_json(&step, false).contains(&format!(r#""workflow_id":"{inner}""#)));
        member.nested = Some(NestedView { error: Some(error.clone()), ..NestedView::default() });
        assert!(member.to_json(true).ends_with(&format!(r#""error":{error}}}"#)));
        let view = WorkflowView {
            id: inner,
            kind: WorkflowKind::Group,
            state: WorkflowState::Running,
            name_and_meta: "{}".into(),
            parent: Some(Membership { workflow: id, index: 1 }),
            created_at: 0,
            ended_at: None,
            total: 1,
            counts: [0, 0, 0],
            depends_on: Vec::new(),
            jobs: Vec::new(),
        };
        let json = view.to_json();
        assert!(json.contains(&format!(r#""parent_workflow_id":"{id}","parent_workflow_index":1"#)), "{json}");
    }
}
