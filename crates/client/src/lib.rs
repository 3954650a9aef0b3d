//! A client of Galley: background jobs and channels over HTTP.
//!
//! It enqueues jobs and follows them:
//!
//! ```no_run
//! # async fn example() -> Result<(), galley_client::Error> {
//! use std::time::Duration;
//! use galley_client::{Client, JobState, NewJob};
//!
//! // GALLEY_URL and GALLEY_KEY
//! let galley = Client::from_env()?;
//! let new = NewJob::new("email.send", ("ann@example.com", "Hello"))?.queue("mail").delay(Duration::from_secs(30));
//! let job = galley.enqueue(new).await?;
//! let ended = galley.wait(&job.id, Duration::from_secs(90)).await?;
//! assert_eq!(ended.state, JobState::Completed);
//! let file: String = ended.result_as()?;
//! # Ok(())
//! # }
//! ```
//!
//! It publishes messages and follows channels. A subscription survives lost connections and restarts of gateways, and tells
//! when messages are missing because they are no longer kept:
//!
//! ```no_run
//! # async fn example() -> Result<(), galley_client::Error> {
//! use galley_client::{Client, Event};
//!
//! let galley = Client::new("https://galley.example.com")?.key("glk_...")?;
//! galley.publish("orders", &serde_json::json!({ "order": 7 })).await?;
//! let mut orders = galley.subscribe(["orders.*"]).since("-PT1H");
//! loop {
//!     match orders.next().await? {
//!         Event::Message(message) => println!("{}: {}", message.channel, message.data),
//!         Event::Gap(gap) => println!("{:?} messages of {} are gone", gap.count, gap.channel),
//!         _ => {}
//!     }
//! }
//! # }
//! ```
//!
//! Each request that makes something carries an `Idempotency-Key` and is sent again while the gateway is away, so it has one
//! effect however often it came through.

mod channel;
mod client;
mod delta;
mod error;
mod job;
mod sse;
mod transport;
mod workflow;

pub use channel::{Event, Gap, Member, Message, Presence, Subscription};
pub use client::Client;
pub use delta::{DeltaError, apply_delta};
pub use error::Error;
pub use job::{Job, JobState, NewJob, SentSignal, Wait};
pub use workflow::{NewWorkflow, Workflow, WorkflowMember, WorkflowStep};
