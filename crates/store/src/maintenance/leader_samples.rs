//! The series that only the leader shows. They are gone as soon as it is not the leader any more.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    name::QueueName,
    prometheus::{Samples, add_source, shown_value},
    time::Millis,
};

use crate::{channels::Backlog, connection::server_state::ServerState, jobs::QueueStats};

/// What the leader last read.
#[derive(Debug, Default)]
pub(super) struct LeaderView {
    pub(super) queues: BTreeMap<QueueName, QueueView>,
    pub(super) subscriptions: BTreeMap<String, Backlog>,
    pub(super) server: Option<ServerState>,
    /// When it was read.
    pub(super) at: Millis,
}

/// A queue as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct QueueView {
    pub(super) stats: QueueStats,
    pub(super) is_paused: bool,
    /// Since when the job waits that has waited longest.
    pub(super) oldest_at: Option<Millis>,
}

impl QueueView {
    /// Whether it has jobs, apart from dead letters, so that it changes without a notice.
    pub(super) fn has_jobs(&self) -> bool {
        let QueueStats { available, active, delayed, pending, .. } = self.stats;
        available + active + delayed + pending > 0
    }

    fn add(&mut self, other: &Self) {
        let (mine, more) = (&mut self.stats, &other.stats);
        mine.available += more.available;
        mine.active += more.active;
        mine.delayed += more.delayed;
        mine.retryable += more.retryable;
        mine.pending += more.pending;
        mine.dead += more.dead;
        self.is_paused |= other.is_paused;
        self.oldest_at = self.oldest_at.into_iter().chain(other.oldest_at).min();
    }
}

/// Shows what the leader read with the metrics of its process while it lives.
#[derive(Default)]
pub(super) struct LeaderSamples(Arc<Mutex<LeaderView>>);

impl LeaderSamples {
    pub(super) fn start() -> Self {
        let samples = Self::default();
        let view = Arc::downgrade(&samples.0);
        add_source(move |samples| {
            let Some(view) = view.upgrade() else { return false };
            view.lock().unwrap_or_else(PoisonError::into_inner).add_to(samples);
            true
        });
        samples
    }

    pub(super) fn set(&self, view: LeaderView) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

impl LeaderView {
    fn add_to(&self, samples: &mut Samples) {
        let mut shown = BTreeMap::<&str, QueueView>::new();
        for (queue, view) in &self.queues {
            shown.entry(shown_value("queue", queue.as_str())).or_default().add(view);
        }
        for (queue, view) in &shown {
            self.add_queue(samples, queue, view);
        }
        let mut shown = BTreeMap::<&str, Backlog>::new();
        for (subscription, backlog) in &self.subscriptions {
            shown.entry(shown_value("subscription", subscription)).or_default().add(*backlog);
        }
        for (subscription, backlog) in &shown {
            let labels = [("subscription", *subscription)];
            samples.gauge("galley_subscription_lag_messages", &labels, to_f64(backlog.lag));
            samples.gauge("galley_subscription_in_flight_messages", &labels, to_f64(backlog.in_flight));
            samples.gauge("galley_subscription_oldest_age_seconds", &labels, self.age_of(backlog.oldest_at));
        }
        if let Some(server) = &self.server {
            add_server(samples, server);
        }
    }

    fn add_queue(&self, samples: &mut Samples, queue: &str, view: &QueueView) {
        let QueueStats { available, active, delayed, retryable, pending, dead, .. } = view.stats;
        let scheduled = delayed.saturating_sub(retryable);
        let states = [
            ("available", available),
            ("active", active),
            ("scheduled", scheduled),
            ("retryable", retryable),
            ("pending", pending),
        ];
        for (state, jobs) in states {
            samples.gauge("galley_queue_jobs", &[("queue", queue), ("state", state)], to_f64(jobs));
        }
        let labels = [("queue", queue)];
        samples.gauge("galley_queue_oldest_age_seconds", &labels, self.age_of(view.oldest_at));
        samples.gauge("galley_dead_letters", &labels, to_f64(dead));
        samples.gauge("galley_queue_paused", &labels, f64::from(u8::from(view.is_paused)));
    }

    fn age_of(&self, since: Option<Millis>) -> f64 {
        let age = since.map_or(0, |since| (self.at - since).max(0));
        to_f64(age.unsigned_abs()) / 1000.0
    }
}

fn add_server(samples: &mut Samples, server: &ServerState) {
    if let Some(level) = server.durability.level() {
        samples.gauge("galley_redis_durability_level", &[], f64::from(level));
    }
    for (file, can_save) in [("rdb", server.can_save_rdb), ("aof", server.can_save_aof)] {
        if let Some(can_save) = can_save {
            samples.gauge("galley_redis_can_save", &[("file", file)], f64::from(u8::from(can_save)));
        }
    }
    if let Some(clients) = server.clients {
        samples.gauge("galley_redis_clients", &[], f64::from(clients));
    }
    if let Some(max) = server.max_clients {
        samples.gauge("galley_redis_max_clients", &[], f64::from(max));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn to_f64(number: u64) -> f64 {
    number as f64
}
