//! Handlers that take several jobs in one call.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Context, HandlerError};

/// How many jobs a handler takes in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobsPerCall {
    /// The most jobs in one call.
    pub count: usize,
    /// How long the first job waits for others.
    pub delay: Duration,
}

/// Gathers jobs, each in its own attempt, and calls a handler once for all of them. So each job is stopped, settled and
/// retried by itself.
pub(crate) struct Gathering<A, R, F> {
    handler: Arc<F>,
    limits: JobsPerCall,
    /// To the task that gathers; started with the first job.
    jobs: OnceLock<UnboundedSender<GatheredJob<A, R>>>,
}

struct GatheredJob<A, R> {
    context: Context,
    arguments: A,
    /// Closed when its attempt was stopped.
    outcome: oneshot::Sender<Result<R, HandlerError>>,
}

impl<A, R, F, Fut> Gathering<A, R, F>
where
    A: Send + 'static,
    R: Send + 'static,
    F: Fn(Vec<(Context, A)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static,
{
    pub(crate) fn new(handler: F, limits: JobsPerCall) -> Self {
        Self { handler: Arc::new(handler), limits, jobs: OnceLock::new() }
    }

    /// The outcome of this job, from the call that it is in. Dropped, it takes the job out of a call that has not begun.
    pub(crate) async fn run(&self, context: Context, arguments: A) -> Result<R, HandlerError> {
        let finishing = context.finishing().clone();
        let jobs = self.jobs.get_or_init(|| {
            let (sender, jobs) = unbounded_channel();
            tokio::spawn(gather(jobs, self.handler.clone(), self.limits, finishing));
            sender
        });
        let (outcome, result) = oneshot::channel();
        let is_sent = jobs.send(GatheredJob { context, arguments, outcome }).is_ok();
        let ended = || Err(HandlerError::retryable("the process stops"));
        if is_sent { result.await.unwrap_or_else(|_| ended()) } else { ended() }
    }
}

/// Begins a call when it has `count` jobs, when its first one has waited for `delay`, and at once when the worker stops.
async fn gather<A, R, F, Fut>(
    mut jobs: UnboundedReceiver<GatheredJob<A, R>>,
    handler: Arc<F>,
    limits: JobsPerCall,
    finishing: CancellationToken,
) where
    A: Send + 'static,
    R: Send + 'static,
    F: Fn(Vec<(Context, A)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>> + Send + 'static,
{
    while let Some(first) = jobs.recv().await {
        let mut call = vec![first];
        let mut begin = Instant::now() + limits.delay;
        while call.len() < limits.count {
            let next = tokio::select! {
                next = jobs.recv() => next,
                () = tokio::time::sleep_until(begin) => None,
                () = finishing.cancelled() => None,
            };
            let Some(next) = next else { break };
            call.retain(|job| !job.outcome.is_closed());
            if call.is_empty() {
                begin = Instant::now() + limits.delay;
            }
            call.push(next);
        }
        call.retain(|job| !job.outcome.is_closed());
        if !call.is_empty() {
            tokio::spawn(run_call(handler.clone(), call));
        }
    }
}

/// Calls the handler, and ends it where it waits when nobody wants any of its results.
async fn run_call<A, R, F, Fut>(handler: Arc<F>, call: Vec<GatheredJob<A, R>>)
where
    F: Fn(Vec<(Context, A)>) -> Fut,
    Fut: Future<Output = Result<Vec<Result<R, HandlerError>>, HandlerError>>,
{
    let count = call.len();
    let (mut outcomes, mut jobs) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for GatheredJob { context, arguments, outcome } in call {
        outcomes.push(outcome);
        jobs.push((context, arguments));
    }
    // A panic fails these jobs and nothing else
    let results = AssertUnwindSafe(async { handler(jobs).await }).catch_unwind();
    let results = tokio::select! {
        results = results => results.unwrap_or_else(|panic| Err(HandlerError::panicked(&*panic))),
        _ = join_all(outcomes.iter_mut().map(oneshot::Sender::closed)) => return,
    };
    let results = results.and_then(|results| {
        let given = results.len();
        let wrong = || HandlerError::not_retryable(format!("the handler gave {given} results for {count} jobs"));
        if given == count { Ok(results) } else { Err(wrong()) }
    });
    let results = results.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect());
    for (outcome, result) in outcomes.into_iter().zip(results) {
        // An attempt that was stopped meanwhile does not hear it
        let _ = outcome.send(result);
    }
}
