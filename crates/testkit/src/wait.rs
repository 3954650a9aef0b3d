//! Waiting for a condition, with a limit.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long a test waits for something that should happen soon. Generous: machines are slow and noisy, and a test that
/// passes never waits this long.
pub const TEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Waits until `check` gives something, and gives that.
///
/// # Panics
/// Nothing came in time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, check: impl FnMut() -> F) -> T {
    eventually_for(TEST_TIMEOUT, what, check).await
}

/// The same, and `explain` says what was waited for when nothing came.
///
/// # Panics
/// Nothing came in time.
pub async fn eventually_or<T, F: Future<Output = Option<T>>>(
    explain: impl Fn() -> String,
    check: impl FnMut() -> F,
) -> T {
    wait_for(TEST_TIMEOUT, explain, check).await
}

/// The same with another limit.
///
/// # Panics
/// Nothing came within the limit.
pub async fn eventually_for<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    check: impl FnMut() -> F,
) -> T {
    wait_for(limit, || what.to_owned(), check).await
}

async fn wait_for<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    explain: impl Fn() -> String,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for: {}", explain());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
