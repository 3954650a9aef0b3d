//! How many jobs a claim takes, for metrics.

use std::sync::LazyLock;

use common::prometheus::{AtomicHistogram, add_source};

static CLAIMED: AtomicHistogram<9> = AtomicHistogram::new([1, 2, 5, 10, 20, 50, 100, 200, 500], 1.0);

/// Counts a claim that took that many jobs.
pub(super) fn count_claimed(jobs: usize) {
    static SHOWN: LazyLock<()> = LazyLock::new(|| {
        add_source(|samples| {
            samples.histogram("galley_claim_batch_jobs", &[], &CLAIMED);
            true
        });
    });
    if jobs > 0 {
        LazyLock::force(&SHOWN);
        CLAIMED.record(jobs as u64);
    }
}
