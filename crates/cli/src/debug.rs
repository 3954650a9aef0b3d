//! `galley debug`: what one gateway is doing, and what went wrong there last.

use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::GatewayCall,
    session::{Session, items},
    table::{Details, TextTable, member},
    terminal::Terminal,
};

pub(crate) async fn run(session: &Session) -> CliResult {
    session.show(GatewayCall::get("/v1/admin/debug"), show).await.map(drop)
}

fn show(answer: &Value, terminal: Terminal) -> CliResult {
    let mut details = Details::default();
    details.members(answer, &["service", "version", "host", "process_id", "started_at", "uptime_seconds"]);
    details.add("health", &answer["health"]["status"]);
    for (part, state) in answer["health"]["parts"].as_object().into_iter().flatten() {
        let reason = state["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        details.text(part, format!("{}{reason}", member(state, "status")));
    }
    let leader = &answer["leader"];
    details.text(
        "leader",
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
        },
    );
    details.add("log level", &answer["log_level"]["in_effect"]);
    for (group, names) in [("tasks", &answer["tasks"]), ("connections", &answer["connections"])] {
        for (name, value) in names.as_object().into_iter().flatten() {
            details.add(&format!("{group} {}", name.replace('_', " ")), value);
        }
    }
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
    let problems = items(answer, "last_problems");
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
