//! The history of statistics: what happened to jobs, by minute for a day and by hour for thirty days, for each queue and in
//! all.
//!
//! | file | what it does |
//! |---|---|
//! | `recorder` | counts in this process, and sends sums |
//! | `busy_queues` | in which queues something happens, for the metrics |
//! | `flushes` | the sums that processes sent, and are not folded yet |
//! | `folder` | the leader's part: adds sums to the history of each queue, makes hours of minutes, removes what is old |
//! | `history` | reads the history |
//! | `totals` | what all queues hold now |
//!
//! Times are those of Redis's clock. A sum that is on its way belongs to the stream of flushes or to the history, never to
//! both and never to neither: `fold.lua` moves it, and `read.lua` reads both at one moment.

mod busy_queues;
mod flushes;
mod folder;
mod history;
mod recorder;
mod totals;

use common::time::Millis;

pub(crate) use busy_queues::BusyQueues;
pub(crate) use folder::run as fold_flushes;
pub use folder::{StatisticsFolder, tidy_all};
pub use history::{Series, Statistics, StatisticsPoint};
pub use recorder::{AttemptEnd, QueueTally, StatisticsRecorder};
pub use totals::JobTotals;

/// The series of all queues together. No queue can be called that.
pub(crate) const ALL: &str = "_all";
/// The series of the queues without one of their own.
pub(crate) const OTHER: &str = "_other";

pub(crate) const MINUTE_MS: Millis = 60_000;
pub(crate) const HOUR_MS: Millis = 3_600_000;
pub(crate) const DAY_MS: Millis = 86_400_000;

/// Hours that are kept by minute, beside the current one.
pub(crate) const MINUTE_HOURS: u64 = 24;
/// Days that are kept by hour, beside the current one.
pub(crate) const HOUR_DAYS: u64 = 30;

/// The field of a history with the minutes of an hour.
pub(crate) fn minutes_field(hour: u64) -> String {
    format!("m{hour}")
}

/// The field of a history with the hours of a day.
pub(crate) fn hours_field(day: u64) -> String {
    format!("d{day}")
}
