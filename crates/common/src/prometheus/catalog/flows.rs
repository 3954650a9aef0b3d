//! The metrics of queues, workflows and cron.

use super::{MetricSpec, counter, gauge};

pub(super) const QUEUES: &[MetricSpec] = &[
    gauge("galley_queue_jobs", &["queue", "state"], "jobs", "Jobs of a queue by state: available, active, scheduled, retryable, pending").explained("jobs of a queue that are `available` (wait for a worker), `active`, `scheduled`, `retryable` (wait for their next attempt) or `pending` (wait to be activated). Scale by `max by (queue, state)`"),
    gauge("galley_queue_oldest_age_seconds", &["queue"], "seconds", "How long the job has waited that has waited longest for a worker, 0 if none waits"),
    gauge("galley_dead_letters", &["queue"], "jobs", "Dead letters of a queue: jobs that failed for good and are kept"),
    gauge("galley_queue_paused", &["queue"], "", "Whether somebody paused the queue: 1 or 0"),
];

pub(super) const WORKFLOWS: &[MetricSpec] = &[
    counter("galley_workflows_created_total", &["type"], "workflows", "Workflows created: chain, group, batch, dag"),
    counter("galley_workflows_ended_total", &["type", "state"], "workflows", "Workflows that ended")
        .explained("workflows that ended: `completed`, `failed`, `cancelled`"),
];

pub(super) const CRON: &[MetricSpec] = &[
    counter("galley_cron_fired_total", &[], "runs", "Runs that created a job"),
    counter(
        "galley_cron_skipped_total",
        &[],
        "runs",
        "Runs that created no job: overlap policy, full queue, invalid template",
    ),
    counter("galley_cron_missed_total", &[], "runs", "Runs that were due while no gateway and no queue-worker ran"),
];
