//! Jobs: states, retry policy, enqueue request, stored form and view.
//!
//! Pure code, without Redis and without a clock. The store (`store::jobs`) stores jobs and asks this module what
//! happens next.

mod canonical_json;
pub mod envelope;
pub mod filter;
pub mod history;
pub mod limit;
pub mod log;
mod member_warnings;
pub mod on_conflict;
mod options;
pub mod progress;
pub mod request;
mod request_error;
pub mod retry;
pub mod search_text;
pub mod state;
pub mod unique;
pub mod view;
pub mod wait;

pub use envelope::{Envelope, EnvelopeSummary};
pub use filter::{JobFilter, MetaCondition};
pub use history::{AttemptError, JobHistory};
pub use limit::KeyLimit;
pub use log::{JobLogLine, JobLogLineError, LogLevel};
pub use member_warnings::managed_member_warning;
pub use on_conflict::OnConflict;
pub use options::{DEFAULT_QUEUE, MAX_TIMEOUT_MS};
pub use progress::JobProgress;
pub use request::NewJob;
pub use request_error::RequestError;
pub use retry::{RetryAdvice, RetryDecision, RetryPolicy};
pub use search_text::SearchTextError;
pub use state::{JobState, JobTransition};
pub use unique::UniquePolicy;
pub use wait::{JobSignal, JobWait};
