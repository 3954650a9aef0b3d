//! Series that are read when somebody asks for the metrics, beside those that the recorder keeps: they cost nothing meanwhile,
//! and are gone with what they are about.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError, atomic::AtomicU64, atomic::Ordering::Relaxed},
};

use super::catalog;

/// Adds series; false if what it is about is gone, and it must not be asked again.
type SampleSource = Box<dyn Fn(&mut Samples) -> bool + Send + Sync>;

static SOURCES: Mutex<Vec<SampleSource>> = Mutex::new(Vec::new());

/// Asks `source` for series whenever somebody asks for the metrics, until it answers false: then what it is about is gone.
pub fn add_source(source: impl Fn(&mut Samples) -> bool + Send + Sync + 'static) {
    SOURCES.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
}

/// Series to show, by metric.
#[derive(Debug, Default)]
pub struct Samples {
    lines: BTreeMap<&'static str, Vec<String>>,
}

impl Samples {
    /// Those of all sources.
    pub(super) fn collect() -> Self {
        let mut samples = Self::default();
        SOURCES.lock().unwrap_or_else(PoisonError::into_inner).retain(|source| source(&mut samples));
        samples
    }

    /// Adds the value of a gauge.
    pub fn gauge(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "", labels, value);
    }

    /// Adds the value of a counter.
    pub fn counter(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "", labels, value);
    }

    /// Adds a histogram. One that has counted nothing is left out.
    pub fn histogram<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &[(&str, &str)],
        histogram: &AtomicHistogram<N>,
    ) {
        let mut count = 0;
        let (counts, sum) = histogram.read();
        if counts.iter().all(|count| *count == 0) {
            return;
        }
        let bounds = histogram.bounds.iter().map(|bound| (to_f64(*bound) / histogram.divisor).to_string());
        for (bound, counted) in bounds.chain(["+Inf".to_owned()]).zip(counts) {
            count += counted;
            let with_bound: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.add(name, "_bucket", &with_bound, to_f64(count));
        }
        self.add(name, "_sum", labels, to_f64(sum) / histogram.divisor);
        self.add(name, "_count", labels, to_f64(count));
    }

    fn add(&mut self, name: &'static str, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let mut line = format!("{name}{suffix}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(line, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            line.push('}');
        }
        let _ = write!(line, " {value}");
        self.lines.entry(name).or_default().push(line);
    }

    /// Appends them as Prometheus text.
    pub(super) fn render(self, text: &mut String) {
        for spec in catalog::all() {
            let Some(lines) = self.lines.get(spec.name) else { continue };
            let _ = writeln!(text, "# HELP {} {}", spec.name, spec.help);
            let _ = writeln!(text, "# TYPE {} {}", spec.name, spec.kind.as_str());
            for line in lines {
                text.push_str(line);
                text.push('\n');
            }
            text.push('\n');
        }
    }
}

/// A histogram that costs a few additions to count in, and never anything more: the one of the recorder keeps every value until
/// somebody collects them. Values and bounds are whole numbers of a unit.
#[derive(Debug)]
pub struct AtomicHistogram<const N: usize> {
    bounds: [u64; N],
    /// What shown numbers are smaller by.
    divisor: f64,
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> AtomicHistogram<N> {
    /// A histogram with these upper bounds. It is shown with numbers that are smaller by `divisor`.
    #[must_use]
    pub const fn new(bounds: [u64; N], divisor: f64) -> Self {
        Self {
            bounds,
            divisor,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value.
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound);
        bucket.map_or(&self.above, |bucket| &self.counts[bucket]).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// The number of values in each bucket, those above all bounds last, and their sum.
    fn read(&self) -> (Vec<u64>, u64) {
        let counts = self.counts.iter().chain([&self.above]).map(|count| count.load(Relaxed)).collect();
        (counts, self.sum.load(Relaxed))
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts with floats")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_shown_below_their_help() {
        let mut samples = Samples::default();
        samples.gauge("galley_queue_paused", &[("queue", "a\"b\\")], 1.0);
        samples.gauge("galley_leader", &[], 0.0);
        let mut text = String::new();
        samples.render(&mut text);
        assert!(text.contains("# TYPE galley_leader gauge\ngalley_leader 0\n"), "{text}");
        assert!(text.contains("galley_queue_paused{queue=\"a\\\"b\\\\\"} 1\n"), "{text}");
        assert!(text.contains("# HELP galley_queue_paused Whether"), "{text}");
    }

    #[test]
    fn buckets_of_a_histogram_count_what_is_below_them() {
        let histogram = AtomicHistogram::new([500, 1_000_000], 1e6);
        let mut samples = Samples::default();
        samples.histogram("galley_redis_command_seconds", &[], &histogram);
        assert!(samples.lines.is_empty());
        for value in [500, 501, 2_000_000] {
            histogram.record(value);
        }
        samples.histogram("galley_redis_command_seconds", &[], &histogram);
        let lines =
            samples.lines["galley_redis_command_seconds"].join("\n").replace("galley_redis_command_seconds", "");
        let expected = "_bucket{le=\"0.0005\"} 1\n_bucket{le=\"1\"} 2\n_bucket{le=\"+Inf\"} 3\n_sum 2.001001\n_count 3";
        assert_eq!(lines, expected);
    }
}
