//! `galley jobs retry`, `cancel` and `delete`: jobs by their ids, or all that match a search.

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::show_job;
use crate::{
    confirm::Confirmation,
    failure::{CliError, CliResult},
    gateway_client::{GatewayCall, escaped},
    progress::LongWork,
    session::{Session, items},
    table::member,
};

/// How often a bulk action is asked to go on. Each time it does as many as it may.
const MAX_ROUNDS: usize = 100_000;

/// Jobs in one request that acts, so that the bar moves.
const PAGE: u64 = 1000;
/// Jobs that one request counts, and how many requests do.
const MAX_COUNTED: u64 = 10_000;
const COUNT_ROUNDS: usize = 20;
const MAX_SHOWN_ERRORS: usize = 20;

/// An action on jobs.
pub(crate) struct JobAction {
    /// The part of the path of bulk actions.
    name: &'static str,
    past: &'static str,
    /// Whether even one job is asked about.
    is_final: bool,
}

pub(crate) const RETRY: JobAction = JobAction { name: "retry", past: "retried", is_final: false };
pub(crate) const CANCEL: JobAction = JobAction { name: "cancel", past: "cancelled", is_final: false };
pub(crate) const DELETE: JobAction = JobAction { name: "delete", past: "deleted", is_final: true };

#[derive(Debug, Args)]
pub(crate) struct BulkArgs {
    /// The ids of jobs.
    #[arg(required_unless_present = "matching", conflicts_with = "matching")]
    ids: Vec<String>,
    /// All jobs that match a search, as `galley jobs list` has it: 'state:discarded queue:email'.
    #[arg(long, value_name = "QUERY")]
    matching: Option<String>,
    /// With --matching: count, and do nothing.
    #[arg(long, requires = "matching")]
    dry_run: bool,
    /// With --matching: at most this number.
    #[arg(long, requires = "matching")]
    limit: Option<u64>,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl BulkArgs {
    pub(crate) async fn run(self, session: &Session, action: &JobAction) -> CliResult {
        match &self.matching {
            Some(query) => self.all_that_match(session, action, query).await,
            None => self.each(session, action).await,
        }
    }

    async fn each(&self, session: &Session, action: &JobAction) -> CliResult {
        if action.is_final {
            let what = match self.ids.as_slice() {
                [id] => format!("job {id}"),
                ids => format!("{} jobs, {} first", ids.len(), ids[0]),
            };
            self.confirmation.ask(&format!("{} {what}? This cannot be undone.", capital(action.name)))?;
        }
        let mut problems = 0_u64;
        for id in &self.ids {
            let done = match action.name {
                "delete" => session.act(one(action, id), &format!("job {id} is deleted")).await,
                _ => show_job(session, one(action, id)).await,
            };
            match done {
                Ok(()) => {}
                // The others are still wanted
                Err(problem @ CliError::Refused(_)) if self.ids.len() > 1 => {
                    problems += 1;
                    eprintln!("galley: job {id}: {problem}");
                }
                Err(problem) => return Err(problem),
            }
        }
        if problems > 0 {
            return Err(CliError::failed(format!("{problems} of {} were not {}", self.ids.len(), action.past)));
        }
        Ok(())
    }

    async fn all_that_match(&self, session: &Session, action: &JobAction, query: &str) -> CliResult {
        let counted = self.count(session, action, query).await?;
        let or_more = if counted.has_more { " or more" } else { "" };
        let what = format!("{}{or_more} jobs match {query:?}", counted.matched);
        if self.dry_run || counted.matched == 0 {
            if session.terminal.json {
                return session.terminal.json_bytes(&counted.last);
            }
            return session.terminal.line(&what);
        }
        let end = if action.is_final { " This cannot be undone." } else { "" };
        self.confirmation.ask(&format!("{} jobs? {what}.{end}", capital(action.name)))?;
        let mut work = LongWork::begin(session, counted.matched, action.past);
        let (mut done, mut failed, mut after) = (0, 0, None::<String>);
        for _ in 0..MAX_ROUNDS {
            let left = self.limit.unwrap_or(u64::MAX).saturating_sub(done + failed);
            if left == 0 {
                break;
            }
            let value = work.send(bulk(action, query, left.min(PAGE), after.as_deref(), false)).await?;
            let number = |name: &str| value[name].as_u64().unwrap_or(0);
            work.count(number("succeeded"), number("failed"));
            done += number("succeeded");
            failed += number("failed");
            for problem in items(&value, "errors").iter().take(MAX_SHOWN_ERRORS) {
                session.terminal.note(&format!("job {}: {}", member(problem, "job_id"), member(problem, "error")));
            }
            after = value["next"].as_str().map(str::to_owned);
            if after.is_none() {
                break;
            }
        }
        work.end()?;
        if failed > 0 { Err(CliError::failed(format!("{failed} were not {}", action.past))) } else { Ok(()) }
    }

    /// How many match, as far as a few searches see.
    async fn count(&self, session: &Session, action: &JobAction, query: &str) -> CliResult<CountedJobs> {
        let (mut matched, mut after) = (0, None::<String>);
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut rounds = 0;
        loop {
            let page = (limit - matched).min(MAX_COUNTED);
            let answer = session.gateway.send(bulk(action, query, page, after.as_deref(), true)).await?;
            let value = answer.value()?;
            matched += value["matched"].as_u64().unwrap_or(0);
            after = value["next"].as_str().map(str::to_owned);
            rounds += 1;
            if after.is_none() || matched >= limit || rounds >= COUNT_ROUNDS {
                return Ok(CountedJobs { matched, has_more: after.is_some() && matched < limit, last: answer.body });
            }
        }
    }
}

/// What a count found.
struct CountedJobs {
    matched: u64,
    has_more: bool,
    /// The last answer, for `--json`.
    last: Bytes,
}

fn bulk(action: &JobAction, query: &str, limit: u64, after: Option<&str>, dry_run: bool) -> GatewayCall {
    let mut body = json!({ "filter": { "q": query }, "dry_run": dry_run, "confirm": !dry_run, "limit": limit });
    if let Some(after) = after {
        body["after"] = after.into();
    }
    GatewayCall::post(format!("/ojs/v1/admin/jobs/bulk/{}", action.name)).json(&body)
}

/// The request for one job.
fn one(action: &JobAction, id: &str) -> GatewayCall {
    let id = escaped(id);
    match action.name {
        "cancel" => GatewayCall::delete(format!("/ojs/v1/jobs/{id}")),
        "retry" => GatewayCall::post(format!("/ojs/v1/jobs/{id}/retry")),
        _ => GatewayCall::delete(format!("/ojs/v1/admin/jobs/{id}?confirm=true")),
    }
}

pub(crate) fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
