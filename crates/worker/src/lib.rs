//! Galley's queue worker: claims jobs, runs their handlers and records the outcomes.
//!
//! Its life of a job: `claim` acquires permits and claims jobs, `attempt` runs the handler, `results` records
//! successes in batches and `settlement` every other outcome. The worker promises at-least-once: an attempt whose
//! outcome is not recorded runs again.
//!
//! | module | what it does |
//! |---|---|
//! | `builder`, `command_line` | build a worker from handlers and settings; the command line of its process |
//! | `worker`, `shared` | start and stop the parts in order; the state that they share |
//! | `claim` | permits first, then jobs; blocks on all streams when there is no work |
//! | `queue_selector` | the order in which queues are asked, strict or by weight |
//! | `queue_states` | what the claim loop knows of its queues: which may have jobs, which fail |
//! | `slots` | permits: the maximum number of jobs at a time, in total and per queue |
//! | `wakeup` | ends a blocked claim early and stops cancelled jobs |
//! | `attempt` | one attempt: handler, time limit, panic, stop |
//! | `in_flight`, `lease_renewal` | the claimed jobs of this process; renews their leases |
//! | `results` | records successes, many in one script call |
//! | [`settlement`] | records how one attempt ended, until Redis answers; also for redeliveries of subscriptions |
//! | [`pulled_queue`] | claims and runs the jobs of one queue by long poll; subscriptions retry with it |
//! | `handlers` | handlers in Rust and their [`Context`]; `command` and `http` run jobs elsewhere |
//! | `rules` | the rules file: which handler, endpoint or program runs a job type |
//! | `heartbeat`, `heartbeat_state` | report this process, receive directives; quiet or not |
//! | `list_bridge` | turns the elements of a Redis list into jobs |
//!
//! As a library it runs handlers in Rust:
//!
//! ```no_run
//! use galley_worker::{Context, HandlerError, Worker};
//!
//! async fn send(context: Context, (to, subject): (String, String)) -> Result<usize, HandlerError> {
//!     if to.is_empty() {
//!         return Err(HandlerError::not_retryable("nobody to send it to"));
//!     }
//!     context.progress(0.5).await?;
//!     context.log(format!("writing to {to}"));
//!     Ok(subject.len())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Worker::builder()
//!         .handler("email.send", send)
//!         .handler("email.count", |_context, addresses: Vec<String>| async move { Ok(addresses.len()) })
//!         .main()
//! }
//! ```

mod attempt;
mod attempt_times;
mod builder;
mod claim;
mod command_line;
mod handlers;
mod heartbeat;
mod heartbeat_state;
mod in_flight;
mod lease_renewal;
mod list_bridge;
pub mod pulled_queue;
mod queue_selector;
mod queue_states;
mod results;
mod rules;
pub mod settlement;
mod settlement_report;
mod shared;
#[cfg(test)]
mod simulation;
mod slots;
mod wakeup;
mod worker;

pub use builder::WorkerBuilder;
pub use common::{
    id::JobId,
    name::{JobType, QueueName},
    settings::Settings,
};
pub use handlers::{Approval, Context, ContextError, HandlerError, JobsPerCall, ReceivedSignal};
pub use list_bridge::list_element;
pub use model::job::{LogLevel, RetryAdvice};
pub use shared::RunMode;
pub use tokio_util::sync::CancellationToken;
pub use worker::Worker;
