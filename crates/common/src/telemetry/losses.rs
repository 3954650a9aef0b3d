//! What never reached its receiver: counted at once, and logged once a minute.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time between two lines about what was lost.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What a process sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Spans,
    LogRecords,
    MetricPoints,
}

/// The account of one signal.
#[derive(Debug)]
pub(super) struct Losses {
    signal: Signal,
    unlogged: Mutex<Unlogged>,
}

/// What was lost and is in no line yet.
#[derive(Debug, Default)]
struct Unlogged {
    lost: usize,
    reason: &'static str,
    logged: Option<Instant>,
}

impl Losses {
    pub(super) fn of(signal: Signal) -> Self {
        Self { signal, unlogged: Mutex::default() }
    }

    /// Counts what the receiver took.
    pub(super) fn count_sent(&self, count: usize) {
        let counter = match self.signal {
            Signal::Spans => metrics::counter!("galley_spans_sent_total"),
            Signal::LogRecords => metrics::counter!("galley_log_records_sent_total"),
            Signal::MetricPoints => metrics::counter!("galley_metric_points_sent_total"),
        };
        counter.increment(count as u64);
    }

    /// Counts what was lost. The next line says it too.
    pub(super) fn count(&self, count: usize, reason: &'static str) {
        let counter = match self.signal {
            Signal::Spans => metrics::counter!("galley_spans_lost_total", "reason" => reason),
            Signal::LogRecords => metrics::counter!("galley_log_records_lost_total", "reason" => reason),
            Signal::MetricPoints => metrics::counter!("galley_metric_points_lost_total", "reason" => reason),
        };
        counter.increment(count as u64);
        let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
        unlogged.lost += count;
        unlogged.reason = reason;
    }

    /// Counts what was lost, and logs it unless a line said so within the last minute.
    pub(super) fn note(&self, count: usize, reason: &'static str, error: &dyn Display) {
        self.count(count, reason);
        self.log_if_due(error);
    }

    /// The same when nothing follows: it is logged in any case.
    pub(super) fn note_at_the_end(&self, count: usize, error: &dyn Display) {
        self.unlogged.lock().unwrap_or_else(PoisonError::into_inner).logged = None;
        self.note(count, "shutdown", error);
    }

    /// Logs what was lost, unless that is nothing or a line said so within the last minute.
    pub(super) fn log_if_due(&self, error: &dyn Display) {
        let (lost, reason) = {
            let mut unlogged = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner);
            if unlogged.lost == 0 || unlogged.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
                return;
            }
            unlogged.logged = Some(Instant::now());
            (std::mem::take(&mut unlogged.lost), unlogged.reason)
        };
        match self.signal {
            Signal::Spans => tracing::warn!(event = "spans.lost", lost, reason, %error, "spans were not sent"),
            Signal::LogRecords => {
                tracing::warn!(event = "log_records.lost", lost, reason, %error, "log lines were not sent");
            }
            Signal::MetricPoints => {
                tracing::warn!(event = "metric_points.lost", lost, reason, %error, "metrics were not sent");
            }
        }
    }
}
