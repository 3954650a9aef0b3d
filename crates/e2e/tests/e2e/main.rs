//! Galley as its users meet it: real processes, real HTTP, a real Redis, a real browser.

mod acks;
mod bad_input;
mod batches;
mod browser;
mod clients;
mod conformance;
mod cron;
mod events;
mod faults;
mod fsck;
mod idempotency;
mod jobs;
mod kit;
mod limits;
mod progress;
mod pull;
mod queues;
mod running;
mod seed;
mod timing;
mod tracing;
mod waiting;
mod workers;
mod workflows;
