//! Jobs that are made again and again by the clock: when they run, how they are asked for, and what is kept of them.
//!
//! Pure code, without Redis and without a clock of its own. `crate::redis::cron` keeps the entries and makes the jobs;
//! `docs/cron.md` describes what users may rely on.
//!
//! | file | what it is |
//! |---|---|
//! | `expression` | cron expressions: which wall clock times match, or how far apart runs are |
//! | `schedule` | an expression in a time zone: when the next run is, across changes of the clock |

pub mod expression;
pub mod schedule;

pub use schedule::Schedule;
