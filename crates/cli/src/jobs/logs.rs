//! `galley jobs logs`.

use clap::Args;
use serde_json::Value;

use super::{job_path, wait};
use crate::{
    event_stream::EventStream,
    failure::CliResult,
    gateway_client::PathWithQuery,
    session::{Session, items},
    table::member,
};

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    id: String,
    /// Go on until the job ends.
    #[arg(long, short)]
    follow: bool,
    /// Begin behind this line.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

impl LogsArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let mut after = self.after.clone();
        self.print_new(session, &mut after).await?;
        if !self.follow {
            return Ok(());
        }
        tokio::select! {
            ended = wait::ended(session, &self.id, None) => drop(ended?),
            followed = self.print_as_they_come(session, &mut after) => return followed,
        }
        self.print_new(session, &mut after).await
    }

    /// Prints the lines behind the last one that was printed.
    async fn print_new(&self, session: &Session, after: &mut Option<String>) -> CliResult {
        loop {
            let path = PathWithQuery::new(format!("{}/logs", job_path(&self.id))).with("after", after.as_ref());
            let answer = session.gateway.send(path.into_call()).await?;
            let value = answer.value()?;
            let lines = items(&value, "items");
            if session.terminal.json {
                session.terminal.json_bytes(&answer.body)?;
            } else {
                lines.iter().try_for_each(|line| session.terminal.line(&log_line(line)))?;
            }
            if let Some(last) = lines.last().and_then(|line| line["id"].as_str()) {
                *after = Some(last.to_owned());
            }
            if value["next"].is_null() {
                return Ok(());
            }
        }
    }

    /// An event says that there are lines; the lines are read from the log, of which none is missing.
    async fn print_as_they_come(&self, session: &Session, after: &mut Option<String>) -> CliResult {
        let mut events = EventStream::new(format!("{}/events", job_path(&self.id))).silent();
        loop {
            if events.next(session).await?.name == "job.log" {
                self.print_new(session, after).await?;
            }
        }
    }
}

fn log_line(line: &Value) -> String {
    [member(line, "at"), member(line, "level"), member(line, "message")].join("  ")
}
