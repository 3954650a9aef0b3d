//! What the three Galley services share.
//!
//! | module | what it is |
//! |---|---|
//! | [`name`], [`id`] | names and ids as types that can only hold valid ones |
//! | [`json`], [`time`], [`text`] | JSON, times and strangers' text at the edge |
//! | [`job`] | what a job is: pure code |
//! | [`message`] | what a message is: pure code |
//! | [`subscription`] | what a durable subscription is: pure code |
//! | [`cron`] | jobs that are made again and again by the clock: pure code |
//! | [`redis`] | the store |
//! | [`push`] | requests to endpoints of others, who are not trusted |
//! | [`command`] | programs that do the work, which are trusted but fail in every way |
//! | [`written`], [`in_force`] | files that describe things, and what they say from now on |
//! | [`settings`], [`telemetry`], [`shutdown`], [`cli`], [`ops`] | what every service needs to run |

pub mod cli;
pub mod command;
pub mod cron;
pub mod id;
pub mod in_force;
pub mod job;
pub mod json;
pub mod message;
pub mod name;
pub mod ops;
pub mod push;
pub mod redis;
pub mod settings;
pub mod shutdown;
pub mod subscription;
pub mod telemetry;
pub mod text;
pub mod time;
pub mod written;
