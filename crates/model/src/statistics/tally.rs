//! What happened in a period, and its bytes: numbers of seven bits to a byte, the lowest first, so that small ones take one.

use super::{Histogram, histogram::BUCKETS};

/// The bytes are no tally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged statistics")]
pub struct DecodeError;

/// What happened in a period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that were enqueued.
    pub enqueued: u64,
    /// Jobs that succeeded.
    pub completed: u64,
    /// Attempts that failed, whether or not another followed.
    pub failed: u64,
    /// Jobs that were given up: no attempts left, expired, or failed for good.
    pub discarded: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// From when a job became available to the start of an attempt, for each attempt that ended.
    pub wait: Histogram,
    /// From the start of an attempt to its end.
    pub run: Histogram,
}

impl Tally {
    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Attempts that ended with an outcome.
    #[must_use]
    pub fn processed(&self) -> u64 {
        self.completed.saturating_add(self.failed)
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        let counts = [other.enqueued, other.completed, other.failed, other.discarded, other.cancelled];
        for (sum, count) in self.counts_mut().into_iter().zip(counts) {
            *sum = sum.saturating_add(count);
        }
        self.wait.merge(&other.wait);
        self.run.merge(&other.run);
    }

    fn counts_mut(&mut self) -> [&mut u64; 5] {
        [&mut self.enqueued, &mut self.completed, &mut self.failed, &mut self.discarded, &mut self.cancelled]
    }

    /// Adds its bytes: five numbers; then for each histogram the number of buckets, and of each bucket the distance from the
    /// one before and its count.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        for count in [self.enqueued, self.completed, self.failed, self.discarded, self.cancelled] {
            write_varint(bytes, count);
        }
        for histogram in [&self.wait, &self.run] {
            write_varint(bytes, histogram.buckets().len() as u64);
            let mut last = 0;
            for (bucket, count) in histogram.buckets() {
                write_varint(bytes, u64::from(bucket - last));
                write_varint(bytes, count);
                last = bucket;
            }
        }
    }

    /// Reads one from the front of these bytes.
    ///
    /// # Errors
    /// They are no tally.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        let mut tally = Self::default();
        for count in tally.counts_mut() {
            *count = read_varint(bytes)?;
        }
        for histogram in [&mut tally.wait, &mut tally.run] {
            let buckets = read_varint(bytes)?;
            let mut bucket: u64 = 0;
            for _ in 0..buckets {
                bucket =
                    bucket.checked_add(read_varint(bytes)?).filter(|at| *at < BUCKETS as u64).ok_or(DecodeError)?;
                histogram.add(usize::try_from(bucket).map_err(|_| DecodeError)?, read_varint(bytes)?);
            }
        }
        Ok(tally)
    }
}

/// Adds a number.
pub fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

/// Reads a number from the front of these bytes.
///
/// # Errors
/// There is none, or a larger one than 64 bits hold.
pub fn read_varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(DecodeError)?;
        *bytes = rest;
        let low = u64::from(first & 0x7f);
        if shift == 63 && low > 1 {
            return Err(DecodeError);
        }
        number |= low << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DecodeError)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn tallies() -> impl Strategy<Value = Tally> {
        let histogram = || proptest::collection::vec((0..BUCKETS, 1..1_000_000_u64), 0..20);
        (any::<[u64; 5]>(), histogram(), histogram()).prop_map(|(counts, wait, run)| {
            let [enqueued, completed, failed, discarded, cancelled] = counts;
            let mut tally = Tally { enqueued, completed, failed, discarded, cancelled, ..Tally::default() };
            for (bucket, count) in wait {
                tally.wait.add(bucket, count);
            }
            for (bucket, count) in run {
                tally.run.add(bucket, count);
            }
            tally
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(tally in tallies(), rest in proptest::collection::vec(any::<u8>(), 0..8)) {
            let mut bytes = Vec::new();
            tally.encode(&mut bytes);
            bytes.extend(&rest);
            let mut left = &bytes[..];
            prop_assert_eq!(Tally::decode(&mut left), Ok(tally));
            prop_assert_eq!(left, &rest[..]);
        }

        #[test]
        fn no_bytes_make_it_panic_or_take_long(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Tally::decode(&mut &bytes[..]);
        }
    }

    #[test]
    fn a_busy_minute_takes_less_than_a_hundred_bytes() {
        let mut tally = Tally { enqueued: 5000, completed: 4990, failed: 12, ..Tally::default() };
        for bucket in 10..24 {
            tally.wait.add(bucket, 400);
            tally.run.add(bucket, 300);
        }
        let mut bytes = Vec::new();
        tally.encode(&mut bytes);
        assert!(bytes.len() < 100, "{} bytes", bytes.len());
    }
}
