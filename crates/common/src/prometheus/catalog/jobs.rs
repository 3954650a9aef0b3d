//! The metrics of jobs and their attempts.

use super::{MetricSpec, counter, histogram};

pub(super) const JOBS: &[MetricSpec] = &[
    counter("galley_jobs_enqueued_total", &["queue"], "jobs", "Jobs stored by this process"),
    counter("galley_attempts_total", &["queue", "outcome"], "attempts", "Attempts that this worker ended").explained("attempts that this worker ended. `outcome`: `completed`, `retryable` (failed, another follows), `discarded`, `stale` (another worker has the job, nothing was recorded), `snoozed`, `waiting` (for a signal or a time), `released`, `expired`, `handed_over` (its endpoint completes it later)"),
    histogram("galley_attempt_seconds", &["queue", "outcome"], "seconds", "From claim to end of an attempt, with the outcomes of galley_attempts_total"),
    counter("galley_jobs_promoted_total", &["queue"], "jobs", "Scheduled and retryable jobs that became available"),
    counter("galley_leases_lost_total", &["queue"], "attempts", "Attempts whose lease expired or whose worker died"),
    counter("galley_attempts_stuck_total", &["queue"], "attempts", "Attempts whose handler ran on after its time limit without yielding: their leases were given up"),
    counter("galley_damaged_jobs_total", &["queue"], "entries", "Entries of a queue that Galley cannot read: another program writes to Galley's keys").explained("entries of a queue that Galley cannot read: another program writes to Galley's keys, or this process lacks the key that sealed them"),
    counter("galley_dead_letters_dropped_total", &["queue"], "jobs", "Dead letters deleted because their queue had more than jobs.dead_letter_max"),
    counter("galley_job_log_lines_dropped_total", &[], "lines", "Lines that handlers logged and that Redis did not take, or not before their attempt was over"),
    counter("galley_events_dropped_total", &[], "events", "Events lost before they were written, under pressure or while Redis was away"),
    counter("galley_statistics_dropped_total", &[], "tallies", "Counts of a queue in a minute that are missing in the history, because Redis did not take them for long"),
    counter("galley_invariant_violations_total", &["queue", "kind"], "findings", "Contradictions that the consistency check found, each time it sees one").explained("contradictions that the [consistency check](../operations.md#check-stored-data) found, each time it sees one; `queue` is empty for what belongs to none"),
    counter("galley_invariant_repairs_total", &[], "findings", "Contradictions that the consistency check repaired").explained("those that it repaired"),
    histogram("galley_queue_wait_seconds", &["queue"], "seconds", "From the moment a job became available to the claim of an attempt"),
    histogram("galley_claim_batch_jobs", &[], "jobs", "Jobs that one claim took, without claims that found none"),
    counter("galley_result_bytes_total", &["queue"], "bytes", "Bytes of the results of completed jobs, with what is kept of each job"),
    counter("galley_stale_tokens_total", &[], "requests", "Reports of attempts that are not the current one any more: refused with 409, nothing was recorded"),
    counter("galley_lease_renewals_total", &["result"], "leases", "Leases that this process renewed, or found lost").explained("leases that this process renewed: those of its own attempts, and at a gateway those of attempts that clients fetched. `result`: `renewed`, or `lost` (another worker has the job, or it was cancelled)"),
    histogram("galley_schedule_lateness_seconds", &[], "seconds", "From the time at which a scheduled or retryable job was due to when it became available").explained("from the time at which a scheduled or retryable job was due to when it became available. The leader makes them available, so only its process shows it"),
];
