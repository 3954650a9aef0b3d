//! The metrics of the process itself.

use super::{MetricSpec, counter, gauge};

pub(super) const PROCESS: &[MetricSpec] = &[
    counter("galley_log_lines_lost_total", &[], "lines", "Log lines lost because nothing read them in time").explained("log lines lost because nothing read them in time. A service does not wait for its log"),
    counter("galley_spans_sent_total", &[], "spans", "Spans that the receiver of traces took").explained("spans that the receiver of [traces](../observability.md#traces) took"),
    counter("galley_spans_lost_total", &["reason"], "spans", "Spans that never reached the receiver of traces").explained("spans that never reached it. `reason`: `queue_full` (`telemetry.max_queued_spans`: it is away or too slow), `not_sent` (it refused them, or could not be reached), `shutdown` (it did not take them in time)"),
    counter("galley_log_records_sent_total", &[], "lines", "Log lines that the receiver of logs took").explained("log lines that the receiver of [logs over OTLP](../observability.md#metrics-and-logs-over-otlp) took"),
    counter("galley_log_records_lost_total", &["reason"], "lines", "Log lines that never reached the receiver of logs").explained("log lines that never reached it, and were written all the same. `reason` as for spans, with `telemetry.max_queued_log_records`"),
    counter("galley_metric_points_sent_total", &[], "points", "Values that the receiver of metrics took").explained("values that the receiver of [metrics over OTLP](../observability.md#metrics-and-logs-over-otlp) took"),
    counter("galley_metric_points_lost_total", &["reason"], "points", "Values that never reached the receiver of metrics").explained("values that never reached it: the next message has newer ones. `reason`: `not_sent`, `shutdown`"),
    gauge("galley_build_info", &["version", "service"], "", "1, with the version of this process"),
    gauge("galley_leader", &[], "", "Whether this process does the maintenance: 1 or 0").explained("whether this process does the maintenance: 1 or 0. The sum over all processes is 1"),
    counter("galley_series_overflowed_total", &[], "values", "Values of a label that had no room beside the others and were counted as _other").explained("queues, subscriptions and channels that had no room beside the others (`metrics.max_label_values`) and were counted as `_other`, once for each time that a thread asked"),
    counter("process_cpu_seconds_total", &[], "seconds", "User and system time of this process").explained("user and system time of this process. On Linux, as those below"),
    gauge("process_resident_memory_bytes", &[], "bytes", "Resident memory of this process"),
    gauge("process_open_fds", &[], "files", "Open files and connections of this process"),
    gauge("process_max_fds", &[], "files", "Files and connections that this process may have open"),
    gauge("process_start_time_seconds", &[], "seconds", "When this process started, in seconds since 1970"),
];
