//! The store against a real Redis.

mod batches;
mod bridge;
mod channel_history;
mod channel_hub;
mod channels;
mod claims;
mod cron;
mod dead_letters;
mod deadlines;
mod enqueue;
mod events;
mod faults;
mod kit;
mod lend;
mod limits;
mod model;
mod pending;
mod purge;
mod queues;
mod reconcile;
mod retention;
mod settle;
mod unique;
mod workflow_faults;
mod workflows;
