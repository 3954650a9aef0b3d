//! `galley jobs output` and `galley jobs checkpoint`.

use std::io::{self, Write};

use clap::Args;
use common::text::printable;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::job_path;
use crate::{
    event_stream::EventStream,
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    session::Session,
    table::Details,
};

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    id: String,
    /// Begin behind this chunk.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

/// What an event of an output says.
#[derive(Deserialize)]
struct OutputEvent<'a> {
    #[serde(default)]
    attempt: u64,
    #[serde(borrow, default)]
    chunk: Option<&'a RawValue>,
}

impl OutputArgs {
    /// Prints what the handlers of a job streamed, until the job ends: texts as they are, one behind the other, other chunks as
    /// JSON in lines of their own.
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let mut stream = EventStream::new(format!("{}/output", job_path(&self.id))).after(self.after);
        let mut is_in_line = false;
        loop {
            let event = stream.next(session).await?;
            if event.name == "end" || event.name == "job.forgotten" {
                break;
            }
            if event.name == "server.shutdown" {
                continue;
            }
            if session.terminal.json {
                if event.name == "chunk" {
                    session.terminal.json_bytes(event.data.as_bytes())?;
                }
                continue;
            }
            let told: OutputEvent<'_> = serde_json::from_str(&event.data)
                .map_err(|error| CliError::failed(format!("the gateway sent {}: {error}", event.name)))?;
            match (event.name.as_str(), told.chunk) {
                ("chunk", Some(chunk)) => {
                    if let Ok(text) = serde_json::from_str::<String>(chunk.get()) {
                        print(&printable_lines(&text))?;
                        is_in_line = !text.ends_with('\n');
                    } else {
                        end_line(&mut is_in_line)?;
                        session.terminal.line(&printable(chunk.get().as_bytes()))?;
                    }
                }
                ("attempt", _) if told.attempt > 1 => {
                    end_line(&mut is_in_line)?;
                    session.terminal.note(&format!("attempt {} begins again", told.attempt));
                }
                ("gap", _) => {
                    end_line(&mut is_in_line)?;
                    session.terminal.note("some chunks are not kept any more");
                }
                _ => {}
            }
        }
        end_line(&mut is_in_line)
    }
}

/// Without what would steer the terminal; line ends stay.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(|line| printable(line.as_bytes())).collect::<Vec<_>>().join("\n")
}

fn print(text: &str) -> CliResult {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn end_line(is_in_line: &mut bool) -> CliResult {
    if std::mem::take(is_in_line) { print("\n") } else { Ok(()) }
}

/// Shows what the handlers of a job saved for its next attempt.
pub(crate) async fn checkpoint(session: &Session, id: &str) -> CliResult {
    #[derive(Deserialize)]
    struct Checkpoint<'a> {
        #[serde(borrow)]
        state: &'a RawValue,
    }
    let answer = session.gateway.send(GatewayCall::get(format!("{}/checkpoint", job_path(id)))).await?;
    if session.terminal.json {
        return session.terminal.json_bytes(&answer.body);
    }
    let state: Checkpoint<'_> = serde_json::from_slice(&answer.body)
        .map_err(|error| CliError::failed(format!("the gateway sent no checkpoint: {error}")))?;
    let mut details = Details::default();
    details.members(&answer.value()?, &["job_id", "sequence", "created_at"]);
    details.text("state", printable(state.state.get().as_bytes()));
    details.print(session.terminal)
}
