//! `galley jobs signal`, `approve`, `reject` and `signals`.

use clap::Args;
use model::job::wait::is_approval;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::job_path;
use crate::{
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    input,
    session::{Session, items},
    table::{TextTable, member, shown},
};

#[derive(Debug, Args)]
pub(crate) struct SignalArgs {
    id: String,
    /// What the signal is called.
    name: String,
    /// What it brings, as JSON; `-` reads it from standard input, @file from a file.
    #[arg(value_name = "JSON")]
    data: Option<String>,
    /// What tells it from others: sent twice with the same id it is one signal.
    #[arg(long, value_name = "ID")]
    signal_id: Option<String>,
}

/// The same as the gateway reads it.
#[derive(Serialize)]
struct SignalBody<'a> {
    name: &'a str,
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl SignalArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let data = self.data.as_deref().map(|given| input::json("the data", given)).transpose()?;
        let body = SignalBody { name: &self.name, data: data.as_deref(), id: self.signal_id.as_deref() };
        send(session, &self.id, &body).await
    }
}

async fn send(session: &Session, id: &str, body: &SignalBody<'_>) -> CliResult {
    let body = serde_json::to_vec(body).map_err(|error| CliError::failed(error.to_string()))?;
    let call = GatewayCall::post(format!("{}/signals", job_path(id))).bytes("application/json", body);
    let answer = session.show(call, |answer, terminal| {
        let name = member(&answer["signal"], "name");
        terminal.line(&if answer["resumed"] == true {
            format!("{id} has {name} and resumes")
        } else {
            format!("{id} has {name}, and does not wait for it now")
        })
    });
    answer.await.map(drop)
}

#[derive(Debug, Args)]
pub(crate) struct DecisionArgs {
    id: String,
    /// What is decided on; what the job waits for unless given.
    #[arg(long)]
    subject: Option<String>,
    /// What the handler is told.
    #[arg(long)]
    comment: Option<String>,
    /// Who decides.
    #[arg(long)]
    by: Option<String>,
}

impl DecisionArgs {
    /// Approves or rejects what a job waits for.
    pub(crate) async fn run(self, session: &Session, approved: bool) -> CliResult {
        let name = match &self.subject {
            Some(subject) if subject.is_empty() => "approval".to_owned(),
            Some(subject) => format!("approval.{subject}"),
            None => awaited_approval(session, &self.id).await?,
        };
        let mut data = json!({ "approved": approved });
        for (name, given) in [("by", self.by), ("comment", self.comment)] {
            if let Some(text) = given {
                data[name] = text.into();
            }
        }
        let data = serde_json::value::to_raw_value(&data).map_err(|error| CliError::failed(error.to_string()))?;
        send(session, &self.id, &SignalBody { name: &name, data: Some(&data), id: None }).await
    }
}

/// The approval that a job waits for.
async fn awaited_approval(session: &Session, id: &str) -> CliResult<String> {
    let answer = session.gateway.send(GatewayCall::get(job_path(id))).await?.value()?;
    let job = &answer["job"];
    match job["waiting"]["signal"].as_str() {
        Some(signal) if is_approval(signal) => Ok(signal.to_owned()),
        Some(signal) => Err(CliError::failed(format!("job {id} waits for {signal}, which is no approval"))),
        None => {
            let state = member(job, "state");
            let message =
                format!("job {id} is {state} and waits for no approval now; --subject decides before it does");
            Err(CliError::failed(message))
        }
    }
}

/// Shows the signals that came for a job.
pub(crate) async fn list(session: &Session, id: &str) -> CliResult {
    let call = GatewayCall::get(format!("{}/signals", job_path(id)));
    let answer = session.show(call, |answer, terminal| {
        let signals = items(answer, "items");
        if signals.is_empty() {
            terminal.note("no signal came");
            return Ok(());
        }
        let mut table = TextTable::new(&["number", "name", "sent", "id", "data"]);
        for signal in signals {
            table.row([
                member(signal, "sequence"),
                member(signal, "name"),
                member(signal, "sent_at"),
                member(signal, "id"),
                shown(&Value::String(signal["data"].to_string())),
            ]);
        }
        table.print(terminal)
    });
    answer.await.map(drop)
}
