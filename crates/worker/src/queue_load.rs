//! How much waits in the queues of this worker, as metrics to scale by. They are read when somebody looks at them.

use std::sync::Arc;

use common::health::MetricsRefresh;

use crate::shared::WorkerShared;

/// Reads the queues and sets `galley_queue_jobs`. What cannot be read stays as it was.
pub(crate) fn refresh(shared: &Arc<WorkerShared>) -> MetricsRefresh {
    let shared = shared.clone();
    Arc::new(move || {
        let shared = shared.clone();
        Box::pin(async move {
            for queue in &shared.settings.queue_worker.queues {
                let Ok(stats) = shared.jobs.queue_stats(queue).await else { continue };
                for (state, jobs) in [("available", stats.available), ("active", stats.active)] {
                    let labels = [("queue", queue.to_string()), ("state", state.to_owned())];
                    metrics::gauge!("galley_queue_jobs", &labels).set(to_f64(jobs));
                }
            }
        })
    })
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn to_f64(jobs: u64) -> f64 {
    jobs as f64
}
