//! A help text for every metric, which Prometheus shows beside it. `docs/reference/metrics.md` says more; a test compares the
//! two lists.

use metrics::{describe_counter, describe_gauge, describe_histogram};

enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

const HELP: &[(&str, MetricKind, &str)] = &[
    ("galley_http_requests_total", Counter, "Requests that the gateway answered"),
    ("galley_http_request_seconds", Histogram, "From the head of a request to its answer"),
    (
        "galley_http_malformed_requests_total",
        Counter,
        "What clients sent that is no HTTP request: answered 400 or 431, and not logged",
    ),
    ("galley_http_refused_connections_total", Counter, "Connections closed at once: too many in all or of one address"),
    ("galley_tls_failed_handshakes_total", Counter, "Clients that could not agree on TLS, or did not in time"),
    ("galley_file_reloads_total", Counter, "Times that files of keys or certificates changed: used or refused"),
    ("galley_waiters", Gauge, "Requests that wait for results or jobs at this gateway"),
    ("galley_event_streams", Gauge, "Clients that follow events at this gateway"),
    ("galley_channel_readers", Gauge, "Streams and waiting history requests at this gateway"),
    ("galley_key_limits_exceeded_total", Counter, "Requests of keys over their limit, answered 429"),
    ("galley_token_keys_failed_total", Counter, "Failed readings of the keys of the issuer of tokens"),
    ("galley_audit_failed_total", Counter, "Admin actions that are missing in the audit"),
    ("galley_jobs_enqueued_total", Counter, "Jobs stored by this process"),
    ("galley_attempts_total", Counter, "Attempts that this worker ended"),
    (
        "galley_attempt_seconds",
        Histogram,
        "From claim to end of an attempt, with the outcomes of galley_attempts_total",
    ),
    ("galley_queue_jobs", Gauge, "Jobs of the queues of this worker, when the metrics are read"),
    ("galley_jobs_promoted_total", Counter, "Scheduled and retryable jobs that became available"),
    ("galley_memory_used_bytes", Gauge, "Memory of Redis that a kind of data takes, about"),
    ("galley_memory_budget_bytes", Gauge, "Memory of Redis that a kind of data may take"),
    (
        "galley_memory_trimmed_total",
        Counter,
        "Dead letters and entries of events that were dropped to keep their budget",
    ),
    (
        "galley_jobs_postponed_total",
        Counter,
        "Failed attempts that were not recorded because Redis had no room for records",
    ),
    ("galley_results_dropped_total", Counter, "Results that were not stored because Redis is nearly full"),
    (
        "galley_dead_letters_dropped_total",
        Counter,
        "Dead letters deleted because their queue had more than jobs.dead_letter_max",
    ),
    (
        "galley_messages_unfiltered_total",
        Counter,
        "Messages that say that they are JSON and cannot be read: delivered without asking the filter",
    ),
    ("galley_redis_clock_steps_total", Counter, "How often this process saw Redis's clock set"),
    ("galley_leases_lost_total", Counter, "Attempts whose lease expired or whose worker died"),
    (
        "galley_damaged_jobs_total",
        Counter,
        "Entries of a queue that Galley cannot read: another program writes to Galley's keys",
    ),
    (
        "galley_damaged_messages_total",
        Counter,
        "Messages that could not be opened: sealed with a key that this process lacks, or changed in Redis",
    ),
    (
        "galley_attempts_stuck_total",
        Counter,
        "Attempts whose handler ran on after its time limit without yielding: their leases were given up",
    ),
    (
        "galley_job_log_lines_dropped_total",
        Counter,
        "Lines that handlers logged and that Redis did not take, or not before their attempt was over",
    ),
    (
        "galley_events_dropped_total",
        Counter,
        "Events lost before they were written, under pressure or while Redis was away",
    ),
    (
        "galley_statistics_dropped_total",
        Counter,
        "Counts of a queue in a minute that are missing in the history, because Redis did not take them for long",
    ),
    (
        "galley_invariant_violations_total",
        Counter,
        "Contradictions that the consistency check found, each time it sees one",
    ),
    ("galley_invariant_repairs_total", Counter, "Contradictions that the consistency check repaired"),
    ("galley_workflows_created_total", Counter, "Workflows created: chain, group, batch"),
    ("galley_workflows_ended_total", Counter, "Workflows that ended"),
    ("galley_cron_fired_total", Counter, "Runs that created a job"),
    ("galley_cron_skipped_total", Counter, "Runs that created no job: overlap policy, full queue, invalid template"),
    ("galley_cron_missed_total", Counter, "Runs that were due while no gateway and no queue-worker ran"),
    ("galley_messages_published_total", Counter, "Messages that this process published"),
    ("galley_messages_trimmed_total", Counter, "Messages that maintenance trimmed from histories"),
    ("galley_channels_followed", Gauge, "Channels that this gateway is subscribed to for its readers"),
    (
        "galley_messages_heard_total",
        Counter,
        "Messages that this pubsub-worker received and logged (pubsub_worker.channels)",
    ),
    ("galley_messages_dropped_total", Counter, "Received messages that found no room in a buffer of this process"),
    ("galley_subscriptions_lost_total", Counter, "Lost connections to Redis's pub/sub"),
    (
        "galley_probe_seconds",
        Histogram,
        "How long a message takes that a process sends itself over pub/sub; readers wait as long",
    ),
    (
        "galley_probes_lost_total",
        Counter,
        "Messages that a process sent itself over pub/sub and that did not come back",
    ),
    ("galley_deliveries_total", Counter, "Attempts to deliver a message of a subscription"),
    (
        "galley_delivery_records_dropped_total",
        Counter,
        "Attempts to deliver that are missing in their log, because Redis did not take them",
    ),
    ("galley_subscription_gaps_total", Counter, "Gaps: messages that were no longer kept before they were delivered"),
    (
        "galley_subscription_overtaken_total",
        Counter,
        "Messages lost because the subscription needed more than channels.backlog_max_messages or _bytes",
    ),
    ("galley_messages_given_up_total", Counter, "Messages dropped: neither delivered nor kept as a job"),
    ("galley_subscriptions_disabled_total", Counter, "Subscriptions that Galley disabled"),
    ("galley_subscriptions_restored_total", Counter, "Subscriptions that a worker restored after Redis lost them"),
    ("galley_subscription_groups_lost_total", Counter, "Consumer groups that were lost and created again"),
    ("galley_redis_connect_failures_total", Counter, "Failed attempts to connect to Redis"),
    ("galley_log_lines_lost_total", Counter, "Log lines lost because nothing read them in time"),
];

/// Gives the recorder the help texts.
pub(crate) fn describe_all() {
    for (name, kind, help) in HELP {
        match kind {
            Counter => describe_counter!(*name, *help),
            Gauge => describe_gauge!(*name, *help),
            Histogram => describe_histogram!(*name, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_documented_metric_has_a_help_text() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");
        let page = std::fs::read_to_string(page).expect("the page");
        let cells = page.lines().filter_map(|line| line.strip_prefix("| `galley_")?.split('`').next());
        let documented: BTreeSet<String> = cells.map(|name| format!("galley_{name}")).collect();
        let helped: BTreeSet<String> = HELP.iter().map(|(name, _, _)| (*name).to_owned()).collect();
        assert_eq!(helped, documented);
        assert!(HELP.iter().all(|(_, _, help)| !help.is_empty() && !help.contains('\n')));
    }
}
