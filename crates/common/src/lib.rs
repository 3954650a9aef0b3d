//! The foundation of every other crate: names, ids, JSON and times at the edge, and what a process needs to run.
//!
//! | module | what it is |
//! |---|---|
//! | [`name`], [`id`], [`channel_pattern`], [`rate`] | values from users as types that can only hold valid ones |
//! | [`hash`] | hashes that ids and places in Redis follow from |
//! | [`rotation`] | queues in turn, a few at a time |
//! | [`json`], [`json_repair`], [`known_names`], [`time`], [`text`] | JSON, names, times and untrusted text at the edge |
//! | [`settings`] | `config/default.toml`, a file, the environment; every value checked |
//! | [`config_file`] | TOML files of rules and commands, with a line for each problem |
//! | [`reloadable`] | the content of such a file that is in use, read again on SIGHUP |
//! | [`http_server`], [`health`] | connections with deadlines and limits; health routes |
//! | [`tls`], [`client_limiter`] | certificates; how much one client may use |
//! | [`telemetry`], [`prometheus`] | logs and traces; metrics |
//! | [`shutdown`], [`cli`] | stopping; command line |
//!
//! The last rows from [`reloadable`] on are behind the feature `service`. Without it the crate has no async or network dependency, which
//! is what `model` needs.

pub mod channel_pattern;
#[cfg(feature = "service")]
pub mod cli;
#[cfg(feature = "service")]
pub mod client_limiter;
pub mod config_file;
pub mod hash;
#[cfg(feature = "service")]
pub mod health;
#[cfg(feature = "service")]
pub mod http_server;
pub mod id;
pub mod json;
pub mod json_members;
mod json_object;
pub mod json_repair;
pub mod known_names;
pub mod name;
#[cfg(feature = "service")]
pub mod prometheus;
pub mod rate;
#[cfg(feature = "service")]
pub mod reloadable;
pub mod rotation;
pub mod sampling;
pub mod settings;
#[cfg(feature = "service")]
pub mod shutdown;
#[cfg(feature = "service")]
pub mod telemetry;
pub mod text;
pub mod time;
#[cfg(feature = "service")]
pub mod tls;
pub mod trace_context;
