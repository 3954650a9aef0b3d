//! What is known of each queue and of the whole, and which queues to look at next.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{name::QueueName, time::Millis};
use model::subscription::{DeliveryMode, Subscription, SubscriptionState};
use store::{
    StoreResult,
    jobs::{MaintenanceMode, QueueControl, QueueStats},
    statistics::{Series, Statistics},
    workers::ListedWorker,
};

use super::{
    known::{HistoryPlots, Looks, QueueLook, SubscriptionLook, to_f64},
    overview_data,
};
use crate::services::Services;

/// About how many commands a look at a queue takes.
const QUEUE_COST: f64 = 12.0;
/// Commands for looks at queues that become available in a second, and the most that are saved up while nobody watches: so
/// the first look knows some hundred queues or all, and an open dashboard stays cheap.
const COMMANDS_PER_SECOND: f64 = 14.0;
const MAX_SAVED_COMMANDS: f64 = 600.0;
/// Queues that changed lately, as far as statistics know, are looked at first: that many.
const MAX_CHANGED: usize = 200;
/// How old may be what changes slowly: workers, leader, subscriptions, plots of the history.
const SLOW_INTERVAL: Duration = Duration::from_secs(12);
/// Reports of workers that are read.
const MAX_WORKERS: usize = 200;
/// Subscriptions that are looked at, one channel each.
const SUBSCRIPTIONS_PER_LOOK: usize = 2;
const MINUTE_MS: Millis = 60_000;
/// Looks of a queue that are kept, for its sparkline.
const KEPT: usize = 60;

/// A queue as it was just read.
#[derive(Clone, Copy)]
struct SeenQueue {
    at: Millis,
    stats: QueueStats,
    control: QueueControl,
    oldest_at: Option<Millis>,
}

/// After this time the number of dead letters is compared anew.
const DEAD_WINDOW_MS: Millis = 10 * 60_000;

impl QueueLook {
    fn next(before: Option<&Self>, seen: SeenQueue) -> Self {
        let SeenQueue { at, stats, control, oldest_at } = seen;
        let Some(before) = before else {
            let waiting = VecDeque::from([stats.available]);
            let is_busy = stats.available + stats.active > 0;
            let (dead_before, rate) = ((at, stats.dead), 0.0);
            return Self {
                at,
                stats,
                control,
                done_rate: rate,
                failed_rate: rate,
                oldest_at,
                waiting,
                dead_before,
                is_busy,
            };
        };
        let seconds = to_f64((at - before.at).max(1).unsigned_abs()) / 1000.0;
        let per_second = |now: u64, then: u64| to_f64(now.saturating_sub(then)) / seconds;
        let failures = |stats: &QueueStats| stats.discarded + stats.retried;
        let mut waiting = before.waiting.clone();
        waiting.push_back(stats.available);
        if waiting.len() > KEPT {
            waiting.pop_front();
        }
        let is_old = at - before.dead_before.0 > DEAD_WINDOW_MS;
        Self {
            at,
            done_rate: per_second(stats.completed, before.stats.completed),
            failed_rate: per_second(failures(&stats), failures(&before.stats)),
            oldest_at,
            waiting,
            dead_before: if is_old { (at, before.stats.dead) } else { before.dead_before },
            is_busy: stats.active > 0 || stats != before.stats,
            stats,
            control,
        }
    }
}

impl Looks {
    /// How many queues may be read now.
    fn spend(&mut self) -> usize {
        let elapsed = self.refilled_at.map_or(f64::INFINITY, |at| at.elapsed().as_secs_f64());
        self.refilled_at = Some(Instant::now());
        self.saved_commands = (self.saved_commands + elapsed * COMMANDS_PER_SECOND).min(MAX_SAVED_COMMANDS);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        let queues = (self.saved_commands / QUEUE_COST).floor().max(1.0) as usize;
        queues
    }

    /// The queues to read now: those that somebody changed here, some that are not known yet, those that change, and the
    /// others in turn.
    fn choose(&mut self, all: &[QueueName], max: usize) -> Vec<QueueName> {
        let known: HashSet<&QueueName> = all.iter().collect();
        self.queues.retain(|queue, _| known.contains(queue));
        self.soon.retain(|queue| known.contains(queue));
        let half = max.div_ceil(2);
        let mut chosen: Vec<QueueName> = self.soon.drain(..self.soon.len().min(half)).collect();
        let unknown = all.iter().filter(|queue| !self.queues.contains_key(*queue));
        // The busy ones that were seen longest ago
        let mut busy: Vec<(&QueueName, Millis)> =
            self.queues.iter().filter(|(_, look)| look.is_busy).map(|(queue, look)| (queue, look.at)).collect();
        busy.sort_by_key(|(_, at)| *at);
        // Both get their half while there are many of both
        chosen.extend(unknown.take(max.saturating_sub(busy.len()).max(half)).cloned());
        chosen.extend(busy.into_iter().map(|(queue, _)| queue.clone()));
        let mut taken = HashSet::new();
        chosen.retain(|queue| taken.len() + 1 < max && taken.insert(queue.clone()));
        let rest = max.saturating_sub(chosen.len()).max(1);
        chosen.extend(self.rotation.next(all, rest).into_iter().filter(|queue| !taken.contains(queue)));
        chosen
    }
}

/// Reads what is to be read now.
pub(super) async fn look(looks: &Mutex<Looks>, services: &Services) -> StoreResult<()> {
    let locked = || looks.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = services.jobs.list_queues().await?;
    all.sort_unstable();
    let (is_slow, changed_since) = {
        let looks = locked();
        (looks.slow_at.is_none_or(|at| at.elapsed() >= SLOW_INTERVAL), looks.changes_known_until)
    };
    if is_slow {
        let now = services.redis.estimated_now();
        let changed = Statistics::new(&services.jobs).changed_since(changed_since, MAX_CHANGED).await?;
        let mut looks = locked();
        let known_soon: HashSet<QueueName> = looks.soon.iter().cloned().collect();
        // The clock of the leader may be behind
        looks.changes_known_until = now - MINUTE_MS;
        looks.soon.extend(changed.into_iter().filter(|queue| !known_soon.contains(queue)));
    }
    let chosen = {
        let mut looks = locked();
        let max = looks.spend();
        let chosen = looks.choose(&all, max);
        looks.saved_commands -= QUEUE_COST * to_f64(chosen.len() as u64);
        chosen
    };
    let seen = read_queues(services, chosen).await?;
    let slow = if is_slow { Some(look_slowly(looks, services).await?) } else { None };
    let mut looks = locked();
    for (queue, seen) in seen {
        let look = QueueLook::next(looks.queues.get(&queue), seen);
        looks.queues.insert(queue, look);
    }
    if let Some(slow) = slow {
        looks.slow_at = Some(Instant::now());
        looks.workers = slow.workers;
        looks.has_leader = slow.has_leader;
        looks.maintenance = slow.maintenance;
        looks.history = slow.history;
        looks.subscriptions.retain(|name, _| slow.subscription_names.contains(name));
        looks.subscriptions.extend(slow.subscriptions);
    }
    let memory = services.redis.memory().used_and_max();
    overview_data::refresh(&mut looks, services.redis.estimated_now(), memory, all.len());
    Ok(())
}

/// Reads queues in a few round trips.
async fn read_queues(services: &Services, queues: Vec<QueueName>) -> StoreResult<Vec<(QueueName, SeenQueue)>> {
    let overviews = services.jobs.queue_overviews(&queues).await?;
    let at = services.redis.estimated_now();
    let mut seen = Vec::with_capacity(queues.len());
    for (queue, (stats, control)) in queues.into_iter().zip(overviews) {
        let oldest_at = if stats.available > 0 { services.jobs.oldest_waiting_at(&queue).await? } else { None };
        seen.push((queue, SeenQueue { at, stats, control, oldest_at }));
    }
    Ok(seen)
}

/// What changes slowly.
struct SlowLook {
    workers: Vec<ListedWorker>,
    has_leader: bool,
    maintenance: Option<MaintenanceMode>,
    history: HistoryPlots,
    subscription_names: HashSet<String>,
    subscriptions: Vec<(String, SubscriptionLook)>,
}

async fn look_slowly(looks: &Mutex<Looks>, services: &Services) -> StoreResult<SlowLook> {
    let mut keys = services.workers.worker_keys().await?;
    keys.truncate(MAX_WORKERS);
    let workers = services.workers.workers(&keys).await?;
    let has_leader = services.redis.has_leader().await?;
    let maintenance = services.jobs.maintenance_mode().await?;
    let history = look_at_history(services).await?;
    let all = services.subscriptions.list().await?.subscriptions;
    let last = looks.lock().unwrap_or_else(PoisonError::into_inner).last_subscription.clone();
    let first = all.partition_point(|(subscription, _)| subscription.name.as_str() <= last.as_str());
    let chosen = all[first..].iter().chain(&all[..first]).take(SUBSCRIPTIONS_PER_LOOK);
    let mut subscriptions = Vec::new();
    for (subscription, _) in chosen {
        subscriptions.push((subscription.name.to_string(), look_at_subscription(services, subscription).await?));
    }
    let subscription_names = all.iter().map(|(subscription, _)| subscription.name.to_string()).collect();
    if let Some((name, _)) = subscriptions.last() {
        looks.lock().unwrap_or_else(PoisonError::into_inner).last_subscription.clone_from(name);
    }
    Ok(SlowLook { workers, has_leader, maintenance, history, subscription_names, subscriptions })
}

async fn look_at_history(services: &Services) -> StoreResult<HistoryPlots> {
    let statistics = Statistics::new(&services.jobs);
    let now = services.redis.estimated_now();
    let hour = statistics.history(&Series::All, MINUTE_MS, now - 60 * MINUTE_MS, now).await?;
    let day = statistics.history(&Series::All, 10 * MINUTE_MS, now - 1440 * MINUTE_MS, now).await?;
    let (hour_rates, hour_latency) = overview_data::history_plots(&hour);
    let (day_rates, day_latency) = overview_data::history_plots(&day);
    Ok(HistoryPlots { hour_rates, hour_latency, day_rates, day_latency })
}

/// Of a subscription with many channels the lag is not read: that would take a command for each.
async fn look_at_subscription(services: &Services, subscription: &Subscription) -> StoreResult<SubscriptionLook> {
    let counters = services.subscriptions.counters(subscription).await?;
    let mut lag = 0;
    if subscription.mode == DeliveryMode::Shared
        && let Some(channel) = subscription.channels.single_channel()
    {
        lag = services.subscriptions.channel_progress(subscription, channel).await?.lag;
    }
    Ok(SubscriptionLook {
        lag,
        is_failing: counters.failing_since.is_some(),
        is_disabled: subscription.state == SubscriptionState::Disabled,
    })
}
