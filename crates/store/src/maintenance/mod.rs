//! Maintenance: makes due jobs available, settles expired leases, reclaims jobs of dead workers, trims histories.
//!
//! Every gateway, queue-worker and pubsub-worker runs [`run`]; one of them at a time is the leader. Correctness never
//! depends on the leader lease: every step is fenced by a script, and harmless if two processes do it. Nothing polls
//! for due times: the leader sleeps until the next one and is woken when an earlier one appears.
//!
//! | file | what it does |
//! |---|---|
//! | `leader` | what the leader does when |
//! | `maintenance_store`, `redis_store` | what the leader asks of Redis |
//! | `due_times` | what is due next in each queue |
//! | `failures` | one queue's or job's error does not hold up the others |
//! | `scheduler` | makes scheduled and retryable jobs available |
//! | `lease_reaper` | settles attempts whose lease or time limit is over |
//! | `timers` | job expiry, follow-ups of ended jobs, limits that allow more |
//! | `cron` | fires due cron entries |
//! | `workflows` | continues interrupted workflows |
//! | `worker_reaper` | reclaims jobs of dead queue-workers, deletes old dead letters |
//! | `history_trimmer` | trims histories of channels |
//! | `consistency_checker`, `candidates`, `check_cursor` | find and repair contradictions in stored data |
//! | `index_checker` | rebuilds lists of queues, workflows, channels and cron runs from what exists |
//! | `silence_watch` | whether the silence of a queue-worker lasted, or came with a step of the clock |
//! | `data_checks` | checks of all stored data, a slice with each sweep |
//! | `sweep` | looks at a few queues in turn, and at those of silent workers |
//! | `silent_workers` | which workers stopped reporting |
//! | `memory_watch`, `memory_survey` | read how full Redis is, and what each kind of data takes, in every process |
//! | `metrics_collector`, `leader_samples` | what only the leader shows as metrics |
//! | `leadership` | leader election |
//! | `clock_steps` | heals what a step of Redis's clock left behind |
//! | `once` | everything that is due in a queue, for tests |
//! | `outage_grace` | whether a worker's silence means that it died |

mod candidates;
mod check_cursor;
mod clock_steps;
mod consistency_checker;
mod cron;
mod data_checks;
mod due_times;
mod failures;
mod history_trimmer;
mod index_checker;
mod leader;
mod leader_samples;
pub mod leadership;
mod lease_reaper;
mod maintenance_store;
mod memory_survey;
mod memory_watch;
mod metrics_collector;
mod once;
mod outage_grace;
mod redis_store;
mod scheduler;
mod silence_watch;
mod silent_workers;
#[cfg(test)]
mod simulation;
mod sweep;
mod timers;
mod worker_reaper;
mod workflows;

use tokio_util::sync::CancellationToken;

use failures::{pause_on_error, reschedule_on_error};
use outage_grace::OutageGrace;

pub(crate) use clock_steps::heal_group;

pub use check_cursor::{CheckCursor, CheckCursorError};
pub use consistency_checker::{ConsistencyReport, Violation};
pub use memory_watch::read_memory;
pub use once::{run_once, run_once_watching};
pub use silence_watch::SilenceWatch;

use crate::jobs::Jobs;
use common::settings::MaintenanceSettings;

/// Runs maintenance whenever the leader lease is free, and watches the memory of Redis, until `stop` is cancelled.
pub async fn run(jobs: Jobs, settings: MaintenanceSettings, stop: CancellationToken) {
    tokio::join!(leader::lead(&jobs, &settings, &stop), memory_watch::watch(&jobs, &stop));
}
