//! Spans of jobs that are put into their queues.

use common::{
    id::JobId,
    telemetry::spans::{ActiveSpan, Operation, SpanDescription, attribute},
    trace_context::{SpanReference, TraceContext},
};
use model::job::NewJob;

/// The span of a job that is put into its queue. Nothing is recorded before it is known what became of it: several processes
/// may make the same job at once, and only one of them does.
#[derive(Debug)]
pub(crate) struct EnqueueSpan {
    span: ActiveSpan,
    /// None if it is not sampled.
    description: Option<Box<SpanDescription>>,
}

impl EnqueueSpan {
    /// Starts a span with links to what the job follows from.
    pub(crate) fn start(new: &NewJob, trace: &TraceContext, causes: impl IntoIterator<Item = SpanReference>) -> Self {
        let span = ActiveSpan::prepare(trace);
        let description = span.is_sampled().then(|| {
            let description = SpanDescription::messaging(Operation::Enqueue, new.queue.as_str());
            Box::new(description.with("galley.job.type", new.summary.job_type.to_string()).with_links(causes))
        });
        Self { span, description }
    }

    /// What to store with the job.
    pub(crate) fn context(&self) -> &TraceContext {
        self.span.context()
    }

    /// The job is in its queue.
    pub(crate) fn record_enqueued(self, id: JobId) {
        self.record(|span| span.set(attribute::MESSAGING_MESSAGE_ID, id.to_string()));
    }

    /// The job is refused: what a client asked for, and may happen at any time.
    pub(crate) fn record_refused(self) {
        self.record(|span| span.set("galley.outcome", "refused"));
    }

    /// It is not known whether the job is in its queue.
    pub(crate) fn record_failed(self) {
        self.record(|span| span.fail("not_enqueued", None));
    }

    fn record(mut self, finish: impl FnOnce(&mut ActiveSpan)) {
        if let Some(description) = self.description {
            self.span.record(*description);
            finish(&mut self.span);
        }
    }
}

/// The span of jobs that are put into their queues together: each job's trace continues it.
pub(super) fn batch_span(jobs: &[NewJob], trace: &TraceContext) -> ActiveSpan {
    ActiveSpan::start(trace, || {
        let queue = jobs.first().map_or("", |job| job.queue.as_str());
        SpanDescription::messaging(Operation::Enqueue, queue).with_batch(jobs.len())
    })
}
