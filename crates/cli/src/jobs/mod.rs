//! `galley jobs`.

mod bulk;
mod enqueue;
mod logs;
mod output;
mod signals;
mod wait;

use std::collections::HashMap;

use clap::{Args, Subcommand};
use common::text::printable;
use serde::Serialize;
use serde_json::{Value, value::RawValue};

pub(crate) use self::enqueue::{JobOptions, OptionMembers};
use self::{
    bulk::BulkArgs,
    enqueue::EnqueueArgs,
    logs::LogsArgs,
    output::OutputArgs,
    signals::{DecisionArgs, SignalArgs},
    wait::WaitArgs,
};
use crate::{
    failure::{CliError, CliResult},
    gateway_client::{GatewayAnswer, GatewayCall, PathWithQuery, escaped},
    input,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List and search jobs, the newest first.
    List(ListArgs),
    /// Show a job with its errors.
    Get(JobArg),
    /// Enqueue a job.
    Enqueue(Box<EnqueueArgs>),
    /// Wait until a job ends. Exit code 0 if it completed, 1 if it did not.
    Wait(WaitArgs),
    /// Run jobs again that were discarded or cancelled, or waiting ones now.
    Retry(BulkArgs),
    /// Cancel jobs that have not ended.
    Cancel(BulkArgs),
    /// Delete jobs that have ended.
    Delete(BulkArgs),
    /// Change the arguments, the priority or the time of a job that waits or failed.
    Change(ChangeArgs),
    /// Show what a job's handler logged.
    Logs(LogsArgs),
    /// Show what a job's handler streamed, until the job ends.
    Output(OutputArgs),
    /// Show what a job saved for its next attempt.
    Checkpoint(JobArg),
    /// Send a job a signal. A job that waits for it resumes.
    Signal(SignalArgs),
    /// Show the signals that came for a job.
    Signals(JobArg),
    /// Approve what a job waits for.
    Approve(DecisionArgs),
    /// Reject what a job waits for.
    Reject(DecisionArgs),
}

/// Which job.
#[derive(Debug, Args)]
pub(crate) struct JobArg {
    id: String,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// What to look for: state:discarded queue:email type:email.* tag:x error:"timed out". Other words are ids or texts
    /// of errors.
    query: Vec<String>,
    /// Only jobs in this state.
    #[arg(long)]
    state: Option<String>,
    /// Only jobs of this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Only jobs of this type, or `prefix*`.
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<String>,
    /// Only jobs from this time on: RFC 3339, or -PT1H.
    #[arg(long, allow_hyphen_values = true)]
    since: Option<String>,
    /// Only jobs before this time.
    #[arg(long, allow_hyphen_values = true)]
    until: Option<String>,
    /// At most this number.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Continue where an earlier list says.
    #[arg(long)]
    after: Option<String>,
}

impl JobsCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(args) => args.run(session).await,
            Self::Get(JobArg { id }) => show_job(session, GatewayCall::get(job_path(&id))).await,
            Self::Enqueue(args) => args.run(session).await,
            Self::Wait(args) => args.run(session).await,
            Self::Retry(args) => args.run(session, &bulk::RETRY).await,
            Self::Cancel(args) => args.run(session, &bulk::CANCEL).await,
            Self::Delete(args) => args.run(session, &bulk::DELETE).await,
            Self::Change(args) => args.run(session).await,
            Self::Logs(args) => args.run(session).await,
            Self::Output(args) => args.run(session).await,
            Self::Checkpoint(JobArg { id }) => output::checkpoint(session, &id).await,
            Self::Signal(args) => args.run(session).await,
            Self::Signals(JobArg { id }) => signals::list(session, &id).await,
            Self::Approve(args) => args.run(session, true).await,
            Self::Reject(args) => args.run(session, false).await,
        }
    }
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    id: String,
    /// New arguments as a JSON array; `-` reads it from standard input, @file from a file.
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// -100 to 100, higher first.
    #[arg(long, allow_hyphen_values = true)]
    priority: Option<i64>,
    /// Not before this time: RFC 3339, or +PT5M.
    #[arg(long, value_name = "TIME")]
    scheduled_at: Option<String>,
}

/// The same as the gateway reads it.
#[derive(Serialize)]
struct ChangeBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_at: Option<String>,
}

impl ChangeArgs {
    async fn run(self, session: &Session) -> CliResult {
        let Self { id, args, priority, scheduled_at } = self;
        let args = args.map(|args| input::json_array("--args", &args)).transpose()?;
        if args.is_none() && priority.is_none() && scheduled_at.is_none() {
            return Err(CliError::usage("say what to change: --args, --priority or --scheduled-at"));
        }
        let body = serde_json::to_vec(&ChangeBody { args, priority, scheduled_at });
        let body = body.map_err(|error| CliError::failed(error.to_string()))?;
        let call = GatewayCall::patch(format!("/ojs/v1/admin/jobs/{}", escaped(&id)));
        show_job(session, call.bytes("application/json", body)).await
    }
}

impl ListArgs {
    async fn run(self, session: &Session) -> CliResult {
        let query = Some(joined(&self.query)).filter(|query| !query.is_empty());
        let path = PathWithQuery::new("/ojs/v1/admin/jobs").with("q", query).with("state", self.state);
        let path = path.with("queue", self.queue).with("type", self.job_type).with("since", self.since);
        let path = path.with("until", self.until).with("limit", Some(self.limit)).with("after", self.after);
        let answer = session.show(path.into_call(), |answer, terminal| {
            let jobs = items(answer, if answer["items"].is_array() { "items" } else { "jobs" });
            if jobs.is_empty() {
                terminal.note("no job matches");
            } else {
                job_table(jobs).print(terminal)?;
            }
            match (answer["next"].as_str(), answer["examined"].as_u64()) {
                (Some(next), Some(examined)) if jobs.is_empty() => terminal.note(&format!(
                    "so far: {examined} jobs were looked at, which is as many as one search may; --after {next} goes on"
                )),
                (Some(next), _) => terminal.note(&format!("there may be more: --after {next}")),
                (None, _) => {}
            }
            Ok(())
        });
        answer.await.map(drop)
    }
}

/// Words of the search text as one: a shell took the quotes of `error:"timed out"`.
fn joined(words: &[String]) -> String {
    let quoted = words.iter().map(|word| match word.split_once(':') {
        // Other values have no spaces: what follows one is the next condition
        Some((name @ ("error" | "tag" | "meta" | "worker"), value)) if value.contains(' ') && !value.contains('"') => {
            format!("{name}:\"{value}\"")
        }
        None if word.contains(' ') && !word.contains([':', '"']) => format!("\"{word}\""),
        _ => word.clone(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

pub(crate) fn job_path(id: &str) -> String {
    format!("/ojs/v1/jobs/{}", escaped(id))
}

pub(crate) fn job_table(jobs: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["id", "state", "type", "queue", "attempt", "created", "error or wait"]);
    for job in jobs {
        let errors = job["errors"].as_array().and_then(|errors| errors.last());
        let error = errors.or_else(|| job.get("error")).map_or(Value::Null, |error| {
            let text = error.as_str().or_else(|| error["message"].as_str()).or_else(|| error["code"].as_str());
            text.map_or(Value::Null, |text| text.lines().next().unwrap_or_default().into())
        });
        let wait = job.get("waiting").map(|wait| format!("waits {}", waiting_text(wait)));
        table.row([
            member(job, "id"),
            member(job, "state"),
            member(job, "type"),
            member(job, "queue"),
            member(job, "attempt"),
            member(job, "created_at"),
            wait.unwrap_or_else(|| shown(&error)),
        ]);
    }
    table
}

/// What a job waits for, in one line.
fn waiting_text(wait: &Value) -> String {
    let what = match wait["signal"].as_str() {
        Some(signal) => format!("for signal {signal}"),
        None => format!("at {}", member(wait, "step")),
    };
    match wait["until"].as_str() {
        Some(until) => format!("{what} until {until}"),
        None => what,
    }
}

/// Sends a request that is answered with a job, and prints that.
pub(crate) async fn show_job(session: &Session, call: GatewayCall) -> CliResult {
    print_job(session, &session.gateway.send(call).await?)
}

/// Prints a job: unchanged with `--json`, else as people read it.
pub(crate) fn print_job(session: &Session, answer: &GatewayAnswer) -> CliResult {
    if session.terminal.json {
        return session.terminal.json_bytes(&answer.body);
    }
    let value = answer.value()?;
    session.warn(&value);
    let job = value.get("job").unwrap_or(&value);
    print_details(job, &exact_members(&answer.body), session.terminal)
}

/// The members of a job as the client wrote them: numbers of any size, digit for digit.
fn exact_members(body: &[u8]) -> HashMap<String, String> {
    type Members<'a> = HashMap<String, &'a RawValue>;
    let outer: Members<'_> = serde_json::from_slice(body).unwrap_or_default();
    let job = outer.get("job").and_then(|job| serde_json::from_str::<Members<'_>>(job.get()).ok());
    job.unwrap_or(outer).into_iter().map(|(name, value)| (name, value.get().to_owned())).collect()
}

fn print_details(job: &Value, exact: &HashMap<String, String>, terminal: Terminal) -> CliResult {
    if terminal.quiet {
        return terminal.line(&member(job, "id"));
    }
    let mut details = Details::default();
    details.members(job, &["id", "type", "state", "queue", "priority"]);
    details.text("attempt", format!("{} of {}", member(job, "attempt"), member(job, "max_attempts")));
    if let Some(wait) = job.get("waiting") {
        details.text("waiting", waiting_text(wait));
    }
    details.members(job, &["created_at", "scheduled_at", "enqueued_at", "started_at", "next_attempt_at"]);
    details.members(
        job,
        &["completed_at", "cancelled_at", "discarded_at", "progress", "worker_id", "workflow_id", "tags"],
    );
    for name in ["progress_data", "meta", "args", "result"] {
        if let Some(json) = exact.get(name) {
            details.text(&name.replace('_', " "), printable(json.as_bytes()));
        }
    }
    details.members(job, &["result_dropped"]);
    for error in items(job, "errors") {
        let about = format!("error {}", member(error, "attempt"));
        let texts = [member(error, "occurred_at"), member(error, "code"), member(error, "message")];
        details.text(&about, texts.join("  "));
        details.members(error, &["output", "details", "stack"]);
    }
    details.print(terminal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_took_the_quotes_of_gets_them_back() {
        let words = |words: &[&str]| joined(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["state:discarded", "error:timed out"]), "state:discarded error:\"timed out\"");
        assert_eq!(words(&["error:\"timed out\""]), "error:\"timed out\"");
        assert_eq!(words(&["timed out"]), "\"timed out\"");
        assert_eq!(words(&["state:discarded queue:email"]), "state:discarded queue:email");
    }
}
