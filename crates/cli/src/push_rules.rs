//! `galley push-rules`: what endpoints answered to jobs, by the rule of a queue-worker that sent them.

use clap::{Args, Subcommand};

use crate::{
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    jobs::show_job,
    session::Session,
    subscriptions::attempt_table,
};

#[derive(Debug, Subcommand)]
pub(crate) enum PushRulesCommand {
    /// List the last attempts of a rule and how each went.
    Attempts(RuleAttemptsArgs),
    /// Send the job of an attempt again, now: a failed one begins anew.
    Resend(RuleResendArgs),
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

fn path(rule: &str) -> String {
    format!("/v1/push-rules/{}/attempts", escaped(rule))
}
