//! What keys use, shared by all gateways: a token bucket for each key and kind of use. A gateway leases tokens in batches,
//! so most requests need no call of Redis.

use std::time::Duration;

use crate::{Redis, StoreResult, keys, script};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UsageKind {
    /// Requests.
    Requests,
    /// Bytes of request bodies.
    BodyBytes,
}

impl UsageKind {
    /// Its name in keys, errors and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::BodyBytes => "body_bytes",
        }
    }
}

/// The answer to a gateway that asked for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageLease {
    /// That many tokens, at least those that were needed.
    Leased(u64),
    /// None are left. There is one after this time.
    Wait(Duration),
}

impl Redis {
    /// Leases what is `needed` now, and up to `wanted` more. `access` is the id of the key, or of the subject of a token.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn lease_usage(
        &self,
        kind: UsageKind,
        access: &str,
        rate_per_second: u64,
        needed: u64,
        wanted: u64,
    ) -> StoreResult<UsageLease> {
        let mut call = script::LEASE_USAGE.key(keys::key_usage(kind.name(), access));
        let (leased, wait_ms): (u64, u64) =
            call.arg(rate_per_second).arg(needed).arg(wanted).invoke_async(&mut self.clone()).await?;
        Ok(if leased > 0 { UsageLease::Leased(leased) } else { UsageLease::Wait(Duration::from_millis(wait_ms)) })
    }
}
