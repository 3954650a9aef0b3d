//! A queue-worker whose handler notes how late it starts: the same code as queue-worker, with a clock of microseconds.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use serde::de::IgnoredAny;
use worker::{Context, HandlerError, Worker};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A minute, in microseconds.
const MAX_MICROS: u64 = 60_000_000;
const DIGITS: u8 = 3;

static LATENESS: LazyLock<Mutex<Histogram<u64>>> = LazyLock::new(|| {
    Mutex::new(
        Histogram::new_with_max(MAX_MICROS, DIGITS).unwrap_or_else(|error| panic!("bounds of a histogram: {error}")),
    )
});

fn main() -> std::process::ExitCode {
    Worker::builder()
        .handler("bench.start", |_: Context, (due_micros, _filling): (u64, String)| async move {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            let late = u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(due_micros);
            LATENESS.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(late);
            Ok::<(), HandlerError>(())
        })
        // Other jobs of the same worker, for the curves: the same as in queue-worker
        .handler("test.noop", |_: Context, _: IgnoredAny| async move { Ok::<(), HandlerError>(()) })
        // What was noted since the last time: pairs of microseconds and how many starts were as late
        .handler("bench.lateness", |_: Context, (): ()| async move {
            let mut noted = LATENESS.lock().unwrap_or_else(PoisonError::into_inner);
            let pairs: Vec<(u64, u64)> =
                noted.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
            noted.reset();
            Ok::<_, HandlerError>(pairs)
        })
        .main()
}
