//! What the screen shows: the last look, rates since the one before, the order, and what the user asked for.

use std::collections::{HashMap, VecDeque};

use super::sample::{LastMinutes, QueueSample, TopSample, WorkerSample};
use crate::failure::{CliError, CliResult};

/// Rates that the plot shows at most.
const MAX_HISTORY: usize = 300;

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopKey {
    Quit,
    Pause,
    NextSort,
    PreviousSort,
    Reverse,
    Up,
    Down,
}

/// By what queues are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SortColumn {
    Name,
    Waiting,
    Running,
    Rate,
    Failed,
    Dead,
}

impl SortColumn {
    pub(super) const ALL: [Self; 6] = [Self::Name, Self::Waiting, Self::Running, Self::Rate, Self::Failed, Self::Dead];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Name => "queue",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Rate => "done/s",
            Self::Failed => "failed/s",
            Self::Dead => "dead",
        }
    }

    fn moved(self, by: usize) -> Self {
        let index = Self::ALL.iter().position(|column| *column == self).unwrap_or(0);
        Self::ALL[(index + by) % Self::ALL.len()]
    }
}

/// A queue with what happened since the look before.
#[derive(Debug, Clone)]
pub(super) struct TopQueueRow {
    pub(super) queue: QueueSample,
    /// Jobs that completed in a second.
    pub(super) rate: f64,
    /// Attempts that failed in a second.
    pub(super) failed_rate: f64,
}

pub(super) struct TopState {
    pub(super) url: String,
    pub(super) rows: Vec<TopQueueRow>,
    pub(super) workers: Vec<WorkerSample>,
    pub(super) has_more: bool,
    pub(super) last_minutes: Option<LastMinutes>,
    pub(super) sort: SortColumn,
    pub(super) is_reversed: bool,
    /// Why the last look failed.
    pub(super) problem: Option<String>,
    /// Jobs that completed in a second, the latest last.
    pub(super) history: VecDeque<u64>,
    pub(super) scroll: usize,
    is_paused: bool,
    last: Option<TopSample>,
}

impl TopState {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            rows: Vec::new(),
            workers: Vec::new(),
            has_more: false,
            last_minutes: None,
            sort: SortColumn::Waiting,
            is_reversed: false,
            problem: None,
            history: VecDeque::new(),
            scroll: 0,
            is_paused: false,
            last: None,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Takes a look in. After a failed one the numbers stay as they were.
    pub(super) fn update(&mut self, look: CliResult<TopSample>) {
        let sample = match look {
            Ok(sample) => sample,
            Err(problem) => {
                self.problem = Some(match problem {
                    CliError::Unreachable { problem, .. } => format!("the gateway does not answer: {problem}"),
                    other => other.to_string().lines().next().unwrap_or_default().to_owned(),
                });
                return;
            }
        };
        self.problem = None;
        let before = self.last.as_ref();
        let seconds = before.map_or(0.0, |before| sample.at.saturating_duration_since(before.at).as_secs_f64());
        let old: HashMap<&str, &QueueSample> =
            before.iter().flat_map(|before| &before.queues).map(|queue| (queue.name.as_str(), queue)).collect();
        #[expect(clippy::cast_precision_loss, reason = "counts of two looks are close together")]
        let rate = |now: u64, then: u64| if seconds > 0.0 { now.saturating_sub(then) as f64 / seconds } else { 0.0 };
        self.rows = sample
            .queues
            .iter()
            .map(|queue| {
                // A queue that was not there before has done nothing that we saw
                let then = old.get(queue.name.as_str()).copied().unwrap_or(queue);
                TopQueueRow {
                    rate: rate(queue.completed, then.completed),
                    failed_rate: rate(queue.failed, then.failed),
                    queue: queue.clone(),
                }
            })
            .collect();
        if before.is_some() {
            let total: f64 = self.rows.iter().map(|row| row.rate).sum();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate is small and not negative"
            )]
            self.history.push_back(total.round() as u64);
            if self.history.len() > MAX_HISTORY {
                self.history.pop_front();
            }
        }
        self.workers.clone_from(&sample.workers);
        self.has_more = sample.has_more;
        self.last_minutes.clone_from(&sample.last_minutes);
        self.last = Some(sample);
        self.order();
    }

    pub(super) fn press(&mut self, key: TopKey) {
        match key {
            TopKey::Quit => {}
            TopKey::Pause => self.is_paused = !self.is_paused,
            TopKey::NextSort => self.sort = self.sort.moved(1),
            TopKey::PreviousSort => self.sort = self.sort.moved(SortColumn::ALL.len() - 1),
            TopKey::Reverse => self.is_reversed = !self.is_reversed,
            TopKey::Down => self.scroll = (self.scroll + 1).min(self.rows.len().saturating_sub(1)),
            TopKey::Up => self.scroll = self.scroll.saturating_sub(1),
        }
        self.order();
    }

    /// The largest first, names from A.
    fn order(&mut self) {
        let (sort, is_reversed) = (self.sort, self.is_reversed);
        self.rows.sort_by(|a, b| {
            let order = match sort {
                SortColumn::Name => std::cmp::Ordering::Equal,
                SortColumn::Waiting => b.queue.waiting.cmp(&a.queue.waiting),
                SortColumn::Running => b.queue.running.cmp(&a.queue.running),
                SortColumn::Rate => b.rate.total_cmp(&a.rate),
                SortColumn::Failed => b.failed_rate.total_cmp(&a.failed_rate),
                SortColumn::Dead => b.queue.dead.cmp(&a.queue.dead),
            };
            let order = order.then_with(|| a.queue.name.cmp(&b.queue.name));
            if is_reversed { order.reverse() } else { order }
        });
        self.scroll = self.scroll.min(self.rows.len().saturating_sub(1));
    }
}
