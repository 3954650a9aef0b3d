//! Builds a worker: handlers in Rust first, then the settings.

use std::future::Future;

use common::{name::JobType, settings::Settings};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    handlers::{Context, HandlerError, Handlers},
    shared::RunMode,
    worker::Worker,
};

impl Worker {
    /// Starts a worker without handlers.
    #[must_use]
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder::default()
    }
}

/// A worker under construction. See [`Worker::builder`].
#[derive(Default)]
pub struct WorkerBuilder {
    handlers: Handlers,
    problems: Vec<String>,
    run_mode: RunMode,
    configure: Option<ConfigureFn>,
}

type ConfigureFn = Box<dyn FnOnce(WorkerBuilder, &Settings) -> WorkerBuilder + Send>;

impl WorkerBuilder {
    /// Adds a handler for a job type. The job's arguments, a JSON array, are parsed as `A`, usually a tuple. The
    /// handler's return value is the job's result, as JSON.
    ///
    /// A handler may run more than once for a job: after a failure, and when a worker dies during the attempt. A panic
    /// counts as a failure.
    #[must_use]
    pub fn handler<A, R, F, Fut>(mut self, job_type: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.validate_job_type(job_type);
        self.handlers.add_typed(job_type, handler);
        self
    }

    /// Adds a handler that computes or blocks instead of awaiting; it runs on a separate thread. Such a handler cannot
    /// be dropped halfway, so a long one should check [`Context::cancellation`] from time to time.
    #[must_use]
    pub fn blocking_handler<A, R, F>(mut self, job_type: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, A) -> Result<R, HandlerError> + Send + Sync + 'static,
    {
        self.validate_job_type(job_type);
        self.handlers.add_blocking(job_type, handler);
        self
    }

    fn validate_job_type(&mut self, job_type: &str) {
        if let Err(error) = job_type.parse::<JobType>() {
            self.problems.push(error.to_string());
        }
        if self.handlers.contains(job_type) {
            self.problems.push(format!("there are two handlers for {job_type}"));
        }
    }

    /// Adds handlers that depend on the settings, which are read later, when the worker is built.
    #[must_use]
    pub fn configure(mut self, configure: impl FnOnce(Self, &Settings) -> Self + Send + 'static) -> Self {
        self.configure = Some(Box::new(configure));
        self
    }

    /// Sets when the worker stops by itself; the default is [`RunMode::Continuous`].
    #[must_use]
    pub fn run_mode(mut self, until: RunMode) -> Self {
        self.run_mode = until;
        self
    }

    /// Connects the worker. Needs a multi-threaded tokio runtime.
    ///
    /// # Errors
    /// Two handlers for one type, invalid settings or rules, or a Redis server that is configured to lose jobs.
    pub async fn build(self, settings: Settings) -> anyhow::Result<Worker> {
        let until = self.run_mode;
        let handlers = self.into_handlers(&settings)?;
        Worker::build(settings, handlers, until).await
    }

    pub(crate) fn into_handlers(mut self, settings: &Settings) -> anyhow::Result<Handlers> {
        if let Some(configure) = self.configure.take() {
            self = configure(self, settings);
        }
        anyhow::ensure!(self.problems.is_empty(), "{}", self.problems.join("; "));
        Ok(self.handlers)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    async fn nothing(_: Context, (): ()) -> Result<(), HandlerError> {
        Ok(())
    }

    #[test]
    fn a_type_that_is_none_and_two_handlers_for_one_are_errors() {
        let settings = Settings::from_sources(None, HashMap::new()).expect("the defaults");
        let problem = |builder: WorkerBuilder| {
            builder.into_handlers(&settings).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(problem(WorkerBuilder::default().handler("Email", nothing)).contains("type must match"));
        assert!(
            problem(WorkerBuilder::default().handler("a", nothing).handler("a", nothing))
                .contains("two handlers for a")
        );
        let configured =
            WorkerBuilder::default().handler("a", nothing).configure(|builder, _| builder.handler("b", nothing));
        let handlers = configured.into_handlers(&settings).expect("two handlers");
        assert!(handlers.contains("a") && handlers.contains("b"));
        assert!(
            problem(WorkerBuilder::default().configure(|builder, _| builder.handler("B", nothing)))
                .contains("type must match")
        );
    }
}
