//! Workflows: as they are made, and as they are.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::NewJob;

/// A workflow to start, or a step of another one.
///
/// ```
/// use galley_client::{NewJob, NewWorkflow, WorkflowStep};
///
/// # fn example() -> Result<NewWorkflow, galley_client::Error> {
/// let part = NewJob::new("part.load", ["utf-8"])?;
/// let checks = NewWorkflow::group().step(NewJob::new("check.sum", [7])?).step(NewJob::new("check.rows", [7])?);
/// Ok(NewWorkflow::chain()
///     .name("import")
///     .step(NewJob::new("file.split", ["big.csv"])?)
///     // One for each element of the array that the step before returned, which is the last argument
///     .step(WorkflowStep::from(part).for_each("previous"))
///     .step(checks))
/// # }
/// # example().expect("jobs with arguments");
/// ```
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct NewWorkflow {
    members: Map<String, Value>,
}

/// What a workflow runs: a job, or a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowStep(Map<String, Value>);

impl From<NewJob> for WorkflowStep {
    fn from(job: NewJob) -> Self {
        // It has texts and JSON only
        Self(serde_json::to_value(job).ok().and_then(|job| job.as_object().cloned()).unwrap_or_default())
    }
}

impl From<NewWorkflow> for WorkflowStep {
    fn from(workflow: NewWorkflow) -> Self {
        Self(workflow.members)
    }
}

impl WorkflowStep {
    /// Runs it once for each element of the array that another step returned: in a chain the one before it (`previous`), in a
    /// DAG the one with that id, which it depends on. Each of its jobs has the element as its last argument, and its result
    /// is the array of theirs.
    #[must_use]
    pub fn for_each(mut self, of: impl Into<String>) -> Self {
        self.0.insert("for_each".to_owned(), of.into().into());
        self
    }
}

impl NewWorkflow {
    fn of_kind(kind: &str) -> Self {
        Self { members: Map::from_iter([("type".to_owned(), kind.into())]) }
    }

    /// One step after the other; each gets the results before it.
    #[must_use]
    pub fn chain() -> Self {
        Self::of_kind("chain")
    }

    /// All steps at once.
    #[must_use]
    pub fn group() -> Self {
        Self::of_kind("group")
    }

    /// All steps at once, and callbacks when they have ended, with their results.
    #[must_use]
    pub fn batch() -> Self {
        Self::of_kind("batch")
    }

    /// Each step after those that it depends on: add them with [`Self::step_after`].
    #[must_use]
    pub fn dag() -> Self {
        Self::of_kind("dag")
    }

    /// Adds a step of a chain, a group or a batch.
    #[must_use]
    pub fn step(self, step: impl Into<WorkflowStep>) -> Self {
        let list = if self.members["type"] == "chain" { "steps" } else { "jobs" };
        self.push(list, step.into().0)
    }

    /// Adds a step of a DAG, with its id and those of the steps that it depends on.
    #[must_use]
    pub fn step_after<'a>(
        self,
        id: &str,
        depends_on: impl IntoIterator<Item = &'a str>,
        step: impl Into<WorkflowStep>,
    ) -> Self {
        let mut step = step.into().0;
        step.insert("id".to_owned(), id.into());
        step.insert("depends_on".to_owned(), depends_on.into_iter().collect());
        self.push("steps", step)
    }

    fn push(mut self, list: &str, step: Map<String, Value>) -> Self {
        if let Value::Array(steps) = self.members.entry(list).or_insert_with(|| json!([])) {
            steps.push(step.into());
        }
        self
    }

    /// What a batch runs when all its steps have ended.
    #[must_use]
    pub fn on_complete(self, job: NewJob) -> Self {
        self.callback("on_complete", job)
    }

    /// What a batch runs when all its steps have succeeded.
    #[must_use]
    pub fn on_success(self, job: NewJob) -> Self {
        self.callback("on_success", job)
    }

    /// What a batch runs when all its steps have ended and one has not succeeded.
    #[must_use]
    pub fn on_failure(self, job: NewJob) -> Self {
        self.callback("on_failure", job)
    }

    fn callback(mut self, event: &str, job: NewJob) -> Self {
        let callbacks = self.members.entry("callbacks").or_insert_with(|| json!({}));
        callbacks[event] = WorkflowStep::from(job).0.into();
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.members.insert("name".to_owned(), name.into().into());
        self
    }
}

/// A workflow as it is.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Workflow {
    /// Its id.
    pub id: String,
    /// Its kind: `chain`, `group`, `batch` or `dag`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `running`, `completed`, `failed` or `cancelled`.
    pub state: String,
    /// The workflow that it is a step of, if it is one.
    #[serde(default)]
    pub parent_workflow_id: Option<String>,
    /// Its steps.
    #[serde(default)]
    pub members: Vec<WorkflowMember>,
    /// The callbacks of a batch.
    #[serde(default)]
    pub callbacks: Vec<WorkflowMember>,
}

/// A job of a workflow, or a workflow in it.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct WorkflowMember {
    /// The id of the job or of the workflow.
    pub id: String,
    /// The type of the job, or the kind of workflow.
    #[serde(rename = "type")]
    pub kind: String,
    /// The state of the job or of the workflow; `waiting` before it starts.
    pub state: String,
    /// Whether it is a workflow.
    #[serde(default)]
    pub workflow: bool,
    /// Its result, if it has one.
    #[serde(default)]
    pub result: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(job_type: &str) -> NewJob {
        NewJob::new(job_type, [1]).expect("an argument").queue("q")
    }

    #[test]
    fn a_workflow_is_written_as_the_gateway_reads_it() {
        let of = |job_type: &str| json!({ "type": job_type, "args": [1], "options": { "queue": "q" } });
        let inner = NewWorkflow::batch().step(job("b")).on_success(job("c"));
        let chain = NewWorkflow::chain()
            .name("n")
            .step(job("a"))
            .step(inner)
            .step(WorkflowStep::from(job("d")).for_each("previous"));
        let mut each = of("d");
        each["for_each"] = json!("previous");
        let batch = json!({ "type": "batch", "jobs": [of("b")], "callbacks": { "on_success": of("c") } });
        let expected = json!({ "type": "chain", "name": "n", "steps": [of("a"), batch, each] });
        assert_eq!(serde_json::to_value(chain).expect("JSON"), expected);
        let dag = NewWorkflow::dag().step_after("x", [], job("a")).step_after(
            "y",
            ["x"],
            NewWorkflow::group().step(job("b")),
        );
        let mut first = of("a");
        (first["id"], first["depends_on"]) = (json!("x"), json!([]));
        let group = json!({ "type": "group", "jobs": [of("b")], "id": "y", "depends_on": ["x"] });
        let expected = json!({ "type": "dag", "steps": [first, group] });
        assert_eq!(serde_json::to_value(dag).expect("JSON"), expected);
    }
}
