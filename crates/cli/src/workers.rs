//! `galley workers`.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::{GatewayCall, escaped},
    queues::PageArgs,
    session::{Session, items},
    table::{Details, TextTable, member},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// List workers.
    List(PageArgs),
    /// Show a worker with the jobs that it runs.
    Show(WorkerArg),
    /// Quiet: it claims no new jobs and finishes those it has.
    Quiet(WorkerArg),
    /// Resume: it claims jobs again.
    Resume(WorkerArg),
    /// Stop it, as SIGTERM does.
    Stop(WorkerArg),
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArg {
    /// Its id, or its name if only one worker has it.
    worker: String,
}

impl WorkersCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => session.list(page.call("/ojs/v1/workers"), "items", "no workers", worker_table).await,
            Self::Show(WorkerArg { worker }) => {
                session.show(GatewayCall::get(worker_path(&worker)), show_worker).await.map(drop)
            }
            Self::Quiet(WorkerArg { worker }) => direct(session, &worker, "quiet", "claims no new jobs").await,
            Self::Resume(WorkerArg { worker }) => direct(session, &worker, "resume", "claims jobs again").await,
            Self::Stop(WorkerArg { worker }) => direct(session, &worker, "terminate", "stops").await,
        }
    }
}

async fn direct(session: &Session, worker: &str, directive: &str, what: &str) -> CliResult {
    let call = GatewayCall::post(format!("{}/{directive}", worker_path(worker)));
    session.act(call, &format!("worker {worker} is told so and {what}")).await
}

fn worker_path(worker: &str) -> String {
    format!("/ojs/v1/workers/{}", escaped(worker))
}

fn worker_table(workers: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "name", "state", "kind", "jobs", "of", "queues"]);
    for worker in workers {
        let queues = items(worker, "queues").iter().map(crate::table::shown).collect::<Vec<_>>().join(",");
        table.row([
            member(worker, "id"),
            member(worker, "name"),
            member(worker, "state"),
            member(worker, "kind"),
            member(worker, "active_jobs"),
            member(worker, "concurrency"),
            queues,
        ]);
    }
    table
}

fn show_worker(answer: &Value, terminal: Terminal) -> CliResult {
    let worker = &answer["worker"];
    if terminal.quiet {
        return terminal.line(&member(worker, "id"));
    }
    let mut details = Details::default();
    details
        .members(worker, &["id", "name", "kind", "state", "queues", "hostname", "pid", "concurrency", "active_jobs"]);
    for job in items(worker, "jobs") {
        details.add("runs", job);
    }
    details.print(terminal)
}
