//! Jobs that are made again and again by the clock: when they run, how they are asked for, and what is kept of them.
//!
//! Pure code, without Redis and without a clock of its own. `store::cron` keeps the entries and makes the jobs;
//! `docs/cron.md` describes what users may rely on.
//!
//! | file | what it is |
//! |---|---|
//! | `expression` | cron expressions: which wall clock times match, or how far apart runs are |
//! | `schedule` | an expression in a time zone: when the next run is, across changes of the clock |
//! | `definition` | a request to register an entry, checked member by member |
//! | `template` | the job that an entry makes |
//! | `entry` | an entry as it is stored and shown |
//! | `due_runs` | what is to be done with an entry when its time has come |

pub mod definition;
pub mod due_runs;
pub mod entry;
pub mod expression;
mod request_checks;
pub mod schedule;
pub mod template;

pub use definition::{CronDefinition, OverlapPolicy};
pub use due_runs::{CatchUpLimits, CronRunOutcome, CronTick};
pub use entry::CronEntry;
pub use schedule::CronSchedule;
pub use template::JobTemplate;
