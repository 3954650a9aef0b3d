//! `galley push-rules`: what endpoints answered to jobs, by the rule of a queue-worker that sent them.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    jobs::show_job,
    queues::PageArgs,
    session::Session,
    subscriptions::attempt_table,
    table::{Details, TextTable, member},
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum PushRulesCommand {
    /// List the rules that sent jobs, with how many attempts are kept of each.
    List(PageArgs),
    /// Show a rule.
    Show(RuleArg),
    /// List the last attempts of a rule and how each went.
    Attempts(RuleAttemptsArgs),
    /// Send the job of an attempt again, now: a failed one begins anew.
    Resend(RuleResendArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RuleArg {
    /// The rule by its pattern of job types, such as email.* or *.
    rule: String,
}

#[derive(Debug, Args)]
pub(crate) struct RuleAttemptsArgs {
    /// The rule by its pattern of job types, such as email.* or *.
    rule: String,
    /// Only these: delivered or failed.
    #[arg(long)]
    outcome: Option<String>,
    /// At most this number.
    #[arg(long)]
    limit: Option<u32>,
    /// Older ones than this.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RuleResendArgs {
    rule: String,
    /// The id of the attempt, as `attempts` lists it.
    attempt: String,
}

impl PushRulesCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        match self {
            Self::List(page) => {
                session.list(page.call("/v1/push-rules"), "items", "no rule has sent a job", rule_table).await
            }
            Self::Show(RuleArg { rule }) => {
                let call = GatewayCall::get(format!("/v1/push-rules/{}", escaped(&rule)));
                session.show(call, show_rule).await.map(drop)
            }
            Self::Attempts(RuleAttemptsArgs { rule, outcome, limit, after }) => {
                let path = PathWithQuery::new(path(&rule)).with("outcome", outcome).with("limit", limit);
                session.list(path.with("after", after).into_call(), "items", "no attempts", attempt_table).await
            }
            Self::Resend(RuleResendArgs { rule, attempt }) => {
                show_job(session, GatewayCall::post(format!("{}/{}/resend", path(&rule), escaped(&attempt)))).await
            }
        }
    }
}

fn rule_table(rules: &[Value]) -> TextTable {
    let mut table = TextTable::new(&["rule", "last attempt", "delivered", "failed"]);
    for rule in rules {
        let attempts = &rule["attempts"];
        table.row([
            member(rule, "rule"),
            member(rule, "last_attempt_at"),
            member(attempts, "delivered"),
            member(attempts, "failed"),
        ]);
    }
    table
}

fn show_rule(rule: &Value, terminal: Terminal) -> CliResult {
    if terminal.quiet {
        return terminal.line(&member(rule, "rule"));
    }
    let mut details = Details::default();
    details.members(rule, &["rule", "last_attempt_at"]).members(&rule["attempts"], &["delivered", "failed"]);
    details.print(terminal)
}

fn path(rule: &str) -> String {
    format!("/v1/push-rules/{}/attempts", escaped(rule))
}
