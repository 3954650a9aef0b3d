//! `galley log-level`: what all processes log, changed while they run.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{failure::CliResult, gateway_client::GatewayCall, session::Session, table::Details, terminal::Terminal};

const PATH: &str = "/v1/admin/log-level";

#[derive(Debug, Subcommand)]
pub(crate) enum LogLevelCommand {
    /// Show what is logged.
    Show,
    /// Log more or less in all processes, now and when they start.
    Set(LogLevelSetArgs),
    /// Return to the level of the settings.
    Reset,
}

#[derive(Debug, Args)]
pub(crate) struct LogLevelSetArgs {
    /// error, warn, info, debug, trace or off; with modules: info,store=debug.
    level: String,
    /// Until when: PT10M is ten minutes. Else until it is reset.
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
}

impl LogLevelCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let call = match self {
            Self::Show => GatewayCall::get(PATH),
            Self::Set(LogLevelSetArgs { level, duration: None }) => {
                GatewayCall::put(PATH).json(&json!({ "level": level }))
            }
            Self::Set(LogLevelSetArgs { level, duration }) => {
                GatewayCall::put(PATH).json(&json!({ "level": level, "duration": duration }))
            }
            Self::Reset => GatewayCall::delete(PATH),
        };
        session.show(call, show_level).await.map(drop)
    }
}

fn show_level(answer: &Value, terminal: Terminal) -> CliResult {
    Details::default().members(answer, &["level", "until", "configured"]).print(terminal)
}
