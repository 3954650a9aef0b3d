//! What a task works on: the job, the request and the trace. Log lines say so, and what the task creates belongs to that
//! trace. A task that another one spawns works on nothing until it says so.

use std::{future::Future, sync::Arc};

use crate::{id::JobId, trace_context::TraceContext};

tokio::task_local! {
    static CURRENT: WorkScope;
}

/// What a task works on. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WorkScope {
    job: Option<JobId>,
    request: Option<Arc<str>>,
    trace: TraceContext,
}

impl WorkScope {
    /// An attempt at a job.
    #[must_use]
    pub fn of_job(job: JobId, trace: TraceContext) -> Self {
        Self { job: Some(job), request: None, trace }
    }

    /// A request with its id.
    #[must_use]
    pub fn of_request(request: &str, trace: TraceContext) -> Self {
        Self { job: None, request: Some(request.into()), trace }
    }

    /// Something that has only a trace.
    #[must_use]
    pub fn of_trace(trace: TraceContext) -> Self {
        Self { trace, ..Self::default() }
    }

    /// What the current task works on.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Its trace.
    #[must_use]
    pub fn trace(&self) -> &TraceContext {
        &self.trace
    }

    /// Its job.
    pub(super) fn job(&self) -> Option<JobId> {
        self.job
    }

    /// The id of its request.
    pub(super) fn request(&self) -> Option<&str> {
        self.request.as_deref()
    }

    /// Works on it, without waiting for anything.
    pub fn within<R>(self, work: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self, work)
    }

    /// Works on it.
    pub fn run<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }
}
