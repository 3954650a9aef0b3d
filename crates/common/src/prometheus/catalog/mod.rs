//! Every metric, declared once: its help text, which Prometheus shows beside it, and `docs/reference/metrics.md` follow from
//! the declaration. `deploy/dev/check-docs.py` compares the names with those that the code counts.

mod channels;
mod flows;
mod http;
mod jobs;
mod page;
mod process;
mod redis;

pub use page::page as reference;

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The declaration of a metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct MetricSpec {
    pub(super) name: &'static str,
    pub(super) kind: MetricKind,
    pub(super) labels: &'static [&'static str],
    unit: &'static str,
    pub(super) help: &'static str,
    /// For the page, if it says more than the help text.
    explanation: &'static str,
}

type LabelNames = &'static [&'static str];

const fn counter(name: &'static str, labels: LabelNames, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: MetricKind::Counter, labels, unit, help, explanation: "" }
}

const fn gauge(name: &'static str, labels: LabelNames, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: MetricKind::Gauge, labels, unit, help, explanation: "" }
}

const fn histogram(name: &'static str, labels: LabelNames, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: MetricKind::Histogram, labels, unit, help, explanation: "" }
}

impl MetricSpec {
    const fn explained(self, explanation: &'static str) -> Self {
        Self { explanation, ..self }
    }
}

/// All metrics, by the headings of the page.
const SECTIONS: &[(&str, &[MetricSpec])] = &[
    ("HTTP", http::HTTP),
    ("Jobs", jobs::JOBS),
    ("Queues", flows::QUEUES),
    ("Workflows", flows::WORKFLOWS),
    ("Cron", flows::CRON),
    ("Channels", channels::CHANNELS),
    ("Subscriptions", channels::SUBSCRIPTIONS),
    ("Redis", redis::REDIS),
    ("Process", process::PROCESS),
];

/// All metrics.
pub(super) fn all() -> impl Iterator<Item = &'static MetricSpec> {
    SECTIONS.iter().flat_map(|(_, specs)| specs.iter())
}

/// Gives the recorder the help texts.
pub(super) fn describe_all() {
    for spec in all() {
        match spec.kind {
            MetricKind::Counter => describe_counter!(spec.name, spec.help),
            MetricKind::Gauge => describe_gauge!(spec.name, spec.help),
            MetricKind::Histogram => describe_histogram!(spec.name, spec.help),
        }
    }
}

/// Shows counters without labels from the start, at 0, so that `increase()` sees their first count; and again regularly, since
/// what does not change for long is dropped.
pub(super) fn keep_plain_counters() {
    for spec in all().filter(|spec| spec.kind == MetricKind::Counter && spec.labels.is_empty()) {
        // The others are shown when somebody asks for the metrics
        if !super::SHOWN_ON_REQUEST.contains(&spec.name) {
            metrics::counter!(spec.name).increment(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{reference as page, *};

    #[test]
    fn the_page_of_metrics_is_what_the_catalog_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).expect("the file can be written");
        }
        let present = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            present == page(),
            "to write it again: UPDATE_DOCS=1 cargo test -p galley-common --features service catalog"
        );
    }

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut names = BTreeSet::new();
        for spec in all() {
            let name = spec.name;
            assert!(names.insert(name), "{name} is declared twice");
            assert!(name.starts_with("galley_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), spec.kind == MetricKind::Counter, "{name}");
            for unit in ["seconds", "bytes"] {
                let base = name.trim_end_matches("_total");
                assert_eq!(spec.unit == unit, base.ends_with(&format!("_{unit}")), "{name} is in {}", spec.unit);
            }
            assert!(!spec.help.is_empty() && !spec.help.contains('\n') && !spec.help.ends_with('.'), "{name}");
        }
    }
}
