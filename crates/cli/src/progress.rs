//! Work that takes many requests: how far it is, and what was done when it ends early.
//!
//! The bar is on standard error, and only where somebody looks. After Ctrl-C the request that is under way still ends, so that
//! the number of what was done is right; a second Ctrl-C ends the program at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    session::Session,
};

/// Long work under way.
pub(crate) struct LongWork<'s> {
    session: &'s Session,
    bar: ProgressBar,
    /// What is done to each: `retried`.
    past: &'static str,
    done: u64,
    is_interrupted: Arc<AtomicBool>,
}

impl<'s> LongWork<'s> {
    /// Begins work of about that number of steps.
    pub(crate) fn begin(session: &'s Session, steps: u64, past: &'static str) -> Self {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        tokio::spawn(watch_for_interrupts(is_interrupted.clone()));
        Self { session, bar: bar(session, steps, past), past, done: 0, is_interrupted }
    }

    /// Sends the next request of the work, and prints its answer with `--json`.
    pub(crate) async fn send(&self, call: GatewayCall) -> CliResult<Value> {
        if self.is_interrupted.load(Ordering::Acquire) {
            self.bar.finish_and_clear();
            let message = format!("interrupted: {} {}; run it again for the rest", self.done, self.past);
            return Err(CliError::Interrupted(message));
        }
        let answer = self.session.gateway.send(call).await.inspect_err(|_| {
            self.bar.finish_and_clear();
            self.session.terminal.note(&format!("{} {} before this went wrong", self.done, self.past));
        })?;
        if self.session.terminal.json {
            self.session.terminal.json_bytes(&answer.body)?;
        }
        answer.value()
    }

    /// Counts what an answer says was done, and what else the bar counts.
    pub(crate) fn count(&mut self, done: u64, others: u64) {
        self.done += done;
        self.bar.inc(done + others);
        if self.bar.length().is_some_and(|length| length < self.bar.position()) {
            self.bar.set_length(self.bar.position());
        }
    }

    /// Says what was done.
    pub(crate) fn end(self) -> CliResult {
        self.bar.finish_and_clear();
        if self.session.terminal.json {
            return Ok(());
        }
        self.session.terminal.line(&format!("{} {}", self.done, self.past))
    }
}

/// Notes the first Ctrl-C, and ends the program with the second.
async fn watch_for_interrupts(is_interrupted: Arc<AtomicBool>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        if is_interrupted.swap(true, Ordering::AcqRel) {
            std::process::exit(i32::from(CliError::INTERRUPTED));
        }
    }
}

/// A bar of that number of steps.
fn bar(session: &Session, steps: u64, what: &'static str) -> ProgressBar {
    if !session.terminal.has_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos} of {len} {msg}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
