//! The metrics of a process, as Prometheus reads them.
//!
//! | module | what it is |
//! |---|---|
//! | `catalog` | every metric with its help text |
//! | `label_bounds` | how many queues, subscriptions and channels have series of their own |
//! | `families` | a page of metrics, read again |
//! | `samples` | series that are read when somebody asks for the metrics |
//! | `process_samples` | what this process is and takes |
//!
//! A counter is looked up by its labels where it counts; what counts for each job keeps what it looked up while
//! [`handles_epoch`] stays the same. A counter that does not change for long is dropped, so one that was kept longer would
//! count where nobody looks.

mod catalog;
mod families;
mod label_bounds;
mod process_samples;
mod samples;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;

pub use catalog::reference;
pub(crate) use families::{Family, FamilySample, families};
pub use samples::{AtomicHistogram, Samples, add_source};

use crate::settings::MetricsSettings;
use label_bounds::LabelBounds;

/// Upper bounds of the buckets of every duration, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// The same, in microseconds, for an [`AtomicHistogram`].
pub const DURATION_MICROS: [u64; 14] = [
    500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    60_000_000,
];
/// Counters without labels that are no part of the recorder.
const SHOWN_ON_REQUEST: [&str; 2] = ["galley_redis_commands_total", "process_cpu_seconds_total"];
/// Histograms keep their samples until they are drained.
const DRAIN_INTERVAL: Duration = Duration::from_secs(5);
/// How long kept counters are used at most.
const MAX_EPOCH: Duration = Duration::from_mins(1);

static LABELS: OnceLock<Arc<LabelBounds>> = OnceLock::new();
static EPOCH: AtomicU64 = AtomicU64::new(0);
static HANDLE: OnceLock<MetricsHandle> = OnceLock::new();

/// While it stays the same, counters that were looked up by their labels may be kept.
#[must_use]
pub fn handles_epoch() -> u64 {
    EPOCH.load(Relaxed)
}

/// The value of a label as metrics show it: itself, or that for all that have no room.
#[must_use]
pub fn shown_value<'a>(label: &str, value: &'a str) -> &'a str {
    match LABELS.get() {
        Some(labels) if !labels.admits(label, value) => label_bounds::OVERFLOW,
        _ => value,
    }
}

/// The metrics of this process as Prometheus text; none before they are collected.
#[must_use]
pub fn render() -> Option<String> {
    HANDLE.get().map(MetricsHandle::render)
}

/// Renders the metrics of this process as Prometheus text.
#[derive(Clone)]
pub struct MetricsHandle {
    recorder: PrometheusHandle,
    rendered_at: Arc<AtomicU64>,
    started: Instant,
}

impl MetricsHandle {
    /// All metrics as they are now.
    #[must_use]
    pub fn render(&self) -> String {
        self.rendered_at.store(self.started.elapsed().as_secs(), Relaxed);
        let mut text = self.recorder.render();
        Samples::collect().render(&mut text);
        text
    }

    /// Drops what has not changed for long. The recorder does so as it renders, and nobody may ask for that.
    fn drop_idle(&self, idle_timeout: Duration) {
        let unasked = self.started.elapsed().as_secs().saturating_sub(self.rendered_at.load(Relaxed));
        if Duration::from_secs(unasked) >= idle_timeout / 2 {
            drop(self.render());
        }
    }
}

/// The recorder, with bounds for its labels.
struct BoundedRecorder {
    inner: PrometheusRecorder,
    labels: Arc<LabelBounds>,
}

impl BoundedRecorder {
    fn register<T>(&self, key: &Key, register: impl FnOnce(&Key) -> T) -> T {
        let bounded = self.labels.bound(key);
        if matches!(bounded, std::borrow::Cow::Owned(_)) {
            metrics::counter!("galley_series_overflowed_total").increment(1);
        }
        register(&bounded)
    }
}

impl Recorder for BoundedRecorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.register(key, |key| self.inner.register_counter(key, metadata))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.register(key, |key| self.inner.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.register(key, |key| self.inner.register_histogram(key, metadata))
    }
}

/// Starts collecting metrics of a service.
///
/// # Errors
/// Metrics are set up already.
pub fn start(service: &'static str, settings: &MetricsSettings) -> anyhow::Result<MetricsHandle> {
    let idle_timeout = settings.idle_timeout;
    let recorder = PrometheusBuilder::new()
        .set_buckets(&DURATION_BUCKETS)?
        // A gauge says how something is, however long it stays so
        .idle_timeout(MetricKindMask::COUNTER | MetricKindMask::HISTOGRAM, Some(idle_timeout))
        .build_recorder();
    let rendered_at = Arc::default();
    let handle = MetricsHandle { recorder: recorder.handle(), rendered_at, started: Instant::now() };
    let labels = Arc::new(LabelBounds::new(settings.max_label_values, idle_timeout));
    let _ = LABELS.set(labels.clone());
    metrics::set_global_recorder(BoundedRecorder { inner: recorder, labels }).context("metrics were set up before")?;
    catalog::describe_all();
    catalog::keep_plain_counters();
    process_samples::show(service);
    let _ = HANDLE.set(handle.clone());
    tokio::spawn(keep_up(handle.clone(), idle_timeout));
    Ok(handle)
}

async fn keep_up(handle: MetricsHandle, idle_timeout: Duration) {
    let mut ticks = tokio::time::interval(DRAIN_INTERVAL.min(idle_timeout / 4));
    let epoch = MAX_EPOCH.min(idle_timeout / 4);
    let mut epoch_began = Instant::now();
    loop {
        ticks.tick().await;
        if epoch_began.elapsed() >= epoch {
            epoch_began = Instant::now();
            EPOCH.fetch_add(1, Relaxed);
        }
        catalog::keep_plain_counters();
        crate::telemetry::count_lost_lines();
        handle.recorder.run_upkeep();
        handle.drop_idle(idle_timeout);
    }
}
