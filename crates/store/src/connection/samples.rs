//! How full the server and the pool are, shown when somebody asks for the metrics.

use common::prometheus::{Samples, add_source};
use deadpool_redis::Status;

use crate::command_times;

/// Bytes that the server uses and may use, and the connections of the pool.
type ServerUse = ((u64, u64), Status);

/// Shows them until `read` has none: then the client is gone.
pub(super) fn show(read: impl Fn() -> Option<ServerUse> + Send + Sync + 'static) {
    command_times::show();
    add_source(move |samples| read().map(|state| add_to(samples, &state)).is_some());
}

fn add_to(samples: &mut Samples, ((used, max), pool): &ServerUse) {
    // 0 before the first reading, or if the server does not allow it
    if *used > 0 {
        samples.gauge("galley_redis_memory_used_bytes", &[], to_f64(*used));
        samples.gauge("galley_redis_memory_max_bytes", &[], to_f64(*max));
    }
    let (idle, all) = (pool.available as u64, pool.size as u64);
    samples.gauge("galley_redis_pool_connections", &[("state", "idle")], to_f64(idle));
    samples.gauge("galley_redis_pool_connections", &[("state", "used")], to_f64(all.saturating_sub(idle)));
    samples.gauge("galley_redis_pool_waiters", &[], to_f64(pool.waiting as u64));
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn to_f64(number: u64) -> f64 {
    number as f64
}
