//! Memory for the bodies of all requests of the process.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::error::{ApiError, ErrorCode};

/// Bodies up to this size may use all the memory for bodies. Larger ones leave a quarter to them.
const SMALL_BODY_BYTES: usize = 64 << 10;

/// The memory for the bodies of all requests of the process.
pub(crate) struct BodyBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
}

/// The part of the budget that one body uses, until it is dropped.
pub(crate) struct BodyLease {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyBudget {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, used_bytes: AtomicUsize::new(0) }
    }

    pub(crate) fn lease(self: &Arc<Self>) -> BodyLease {
        BodyLease { budget: self.clone(), bytes: 0 }
    }
}

impl BodyLease {
    /// Makes the lease that large.
    ///
    /// # Errors
    /// The bodies of other requests use the memory.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let used = &self.budget.used_bytes;
        if bytes <= self.bytes {
            used.fetch_sub(self.bytes - bytes, Relaxed);
            self.bytes = bytes;
            return Ok(());
        }
        let max = self.budget.max_bytes;
        let may_use = if bytes > SMALL_BODY_BYTES { max / 4 * 3 } else { max };
        let growth = bytes - self.bytes;
        let grow = |now: usize| now.checked_add(growth).filter(|now| *now <= may_use);
        used.fetch_update(Relaxed, Relaxed, grow).map_err(|_| {
            let message = format!("bodies of other requests use the {max} bytes of gateway.bodies_max_bytes");
            ApiError::new(ErrorCode::TooManyBodies, message)
        })?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for BodyLease {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones_and_free_what_they_used() {
        let budget = Arc::new(BodyBudget::new(1 << 20));
        let mut large = budget.lease();
        large.resize(700 << 10).expect("room");
        let mut other = budget.lease();
        assert_eq!(other.resize(100 << 10).expect_err("no room for large ones").code(), ErrorCode::TooManyBodies);
        let small: Vec<BodyLease> = (0..5)
            .map(|_| {
                let mut lease = budget.lease();
                lease.resize(SMALL_BODY_BYTES).expect("room for small ones");
                lease
            })
            .collect();
        assert!(budget.lease().resize(SMALL_BODY_BYTES).is_err(), "all is used");
        drop((large, small));
        other.resize(700 << 10).expect("room again");
        other.resize(0).expect("less is always possible");
        assert_eq!(budget.used_bytes.load(Relaxed), 0);
    }
}
