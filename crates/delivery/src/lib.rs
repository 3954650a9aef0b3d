//! How work reaches code outside Galley: endpoints over HTTP and programs on this machine.
//!
//! | module | what it is |
//! |---|---|
//! | [`http`] | one signed POST to an untrusted endpoint: address checks, limits, signatures, circuit breaker |
//! | [`command`] | one run of a program: standard input and output, process group, limits, time |
//!
//! `worker` uses it for jobs, `pubsub-worker` for messages. It knows nothing of Redis, and decides no retries.

pub mod command;
pub mod http;
