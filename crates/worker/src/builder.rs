//! Builds a worker: handlers in Rust first, then the settings.

use std::future::Future;

use common::{name::JobType, settings::Settings};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    handlers::{Context, HandlerError, Handlers, JobsPerCall},
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
    most_jobs_per_call: Vec<(String, usize)>,
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

    /// Adds a handler that takes several jobs of a type in one call: as many as have come, up to `limits.count`, once the
    /// first one has waited for `limits.delay`. It gives a result for each of them, in their order; an error of its own
    /// fails all of them. Each job occupies one of `queue_worker.concurrency`, has its own time limit, and is cancelled,
    /// settled and retried by itself. A handler whose jobs are all stopped is dropped where it waits.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use galley_worker::{Context, HandlerError, JobsPerCall, Worker};
    /// async fn index(jobs: Vec<(Context, (String,))>) -> Result<Vec<Result<(), HandlerError>>, HandlerError> {
    ///     // One request for all of them
    ///     Ok(jobs.iter().map(|_| Ok(())).collect())
    /// }
    ///
    /// Worker::builder().handler_of_many("page.index", JobsPerCall { count: 50, delay: Duration::from_secs(1) }, index);
    /// ```
    #[must_use]
    pub fn handler_of_many<A, R, F, Fut>(mut self, job_type: &str, limits: JobsPerCall, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Vec<(Context, A)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static,
    {
        self.validate_job_type(job_type);
        if limits.count == 0 {
            self.problems.push(format!("{job_type}: count must be at least 1"));
        }
        self.most_jobs_per_call.push((job_type.to_owned(), limits.count));
        self.handlers.add_for_many(job_type, limits, handler);
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
        let concurrency = settings.queue_worker.concurrency;
        let too_many = self.most_jobs_per_call.iter().filter(|(_, count)| *count > concurrency);
        self.problems.extend(too_many.map(|(job_type, count)| {
            format!("{job_type}: no call has {count} jobs, because queue_worker.concurrency is {concurrency}")
        }));
        anyhow::ensure!(self.problems.is_empty(), "{}", self.problems.join("; "));
        Ok(self.handlers)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

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
        let many = |count| {
            let limits = JobsPerCall { count, delay: Duration::ZERO };
            problem(WorkerBuilder::default().handler_of_many("many", limits, |jobs: Vec<(Context, ())>| async move {
                Ok(jobs.iter().map(|_| Ok(())).collect())
            }))
        };
        assert_eq!(many(100), "");
        assert_eq!(many(101), "many: no call has 101 jobs, because queue_worker.concurrency is 100");
        assert!(many(0).contains("count must be at least 1"));
        assert!(
            problem(WorkerBuilder::default().configure(|builder, _| builder.handler("B", nothing)))
                .contains("type must match")
        );
    }
}
