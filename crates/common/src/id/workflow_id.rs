//! Ids of workflows, and those of their jobs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{JobId, parse_uuid_v7};
use crate::name::{NameError, QueueName};

/// A workflow: a lower-case `UUIDv7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkflowId(Uuid);

impl From<WorkflowId> for Uuid {
    fn from(id: WorkflowId) -> Self {
        id.0
    }
}

impl WorkflowId {
    /// A new, unique id.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id derived from a seed that has the bits of a `UUIDv7`: the same seed gives the same id.
    #[must_use]
    pub fn derived(seed: u128) -> Self {
        let marks = 0xf << 76 | 0b11 << 62;
        Self(Uuid::from_u128(seed & !marks | 0x7 << 76 | 0b10 << 62))
    }

    /// The id of the workflow that one of its members is. Its time is that of this one; 74 bits are a hash of both.
    #[must_use]
    pub fn nested(&self, index: u32) -> Self {
        let (high, low) = self.0.as_u64_pair();
        let seed = mixed(high ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(u64::from(index));
        let hash =
            u128::from(mixed(seed ^ 0x6e65_7374_6564_2d31)) << 64 | u128::from(mixed(seed ^ 0x6e65_7374_6564_2d32));
        Self::derived(u128::from(high >> 16) << 80 | hash & ((1 << 80) - 1))
    }

    /// The id of one of its jobs. Jobs of one workflow differ in the sequence, jobs of two workflows in 50 bits of a
    /// hash.
    #[must_use]
    pub fn job_id(&self, index: u32, queue: &QueueName) -> JobId {
        let (high, low) = self.0.as_u64_pair();
        let seed = mixed(high ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        JobId::derived(high >> 16, queue, seed.wrapping_add(u64::from(index)))
    }
}

/// The finalizer of splitmix64.
fn mixed(mut seed: u64) -> u64 {
    seed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    seed = (seed ^ seed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ seed >> 31
}

impl Default for WorkflowId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for WorkflowId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_uuid_v7(text).map(Self)
    }
}

impl TryFrom<String> for WorkflowId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<WorkflowId> for String {
    fn from(id: WorkflowId) -> String {
        id.to_string()
    }
}

impl fmt::Display for WorkflowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}
