//! Metrics as a receiver of OTLP gets them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point::Value},
};

use super::{decode, service_of, texts};

/// A value of a series, as far as tests look at it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReceivedPoint {
    /// The service that sent it.
    pub service: String,
    /// The name of the metric.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The unit, as UCUM spells it.
    pub unit: String,
    /// The labels of the series.
    pub labels: BTreeMap<String, String>,
    /// The value; of a histogram the sum.
    pub value: f64,
    /// The number of values in each bucket of a histogram, the last is that above all bounds.
    pub buckets: Vec<u64>,
    /// The upper bounds of the buckets.
    pub bounds: Vec<f64>,
    /// When the series began, in nanoseconds since 1970; 0 for a gauge.
    pub began: u64,
    /// When the value was read, in nanoseconds since 1970.
    pub at: u64,
}

/// The metrics of a request, as OTLP over HTTP sends them.
///
/// # Panics
/// The bytes are no such request.
#[must_use]
pub fn decode_points(body: &[u8], is_gzip: bool) -> Vec<ReceivedPoint> {
    points_of(decode(body, is_gzip))
}

pub(super) fn points_of(request: ExportMetricsServiceRequest) -> Vec<ReceivedPoint> {
    let mut received = Vec::new();
    for of_process in request.resource_metrics {
        let service = service_of(of_process.resource);
        for metric in of_process.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let Metric { name, unit, data, .. } = metric;
            let about = |kind: &str| ReceivedPoint {
                service: service.clone(),
                name: name.clone(),
                kind: kind.to_owned(),
                unit: unit.clone(),
                ..ReceivedPoint::default()
            };
            match data {
                Some(Data::Gauge(gauge)) => {
                    received.extend(gauge.data_points.into_iter().map(|point| with_number(about("gauge"), point)));
                }
                Some(Data::Sum(sum)) => {
                    let kind = if sum.is_monotonic { "counter" } else { "sum" };
                    received.extend(sum.data_points.into_iter().map(|point| with_number(about(kind), point)));
                }
                Some(Data::Histogram(histogram)) => {
                    received.extend(histogram.data_points.into_iter().map(|point| ReceivedPoint {
                        labels: texts(point.attributes),
                        value: point.sum.unwrap_or_default(),
                        buckets: point.bucket_counts,
                        bounds: point.explicit_bounds,
                        began: point.start_time_unix_nano,
                        at: point.time_unix_nano,
                        ..about("histogram")
                    }));
                }
                other => panic!("{name} is {other:?}"),
            }
        }
    }
    received
}

fn with_number(about: ReceivedPoint, point: NumberDataPoint) -> ReceivedPoint {
    let value = match point.value {
        Some(Value::AsDouble(value)) => value,
        other => panic!("{} has {other:?}", about.name),
    };
    let (began, at) = (point.start_time_unix_nano, point.time_unix_nano);
    ReceivedPoint { labels: texts(point.attributes), value, began, at, ..about }
}
