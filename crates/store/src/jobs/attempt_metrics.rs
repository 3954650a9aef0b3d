//! Metrics of attempts that ended: how many, how long their jobs waited and they ran.

use common::{name::QueueName, time::Millis};

use super::ClaimedJob;

/// Counts attempts of a queue with one outcome. It registers the metrics with the first one, and keeps them for a batch.
pub struct AttemptMetrics<'a> {
    queue: &'a QueueName,
    outcome: &'static str,
    metrics: Option<Registered>,
}

struct Registered {
    attempts: metrics::Counter,
    run: metrics::Histogram,
    wait: metrics::Histogram,
}

impl<'a> AttemptMetrics<'a> {
    /// For attempts of a queue that end with this outcome.
    #[must_use]
    pub fn new(queue: &'a QueueName, outcome: &'static str) -> Self {
        Self { queue, outcome, metrics: None }
    }

    /// Counts an attempt that ended then.
    pub fn count(&mut self, claimed: &ClaimedJob, ended_at: Millis) {
        let Self { queue, outcome, metrics } = self;
        let registered = metrics.get_or_insert_with(|| Registered::new(queue, outcome));
        registered.attempts.increment(1);
        registered.run.record(seconds(ended_at - claimed.started_at));
        registered.wait.record(seconds(claimed.waited_ms()));
    }

    /// Counts the bytes of results of jobs that completed.
    pub fn add_result_bytes(&self, bytes: usize) {
        if bytes > 0 {
            metrics::counter!("galley_result_bytes_total", "queue" => self.queue.to_string()).increment(bytes as u64);
        }
    }
}

impl Registered {
    fn new(queue: &QueueName, outcome: &'static str) -> Self {
        let labels = [("queue", queue.to_string()), ("outcome", outcome.to_owned())];
        Self {
            attempts: metrics::counter!("galley_attempts_total", &labels),
            run: metrics::histogram!("galley_attempt_seconds", &labels),
            wait: metrics::histogram!("galley_queue_wait_seconds", &labels[..1]),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run are far below 2^52")]
fn seconds(millis: Millis) -> f64 {
    millis.max(0) as f64 / 1000.0
}
