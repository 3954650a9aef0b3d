//! Galley's worker for queues: takes jobs, runs their handlers and records how they ended.
//!
//! As a library it runs handlers in Rust:
//!
//! ```no_run
//! use worker::{Context, HandlerError, Worker};
//!
//! async fn send(context: Context, (to, subject): (String, String)) -> Result<usize, HandlerError> {
//!     if to.is_empty() {
//!         return Err(HandlerError::not_retryable("nobody to send it to"));
//!     }
//!     context.progress(0.5).await?;
//!     Ok(subject.len())
//! }
//!
//! fn main() -> anyhow::Result<()> {
//!     Worker::builder()
//!         .handler("email.send", send)
//!         .handler("email.count", |_context, addresses: Vec<String>| async move { Ok(addresses.len()) })
//!         .main()
//! }
//! ```

mod attempt;
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
mod results;
mod rules;
pub mod settlement;
mod shared;
mod slots;
mod wakeup;
mod worker;

pub use builder::WorkerBuilder;
pub use common::{
    id::JobId,
    name::{JobType, QueueName},
    settings::Settings,
};
pub use handlers::{Context, ContextError, HandlerError};
pub use list_bridge::list_element;
pub use model::job::RetryAdvice;
pub use shared::RunMode;
pub use tokio_util::sync::CancellationToken;
pub use worker::Worker;
