//! What `/metrics` shows, as messages of OTLP: the same names, labels and values. Sums and histograms are cumulative.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric::Data,
        number_data_point,
    },
};

use crate::prometheus::{Family, FamilySample};

/// Most points of one metric: one with more is several of the same name.
pub(super) const MAX_POINTS: usize = 2000;

/// Turns pages of metrics into messages, one after the other.
#[derive(Debug)]
pub(super) struct MetricPoints {
    /// When the page before was read; at first, when the process began. In nanoseconds since 1970, as all times here.
    before: u64,
    /// The series of the page before that count.
    known: HashMap<SeriesKey, SeriesStart>,
}

/// The name of a metric, and labels.
type SeriesKey = (String, Vec<(String, String)>);

#[derive(Debug, Clone, Copy)]
struct SeriesStart {
    began: u64,
    last: f64,
}

/// A series of a histogram.
#[derive(Debug, Default)]
struct HistogramSeries {
    labels: Vec<(String, String)>,
    bounds: Vec<f64>,
    /// How many values are at or below each bound, and all.
    cumulative: Vec<f64>,
    sum: f64,
    count: f64,
}

impl MetricPoints {
    pub(super) fn new(began: SystemTime) -> Self {
        Self { before: nanoseconds(began), known: HashMap::new() }
    }

    /// The metrics of a page.
    pub(super) fn read(&mut self, page: Vec<Family<'_>>, now: SystemTime) -> Vec<Metric> {
        let now = nanoseconds(now);
        let known = std::mem::take(&mut self.known);
        let metrics = page.into_iter().flat_map(|family| self.metrics_of(family, &known, now)).collect();
        self.before = now;
        metrics
    }

    fn metrics_of(&mut self, family: Family<'_>, known: &HashMap<SeriesKey, SeriesStart>, now: u64) -> Vec<Metric> {
        let Family { name, help, kind, samples } = family;
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        let data = match kind {
            "counter" => {
                let points = samples.into_iter().map(|sample| {
                    let (labels, value) = (owned(&sample), sample.value);
                    let began = self.began(known, (name.to_owned(), labels.clone()), value);
                    number(labels, value, began, now)
                });
                let sum = |data_points| Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true });
                in_parts(&points.collect::<Vec<_>>(), sum)
            }
            "histogram" => {
                let points = histogram_series(name, &samples).into_iter().map(|series| {
                    let began = self.began(known, (name.to_owned(), series.labels.clone()), series.count);
                    series.into_point(began, now)
                });
                let histogram = |data_points| Data::Histogram(Histogram { data_points, aggregation_temporality });
                in_parts(&points.collect::<Vec<_>>(), histogram)
            }
            _ => {
                let points = samples.into_iter().map(|sample| number(owned(&sample), sample.value, 0, now));
                in_parts(&points.collect::<Vec<_>>(), |data_points| Data::Gauge(Gauge { data_points }))
            }
        };
        let metric = |data| Metric {
            name: name.to_owned(),
            description: help.to_owned(),
            unit: unit(name).to_owned(),
            data: Some(data),
            ..Metric::default()
        };
        data.into_iter().map(metric).collect()
    }

    /// When a series began: after the page before if that had none, or one that had counted more.
    fn began(&mut self, known: &HashMap<SeriesKey, SeriesStart>, series: SeriesKey, value: f64) -> u64 {
        let before = known.get(&series).filter(|before| before.last <= value);
        let began = before.map_or(self.before, |before| before.began);
        self.known.insert(series, SeriesStart { began, last: value });
        began
    }
}

/// The number of points of a metric.
pub(super) fn count_points(metric: &Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    }
}

/// The series of a histogram: the lines of each follow one another.
fn histogram_series(name: &str, samples: &[FamilySample<'_>]) -> Vec<HistogramSeries> {
    let mut all: Vec<HistogramSeries> = Vec::new();
    for sample in samples {
        let mut labels = owned(sample);
        let bound = labels.iter().position(|(label, _)| label == "le").map(|index| labels.remove(index).1);
        if all.last().is_none_or(|last| last.labels != labels) {
            all.push(HistogramSeries { labels, ..HistogramSeries::default() });
        }
        let Some(series) = all.last_mut() else { continue };
        match (sample.name.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => {
                // The last bound is that of all, and has no name in OTLP
                series.bounds.extend(bound.parse().ok().filter(|bound: &f64| bound.is_finite()));
                series.cumulative.push(sample.value);
            }
            (Some("_sum"), _) => series.sum = sample.value,
            (Some("_count"), _) => series.count = sample.value,
            _ => {}
        }
    }
    all
}

impl HistogramSeries {
    fn into_point(self, began: u64, now: u64) -> HistogramDataPoint {
        let below = std::iter::once(0.0).chain(self.cumulative.iter().copied());
        HistogramDataPoint {
            attributes: attributes(self.labels),
            start_time_unix_nano: began,
            time_unix_nano: now,
            count: whole(self.count),
            sum: Some(self.sum),
            bucket_counts: self.cumulative.iter().zip(below).map(|(count, below)| whole(count - below)).collect(),
            explicit_bounds: self.bounds,
            ..HistogramDataPoint::default()
        }
    }
}

fn number(labels: Vec<(String, String)>, value: f64, began: u64, now: u64) -> NumberDataPoint {
    NumberDataPoint {
        value: Some(number_data_point::Value::AsDouble(value)),
        attributes: attributes(labels),
        start_time_unix_nano: began,
        time_unix_nano: now,
        ..NumberDataPoint::default()
    }
}

fn in_parts<P: Clone>(points: &[P], data: impl Fn(Vec<P>) -> Data) -> Vec<Data> {
    points.chunks(MAX_POINTS).map(|part| data(part.to_vec())).collect()
}

/// The unit as UCUM spells it: the name of a metric ends with its unit.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    [("_seconds", "s"), ("_bytes", "By")].into_iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, unit)| unit)
}

fn owned(sample: &FamilySample<'_>) -> Vec<(String, String)> {
    sample.labels.iter().map(|(label, value)| ((*label).to_owned(), value.clone())).collect()
}

fn attributes(labels: Vec<(String, String)>) -> Vec<KeyValue> {
    let attribute = |(key, value)| {
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value)) });
        KeyValue { key, value, ..KeyValue::default() }
    };
    labels.into_iter().map(attribute).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count is whole and not negative")]
fn whole(count: f64) -> u64 {
    count as u64
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::families;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn read(points: &mut MetricPoints, page: &str, seconds: u64) -> Vec<Metric> {
        points.read(families(page), at(seconds))
    }

    #[test]
    fn metrics_have_the_names_labels_and_values_of_the_page() {
        let page = "# HELP galley_run_seconds How long\n# TYPE galley_run_seconds histogram\n\
            galley_run_seconds_bucket{queue=\"a\",le=\"0.5\"} 2\ngalley_run_seconds_bucket{queue=\"a\",le=\"1\"} 2\n\
            galley_run_seconds_bucket{queue=\"a\",le=\"+Inf\"} 5\ngalley_run_seconds_sum{queue=\"a\"} 7.5\n\
            galley_run_seconds_count{queue=\"a\"} 5\ngalley_run_seconds_bucket{queue=\"b\",le=\"+Inf\"} 1\n\
            galley_run_seconds_sum{queue=\"b\"} 1\ngalley_run_seconds_count{queue=\"b\"} 1\n\
            # TYPE galley_sent_bytes_total counter\ngalley_sent_bytes_total 9\n# TYPE galley_leader gauge\ngalley_leader 1\n";
        let metrics = read(&mut MetricPoints::new(at(1)), page, 60);
        let names: Vec<_> = metrics.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
        assert_eq!(names, [("galley_run_seconds", "s"), ("galley_sent_bytes_total", "By"), ("galley_leader", "")]);
        assert_eq!(metrics[0].description, "How long");
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        let [a, b] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!(a.attributes, attributes(vec![("queue".to_owned(), "a".to_owned())]));
        assert_eq!((&a.explicit_bounds[..], &a.bucket_counts[..]), (&[0.5, 1.0][..], &[2, 0, 3][..]));
        assert_eq!((a.count, a.sum, a.start_time_unix_nano), (5, Some(7.5), nanoseconds(at(1))));
        assert_eq!((b.count, &b.bucket_counts[..], b.explicit_bounds.len()), (1, &[1][..], 0));
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{metrics:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(9.0)));
        let Some(Data::Gauge(gauge)) = &metrics[2].data else { panic!("{metrics:?}") };
        assert_eq!(
            (gauge.data_points[0].start_time_unix_nano, gauge.data_points[0].time_unix_nano),
            (0, nanoseconds(at(60)))
        );
    }

    #[test]
    fn a_series_that_was_dropped_begins_again() {
        let mut points = MetricPoints::new(at(1));
        let page = |count: u32| format!("# TYPE galley_a_total counter\ngalley_a_total {count}\n");
        let mut began = |page: &str, seconds| {
            read(&mut points, page, seconds).first().map(|metric| match &metric.data {
                Some(Data::Sum(sum)) => sum.data_points[0].start_time_unix_nano,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(began(&page(5), 60), Some(nanoseconds(at(1))));
        assert_eq!(began(&page(5), 120), Some(nanoseconds(at(1))));
        assert_eq!(began(&page(3), 180), Some(nanoseconds(at(120))), "it has counted less");
        assert_eq!(began("", 240), None);
        assert_eq!(began(&page(9), 300), Some(nanoseconds(at(240))), "it was not there");
    }

    #[test]
    fn a_metric_with_very_many_series_becomes_several() {
        let lines = (0..=MAX_POINTS).map(|number| format!("galley_leader{{queue=\"{number}\"}} 1"));
        let page = std::iter::once("# TYPE galley_leader gauge".to_owned()).chain(lines).collect::<Vec<_>>().join("\n");
        let metrics = read(&mut MetricPoints::new(at(1)), &page, 60);
        assert_eq!(metrics.iter().map(count_points).collect::<Vec<_>>(), [MAX_POINTS, 1]);
        assert!(metrics.iter().all(|metric| metric.name == "galley_leader"));
    }
}
