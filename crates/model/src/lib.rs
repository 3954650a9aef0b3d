//! The rules of jobs, workflows, cron entries, messages and subscriptions. Pure code, without IO and without a clock.
//!
//! | module | what it is |
//! |---|---|
//! | [`access`] | scopes, keys, the names that a key is limited to |
//! | [`job`] | states, retry policies, enqueue requests, envelopes, history, what clients see |
//! | [`workflow`] | chains, groups, batches and DAGs: which job starts after which results |
//! | [`cron`] | cron expressions, time zones, and which runs are due |
//! | [`MemberId`], [`MemberInfo`] | members of channels |
//! | [`message`] | messages, positions in a history, gaps, `CloudEvents` |
//! | [`statistics`] | what happened to jobs in a period, and how long they waited and ran |
//! | [`subscription`] | durable subscriptions: selection, filter, target, retry policy |
//! | [`url_template`] | URLs with placeholders, for endpoints in rules and subscriptions |
//!
//! The `store` crate applies these rules in Redis.

pub mod access;
pub mod cron;
pub mod job;
mod member;
pub mod message;
pub mod statistics;
pub mod subscription;
pub mod url_template;
pub mod workflow;

pub use member::{MAX_MEMBER_INFO_BYTES, MemberId, MemberInfo};
