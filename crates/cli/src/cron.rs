//! `galley cron`.

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use crate::{
    confirm::Confirmation,
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    input,
    jobs::{JobOptions, OptionMembers, show_job},
    queues::PageArgs,
    session::{Session, items},
    table::{Details, TextTable, member, shown},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum CronCommand {
    /// List cron entries with their next runs.
    List(PageArgs),
    /// Show a cron entry.
    Show(CronArg),
    /// Register a cron entry, or change the one of that name.
    Set(Box<CronSetArgs>),
    /// Enqueue its job now, beside the schedule.
    Run(CronArg),
    /// Disable: no runs until it is resumed.
    Pause(CronArg),
    /// Enable.
    Resume(CronArg),
    /// Show the next runs.
    Next(CronNextArgs),
    /// Delete a cron entry. Its jobs stay.
    Delete(CronDeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CronArg {
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct CronSetArgs {
    name: String,
    /// Five or six fields such as '0 3 * * *', or @daily, @every 10m.
    expression: String,
    /// The type of its jobs.
    #[arg(value_name = "TYPE")]
    job_type: String,
    /// Their arguments as a JSON array; `-` reads it from standard input, @file from a file.
    #[arg(default_value = "[]")]
    args: String,
    /// An IANA name such as Europe/Berlin; UTC unless set.
    #[arg(long)]
    timezone: Option<String>,
    /// When the job of the run before has not ended: skip, allow, cancel_previous or enqueue.
    #[arg(long, value_name = "POLICY")]
    overlap: Option<String>,
    /// What it is for.
    #[arg(long)]
    description: Option<String>,
    /// Register it without runs until it is resumed.
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    options: JobOptions,
}

#[derive(Debug, Args)]
pub(crate) struct CronNextArgs {
    name: String,
    /// How many: 1 to 100.
    #[arg(long, default_value_t = 10)]
    count: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CronDeleteArgs {
    name: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

/// A cron entry as the gateway reads it.
#[derive(Serialize)]
struct CronBody {
    name: String,
    expression: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    enabled: bool,
    job_template: CronJobBody,
}

#[derive(Serialize)]
struct CronJobBody {
    #[serde(rename = "type")]
    job_type: String,
    args: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Box<RawValue>>,
    options: OptionMembers,
}

impl CronCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => session.list(page.call("/ojs/v1/cron"), "crons", "no cron entries", cron_table).await,
            Self::Show(CronArg { name }) => session.show(GatewayCall::get(cron_path(&name)), show_cron).await.map(drop),
            Self::Set(args) => args.run(session).await,
            Self::Run(CronArg { name }) => {
                let call = GatewayCall::post(format!("{}/trigger", cron_path(&name)));
                let call = call.header("Idempotency-Key", Uuid::new_v4().to_string());
                show_job(session, call).await
            }
            Self::Pause(CronArg { name }) => switch(session, &name, "disable").await,
            Self::Resume(CronArg { name }) => switch(session, &name, "enable").await,
            Self::Next(CronNextArgs { name, count }) => {
                let path = PathWithQuery::new(format!("{}/next", cron_path(&name))).with("count", Some(count));
                let show = |answer: &Value, terminal: Terminal| {
                    items(answer, "next_runs").iter().try_for_each(|run| terminal.line(&shown(run)))
                };
                session.show(path.into_call(), show).await.map(drop)
            }
            Self::Delete(CronDeleteArgs { name, confirmation }) => {
                confirmation.ask(&format!("Delete cron entry {name:?}? Its jobs stay."))?;
                session.act(GatewayCall::delete(cron_path(&name)), &format!("cron entry {name:?} is deleted")).await
            }
        }
    }
}

impl CronSetArgs {
    async fn run(self, session: &Session) -> CliResult {
        let body = CronBody {
            name: self.name,
            expression: self.expression,
            timezone: self.timezone,
            overlap_policy: self.overlap,
            description: self.description,
            enabled: !self.paused,
            job_template: CronJobBody {
                job_type: self.job_type,
                args: input::json_array("ARGS", &self.args)?,
                meta: self.options.meta()?,
                options: self.options.members()?,
            },
        };
        let body = serde_json::to_vec(&body).map_err(|error| CliError::failed(error.to_string()))?;
        session.show(GatewayCall::post("/ojs/v1/cron").bytes("application/json", body), show_cron).await.map(drop)
    }
}

async fn switch(session: &Session, name: &str, action: &str) -> CliResult {
    session.show(GatewayCall::post(format!("{}/{action}", cron_path(name))), show_cron).await.map(drop)
}

fn cron_path(name: &str) -> String {
    format!("/ojs/v1/cron/{}", escaped(name))
}

fn state(cron: &Value) -> &'static str {
    if cron["enabled"] == false { "paused" } else { "enabled" }
}

fn cron_table(crons: &[Value]) -> TextTable {
    let mut table =
        TextTable::new(&["name", "state", "expression", "time zone", "type", "next run", "last run", "runs"]);
    for cron in crons {
        table.row([
            member(cron, "name"),
            state(cron).to_owned(),
            member(cron, "expression"),
            member(cron, "timezone"),
            member(&cron["job_template"], "type"),
            member(cron, "next_run_at"),
            member(cron, "last_run_at"),
            member(cron, "run_count"),
        ]);
    }
    table
}

fn show_cron(answer: &Value, terminal: Terminal) -> CliResult {
    let cron = &answer["cron"];
    if terminal.quiet {
        return terminal.line(&member(cron, "name"));
    }
    let mut details = Details::default();
    details.members(cron, &["name"]).text("state", state(cron));
    details.members(cron, &["expression", "timezone", "overlap_policy", "description", "next_run_at", "last_run_at"]);
    details.members(cron, &["last_job_id", "run_count", "skipped_count", "missed_count", "waiting_count"]);
    details.members(&cron["job_template"], &["type", "args", "options", "meta"]);
    details.print(terminal)
}
