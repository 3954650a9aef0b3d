//! The store against a real Redis.

mod bridge;
mod channels;
mod claims;
mod cron;
mod dead_letters;
mod enqueue;
mod events;
mod faults;
mod kit;
mod model;
mod purge;
mod settle;
mod workflow_faults;
mod workflows;
