//! What the overview shows, put together from the looks.

use std::{collections::VecDeque, sync::Arc};

use common::{name::QueueName, time::Millis};
use model::statistics::{Histogram, Tally};
use store::statistics::StatisticsPoint;

use super::{
    known::{BusyQueue, Looks, Overview, QueueLook, TotalsPoint, rate_text, to_f64},
    plot, problems,
};

/// Points of the plot of the last minutes.
const MAX_POINTS: usize = 150;
/// Queues on the overview: those with most to do.
const MAX_QUEUES: usize = 8;

/// Puts it together anew.
pub(super) fn refresh(looks: &mut Looks, now: Millis, (memory_used, memory_max): (u64, u64), queues_total: usize) {
    let all: Vec<&QueueLook> = looks.queues.values().collect();
    let sum = |of: fn(&QueueLook) -> u64| all.iter().map(|look| of(look)).sum::<u64>();
    let rate = |of: fn(&QueueLook) -> f64| all.iter().map(|look| of(look)).sum::<f64>();
    let mut overview = Overview {
        at: now,
        queues_total,
        queues_seen: all.len(),
        waiting: sum(|look| look.stats.available),
        running: sum(|look| look.stats.active),
        scheduled: sum(|look| look.stats.delayed.saturating_sub(look.stats.retryable)),
        retrying: sum(|look| look.stats.retryable),
        dead: sum(|look| look.stats.dead),
        done_rate: rate(|look| look.done_rate),
        failed_rate: rate(|look| look.failed_rate),
        oldest_at: looks.queues.values().filter_map(|look| look.oldest_at).min(),
        workers: looks.workers.len(),
        slots: looks.workers.iter().filter_map(|worker| worker.record.concurrency).sum(),
        memory_used,
        memory_max,
        problems: problems::find(looks, now, (memory_used, memory_max)),
        busiest: busiest(looks),
        history: looks.history.clone(),
        ..Overview::default()
    };
    looks.points.push_back(TotalsPoint {
        at: overview.at,
        waiting: overview.waiting,
        running: overview.running,
        done_rate: overview.done_rate,
        failed_rate: overview.failed_rate,
    });
    if looks.points.len() > MAX_POINTS {
        looks.points.pop_front();
    }
    (overview.rates_plot, overview.waiting_plot) = plots(&looks.points);
    looks.overview = Arc::new(overview);
}

fn busiest(looks: &Looks) -> Vec<BusyQueue> {
    let mut queues: Vec<(&QueueName, &QueueLook)> = looks.queues.iter().collect();
    queues.sort_by_key(|(_, look)| std::cmp::Reverse((look.stats.available + look.stats.active, look.stats.completed)));
    let shown = queues.into_iter().take(MAX_QUEUES).map(|(name, look)| BusyQueue {
        name: name.clone(),
        waiting: look.stats.available,
        running: look.stats.active,
        dead: look.stats.dead,
        is_paused: look.control.is_paused,
        is_closed: look.control.is_closed,
        oldest_at: look.oldest_at,
        done: rate_text(look.done_rate),
        sparkline: plot::sparkline(&look.waiting.iter().copied().collect::<Vec<_>>()),
    });
    shown.collect()
}

fn plots(points: &VecDeque<TotalsPoint>) -> (String, String) {
    let line = |of: fn(&TotalsPoint) -> f64| points.iter().map(|point| (point.at, of(point))).collect::<Vec<_>>();
    let rates = plot::lines(
        "",
        None,
        &[("plot-done", line(|point| point.done_rate)), ("plot-failed", line(|point| point.failed_rate))],
    );
    let waiting = plot::lines(
        "",
        None,
        &[("plot-waiting", line(|point| to_f64(point.waiting))), ("plot-running", line(|point| to_f64(point.running)))],
    );
    (rates, waiting)
}

/// Ended and failed attempts in a period, and how long attempts took.
pub(in crate::dashboard) fn history_plots(points: &[StatisticsPoint]) -> (String, String) {
    let line =
        |of: fn(&Tally) -> u64| points.iter().map(|point| (point.at, to_f64(of(&point.tally)))).collect::<Vec<_>>();
    let percentile = |histogram: fn(&Tally) -> &Histogram, percent| {
        let points = points.iter().filter_map(|point| Some((point.at, histogram(&point.tally).percentile(percent)?)));
        points.map(|(at, millis)| (at, to_f64(millis))).collect::<Vec<_>>()
    };
    let domain = points.first().zip(points.last()).map(|(first, last)| (first.at, last.at));
    let rates = plot::lines(
        "",
        domain,
        &[("plot-done", line(|tally| tally.completed)), ("plot-failed", line(|tally| tally.failed))],
    );
    let latency = plot::lines(
        " ms",
        domain,
        &[
            ("plot-done", percentile(|tally| &tally.run, 50)),
            ("plot-p99", percentile(|tally| &tally.run, 99)),
            ("plot-wait", percentile(|tally| &tally.wait, 99)),
        ],
    );
    (rates, latency)
}
