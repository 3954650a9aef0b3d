//! Galley as its users meet it: real processes, real HTTP, a real Redis, a real browser.

mod bad_input;
mod browser;
mod conformance;
mod cron;
mod events;
mod faults;
mod fsck;
mod jobs;
mod kit;
mod running;
mod seed;
mod tracing;
mod workers;
mod workflows;
