//! `galley maintenance`: hold all queues, scheduled jobs and cron while something else is worked on.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    confirm::Confirmation, failure::CliResult, gateway_client::GatewayCall, session::Session, table::Details,
    terminal::Terminal,
};

const PATH: &str = "/ojs/v1/admin/system/maintenance";

#[derive(Debug, Subcommand)]
pub(crate) enum MaintenanceCommand {
    /// Show whether maintenance mode is on.
    Show,
    /// Workers claim no jobs, and neither scheduled jobs nor cron start any; clients may enqueue.
    On(MaintenanceOnArgs),
    /// Go on.
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct MaintenanceOnArgs {
    /// Why, for those who look.
    #[arg(long)]
    reason: Option<String>,
    /// How long it will take, such as PT30M. It does not end by itself.
    #[arg(long, value_name = "DURATION")]
    estimate: Option<String>,
    #[command(flatten)]
    confirmation: Confirmation,
}

impl MaintenanceCommand {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let call = match self {
            Self::Show => GatewayCall::get(PATH),
            Self::On(MaintenanceOnArgs { reason, estimate, confirmation }) => {
                confirmation.ask("Hold all queues, scheduled jobs and cron until \"galley maintenance off\"?")?;
                let body = json!({ "enabled": true, "reason": reason, "estimated_duration": estimate });
                GatewayCall::post(PATH).json(&without_null(&body))
            }
            Self::Off => GatewayCall::post(PATH).json(&json!({ "enabled": false })),
        };
        session.show(call, show_mode).await.map(drop)
    }
}

fn without_null(body: &Value) -> Value {
    let members = body.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    members.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn show_mode(answer: &Value, terminal: Terminal) -> CliResult {
    let mut details = Details::default();
    details.text("maintenance", if answer["enabled"] == true { "on" } else { "off" });
    details.members(answer, &["reason", "enabled_at", "estimated_end"]).print(terminal)
}
