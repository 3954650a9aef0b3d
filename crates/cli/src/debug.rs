//! `galley debug`: what a gateway, or every process, is doing, and what went wrong there last.

use clap::Args;
use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::GatewayCall,
    session::{Session, items},
    table::{Details, TextTable, member},
    terminal::Terminal,
};

#[derive(Debug, Args)]
pub(crate) struct DebugArgs {
    /// Show all gateways, queue-workers and pubsub-workers that answer.
    #[arg(long)]
    all: bool,
}

impl DebugArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let shown = if self.all {
            session.show(GatewayCall::get("/v1/admin/debug/processes"), show_all).await
        } else {
            session.show(GatewayCall::get("/v1/admin/debug"), show_gateway).await
        };
        shown.map(drop)
    }
}

fn show_gateway(answer: &Value, terminal: Terminal) -> CliResult {
    let mut details = process(answer);
    details.text("leader", leader(&answer["leader"]));
    details.print(terminal)?;
    let settings = items(answer, "settings");
    if !settings.is_empty() {
        let mut table = TextTable::new(&["setting", "value", "from"]);
        for setting in settings {
            table.row([member(setting, "key"), member(setting, "value"), member(setting, "source")]);
        }
        terminal.line("")?;
        table.print(terminal)?;
    }
    show_problems(answer, terminal)
}

fn show_all(answer: &Value, terminal: Terminal) -> CliResult {
    let reports = items(answer, "items");
    for report in reports {
        let mut details = process(report);
        details.add("is leader", &report["is_leader"]);
        details.print(terminal)?;
        show_problems(report, terminal)?;
        terminal.line("")?;
    }
    let missing = answer["asked"].as_u64().unwrap_or_default().saturating_sub(reports.len() as u64);
    if missing > 0 {
        terminal.note(&format!("{missing} more did not answer in time"));
    }
    Ok(())
}

/// What every process says of itself.
fn process(report: &Value) -> Details {
    let mut details = Details::default();
    details.members(report, &["service", "version", "host", "process_id", "started_at", "uptime_seconds"]);
    details.add("health", &report["health"]["status"]);
    for (part, state) in report["health"]["parts"].as_object().into_iter().flatten() {
        let reason = state["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        details.text(part, format!("{}{reason}", member(state, "status")));
    }
    details.add("log level", &report["log_level"]["in_effect"]);
    for (group, names) in [("tasks", &report["tasks"]), ("connections", &report["connections"])] {
        for (name, value) in names.as_object().into_iter().flatten() {
            details.add(&format!("{group} {}", name.replace('_', " ")), value);
        }
    }
    details
}

fn leader(leader: &Value) -> String {
    match leader {
        Value::Null => "nobody".to_owned(),
        _ if leader["service"].is_null() => "a process that does not tell its name".to_owned(),
        _ => format!(
            "{} {} at {} since {}",
            member(leader, "service"),
            member(leader, "process_id"),
            member(leader, "host"),
            member(leader, "since")
        ),
    }
}

fn show_problems(report: &Value, terminal: Terminal) -> CliResult {
    let problems = items(report, "last_problems");
    if problems.is_empty() {
        terminal.note("no warnings and no errors since it started");
        return Ok(());
    }
    let mut table = TextTable::new(&["last", "level", "times", "what", "with"]);
    for problem in problems {
        let (at, level) = (member(problem, "at"), member(problem, "level"));
        table.row([at, level, member(problem, "count"), member(problem, "message"), member(problem, "fields")]);
    }
    terminal.line("")?;
    table.print(terminal)
}
