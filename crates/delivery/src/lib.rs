//! Delivers work to code outside Galley: HTTP endpoints and programs on this machine.
//!
//! | module | what it does |
//! |---|---|
//! | [`http`] | one signed POST to an untrusted endpoint: address checks, limits, signatures, circuit breaker |
//! | [`command`] | one run of a program: standard input and output, process group, limits, time |
//!
//! `worker` uses it for jobs, `pubsub-worker` for messages. It knows nothing of Redis, and the caller decides about
//! retries.

pub mod command;
pub mod http;
