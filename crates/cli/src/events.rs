//! `galley events` and `galley audit`.

use clap::Args;
use serde_json::Value;

use crate::{
    event_stream::EventStream,
    failure::CliResult,
    gateway_client::PathWithQuery,
    session::{Session, items},
    table::{TextTable, member, shown},
};

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only events of these types, such as job.discarded. May be repeated.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    types: Vec<String>,
    /// Only events of these queues. May be repeated.
    #[arg(long = "queue", value_name = "QUEUE", value_delimiter = ',')]
    queues: Vec<String>,
    /// Go on with events as they happen, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Begin behind this id; 0-0-0 is everything that is kept.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// At most this number.
    #[arg(long, conflicts_with = "follow")]
    limit: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// Entries before this one.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

impl EventsArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let some = |names: &[String]| Some(names.join(",")).filter(|names| !names.is_empty());
        let path = if self.follow { "/ojs/v1/events/stream" } else { "/ojs/v1/events" };
        let path = PathWithQuery::new(path).with("types", some(&self.types)).with("queues", some(&self.queues));
        let terminal = session.terminal;
        if !self.follow {
            let path = path.with("after", self.after).with("limit", self.limit);
            let show = |answer: &Value, _| {
                items(answer, "events").iter().try_for_each(|event| terminal.line(&event_line(event)))
            };
            return session.show(path.into_call(), show).await.map(drop);
        }
        let mut stream = EventStream::new(path.text()).after(self.after);
        loop {
            let event = stream.next(session).await?;
            if terminal.json {
                terminal.json_bytes(event.data.as_bytes())?;
            } else if let Ok(value) = serde_json::from_str::<Value>(&event.data) {
                terminal.line(&event_line(&value))?;
            }
        }
    }
}

fn event_line(event: &Value) -> String {
    let data = &event["data"];
    let parts = [member(event, "time"), member(event, "type"), member(data, "job_id"), member(data, "queue")];
    let rest = data.as_object().into_iter().flatten().filter(|(name, _)| !matches!(name.as_str(), "job_id" | "queue"));
    let rest = rest.map(|(name, value)| format!("{name}={}", shown(value)));
    let parts = parts.into_iter().filter(|part| part != "-").chain(rest);
    parts.collect::<Vec<_>>().join("  ")
}

impl AuditArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let path = PathWithQuery::new("/v1/admin/audit").with("limit", self.limit).with("after", self.after);
        session.list(path.into_call(), "items", "nothing was administered yet", audit_table).await
    }
}

fn audit_table(entries: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "at", "key", "action", "target", "outcome", "status", "from"]);
    for entry in entries {
        let key = if entry["name"].is_string() { member(entry, "name") } else { member(entry, "key") };
        table.row([
            member(entry, "id"),
            member(entry, "at"),
            key,
            member(entry, "action"),
            member(entry, "target"),
            member(entry, "outcome"),
            member(entry, "status"),
            member(entry, "from"),
        ]);
    }
    table
}
