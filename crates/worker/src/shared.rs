//! The state that all parts of a worker's process share.

use std::sync::atomic::AtomicU64;

use common::settings::Settings;
use store::{
    jobs::{Consumer, Jobs},
    long_poll::LongPoll,
    workers::Workers,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{attempt_times::AttemptTimes, heartbeat_state::HeartbeatState, in_flight::InFlightJobs, slots::Slots};

/// When a worker stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunMode {
    /// When it receives a signal or a directive.
    #[default]
    Continuous,
    /// When no job in its queues can run now and none is running. Scheduled jobs do not count.
    Drain,
    /// After one job, or at once if there is none.
    Once,
}

/// The state that all parts of the process share.
pub(crate) struct WorkerShared {
    pub(crate) jobs: Jobs,
    /// Waits for jobs of queues with limits.
    pub(crate) long_poll: LongPoll,
    pub(crate) workers: Workers,
    pub(crate) settings: Settings,
    pub(crate) consumer: Consumer,
    pub(crate) in_flight: InFlightJobs,
    pub(crate) heartbeat_state: HeartbeatState,
    pub(crate) slots: Slots,
    pub(crate) attempt_times: AttemptTimes,
    pub(crate) run_mode: RunMode,
    /// The longest time that a handler of this process may tidy up, in milliseconds.
    pub(crate) max_stop_grace_ms: AtomicU64,
    pub(crate) attempts: TaskTracker,
    /// Cancelled when the worker claims nothing more and finishes what it has.
    pub(crate) finishing: CancellationToken,
    /// Cancelled when the shutdown grace is over: running jobs are released.
    pub(crate) hard_shutdown: CancellationToken,
}
