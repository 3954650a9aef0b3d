//! What happens to a job that is the same as an older one, and how long such jobs put each other off.

use std::time::Duration;

use serde_json::value::RawValue;

use super::JobState;
use common::{
    json::Object,
    name::quoted,
    time::{self, Millis},
};

/// The states in which a job can be put off.
const DEBOUNCE_STATES: [JobState; 2] = [JobState::Available, JobState::Scheduled];

/// What happens to a job that duplicates an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// The new job is refused.
    Reject,
    /// The response is the older job.
    Ignore,
    /// The older job is cancelled. If it runs, the new one is refused instead.
    Replace,
    /// As `Replace`, and the new job starts at the time of the older one.
    ReplaceExceptSchedule,
    /// The older job becomes the new one and starts when the new one would. If it has begun, the new job is created.
    Debounce {
        /// How long after its creation a job starts at the latest; none if each new one may put it off again.
        max_wait: Option<Duration>,
    },
}

impl OnConflict {
    /// What happens on a conflict, and whether the other members fit it.
    pub(super) fn parse(policy: &Object) -> Result<Self, String> {
        let on_conflict = policy.get("on_conflict").map_or(Ok(Self::Reject), parse_on_conflict)?;
        let max_wait = policy.get("max_wait").map(|raw| parse_length(raw, "max_wait")).transpose()?;
        match on_conflict {
            Self::Debounce { .. } => match ["states", "period"].into_iter().find(|name| policy.get(name).is_some()) {
                None => Ok(Self::Debounce { max_wait }),
                Some(name) => Err(format!(
                    "unique.{name} cannot be given with on_conflict \"debounce\": a job can be put off until it starts"
                )),
            },
            _ if max_wait.is_some() => Err("unique.max_wait needs on_conflict \"debounce\"".to_owned()),
            other => Ok(other),
        }
    }

    /// Whether a new job puts off an equal one that waits.
    #[must_use]
    pub fn is_debounce(self) -> bool {
        matches!(self, Self::Debounce { .. })
    }

    /// The states in which the older job conflicts, if the policy cannot name others.
    pub(super) fn states(self) -> Option<&'static [JobState]> {
        self.is_debounce().then_some(&DEBOUNCE_STATES)
    }
}

/// When a job starts that was created then, if it is put off until `requested`.
#[must_use]
pub fn debounced_start(created_at: Millis, requested: Millis, max_wait: Option<Duration>) -> Millis {
    let longest = max_wait.and_then(|wait| i64::try_from(wait.as_millis()).ok()).unwrap_or(Millis::MAX);
    requested.min(created_at.saturating_add(longest))
}

pub(super) fn parse_length(raw: &RawValue, member: &str) -> Result<Duration, String> {
    let allowed = format!("unique.{member} must be an ISO 8601 duration from PT0.001S to P3650D");
    let text: String = serde_json::from_str(raw.get()).map_err(|_| format!("{allowed}, got {}", quoted(raw.get())))?;
    let length = time::parse_duration(&text).map_err(|_| format!("{allowed}, got {}", quoted(&text)))?;
    if length.is_zero() { Err(format!("{allowed}, got {}", quoted(&text))) } else { Ok(length) }
}

fn parse_on_conflict(raw: &RawValue) -> Result<OnConflict, String> {
    let given: Option<String> = serde_json::from_str(raw.get()).ok();
    match given.as_deref() {
        Some("reject") => Ok(OnConflict::Reject),
        Some("ignore") => Ok(OnConflict::Ignore),
        Some("replace") => Ok(OnConflict::Replace),
        Some("replace_except_schedule") => Ok(OnConflict::ReplaceExceptSchedule),
        Some("debounce") => Ok(OnConflict::Debounce { max_wait: None }),
        _ => Err(format!(
            "unique.on_conflict must be \"reject\", \"ignore\", \"replace\", \"replace_except_schedule\" or \
             \"debounce\", got {}",
            quoted(raw.get())
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_debounced_job_starts_after_the_last_request_and_never_after_its_longest_wait(
            created_at in 0..1_000_000_i64,
            requests in proptest::collection::vec((0..10_000_i64, 0..20_000_i64), 1..20),
            max_wait in proptest::option::of(1..60_000_u64),
        ) {
            let (mut now, latest) = (created_at, max_wait.map_or(i64::MAX, |wait| created_at + i64::try_from(wait).unwrap_or(0)));
            for (pause, delay) in requests {
                now += pause;
                let start = debounced_start(created_at, now + delay, max_wait.map(Duration::from_millis));
                prop_assert!(start <= latest);
                prop_assert!(start == now + delay || (start == latest && latest < now + delay));
            }
        }
    }
}
