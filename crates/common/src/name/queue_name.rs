//! Names of queues, and of their partitions.
//!
//! A queue with partitions is several queues in Redis. Partition 0 has the name of the queue. Each other one has an internal
//! name, `<queue>~<number>~<salt>`, which no client can send and which nobody is shown: text of a partition is the name of
//! its queue. Only keys, lists of queues and notifications have the internal name ([`QueueName::stored`]).
//!
//! The salt gives the name a slot of Redis Cluster that is as far from those of the other partitions as can be: the queue of
//! partition 0 has any slot, partition 1 one on the other side of the ring, partitions 2 and 3 those half-way between, and so
//! on. So eight partitions have jobs on every primary, as long as each primary has a connected seventh of the slots or more.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{NameError, is_queue_name};
use crate::hash::{CLUSTER_SLOTS, cluster_slot};

/// Partitions that a queue has at most.
pub const MAX_PARTITIONS: u16 = 64;

/// How far a partition's slot may be behind the ideal one.
const SLOT_WINDOW: u16 = CLUSTER_SLOTS / MAX_PARTITIONS;

/// A queue: `[a-z0-9][a-z0-9.-]*`, 1 to 128 characters (Open Job Spec core); or a partition of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName {
    name: Arc<str>,
    partition: Partition,
}

/// Which partition; zeros for the queue itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Partition {
    number: u16,
    salt: u16,
}

impl QueueName {
    /// The name of the queue, also of a partition.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The number of the partition; 0 is the queue itself.
    #[must_use]
    pub fn partition_number(&self) -> u16 {
        self.partition.number
    }

    /// The queue that a partition belongs to: its partition 0.
    #[must_use]
    pub fn base(&self) -> Cow<'_, Self> {
        if self.partition.number == 0 {
            Cow::Borrowed(self)
        } else {
            Cow::Owned(Self { name: self.name.clone(), partition: Partition::default() })
        }
    }

    /// A partition of this queue.
    #[must_use]
    pub fn partition(&self, number: u16) -> Self {
        let partition = if number == 0 { Partition::default() } else { spread(&self.name, number) };
        Self { name: self.name.clone(), partition }
    }

    /// The first `count` partitions, the queue itself among them.
    #[must_use]
    pub fn partitions(&self, count: u16) -> Vec<Self> {
        (0..count.max(1)).map(|number| self.partition(number)).collect()
    }

    /// The name in Redis: that of the queue, or the internal one of a partition.
    #[must_use]
    pub fn stored(&self) -> Cow<'_, str> {
        let Self { name, partition } = self;
        if partition.number == 0 { Cow::Borrowed(name) } else { Cow::Owned(partition.name_in(name)) }
    }

    /// Parses a name that [`QueueName::stored`] wrote.
    ///
    /// # Errors
    /// It is no such name.
    pub fn from_stored(text: &str) -> Result<Self, NameError> {
        let Some((name, rest)) = text.split_once('~') else { return text.parse() };
        let queue: Self = name.parse()?;
        // One name for each partition: no other spelling, no other salt
        let partition = || {
            let number: u16 = rest.split_once('~')?.0.parse().ok()?;
            (1..MAX_PARTITIONS).contains(&number).then(|| queue.partition(number))
        };
        let found = partition().filter(|found| found.stored() == text);
        found.ok_or_else(|| NameError::new("queue", "be a queue or a partition of one", text))
    }
}

/// A partition lies about as far behind the slot of its queue as the bits of its number say, read backwards.
fn spread(queue: &str, number: u16) -> Partition {
    let bits = MAX_PARTITIONS.trailing_zeros();
    let distance = (number % MAX_PARTITIONS).reverse_bits() >> (u16::BITS - bits);
    let ideal = (cluster_slot(queue.as_bytes()) + distance * SLOT_WINDOW) % CLUSTER_SLOTS;
    let is_near = |salt: &u16| {
        let slot = cluster_slot(Partition { number, salt: *salt }.name_in(queue).as_bytes());
        (slot + CLUSTER_SLOTS - ideal) % CLUSTER_SLOTS < SLOT_WINDOW
    };
    // One of 64 names is near
    let salt = (0..u16::MAX).find(is_near).unwrap_or_default();
    Partition { number, salt }
}

impl Partition {
    fn name_in(self, queue: &str) -> String {
        format!("{queue}~{}~{}", self.number, self.salt)
    }
}

// A queue without partitions is hashed as its text
impl Hash for QueueName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        if self.partition.number != 0 {
            state.write_u16(self.partition.number);
        }
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for QueueName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_queue_name(text) {
            Ok(Self { name: text.into(), partition: Partition::default() })
        } else {
            Err(NameError::new("queue", "match ^[a-z0-9][a-z0-9.-]*$ and have 1 to 128 characters", text))
        }
    }
}

impl TryFrom<String> for QueueName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<QueueName> for String {
    fn from(queue: QueueName) -> String {
        queue.name.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(queue: &QueueName) -> u16 {
        cluster_slot(queue.stored().as_bytes())
    }

    #[test]
    fn nobody_can_send_the_name_of_a_partition_and_nobody_is_shown_one() {
        let queue: QueueName = "mail".parse().expect("a name");
        let partition = queue.partition(3);
        let stored = partition.stored().into_owned();
        assert!(stored.starts_with("mail~3~"), "{stored}");
        assert!(stored.parse::<QueueName>().is_err() && QueueName::try_from(stored.clone()).is_err());
        assert!(serde_json::from_value::<QueueName>(stored.into()).is_err());
        assert_eq!((partition.to_string(), partition.as_str()), ("mail".to_owned(), "mail"));
        assert_eq!(serde_json::to_string(&partition).expect("JSON"), "\"mail\"");
        assert_eq!(queue.stored(), "mail");
    }

    #[test]
    fn only_the_one_name_of_a_partition_is_read_back() {
        let stored = |number: u16| "mail".parse::<QueueName>().expect("a name").partition(number).stored().into_owned();
        let one = stored(1);
        for bad in
            ["mail~", "mail~1", "mail~0~0", "mail~01~0", "~1~0", "MAIL~1~0", &format!("{one}~1"), &format!("{one}x")]
        {
            assert!(QueueName::from_stored(bad).is_err(), "{bad}");
        }
        assert!(QueueName::from_stored(&stored(1).replace("~1~", "~64~")).is_err());
    }

    proptest! {
        #[test]
        fn a_partition_is_read_back_and_leads_to_its_queue(name in "[a-z0-9][a-z0-9.-]{0,40}", number in 0..MAX_PARTITIONS) {
            let queue: QueueName = name.parse().expect("a name");
            let partition = queue.partition(number);
            prop_assert_eq!(QueueName::from_stored(&partition.stored()), Ok(partition.clone()));
            prop_assert_eq!(partition.partition_number(), number);
            prop_assert_eq!(partition.base().into_owned(), queue.clone());
            prop_assert_eq!(partition == queue, number == 0);
        }

        #[test]
        fn the_slots_of_the_first_partitions_are_spread_over_the_ring(name in "[a-z0-9][a-z0-9.-]{0,40}", power in 0..7_u32) {
            let queue: QueueName = name.parse().expect("a name");
            let count = 1_u16 << power;
            let mut slots: Vec<u16> = queue.partitions(count).iter().map(slot).collect();
            slots.sort_unstable();
            for (number, slot) in slots.iter().enumerate() {
                let next = slots.get(number + 1).map_or(slots[0] + CLUSTER_SLOTS, |next| *next);
                // Wherever three primaries divide the ring, eight partitions have jobs on each
                prop_assert!(next - slot <= CLUSTER_SLOTS / count + SLOT_WINDOW, "{:?}", slots);
            }
        }
    }
}
