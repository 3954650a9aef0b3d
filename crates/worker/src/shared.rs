//! What all parts of a worker's process share.

use std::sync::atomic::AtomicU64;

use common::settings::Settings;
use store::{
    jobs::{Consumer, Jobs},
    long_poll::LongPoll,
    workers::Workers,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{heartbeat_state::HeartbeatState, in_flight::InFlightJobs, slots::Slots};

/// How long a worker works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunMode {
    /// Until it is told to stop.
    #[default]
    Continuous,
    /// Until its queues have no job left that can run now, and none runs. What is scheduled for later is not waited for.
    Drain,
    /// For one job, if one is there.
    Once,
}

/// What all parts of the process share.
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
    pub(crate) run_mode: RunMode,
    /// The longest that a handler here may take to tidy up, in milliseconds.
    pub(crate) max_stop_grace_ms: AtomicU64,
    pub(crate) attempts: TaskTracker,
    /// Cancelled when the grace is over: what still runs is handed back.
    pub(crate) hard_shutdown: CancellationToken,
}
