//! Job ids: `UUIDv7`, and at the same time the address of a job in Redis.
//!
//! Redis gives every new stream entry the id `<milliseconds>-<sequence>`. A generated job id contains that id, so a job
//! is found without an index that enqueue would have to write:
//!
//! ```text
//! 48 bits   milliseconds of the stream entry (Redis's clock)
//!  4        version 7
//! 12 + 16   sequence of the entry, high bits first, so that ids sort as the entries do
//!  2        variant
//! 16        tag of the queue's name
//!  8        priority + 100, or 255: the job never had an address, look for its record
//! 22        salt, kept in the entry too: a made-up id finds nothing
//! ```
//!
//! The tag is a hash of the name, not a number that Redis assigns. So nothing is allocated or cached, and after Redis
//! is emptied an old number cannot mean another queue. If two names share a tag, both queues are searched.
//!
//! The ids of a workflow's jobs are derived from the workflow's id: every process derives the same ids.

mod workflow_id;

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use uuid::{Uuid, Variant};

pub use self::workflow_id::WorkflowId;
use crate::{
    hash::mixed_fnv1a,
    name::{NameError, Priority, QueueName, quoted},
};

const NO_ADDRESS: u8 = 255;
const PRIORITY_OFFSET: i16 = 100;
const SEQUENCE_BITS: u32 = 28;
const SALT_BITS: u32 = 22;

/// A lower-case `UUIDv7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Uuid);

impl From<JobId> for Uuid {
    fn from(id: JobId) -> Self {
        id.0
    }
}

/// The stream entry that a generated id points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobAddress {
    /// The entry.
    pub entry: EntryId,
    /// The priority, hence the stream, it was added to.
    pub priority: Priority,
}

/// The id of a stream entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970 on Redis's clock.
    pub milliseconds: u64,
    /// Order within the millisecond.
    pub sequence: u64,
}

/// The tag of a queue's name: FNV-1a folded to 16 bits.
#[must_use]
pub fn queue_tag(queue: &QueueName) -> u16 {
    let hash =
        queue.stored().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 16) as u16 ^ (hash & 0xffff) as u16
}

/// 22 bits for a new id: random ones, and the lowest is the mark; see [`JobId::has_salt_mark`].
#[must_use]
pub fn new_salt(has_mark: bool) -> u32 {
    rand::random::<u32>() >> (32 - SALT_BITS) & !1 | u32::from(has_mark)
}

impl JobId {
    /// The id of a job that was just added to a stream. None if the sequence does not fit into 28 bits, which needs a
    /// clock that stands still for 268 million entries.
    #[must_use]
    pub fn from_entry(entry: EntryId, queue: &QueueName, priority: Priority, salt: u32) -> Option<Self> {
        (entry.sequence >> SEQUENCE_BITS == 0)
            .then(|| pack(entry.milliseconds, entry.sequence, queue_tag(queue), priority_byte(priority), salt))
    }

    /// An id for a job that starts out as a record, such as a scheduled one.
    #[must_use]
    pub fn without_address(now_milliseconds: u64, queue: &QueueName) -> Self {
        let random = u64::from(rand::random::<u32>() >> (32 - SEQUENCE_BITS));
        pack(now_milliseconds, random, queue_tag(queue), NO_ADDRESS, new_salt(rand::random()))
    }

    /// An id derived from its arguments: the same arguments give the same id. 50 bits of `seed` are used.
    #[must_use]
    pub fn derived(milliseconds: u64, queue: &QueueName, seed: u64) -> Self {
        let (sequence, salt) = (seed & ((1 << SEQUENCE_BITS) - 1), seed >> SEQUENCE_BITS & ((1 << SALT_BITS) - 1));
        pack(milliseconds, sequence, queue_tag(queue), NO_ADDRESS, u32::try_from(salt).unwrap_or_default())
    }

    /// An id for a job that must exist only once, even if several processes create it or retry: a time, a queue and 50
    /// bits of a hash of its purpose.
    #[must_use]
    pub fn for_purpose(milliseconds: u64, queue: &QueueName, purpose: &str) -> Self {
        let hash = mixed_fnv1a(purpose);
        let (sequence, salt) = (hash >> (64 - SEQUENCE_BITS), hash & ((1 << SALT_BITS) - 1));
        pack(milliseconds, sequence, queue_tag(queue), NO_ADDRESS, u32::try_from(salt).unwrap_or_default())
    }

    /// The same in 22 characters of URL-safe base64: what lists of many ids hold.
    #[must_use]
    pub fn to_base64(self) -> String {
        BASE64.encode(self.0.as_bytes())
    }

    /// Parses what [`Self::to_base64`] wrote.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        BASE64.decode(text).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok()).filter(is_uuid_v7).map(Self)
    }

    /// The stream entry that a generated id points at, if any.
    #[must_use]
    pub fn address(&self) -> Option<JobAddress> {
        let bits = self.0.as_u128();
        let byte = (bits >> SALT_BITS & 0xff) as i64;
        let priority = Priority::try_from(byte - i64::from(PRIORITY_OFFSET)).ok()?;
        let high = ((bits >> 64) & 0xfff) as u64;
        let low = ((bits >> 46) & 0xffff) as u64;
        Some(JobAddress { entry: EntryId { milliseconds: self.milliseconds(), sequence: high << 16 | low }, priority })
    }

    /// The tag of the queue, if the id was generated.
    #[must_use]
    pub fn queue_tag(&self) -> u16 {
        (self.0.as_u128() >> 30 & 0xffff) as u16
    }

    /// The salt, as the stream entry stores it.
    #[must_use]
    pub fn salt(&self) -> u32 {
        (self.0.as_u128() & ((1 << SALT_BITS) - 1)) as u32
    }

    /// The lowest bit of the salt. An ordinary job has it if a trace began with it that nobody records: said here, it takes
    /// no field of the stream entry, which everybody who claims the job would have to parse.
    #[must_use]
    pub fn has_salt_mark(&self) -> bool {
        self.salt() & 1 == 1
    }

    /// The time in the id: milliseconds since 1970.
    #[must_use]
    pub fn milliseconds(&self) -> u64 {
        (self.0.as_u128() >> 80) as u64
    }
}

fn priority_byte(priority: Priority) -> u8 {
    u8::try_from(i16::from(priority.get()) + PRIORITY_OFFSET).expect("a priority is -100..=100")
}

fn pack(milliseconds: u64, sequence: u64, tag: u16, priority: u8, salt: u32) -> JobId {
    let bits = u128::from(milliseconds & 0xffff_ffff_ffff) << 80
        | 0x7 << 76
        | u128::from(sequence >> 16 & 0xfff) << 64
        | 0b10 << 62
        | u128::from(sequence & 0xffff) << 46
        | u128::from(tag) << 30
        | u128::from(priority) << SALT_BITS
        | u128::from(salt & ((1 << SALT_BITS) - 1));
    JobId(Uuid::from_u128(bits))
}

impl FromStr for JobId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_uuid_v7(text).map(Self)
    }
}

fn parse_uuid_v7(text: &str) -> Result<Uuid, NameError> {
    // Only the canonical spelling: ids are compared as text by clients
    let uuid = Uuid::try_parse(text).ok().filter(|uuid| is_uuid_v7(uuid) && uuid.hyphenated().to_string() == text);
    uuid.ok_or_else(|| NameError::new("id", "be a lower-case UUIDv7", text))
}

fn is_uuid_v7(uuid: &Uuid) -> bool {
    uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122
}

impl TryFrom<String> for JobId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Text that is not a stream entry id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stream entry id: {0}")]
pub struct EntryIdError(String);

impl FromStr for EntryId {
    type Err = EntryIdError;
    fn from_str(text: &str) -> Result<Self, EntryIdError> {
        text.split_once('-')
            .and_then(|(ms, seq)| Some(Self { milliseconds: ms.parse().ok()?, sequence: seq.parse().ok()? }))
            .ok_or_else(|| EntryIdError(quoted(text)))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn an_address()(ms in 0..1_u64 << 48, seq in 0..1_u64 << 28, priority in -100..=100_i64) -> JobAddress {
            JobAddress {
                entry: EntryId { milliseconds: ms, sequence: seq },
                priority: Priority::try_from(priority).expect("within bounds"),
            }
        }
    }

    fn id_at(address: JobAddress, salt: u32) -> JobId {
        let queue = "default".parse().expect("a name");
        JobId::from_entry(address.entry, &queue, address.priority, salt).expect("fits")
    }

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_address(address in an_address(), salt in 0..1_u32 << 22) {
            let id = id_at(address, salt);
            prop_assert_eq!(id.address(), Some(address));
            prop_assert_eq!(id.salt(), salt);
            prop_assert_eq!(id.queue_tag(), queue_tag(&"default".parse().expect("a name")));
            prop_assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
            prop_assert_eq!(JobId::from_base64(&id.to_base64()), Some(id));
        }

        #[test]
        fn ids_sort_as_their_entries_do(a in an_address(), b in an_address()) {
            prop_assume!(a.entry != b.entry);
            prop_assert_eq!(id_at(a, 1).to_string() < id_at(b, 0).to_string(), a.entry < b.entry);
        }

        #[test]
        fn an_id_without_address_has_none(ms in 0..1_u64 << 48) {
            let id = JobId::without_address(ms, &"default".parse().expect("a name"));
            prop_assert_eq!(id.address(), None);
            prop_assert_eq!(id.milliseconds(), ms);
        }
    }

    #[test]
    fn the_jobs_of_a_workflow_have_ids_that_follow_from_it_and_differ() {
        let (one, other) = (WorkflowId::new(), WorkflowId::new());
        let queue = "default".parse().expect("a name");
        let ids = |workflow: WorkflowId| (0..1003).map(|index| workflow.job_id(index, &queue)).collect::<Vec<_>>();
        let all: std::collections::HashSet<JobId> = ids(one).into_iter().chain(ids(other)).collect();
        assert_eq!(all.len(), 2006);
        let first = ids(one)[0];
        assert_eq!(first, one.job_id(0, &queue));
        assert_eq!((first.address(), first.queue_tag()), (None, queue_tag(&queue)));
        assert_eq!(first.to_string().parse::<JobId>(), Ok(first));
    }

    #[test]
    fn workflows_in_a_workflow_have_ids_that_follow_from_it_and_differ() {
        let (one, other) = (WorkflowId::new(), WorkflowId::new());
        let nested = |workflow: WorkflowId| (0..1003).map(|index| workflow.nested(index)).collect::<Vec<_>>();
        let deeper = nested(one).into_iter().flat_map(|inner| (0..3).map(move |index| inner.nested(index)));
        let all: std::collections::HashSet<WorkflowId> =
            deeper.chain(nested(one)).chain(nested(other)).chain([one, other]).collect();
        assert_eq!(all.len(), 3 * 1003 + 2008);
        let first = nested(one)[0];
        assert_eq!((first, first.to_string().parse()), (one.nested(0), Ok(first)));
        assert_eq!(first.to_string()[..13], one.to_string()[..13], "the same time");
    }

    #[test]
    fn a_derived_id_is_the_same_for_the_same_purpose_and_another_for_any_other() {
        let (a, b): (QueueName, QueueName) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        let id = JobId::for_purpose(1_000, &a, "x");
        assert_eq!(id, JobId::for_purpose(1_000, &a, "x"));
        assert_eq!((id.address(), id.queue_tag(), id.milliseconds()), (None, queue_tag(&a), 1_000));
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
        let all: std::collections::HashSet<JobId> = (0..10_000)
            .map(|number| JobId::for_purpose(1_000, &a, &number.to_string()))
            .chain([id, JobId::for_purpose(1_000, &b, "x"), JobId::for_purpose(1_001, &a, "x")])
            .collect();
        assert_eq!(all.len(), 10_003);
    }

    #[test]
    fn only_canonical_lower_case_uuidv7_text_is_an_id() {
        assert!("019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse::<JobId>().is_ok());
        for bad in [
            "",
            "no",
            "550e8400-e29b-41d4-a716-446655440000",
            "019539A4-B68C-7DEF-8000-1A2B3C4D5E6F",
            "019539a4b68c7def80001a2b3c4d5e6f",
            "{019539a4-b68c-7def-8000-1a2b3c4d5e6f}",
        ] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_base64_of_a_uuidv7_is_an_id() {
        let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        assert_eq!(id.to_base64(), "AZU5pLaMfe-AABorPE1ebw");
        for bad in ["", "AZU5pLaMfe-AABorPE1eb", "AZU5pLaMfe+AABorPE1ebw", "AAAAAAAAAAAAAAAAAAAAAA", &id.to_string()] {
            assert_eq!(JobId::from_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sequence_beyond_28_bits_has_no_id() {
        let queue = "default".parse().expect("a name");
        let entry = EntryId { milliseconds: 1, sequence: 1 << 28 };
        assert_eq!(JobId::from_entry(entry, &queue, Priority::default(), 0), None);
    }
}
