//! Durations, counted in buckets that grow with them: exact below 8 ms, then four buckets for each doubling. So a quantile is
//! off by an eighth at most, histograms of many processes and periods add up, and a few bytes hold one.

use std::collections::BTreeMap;

use common::time::Millis;

/// Durations below this are counted exactly, in milliseconds.
const EXACT_MS: u64 = 8;
/// Buckets for each doubling, as a power of two.
const SUB_BUCKET_BITS: u32 = 2;
/// The highest power of two that has buckets of its own: about 12 days. Longer durations count as that.
const MAX_EXPONENT: u32 = 30;
/// The number of buckets.
pub const BUCKETS: usize = 120;

/// The bucket that counts a duration. A negative one counts as none: clocks differ by a little.
#[must_use]
pub fn bucket_of(millis: Millis) -> usize {
    let millis = u64::try_from(millis).unwrap_or(0).min((1 << (MAX_EXPONENT + 1)) - 1);
    if millis < EXACT_MS {
        return usize::try_from(millis).unwrap_or(0);
    }
    let exponent = millis.ilog2();
    let sub_bucket = (millis >> (exponent - SUB_BUCKET_BITS)) & ((1 << SUB_BUCKET_BITS) - 1);
    let index = EXACT_MS + u64::from((exponent - 3) << SUB_BUCKET_BITS) + sub_bucket;
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

/// The duration that stands for those in a bucket: the middle of it.
fn middle_of(bucket: u8) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < EXACT_MS {
        return bucket;
    }
    let (doublings, sub_bucket) = ((bucket - EXACT_MS) >> SUB_BUCKET_BITS, (bucket - EXACT_MS) & 3);
    let width = 1_u64 << (doublings + 1);
    (4 + sub_bucket) * width + width / 2
}

/// Durations, counted in buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Only buckets that counted something.
    counts: BTreeMap<u8, u64>,
}

impl Histogram {
    /// Counts durations of one bucket.
    pub fn add(&mut self, bucket: usize, count: u64) {
        let bucket = u8::try_from(bucket.min(BUCKETS - 1)).unwrap_or_default();
        if count > 0 {
            let sum = self.counts.entry(bucket).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// Counts what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            self.add(usize::from(*bucket), *count);
        }
    }

    /// The buckets that counted something, in order.
    #[must_use]
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = (u8, u64)> + '_ {
        self.counts.iter().map(|(bucket, count)| (*bucket, *count))
    }

    /// The duration that this many percent of all are not longer than, in milliseconds; none if there are none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let total: u128 = self.counts.values().map(|count| u128::from(*count)).sum();
        let rank = (total * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().find(|(_, count)| {
            seen += u128::from(**count);
            seen >= rank
        });
        found.map(|(bucket, _)| middle_of(*bucket))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(durations: &[Millis]) -> Histogram {
        let mut histogram = Histogram::default();
        for millis in durations {
            histogram.add(bucket_of(*millis), 1);
        }
        histogram
    }

    #[test]
    fn short_durations_are_exact_and_percentiles_are_those_of_the_ranks() {
        assert_eq!(Histogram::default().percentile(50), None);
        let histogram = of(&[1, 2, 3, 4, 5, 5, 6, 6, 7, 7]);
        assert_eq!((histogram.percentile(50), histogram.percentile(99)), (Some(5), Some(7)));
        assert_eq!(of(&[-5]).percentile(50), Some(0));
        assert_eq!((bucket_of(Millis::MAX), bucket_of(1 << MAX_EXPONENT)), (BUCKETS - 1, BUCKETS - 4));
    }

    proptest! {
        #[test]
        fn a_duration_is_off_by_an_eighth_at_most(millis in 0..(1_i64 << 31)) {
            let shown = of(&[millis]).percentile(99).expect("one");
            prop_assert!(shown.abs_diff(millis.unsigned_abs()) * 8 <= millis.unsigned_abs(), "{millis} became {shown}");
        }

        #[test]
        fn buckets_grow_with_durations_and_there_are_no_others(a in any::<Millis>(), b in any::<Millis>()) {
            prop_assert!(bucket_of(a.min(b)) <= bucket_of(a.max(b)) && bucket_of(a) < BUCKETS);
        }
    }
}
