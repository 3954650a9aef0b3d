//! Bounds how many values a label has. Clients name queues, subscriptions and channels, so there may be any number of them,
//! and each value makes another time series of each metric: those that have no room are counted as one, [`OVERFLOW`]. A value
//! that nobody counts for long makes room.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use metrics::{Key, Label};

/// The value that stands for all that have no room. No queue, subscription or channel can be called that.
pub(super) const OVERFLOW: &str = "_other";
/// Labels whose values clients choose.
const BOUNDED: [&str; 3] = ["queue", "subscription", "channel"];
/// Shortest time between two looks for values that make room.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

/// The values of the bounded labels.
pub(super) struct LabelBounds {
    max_values: usize,
    idle_timeout: Duration,
    started: Instant,
    labels: [RwLock<LabelValues>; BOUNDED.len()],
}

#[derive(Default)]
struct LabelValues {
    /// When somebody last counted each, in milliseconds since the start.
    used_at: HashMap<String, AtomicU64>,
    evicted_at: Option<Duration>,
}

impl LabelBounds {
    pub(super) fn new(max_values: usize, idle_timeout: Duration) -> Self {
        Self { max_values, idle_timeout, started: Instant::now(), labels: Default::default() }
    }

    /// The same key, or one with [`OVERFLOW`] in place of a value that has no room.
    pub(super) fn bound<'a>(&self, key: &'a Key) -> Cow<'a, Key> {
        let has_no_room = |label: &Label| !self.admits(label.key(), label.value());
        if !key.labels().any(has_no_room) {
            return Cow::Borrowed(key);
        }
        let bounded = key
            .labels()
            .map(|label| if has_no_room(label) { Label::new(label.key().to_owned(), OVERFLOW) } else { label.clone() });
        Cow::Owned(Key::from_parts(key.name().to_owned(), bounded.collect::<Vec<_>>()))
    }

    /// Whether a value has series of its own, from now on if there is room.
    pub(super) fn admits(&self, label: &str, value: &str) -> bool {
        self.admits_at(label, value, self.started.elapsed())
    }

    fn admits_at(&self, label: &str, value: &str, now: Duration) -> bool {
        let Some(values) = BOUNDED.iter().position(|bounded| *bounded == label).map(|index| &self.labels[index]) else {
            return true;
        };
        if value == OVERFLOW {
            return true;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if let Some(used_at) = values.read().unwrap_or_else(PoisonError::into_inner).used_at.get(value) {
            used_at.store(millis(now), Relaxed);
            return true;
        }
        let mut values = values.write().unwrap_or_else(PoisonError::into_inner);
        let is_full = values.used_at.len() >= self.max_values;
        if is_full && values.evicted_at.is_none_or(|at| now >= at + EVICTION_INTERVAL) {
            values.evicted_at = Some(now);
            let is_idle = |used_at: u64| millis(now).saturating_sub(used_at) >= millis(self.idle_timeout);
            values.used_at.retain(|_, used_at| !is_idle(used_at.load(Relaxed)));
        }
        let has_room = values.used_at.len() < self.max_values || values.used_at.contains_key(value);
        if has_room {
            values.used_at.insert(value.to_owned(), AtomicU64::new(millis(now)));
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn values_without_room_are_counted_as_one_until_others_are_idle() {
        let bounds = LabelBounds::new(2, seconds(60));
        assert!(bounds.admits_at("queue", "a", seconds(1)) && bounds.admits_at("queue", "b", seconds(1)));
        assert!(!bounds.admits_at("queue", "c", seconds(2)));
        assert!(bounds.admits_at("subscription", "c", seconds(2)), "each label has a bound of its own");
        assert!(bounds.admits_at("outcome", "c", seconds(2)), "the code bounds the others");
        assert!(bounds.admits_at("queue", "a", seconds(50)));
        assert!(bounds.admits_at("queue", "c", seconds(70)), "b was idle");
        assert!(!bounds.admits_at("queue", "b", seconds(72)));
        assert!(bounds.admits_at("queue", OVERFLOW, seconds(72)));
    }

    #[test]
    fn only_the_value_without_room_is_replaced() {
        let bounds = LabelBounds::new(1, seconds(60));
        let key = |queue: &'static str| {
            Key::from_parts("galley_attempts_total", vec![Label::new("queue", queue), Label::new("outcome", "stale")])
        };
        assert_eq!(bounds.bound(&key("a")).into_owned(), key("a"));
        assert_eq!(bounds.bound(&key("b")).into_owned(), key(OVERFLOW));
    }
}
