//! The store against a real Redis.

mod bridge;
mod channels;
mod claims;
mod cron;
mod enqueue;
mod events;
mod faults;
mod kit;
mod model;
mod reconcile;
mod settle;
mod workflow_faults;
mod workflows;
