//! Progress bars: on standard error, and only where somebody looks.

use indicatif::{ProgressBar, ProgressStyle};

use crate::session::Session;

/// A bar of that number of steps.
pub(crate) fn bar(session: &Session, steps: u64, what: &'static str) -> ProgressBar {
    if !session.terminal.has_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos} of {len} {msg}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
