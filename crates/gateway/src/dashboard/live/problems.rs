//! What is wrong right now, in words, with the action beside it.

use std::collections::BTreeSet;

use common::time::Millis;
use store::workers::WorkerState;

use super::known::{Looks, Problem};

/// Messages that a subscription may be behind.
const MAX_LAG: u64 = 1000;
/// The part of Redis's memory from which results are kept shorter, in percent.
const MEMORY_WARNING_PERCENT: u64 = 75;
/// Problems of one kind that are shown.
const MAX_OF_A_KIND: usize = 5;
/// How long jobs may wait in a queue that workers serve, and how long a look may be old that says so.
const FRESH_MS: Millis = 120_000;

impl Problem {
    fn of(text: &'static str, subject: &str, number: u64, (path, action): (String, &'static str)) -> Self {
        Self { text, subject: subject.to_owned(), number, path, action, is_form: false }
    }
}

/// Everything that is wrong, the worst first.
pub(super) fn find(looks: &Looks, now: Millis, (used, max): (u64, u64)) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(mode) = &looks.maintenance {
        let reason = mode.reason.as_deref().unwrap_or_default();
        let path = ("/ui/maintenance/off".to_owned(), "maintenance.end");
        found.push(Problem { is_form: true, ..Problem::of("problem.maintenance", reason, 0, path) });
    }
    if !looks.has_leader {
        found.push(Problem::of("problem.no_leader", "", 0, ("/ui/workers".to_owned(), "problem.see_workers")));
    }
    let percent = used.saturating_mul(100).checked_div(max).unwrap_or(0);
    if percent >= MEMORY_WARNING_PERCENT {
        found.push(Problem::of("problem.memory", "", percent, ("/ui/queues".to_owned(), "problem.see_queues")));
    }
    found.extend(problems_of_queues(looks, now));
    let failing = looks.subscriptions.iter().filter(|(_, look)| look.is_failing || look.is_disabled);
    let path = |name: &str| (format!("/ui/subscriptions/{name}"), "problem.see_subscription");
    found.extend(
        failing.take(MAX_OF_A_KIND).map(|(name, _)| Problem::of("problem.subscription_fails", name, 0, path(name))),
    );
    let behind = looks.subscriptions.iter().filter(|(_, look)| look.lag > MAX_LAG);
    found.extend(
        behind
            .take(MAX_OF_A_KIND)
            .map(|(name, look)| Problem::of("problem.subscription_lags", name, look.lag, path(name))),
    );
    found
}

fn problems_of_queues(looks: &Looks, now: Millis) -> Vec<Problem> {
    let served: BTreeSet<&str> = looks
        .workers
        .iter()
        .filter(|worker| worker.record.state == WorkerState::Running)
        .flat_map(|worker| worker.record.queues.iter().map(String::as_str))
        .collect();
    let (mut unserved, mut paused, mut growing) = (Vec::new(), Vec::new(), Vec::new());
    for (queue, look) in &looks.queues {
        let (name, stats) = (queue.as_str(), look.stats);
        // Retries of subscriptions are worked off by pubsub-workers, which are on no list
        let is_of_subscription = model::subscription::subscription_of_queue(queue).is_some();
        let is_fresh = now - look.at < FRESH_MS;
        if look.control.is_paused && stats.available > 0 {
            let path = (format!("/ui/queues/{name}/resume"), "queue.resume");
            paused.push(Problem { is_form: true, ..Problem::of("problem.paused", name, stats.available, path) });
        } else if stats.available > 0 && stats.active == 0 && is_fresh && !served.contains(name) && !is_of_subscription
        {
            let path = ("/ui/workers".to_owned(), "problem.see_workers");
            unserved.push(Problem::of("problem.unserved", name, stats.available, path));
        }
        let more = stats.dead.saturating_sub(look.dead_before.1);
        if more > 0 {
            let path = (format!("/ui/dead-letters?queue={name}"), "problem.see_dead");
            growing.push(Problem::of("problem.dead", name, more, path));
        }
    }
    let mut found = Vec::new();
    for mut kind in [unserved, paused, growing] {
        kind.sort_by_key(|problem| std::cmp::Reverse(problem.number));
        kind.truncate(MAX_OF_A_KIND);
        found.append(&mut kind);
    }
    found
}
