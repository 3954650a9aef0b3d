//! Putting a worker together: its handlers in Rust, then its settings.

use std::future::Future;

use common::{name::JobType, settings::Settings};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    command_line,
    handlers::{Context, HandlerError, Handlers},
    worker::{Until, Worker},
};

/// A worker to be. See [`Worker::builder`].
#[derive(Default)]
pub struct Builder {
    own: Handlers,
    problems: Vec<String>,
    until: Until,
}

impl Builder {
    /// Adds a handler for jobs of a type. The arguments of a job, a JSON array, are read as `A`: a tuple, as a rule. What
    /// it returns is the result of the job, as JSON.
    ///
    /// A handler may run more than once for a job: when a worker vanishes in between, and after a failure. One that
    /// panics has failed.
    #[must_use]
    pub fn handler<A, R, F, Fut>(mut self, job_type: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.note(job_type);
        self.own.add_typed(job_type, handler);
        self
    }

    /// Adds a handler that does not await but computes, or calls what blocks: it runs on a thread of its own. It cannot be
    /// dropped half-way, so one that takes long should look at [`Context::cancellation`] now and then.
    #[must_use]
    pub fn blocking_handler<A, R, F>(mut self, job_type: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, A) -> Result<R, HandlerError> + Send + Sync + 'static,
    {
        self.note(job_type);
        self.own.add_blocking(job_type, handler);
        self
    }

    fn note(&mut self, job_type: &str) {
        if let Err(error) = job_type.parse::<JobType>() {
            self.problems.push(error.to_string());
        }
        if self.own.contains(job_type) {
            self.problems.push(format!("there are two handlers for {job_type}"));
        }
    }

    /// Lets it work for so long instead of until it is stopped.
    #[must_use]
    pub fn until(mut self, until: Until) -> Self {
        self.until = until;
        self
    }

    /// Makes the worker. Needs a tokio runtime with several threads.
    ///
    /// # Errors
    /// Two handlers for a type, settings or rules that cannot be used, or a Redis that would lose jobs.
    pub async fn build(self, settings: Settings) -> anyhow::Result<Worker> {
        let until = self.until;
        Worker::build(settings, self.handlers()?, until).await
    }

    /// The whole life of a worker's process: its command line, settings, telemetry, and jobs until a signal. For the
    /// `main` of a binary; to be called before there is a runtime or another thread.
    ///
    /// # Errors
    /// What keeps the worker from working.
    pub fn main(self) -> anyhow::Result<()> {
        command_line::run(self)
    }

    pub(crate) fn handlers(self) -> anyhow::Result<Handlers> {
        anyhow::ensure!(self.problems.is_empty(), "{}", self.problems.join("; "));
        Ok(Handlers::built_in().overridden_by(&self.own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn nothing(_: Context, (): ()) -> Result<(), HandlerError> {
        Ok(())
    }

    #[test]
    fn a_type_that_is_none_and_two_handlers_for_one_are_errors() {
        let problem = |builder: Builder| builder.handlers().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(problem(Builder::default().handler("Email", nothing)).contains("type must match"));
        assert!(problem(Builder::default().handler("a", nothing).handler("a", nothing)).contains("two handlers for a"));
        let own =
            Builder::default().handler("test.echo", nothing).handlers().expect("own ones go before those built in");
        assert!(own.contains("test.noop"));
    }
}
