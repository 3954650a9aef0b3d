//! `galley`: see and steer Galley from a terminal or a script. `main` only wires: the command line does the rest.
//!
//! It speaks HTTP with a gateway and nothing else, except `dev`, which starts programs, and `doctor`, which asks Redis.
//! Whatever came from a client of Galley is shown with its control characters escaped.

#![expect(clippy::doc_markdown, reason = "comments of options are the help, which is no Markdown")]

mod channel_list;
mod channels;
mod command_line;
mod completions;
mod config;
mod confirm;
mod cron;
mod dead_letters;
mod debug;
mod dev;
mod doctor;
mod event_stream;
mod events;
mod failure;
mod gateway_client;
mod input;
mod jobs;
mod keys;
mod log_level;
mod maintenance;
mod progress;
mod push_rules;
mod queues;
#[cfg(test)]
mod reference;
mod session;
mod statistics;
mod subscriptions;
mod table;
mod terminal;
mod top;
mod workers;
mod workflows;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    command_line::GalleyCli::parse().run()
}
