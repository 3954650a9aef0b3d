//! Cron: jobs that a schedule creates again and again.
//!
//! Pure code, without Redis and without a clock. `store::cron` stores the entries and creates the jobs; `docs/cron.md`
//! describes what users can rely on.
//!
//! | file | what it is |
//! |---|---|
//! | `expression` | cron expressions: which wall clock times match, or the interval between runs |
//! | `schedule` | an expression in a time zone: when the next run is, across clock changes |
//! | `definition` | a request to register an entry, checked member by member |
//! | `template` | the job that an entry creates |
//! | `entry` | an entry as it is stored and shown |
//! | `due_runs` | what to do with an entry when a run is due |

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
