//! Galley's worker for queues: takes jobs, runs their handlers and records how they ended.

mod attempt;
mod bell;
mod bridge;
mod claim;
#[doc(hidden)]
pub mod command;
mod commit;
mod doorbell;
mod handlers;
mod in_flight;
mod presence;
mod renew;
mod turns;
mod worker;

use common::cli;

/// The life of a worker's process: command line, settings, telemetry, jobs until a signal.
///
/// # Errors
/// Settings that cannot be used, and what keeps the worker from working.
pub fn main() -> anyhow::Result<()> {
    // Before anything else: this process may have been started to become a program
    command::launch::intercept();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(cli::run_service(
        "queue-worker",
        |settings| settings.queue_worker.listen,
        async |settings, stop| worker::Worker::build(settings).await?.run_until(stop).await,
    ))
}
