//! Galley's HTTP interface. `main` only wires: the command line does the rest.

mod answer_budget;
mod audit;
mod auth;
mod body;
mod body_budget;
mod body_limits;
mod client_presence;
mod code;
mod code_list;
mod command_line;
mod confirmation;
mod context;
mod dashboard;
mod error;
mod idempotency;
mod job_event;
mod job_event_source;
mod job_waiters;
mod key_usage;
mod last_event_id;
mod media_type;
mod message_socket;
mod message_source;
mod output_source;
mod process_facts;
mod pull_workers;
mod request_check;
mod routes;
mod services;
mod site_check;
mod sse;
mod startup;
mod stream_limit;
mod tokens;
mod totals_cache;
mod wake_relay;

use std::process::ExitCode;

use common::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    cli::exit_code("gateway", Box::pin(command_line::run()).await)
}
