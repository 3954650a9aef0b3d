//! The command line: what there is, and who does it.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    channel_list::ChannelsCommand,
    channels::{PublishArgs, SubscribeArgs},
    completions::{CompletionsArgs, ManArgs},
    config::ConfigCommand,
    cron::CronCommand,
    dead_letters::DeadCommand,
    debug::DebugArgs,
    dev::DevArgs,
    doctor::DoctorArgs,
    events::{AuditArgs, EventsArgs},
    failure::{CliError, CliResult},
    gateway_client::GatewayClient,
    jobs::JobsCommand,
    keys::ApiKeysCommand,
    log_level::LogLevelCommand,
    maintenance::MaintenanceCommand,
    push_rules::PushRulesCommand,
    queues::QueuesCommand,
    session::Session,
    statistics::StatsArgs,
    subscriptions::SubscriptionsCommand,
    terminal::Terminal,
    top::TopArgs,
    workers::WorkersCommand,
    workflows::WorkflowsCommand,
};

const DEFAULT_URL: &str = "http://127.0.0.1:8080";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, refused or not found; 2 the command line is wrong; 3 no gateway answers;
130 long work was interrupted.";

/// See and steer Galley: jobs, queues, workers, channels, subscriptions, keys.
#[derive(Debug, Parser)]
#[command(name = "galley", version, propagate_version = true, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct GalleyCli {
    #[command(flatten)]
    globals: GlobalOptions,
    #[command(subcommand)]
    command: GalleyCommand,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct GlobalOptions {
    /// The gateway. Else GALLEY_URL, else `http://127.0.0.1:8080`.
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The key. Better GALLEY_KEY: other users of this machine can see command lines.
    #[arg(long, global = true, value_name = "KEY")]
    key: Option<String>,
    /// PEM file of the authorities that the certificate of an https gateway is checked against. Else GALLEY_CA_FILE,
    /// else those of this machine.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the gateway's answer as it is.
    #[arg(long, global = true)]
    json: bool,
    /// Print ids and names only, and no notes.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum GalleyCommand {
    /// List, enqueue, follow and change jobs.
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Show, pause, drain, limit and empty queues.
    #[command(subcommand)]
    Queues(QueuesCommand),
    /// Show workers, and take them out.
    #[command(subcommand)]
    Workers(WorkersCommand),
    /// Dead letters: what failed for good, by error.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Jobs that repeat.
    #[command(subcommand)]
    Cron(CronCommand),
    /// Chains, groups and batches of jobs.
    #[command(subcommand)]
    Workflows(WorkflowsCommand),
    /// Channels and the messages that they keep.
    #[command(subcommand)]
    Channels(ChannelsCommand),
    /// Publish a message.
    Publish(PublishArgs),
    /// Follow the messages of channels. Continues by itself after a lost connection.
    Subscribe(SubscribeArgs),
    /// Deliveries of messages to endpoints, queues and programs.
    #[command(subcommand)]
    Subscriptions(SubscriptionsCommand),
    /// Deliveries of jobs to the endpoints of rules.
    #[command(subcommand)]
    PushRules(PushRulesCommand),
    /// Follow or list the events of jobs.
    Events(EventsArgs),
    /// API keys.
    #[command(subcommand)]
    Keys(ApiKeysCommand),
    /// Who administered what, the newest first.
    Audit(AuditArgs),
    /// How many jobs there are, and what happened lately.
    Stats(StatsArgs),
    /// Hold all queues, scheduled jobs and cron, and let them go on.
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// What all processes log, changed while they run.
    #[command(subcommand)]
    LogLevel(LogLevelCommand),
    /// What a gateway or every process is doing: tasks, connections, the leader, the last problems, settings.
    Debug(DebugArgs),
    /// Queues and workers as they are now, live.
    Top(TopArgs),
    /// Run all of Galley on this machine, with a private Redis, until Ctrl-C.
    Dev(DevArgs),
    /// What is wrong with Redis, gateway and key, and how to mend it. Exit code 0 if nothing is.
    Doctor(DoctorArgs),
    /// Check and print the settings of services.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell: galley completions bash > /etc/bash_completion.d/galley.
    Completions(CompletionsArgs),
    /// Print the manual page.
    Man(ManArgs),
}

impl GalleyCli {
    pub(crate) fn run(self) -> ExitCode {
        let terminal = Terminal::new(self.globals.json, self.globals.quiet);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(self.command.run(&self.globals, terminal)),
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                if !matches!(error, CliError::OutputClosed) {
                    eprintln!("galley: {error}");
                }
                error.exit_code()
            }
        }
    }
}

impl GalleyCommand {
    async fn run(self, globals: &GlobalOptions, terminal: Terminal) -> CliResult {
        let session = || globals.session(terminal);
        match self {
            Self::Dev(args) => args.run(terminal).await,
            Self::Doctor(args) => args.run(&session()?).await,
            Self::Config(command) => command.run(terminal),
            Self::Completions(args) => args.run(GalleyCli::command(), terminal),
            Self::Man(args) => args.run(GalleyCli::command(), terminal),
            Self::Jobs(command) => command.run(&session()?).await,
            Self::Queues(command) => command.run(&session()?).await,
            Self::Workers(command) => command.run(&session()?).await,
            Self::Dead(command) => command.run(&session()?).await,
            Self::Cron(command) => command.run(&session()?).await,
            Self::Workflows(command) => command.run(&session()?).await,
            Self::Channels(command) => command.run(&session()?).await,
            Self::Publish(args) => args.run(&session()?).await,
            Self::Subscribe(args) => args.run(&session()?).await,
            Self::Subscriptions(command) => command.run(&session()?).await,
            Self::PushRules(command) => command.run(&session()?).await,
            Self::Events(args) => args.run(&session()?).await,
            Self::Keys(command) => command.run(&session()?).await,
            Self::Stats(args) => args.run(&session()?).await,
            Self::Maintenance(command) => command.run(&session()?).await,
            Self::LogLevel(command) => command.run(&session()?).await,
            Self::Debug(args) => args.run(&session()?).await,
            Self::Top(args) => args.run(&session()?).await,
            Self::Audit(args) => args.run(&session()?).await,
        }
    }
}

impl GlobalOptions {
    fn session(&self, terminal: Terminal) -> CliResult<Session> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = self.url.clone().or_else(|| variable("GALLEY_URL")).unwrap_or_else(|| DEFAULT_URL.to_owned());
        let key = self.key.clone().or_else(|| variable("GALLEY_KEY"));
        let ca_file = self.ca_file.clone().or_else(|| variable("GALLEY_CA_FILE").map(PathBuf::from));
        Ok(Session { gateway: GatewayClient::new(&url, key, ca_file.as_deref())?, terminal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_of_the_command_line_agree_with_each_other() {
        GalleyCli::command().debug_assert();
    }
}
