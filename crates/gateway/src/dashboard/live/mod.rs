//! What the dashboard shows as it happens.
//!
//! Each gateway looks at Redis every [`LOOK_INTERVAL`] while somebody watches, whatever the number of those who do, and at a
//! few queues at a time: those that change, and the others in turn. So an open dashboard costs a bounded number of commands.
//!
//! | file | what it does |
//! |---|---|
//! | `known` | what is known |
//! | `looks` | looks at Redis, and which queues to look at next |
//! | `overview_data` | what the overview shows, put together from the looks |
//! | `problems` | what is wrong, in words, with the action beside it |
//! | `plot` | lines as SVG |
//! | `rendered`, `shared_parts` | the overview as HTML, once for all who look at it; its parts |
//! | `stream` | the stream that pages follow |

pub(crate) mod known;
mod looks;
mod overview_data;
mod plot;
mod problems;
mod rendered;
mod shared_parts;
mod stream;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::known::{DashboardState, Overview};
pub(crate) use self::stream::follow;
pub(super) use self::{
    overview_data::history_plots,
    plot::sparkline,
    shared_parts::{SharedParts, digest},
};
use crate::services::Services;

/// How often the gateway looks while somebody watches.
const LOOK_INTERVAL: Duration = Duration::from_millis(2500);
/// How old a look may be that a page shows.
const MAX_AGE: Duration = Duration::from_millis(1500);

/// Somebody who watches. The looks go on while there is one.
pub(super) struct Watcher {
    live: DashboardState,
    changed: watch::Receiver<u64>,
}

impl DashboardState {
    /// What the overview shows, at most [`MAX_AGE`] old; none while Redis is away.
    pub(super) async fn overview(&self, services: &Services) -> Option<Arc<Overview>> {
        self.look(services).await;
        self.turn().seen_at.filter(|at| at.elapsed() < MAX_AGE * 2)?;
        Some(self.locked().overview.clone())
    }

    /// Waits for a look at Redis, unless somebody just did look. The look is a task of its own: those who wait may go.
    async fn look(&self, services: &Services) {
        let mut changed = self.0.changed.subscribe();
        {
            let mut turn = self.turn();
            if turn.seen_at.is_some_and(|at| at.elapsed() < MAX_AGE) {
                return;
            }
            if !turn.is_looking {
                turn.is_looking = true;
                let (live, services) = (self.clone(), services.clone());
                tokio::spawn(async move { live.look_now(&services).await });
            }
        }
        let _ = changed.changed().await;
    }

    async fn look_now(self, services: &Services) {
        let outcome = looks::look(&self.0.looks, services).await;
        {
            let mut turn = self.turn();
            turn.is_looking = false;
            turn.seen_at = outcome.is_ok().then(Instant::now);
        }
        // Those who watch keep what they have until Redis is back
        if let Err(error) = outcome {
            tracing::debug!(%error, "the dashboard cannot look");
        }
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Watches until the watcher is dropped.
    pub(super) fn watch(&self, services: &Services) -> Watcher {
        let changed = self.0.changed.subscribe();
        if self.0.watchers.fetch_add(1, Ordering::AcqRel) == 0 {
            let (live, services) = (self.clone(), services.clone());
            tokio::spawn(async move { live.keep_looking(&services).await });
        }
        Watcher { live: self.clone(), changed }
    }

    async fn keep_looking(self, services: &Services) {
        let mut turn = tokio::time::interval(LOOK_INTERVAL);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.0.watchers.load(Ordering::Acquire) > 0 && !services.stopping.is_cancelled() {
            turn.tick().await;
            self.look(services).await;
        }
    }
}

impl Watcher {
    /// Returns after the next look.
    pub(super) async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn overview(&self) -> Arc<Overview> {
        self.live.locked().overview.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.live.0.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}
