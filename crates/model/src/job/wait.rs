//! What a job waits for in the middle of its work: a signal, a time, or both.

use common::{
    json::ObjectWriter,
    name::SignalName,
    time::{self, Millis},
};
use serde_json::value::RawValue;

/// Bytes of the name of a step that waits.
pub const MAX_STEP_BYTES: usize = 200;
/// The longest wait that ends by itself, in milliseconds: a year.
pub const MAX_WAIT_MS: u64 = 366 * 24 * 60 * 60 * 1000;
/// Signals that one job can get, and bytes of their data together: what it received is in its checkpoint.
pub const MAX_SIGNALS: usize = 1000;
/// See [`MAX_SIGNALS`].
pub const MAX_SIGNALS_BYTES: usize = 1 << 20;
/// Bytes of the data of one signal, as JSON.
pub const MAX_SIGNAL_BYTES: usize = 64 << 10;
/// How names of signals begin with which a person decides about a job: `approval`, or `approval.` and of what.
const APPROVAL: &str = "approval";

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobWait {
    /// The step of the job that waits.
    pub step: String,
    /// The signal, if not only for a time.
    pub signal: Option<SignalName>,
    /// Since when.
    pub since: Millis,
    /// When the wait ends without a signal, if ever.
    pub until: Option<Millis>,
}

impl JobWait {
    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: Millis) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// As a field of the job: `<until> <since> <signal> <step>`, with 0 and `-` for what is absent.
    #[must_use]
    pub fn to_field(&self) -> String {
        let signal = self.signal.as_ref().map_or("-", SignalName::as_str);
        format!("{} {} {signal} {}", self.until.unwrap_or_default(), self.since, self.step)
    }

    /// Parses that field.
    #[must_use]
    pub fn parse(field: &str) -> Option<Self> {
        let mut parts = field.splitn(4, ' ');
        let (until, since) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (signal, step) = (parts.next()?, parts.next()?);
        let signal = if signal == "-" { None } else { Some(signal.parse().ok()?) };
        Some(Self { step: step.to_owned(), signal, since, until: Some(until).filter(|until| *until != 0) })
    }

    /// As clients see it. `now` is given for the attempt that goes on from it, which must know whether the time is over.
    #[must_use]
    pub fn to_json(&self, now: Option<Millis>) -> String {
        let mut out = ObjectWriter::with_capacity(self.step.len() + 160);
        out.text("step", &self.step);
        if let Some(signal) = &self.signal {
            out.text("signal", signal.as_str());
        }
        out.text("since", &time::format(self.since));
        if let Some(until) = self.until {
            out.text("until", &time::format(until));
        }
        if let Some(now) = now {
            out.raw("is_over", if self.is_over(now) { "true" } else { "false" });
        }
        out.finish()
    }
}

/// Whether a person decides by this signal.
#[must_use]
pub fn is_approval(signal: &str) -> bool {
    signal.strip_prefix(APPROVAL).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a step may have this name when it waits.
#[must_use]
pub fn is_step_name(name: &str) -> bool {
    (1..=MAX_STEP_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A signal that a job got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSignal {
    /// Its number among those of the job, from 1.
    pub sequence: u64,
    /// What it is called.
    pub name: SignalName,
    /// What tells it from others: a second one with the same id is the same signal.
    pub id: String,
    /// When it came.
    pub sent_at: Millis,
    /// What it brings: JSON.
    pub data: String,
}

impl JobSignal {
    /// As clients see it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = ObjectWriter::with_capacity(self.data.len() + 200);
        out.number("sequence", self.sequence)
            .text("name", self.name.as_str())
            .text("id", &self.id)
            .text("sent_at", &time::format(self.sent_at))
            .raw("data", &self.data);
        out.finish()
    }
}

/// Whether a signal may have this id.
#[must_use]
pub fn is_signal_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether two JSON texts say the same.
#[must_use]
pub fn is_same_json(one: &str, other: &str) -> bool {
    let parse = |text| serde_json::from_str::<serde_json::Value>(text);
    one == other || matches!((parse(one), parse(other)), (Ok(one), Ok(other)) if one == other)
}

/// The data of a signal without any: `null`.
#[must_use]
pub fn data_of(given: Option<&RawValue>) -> &str {
    given.map_or("null", RawValue::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_the_same_after_it_was_stored() {
        let signal: SignalName = "approval.refund".parse().expect("a name");
        for (step, signal, until) in [
            ("cool down", None, Some(7)),
            ("second - answer 2", Some(signal.clone()), None),
            ("-", Some(signal), Some(i64::MAX)),
        ] {
            let wait = JobWait { step: step.to_owned(), signal, since: 5, until };
            assert_eq!(JobWait::parse(&wait.to_field()), Some(wait));
        }
        for damaged in ["", "1", "1 2 3", "x 2 - a", "1 x - a", "1 2 \u{e4} a"] {
            assert_eq!(JobWait::parse(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn only_the_attempt_is_told_whether_the_time_is_over() {
        let wait = JobWait { step: "s".to_owned(), signal: None, since: 0, until: Some(1000) };
        assert_eq!((wait.is_over(999), wait.is_over(1000)), (false, true));
        assert!(!wait.to_json(None).contains("is_over"));
        assert!(wait.to_json(Some(999)).contains(r#""is_over":false"#));
        let forever = JobWait { until: None, ..wait };
        assert!(!forever.is_over(Millis::MAX) && !forever.to_json(None).contains("until"));
    }

    #[test]
    fn approvals_are_signals_with_a_name() {
        assert!(is_approval("approval") && is_approval("approval.refund"));
        assert!(!is_approval("approvals") && !is_approval("approved") && !is_approval(""));
    }

    #[test]
    fn names_and_ids_fit_into_one_line() {
        assert!(is_step_name("a b") && !is_step_name("") && !is_step_name("a\nb") && !is_step_name(&"x".repeat(201)));
        assert!(is_signal_id("a:1") && !is_signal_id("") && !is_signal_id("a b") && !is_signal_id("\u{e4}"));
        assert!(is_same_json(r#"{"a":1,"b":[]}"#, r#"{ "b": [], "a": 1 }"#) && !is_same_json("1", "2"));
    }
}
