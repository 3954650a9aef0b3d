//! Entries of the stream of flushes: the sums of a process by queue and minute.

use std::collections::HashMap;

use model::statistics::{DecodeError, Tally, read_varint};
use redis::{FromRedisValue, ParsingError, Value};

/// Processes whose last number is remembered; with more, all are forgotten.
const MAX_PROCESSES: usize = 10_000;

/// One entry.
#[derive(Debug)]
pub(super) struct FlushEntry {
    /// Its id in the stream.
    pub(super) id: String,
    process: String,
    sequence: u64,
    bytes: Vec<u8>,
}

/// The sums of a queue in a minute.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FlushedTally {
    pub(super) queue: String,
    /// Minutes since 1970.
    pub(super) minute: u64,
    pub(super) tally: Tally,
}

impl FromRedisValue for FlushEntry {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (id, fields): (String, Vec<(String, Vec<u8>)>) = FromRedisValue::from_redis_value(value)?;
        let mut entry = Self { id, process: String::new(), sequence: 0, bytes: Vec::new() };
        for (name, value) in fields {
            match name.as_str() {
                "p" => entry.process = String::from_utf8_lossy(&value).into_owned(),
                "n" => entry.sequence = String::from_utf8_lossy(&value).parse().unwrap_or(0),
                "d" => entry.bytes = value,
                _ => {}
            }
        }
        Ok(entry)
    }
}

/// The newest number of each process, which tells whether an entry was sent twice.
#[derive(Debug, Default, Clone)]
pub(super) struct SeenFlushes(HashMap<String, u64>);

impl SeenFlushes {
    /// What an entry holds; nothing if it is a repetition. What is damaged ends it.
    pub(super) fn read(&mut self, entry: &FlushEntry) -> Vec<FlushedTally> {
        if self.0.len() >= MAX_PROCESSES {
            self.0.clear();
        }
        let last = self.0.entry(entry.process.clone()).or_default();
        if entry.sequence <= *last {
            return Vec::new();
        }
        *last = entry.sequence;
        let (mut tallies, mut bytes) = (Vec::new(), &entry.bytes[..]);
        while !bytes.is_empty() {
            match read_tally(&mut bytes) {
                Ok(tally) => tallies.push(tally),
                Err(error) => {
                    tracing::warn!(entry = entry.id, %error, "statistics of a process are damaged");
                    break;
                }
            }
        }
        tallies
    }
}

fn read_tally(bytes: &mut &[u8]) -> Result<FlushedTally, DecodeError> {
    let length = usize::try_from(read_varint(bytes)?).map_err(|_| DecodeError)?;
    let (name, rest) = bytes.split_at_checked(length).ok_or(DecodeError)?;
    *bytes = rest;
    let queue = std::str::from_utf8(name).map_err(|_| DecodeError)?.to_owned();
    let minute = read_varint(bytes)?;
    Ok(FlushedTally { queue, minute, tally: Tally::decode(bytes)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, bytes: Vec<u8>) -> FlushEntry {
        FlushEntry { id: "1-0".to_owned(), process: "p".to_owned(), sequence, bytes }
    }

    #[test]
    fn an_entry_that_was_sent_twice_counts_once_and_garbage_ends_it() {
        let tally = Tally { enqueued: 3, ..Tally::default() };
        let mut bytes = vec![1, b'q', 7];
        tally.encode(&mut bytes);
        let mut seen = SeenFlushes::default();
        let read = seen.read(&entry(1, bytes.clone()));
        assert_eq!(read, [FlushedTally { queue: "q".to_owned(), minute: 7, tally }]);
        assert!(seen.read(&entry(1, bytes.clone())).is_empty());
        bytes.extend([200, 200]);
        assert_eq!(seen.read(&entry(2, bytes)).len(), 1);
    }
}
