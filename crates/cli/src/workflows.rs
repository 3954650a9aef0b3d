//! `galley workflows`.

use clap::{Args, Subcommand};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    confirm::Confirmation,
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    input,
    session::{Session, items},
    table::{Details, TextTable, member},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum WorkflowsCommand {
    /// List running workflows.
    List(WorkflowListArgs),
    /// Show a workflow with its jobs.
    Show(WorkflowArg),
    /// Start a workflow.
    Start(WorkflowStartArgs),
    /// Cancel a workflow and its jobs that have not ended.
    Cancel(WorkflowCancelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowListArgs {
    /// Only those in this state.
    #[arg(long)]
    state: Option<String>,
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// Continue where an earlier list ended.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowArg {
    id: String,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowStartArgs {
    /// The workflow as JSON, such as `{"type":"chain","steps":[{"type":"a","args":[]}]}`; `-` reads it from standard
    /// input, @file from a file.
    workflow: String,
    /// Repeating the command with the same key has one effect.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowCancelArgs {
    id: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl WorkflowsCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(WorkflowListArgs { state, limit, after }) => {
                let path = PathWithQuery::new("/ojs/v1/workflows").with("state", state).with("limit", limit);
                let path = path.with("after", after);
                session.list(path.into_call(), "items", "no workflows", workflow_table).await
            }
            Self::Show(WorkflowArg { id }) => {
                session.show(GatewayCall::get(workflow_path(&id)), show_workflow).await.map(drop)
            }
            Self::Start(WorkflowStartArgs { workflow, idempotency_key }) => {
                let body = input::json("WORKFLOW", &workflow)?;
                let key = idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
                let call = GatewayCall::post("/ojs/v1/workflows").header("Idempotency-Key", key);
                let call = call.bytes("application/json", body.get().to_owned());
                session.show(call, show_workflow).await.map(drop)
            }
            Self::Cancel(WorkflowCancelArgs { id, confirmation }) => {
                confirmation.ask(&format!("Cancel workflow {id} and its jobs?"))?;
                session.show(GatewayCall::delete(workflow_path(&id)), show_workflow).await.map(drop)
            }
        }
    }
}

fn workflow_path(id: &str) -> String {
    format!("/ojs/v1/workflows/{}", escaped(id))
}

/// Jobs that ended, of all.
fn done(workflow: &Value) -> String {
    let count = |name: &str| workflow[name].as_u64();
    let done = count("steps_completed").or_else(|| count("jobs_completed")).unwrap_or(0);
    let total = count("steps_total").or_else(|| count("jobs_total")).unwrap_or(0);
    format!("{done} of {total}")
}

fn workflow_table(workflows: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "state", "type", "name", "done", "created"]);
    for workflow in workflows {
        table.row([
            member(workflow, "id"),
            member(workflow, "state"),
            member(workflow, "type"),
            member(workflow, "name"),
            done(workflow),
            member(workflow, "created_at"),
        ]);
    }
    table
}

fn show_workflow(answer: &Value, terminal: Terminal) -> CliResult {
    let workflow = &answer["workflow"];
    if terminal.quiet {
        return terminal.line(&member(workflow, "id"));
    }
    let mut details = Details::default();
    details.members(workflow, &["id", "type", "name", "state"]).text("done", done(workflow));
    details.members(workflow, &["jobs_failed", "jobs_cancelled", "created_at", "completed_at", "cancelled_at", "meta"]);
    if workflow["parent_workflow_id"].is_string() {
        details.text("part of", member(workflow, "parent_workflow_id"));
    }
    for job in items(workflow, "members") {
        let name = if job["workflow"] == true { "workflow" } else { "job" };
        let mut line = [member(job, "id"), member(job, "state"), member(job, "type")].join("  ");
        if let Some(message) = job["error"]["message"].as_str() {
            line = format!("{line}  {message}");
        }
        details.text(name, line);
    }
    for job in items(workflow, "callbacks") {
        details.add("callback", job);
    }
    details.print(terminal)
}
