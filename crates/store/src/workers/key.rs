//! Ids of workers in the list of workers.

use std::str::FromStr;

use crate::jobs::consumer::Consumer;
use common::name::{NameError, WorkerId};

/// The id of a listed worker: a queue-worker's name in pending lists, or `pull:` and the id that a pulling program
/// gives itself. So no program can pass for a queue-worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(String);

const PULL_PREFIX: &str = "pull:";

impl WorkerKey {
    /// The id of a queue-worker.
    #[must_use]
    pub fn for_consumer(consumer: &Consumer) -> Self {
        Self(consumer.name().to_owned())
    }

    /// The id of a program that pulls over HTTP.
    #[must_use]
    pub fn for_pull_worker(worker: &WorkerId) -> Self {
        Self(format!("{PULL_PREFIX}{worker}"))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it pulls over HTTP.
    #[must_use]
    pub fn is_pull(&self) -> bool {
        self.0.starts_with(PULL_PREFIX)
    }
}

impl FromStr for WorkerKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix(PULL_PREFIX) {
            Some(worker) => worker.parse::<WorkerId>().map(|worker| Self::for_pull_worker(&worker)),
            // A name without prefix may be the id of a program, too
            None => match Consumer::parse(text) {
                Some(consumer) if text.parse::<WorkerId>().is_ok() => Ok(Self::for_consumer(&consumer)),
                _ => text.parse::<WorkerId>().map(|worker| Self::for_pull_worker(&worker)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_program_can_take_the_place_of_a_queue_worker() {
        let consumer = Consumer::new(Duration::from_secs(1));
        let claimed: WorkerId = consumer.name().parse().expect("a name");
        assert_ne!(WorkerKey::for_pull_worker(&claimed), WorkerKey::for_consumer(&consumer));
        for key in [WorkerKey::for_pull_worker(&claimed), WorkerKey::for_consumer(&consumer)] {
            assert_eq!(key.as_str().parse::<WorkerKey>(), Ok(key));
        }
        assert_eq!("w-1".parse::<WorkerKey>(), "pull:w-1".parse());
        assert!("a b".parse::<WorkerKey>().is_err() && "pull:".parse::<WorkerKey>().is_err());
        assert!("w-5-a b".parse::<WorkerKey>().is_err());
    }
}
