//! What runs a job: a handler for each job type.

mod conformance;
mod demo;

use std::{any::Any, collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use common::{
    id::JobId,
    job::{Advice, Envelope},
    name::{JobType, QueueName, WorkerId},
    redis::jobs::{Claimed, Jobs},
};
use tokio_util::sync::CancellationToken;

use crate::worker::Shared;

/// A result is JSON or nothing.
pub(crate) type HandlerResult = Result<Option<String>, HandlerError>;
type Running = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
type Handler = Arc<dyn Fn(Context) -> Running + Send + Sync>;

/// What a handler is given.
pub(crate) struct Context {
    pub(crate) id: JobId,
    pub(crate) queue: QueueName,
    pub(crate) attempt: u32,
    pub(crate) job_type: JobType,
    pub(crate) envelope: Envelope,
    parent_results: Option<String>,
    pub(crate) worker: WorkerId,
    pub(crate) jobs: Jobs,
    /// Cancelled when the job is: a handler that is in the middle of something may want to tidy up.
    #[expect(dead_code, reason = "the built-in handlers have nothing to tidy up")]
    pub(crate) cancelled: CancellationToken,
}

impl Context {
    pub(crate) fn new(claimed: &Claimed, shared: &Shared, cancelled: CancellationToken) -> Self {
        Self {
            id: claimed.job.id,
            queue: claimed.job.queue.clone(),
            attempt: claimed.job.history.current_attempt(),
            job_type: claimed.job.summary.job_type.clone(),
            envelope: claimed.job.envelope.clone(),
            parent_results: claimed.job.parent_results.clone(),
            worker: shared.settings.queue_worker.name.clone(),
            jobs: shared.jobs.clone(),
            cancelled,
        }
    }

    /// The arguments, each as the JSON that came.
    fn args(&self) -> Result<Vec<Box<serde_json::value::RawValue>>, HandlerError> {
        let parts = self.envelope.parts().map_err(|error| HandlerError::bad_arguments(&error.to_string()))?;
        serde_json::from_str(parts.args.get()).map_err(|error| HandlerError::bad_arguments(&error.to_string()))
    }

    /// The results of the jobs before this one in its workflow: a JSON array, empty for a job that has none before it.
    fn parent_results(&self) -> &str {
        self.parent_results.as_deref().unwrap_or("[]")
    }
}

/// How a handler failed.
#[derive(Debug, Clone)]
pub(crate) struct HandlerError {
    pub(crate) code: String,
    pub(crate) error_type: String,
    pub(crate) message: String,
    pub(crate) advice: Advice,
}

impl HandlerError {
    fn new(code: &str, message: impl Into<String>, advice: Advice) -> Self {
        Self { code: code.to_owned(), error_type: code.to_owned(), message: message.into(), advice }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self::new("handler_error", message, Advice::ByPolicy)
    }

    fn bad_arguments(message: &str) -> Self {
        Self::new("invalid_payload", message, Advice::Never)
    }

    /// Another worker may know the type, or this one after an update.
    fn not_found(job_type: &JobType) -> Self {
        Self::new("handler_not_found", format!("no handler for jobs of type {job_type}"), Advice::ByPolicy)
    }

    pub(crate) fn timed_out(limit: Duration) -> Self {
        Self::new(
            "timeout",
            format!("the attempt took longer than its timeout of {} ms", limit.as_millis()),
            Advice::ByPolicy,
        )
    }

    pub(crate) fn result_too_large(limit: usize) -> Self {
        Self::new("result_too_large", format!("the result has more than {limit} bytes"), Advice::Never)
    }

    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned());
        Self::new("handler_panic", format!("the handler panicked: {text}"), Advice::ByPolicy)
    }
}

/// The handlers of this process, by job type.
pub(crate) struct Handlers(HashMap<String, Handler>);

impl Handlers {
    /// Those that come with the worker: the seed's kitchen and what the conformance suites name.
    pub(crate) fn built_in() -> Self {
        let mut handlers = Self(HashMap::new());
        demo::register(&mut handlers);
        conformance::register(&mut handlers);
        handlers
    }

    fn add<F, R>(&mut self, job_type: &str, handler: F)
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: Future<Output = HandlerResult> + Send + 'static,
    {
        self.0.insert(job_type.to_owned(), Arc::new(move |context| Box::pin(handler(context))));
    }

    /// Runs the handler of a job's type.
    pub(crate) async fn run(&self, context: Context) -> HandlerResult {
        match self.0.get(context.job_type.as_str()) {
            Some(handler) => handler(context).await,
            None => Err(HandlerError::not_found(&context.job_type)),
        }
    }
}
