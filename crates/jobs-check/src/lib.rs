//! The jobs check: shows that no acknowledged job is lost, recorded twice or run for no reason, whatever breaks.
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`] | what is sent and what breaks, a pure function of a seed |
//! | `cluster` | a Redis, gateways, queue-workers and pulling workers, each behind a `fault_proxy` |
//! | `producers`, `client` | send the requests, again and again until each is answered |
//! | [`handling`] | what handlers do, in Rust and behind an endpoint; `python/` has those that pull and the program |
//! | `nemesis` | lets the faults strike |
//! | `ending` | waits until all is over and asks for every job |
//! | [`history`] | what each of them wrote down, synced to the disk, outside Redis |
//! | [`verdict`] | what is wrong, a pure function of plan and histories |
//! | `timeline` | a run as a picture |
//! | `soak` | a long run in which nothing breaks, and what grows |
//!
//! The times of a plan are exact, those of processes are not: a seed repeats what is sent and what strikes, not each race.

mod client;
mod cluster;
mod ending;
mod fault_proxy;
pub mod handling;
pub mod history;
mod nemesis;
pub mod plan;
mod producers;
mod run;
mod soak;
mod timeline;
pub mod verdict;

pub use run::{JobsCheckOutcome, check_jobs, judge_again};
pub use soak::{SoakOutcome, SoakSample, soak};
pub use timeline::draw_timeline;
