//! Progress of an attempt, as it is stored and shown.

use serde::Deserialize;
use serde_json::value::RawValue;

use common::{
    json::ObjectWriter,
    time::{self, Millis},
};

/// Largest data of a report, in bytes of JSON.
pub const MAX_DATA_BYTES: usize = 4096;
/// How far a number may be beside the scale.
const ROUNDING: f64 = 0.001;

/// A progress report of an attempt.
#[derive(Debug, Clone, Default)]
pub struct JobProgress {
    /// From 0 to 1.
    number: Option<f64>,
    /// Data for people from the handler: a JSON object.
    data: Option<Box<RawValue>>,
}

/// Why a report is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgressError {
    /// A number on another scale.
    #[error("progress must be a number from 0 to 1, got {0}")]
    Number(String),
    /// Neither a number nor data.
    #[error("progress (a number from 0 to 1) or data (a JSON object) is required")]
    Empty,
    /// Data that is not an object, or too large.
    #[error("data must be a JSON object of at most {MAX_DATA_BYTES} bytes, got {0} bytes")]
    Data(usize),
}

/// The stored parts of the previous report.
#[derive(Deserialize, Default)]
struct StoredProgress {
    progress: Option<f64>,
    progress_data: Option<Box<RawValue>>,
}

impl JobProgress {
    /// Checks a report. What a sum of fractions is beside the scale does not count.
    ///
    /// # Errors
    /// The report is empty, its number is on another scale, or its data cannot be stored.
    pub fn new(number: Option<f64>, data: Option<&RawValue>) -> Result<Self, ProgressError> {
        if number.is_none() && data.is_none() {
            return Err(ProgressError::Empty);
        }
        let data = data.filter(|data| data.get() != "null");
        if let Some(data) = data.filter(|data| !data.get().starts_with('{') || data.get().len() > MAX_DATA_BYTES) {
            return Err(ProgressError::Data(data.get().len()));
        }
        if let Some(other) = number.filter(|number| !(-ROUNDING..=1.0 + ROUNDING).contains(number)) {
            return Err(ProgressError::Number(other.to_string()));
        }
        let number = number.map(|number| number.clamp(0.0, 1.0));
        Ok(Self { number, data: data.map(ToOwned::to_owned) })
    }

    /// The JSON object to store, given the stored one. The highest number stays, so that a progress bar never goes
    /// backwards. Data stays until new data arrives.
    #[must_use]
    pub fn merge(&self, before: Option<&str>, now: Millis) -> String {
        let before: StoredProgress = before.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut shown = ObjectWriter::default();
        let number = match (self.number, before.progress) {
            (Some(now), Some(before)) => Some(now.max(before)),
            (now, before) => now.or(before),
        };
        if let Some(number) = number {
            shown.raw("progress", &number.to_string());
        }
        if let Some(data) = self.data.as_ref().or(before.progress_data.as_ref()) {
            shown.raw("progress_data", data.get());
        }
        shown.text("progress_at", &time::format(now));
        shown.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    #[test]
    fn a_number_never_goes_back_and_data_stays_until_there_is_other() {
        let report = |number, data: Option<&str>, before: Option<&str>| {
            let data = data.map(raw);
            JobProgress::new(number, data.as_deref()).expect("a report").merge(before, 0)
        };
        let first = report(Some(0.5), Some(r#"{"row":1}"#), None);
        assert_eq!(first, r#"{"progress":0.5,"progress_data":{"row":1},"progress_at":"1970-01-01T00:00:00.000Z"}"#);
        let second = report(Some(0.25), None, Some(&first));
        assert_eq!(second, first);
        assert!(
            report(Some(1.000_000_1), None, Some(&first)).starts_with(r#"{"progress":1,"progress_data":{"row":1}"#)
        );
        assert!(
            report(None, Some(r#"{"row":2}"#), Some(&first))
                .starts_with(r#"{"progress":0.5,"progress_data":{"row":2}"#)
        );
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert_eq!(JobProgress::new(None, None).err(), Some(ProgressError::Empty));
        for other_scale in [40.0, 1.01, -0.5, f64::NAN, f64::INFINITY] {
            let refused = JobProgress::new(Some(other_scale), None).err().map(|error| error.to_string());
            assert!(
                refused.is_some_and(|text| text.starts_with("progress must be a number from 0 to 1")),
                "{other_scale}"
            );
        }
        assert_eq!(JobProgress::new(None, Some(&raw("[1]"))).err(), Some(ProgressError::Data(3)));
        let large = raw(&format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_DATA_BYTES)));
        assert_eq!(JobProgress::new(Some(0.5), Some(&large)).err(), Some(ProgressError::Data(MAX_DATA_BYTES + 8)));
    }
}
