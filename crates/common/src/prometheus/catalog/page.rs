//! `docs/reference/metrics.md`, as the declarations say. A test compares it with the file.

use std::fmt::Write;

use super::SECTIONS;

const HEAD: &str = "\
# Metrics

<!-- Generated from crates/common/src/prometheus/catalog: do not edit. To write it again:
UPDATE_DOCS=1 cargo test -p galley-common --features service catalog -->

Every service shows its metrics at `/metrics` as Prometheus text: the gateway on its own port, the workers on 8081
(queue-worker) and 8082 (pubsub-worker). [Observability](../observability.md#metrics) says how to collect them, which alerts
and dashboards come with Galley, and what each alert asks of you.

Durations are histograms in seconds, with buckets from 0.5 ms to 60 s. Counters without labels are there from the start; others
appear with their first count. A series that does not change for `metrics.idle_timeout_ms` (15 minutes) is dropped until it
counts again, from 0. At most `metrics.max_label_values` (200) queues have series of their own, and as many subscriptions and
channels; the others are counted together as `_other`. What the leader reads from Redis (queues, lags, durability) only its
process shows, every `metrics.interval_ms` (15 s); when another process becomes the leader, the series move there.
";

/// The page of metrics.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for (heading, specs) in SECTIONS {
        let _ = write!(page, "\n## {heading}\n\n| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
        for spec in *specs {
            let labels: Vec<String> = spec.labels.iter().map(|label| format!("`{label}`")).collect();
            let (first, rest) = spec.help.split_at(1);
            // A word such as "HTTP" keeps its letters
            let keeps = rest.starts_with(|c: char| c.is_uppercase());
            let help = if keeps { spec.help.to_owned() } else { first.to_lowercase() + rest };
            let meaning = if spec.explanation.is_empty() { help } else { spec.explanation.to_owned() };
            let row = [&format!("`{}`", spec.name), spec.kind.as_str(), &labels.join(", "), spec.unit, &meaning];
            let cells = row.map(|cell| if cell.is_empty() { " ".to_owned() } else { format!(" {cell} ") });
            let _ = writeln!(page, "|{}|", cells.join("|"));
        }
    }
    page
}
