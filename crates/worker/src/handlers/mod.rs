//! Handlers in Rust, one for each job type, and the two built-in ones: `command` and `http`.

mod attempt_log;
mod checkpoint;
pub(crate) mod command;
mod context;
mod error;
pub(crate) mod http;
mod many;
mod saved_state;
mod wait;

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use common::name::JobType;
use serde::{Serialize, de::DeserializeOwned};

use self::many::Gathering;
pub(crate) use error::parse_arguments;

pub use context::{Context, ContextError};
pub use error::HandlerError;
pub use many::JobsPerCall;
pub use wait::{Approval, ReceivedSignal};

/// How a handler ended without an error.
#[derive(Debug)]
pub(crate) enum HandlerOutcome {
    /// Success; the result is JSON or nothing.
    Completed(Option<String>),
    /// Success with a result that cannot be kept.
    CompletedWithoutResult {
        /// Why, for people.
        why: String,
    },
    /// The job cannot run now, through no fault of its own: the attempt does not count.
    Snoozed { delay: Duration, why: String },
    /// Another program finishes the job with this token.
    AsyncCompletion {
        token: String,
        /// How long that program may stay silent.
        lease: Duration,
    },
}

pub(crate) type HandlerResult = Result<HandlerOutcome, HandlerError>;
type HandlerFuture = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
type Handler = Arc<dyn Fn(Context) -> HandlerFuture + Send + Sync>;

/// Handlers by job type.
#[derive(Clone, Default)]
pub(crate) struct Handlers(HashMap<String, Handler>);

impl Handlers {
    /// Adds a handler that returns JSON text.
    fn add<F, R>(&mut self, job_type: &str, handler: F)
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<String>, HandlerError>> + Send + 'static,
    {
        let handler = move |context| -> HandlerFuture {
            let running = handler(context);
            Box::pin(async move { running.await.map(HandlerOutcome::Completed) })
        };
        self.0.insert(job_type.to_owned(), Arc::new(handler));
    }

    /// Adds a handler with typed arguments and a typed result.
    pub(crate) fn add_typed<A, R, F, Fut>(&mut self, job_type: &str, handler: F)
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.add(job_type, move |context: Context| {
            let handler = handler.clone();
            async move {
                let arguments = parse_arguments(&context.args()?)?;
                let result = handler(context, arguments).await?;
                result_to_json(&result)
            }
        });
    }

    /// Adds a typed handler that blocks; it runs on a separate thread.
    pub(crate) fn add_blocking<A, R, F>(&mut self, job_type: &str, handler: F)
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, A) -> Result<R, HandlerError> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.add_typed(job_type, move |context, arguments| {
            let handler = handler.clone();
            async move {
                match tokio::task::spawn_blocking(move || handler(context, arguments)).await {
                    Ok(result) => result,
                    // Pass a panic on to this task
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => Err(HandlerError::retryable("the process stops")),
                    },
                }
            }
        });
    }

    /// Adds a typed handler that takes several jobs in one call.
    pub(crate) fn add_for_many<A, R, F, Fut>(&mut self, job_type: &str, limits: JobsPerCall, handler: F)
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Vec<(Context, A)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static,
    {
        let gathering = Arc::new(Gathering::new(handler, limits));
        self.add_typed(job_type, move |context, arguments| {
            let gathering = gathering.clone();
            async move { gathering.run(context, arguments).await }
        });
    }

    pub(crate) fn contains(&self, job_type: &str) -> bool {
        self.0.contains_key(job_type)
    }

    /// Runs the handler with that name.
    pub(crate) async fn run(&self, name: &str, context: Context) -> HandlerResult {
        match self.0.get(name) {
            Some(handler) => handler(context).await,
            None => Err(HandlerError::handler_not_found(&JobType::clone(context.job_type()))),
        }
    }
}

/// Serializes a result; `()` and null are no result.
fn result_to_json(result: &impl Serialize) -> Result<Option<String>, HandlerError> {
    let json = serde_json::to_string(result)
        .map_err(|error| HandlerError::not_retryable(format!("the result is not JSON: {error}")))?;
    Ok(Some(json).filter(|json| json != "null"))
}
