//! What the dashboard knows: of each queue, of workers and subscriptions, and of the whole.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::Instant,
};

use common::{name::QueueName, rotation::Rotation, time::Millis};
use store::{
    jobs::{MaintenanceMode, QueueControl, QueueStats},
    workers::ListedWorker,
};
use tokio::sync::watch;

use super::shared_parts::SharedParts;

/// The parts of a page by their names.
pub(in crate::dashboard) type Parts = BTreeMap<&'static str, String>;

/// What a gateway knows for its dashboard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DashboardState(pub(super) Arc<DashboardStateInner>);

pub(super) struct DashboardStateInner {
    pub(super) looks: Mutex<Looks>,
    pub(super) turn: Mutex<LookTurn>,
    pub(super) rendered: Mutex<RenderedOverviews>,
    pub(super) watchers: AtomicUsize,
    /// Counts the looks.
    pub(super) changed: watch::Sender<u64>,
}

/// The overview as HTML for each language and right, with the look that it shows.
type RenderedOverviews = HashMap<(&'static str, bool), (Arc<Overview>, Arc<SharedParts>)>;

/// Many visitors cause one look.
#[derive(Default)]
pub(super) struct LookTurn {
    pub(super) is_looking: bool,
    /// When the last look ended well.
    pub(super) seen_at: Option<Instant>,
}

impl DashboardState {
    pub(crate) fn new() -> Self {
        Self(Arc::new(DashboardStateInner {
            looks: Mutex::default(),
            turn: Mutex::default(),
            rendered: Mutex::default(),
            watchers: AtomicUsize::new(0),
            changed: watch::Sender::new(0),
        }))
    }

    /// Looks at a queue with the next look: something was changed.
    pub(in crate::dashboard) fn look_soon(&self, queue: &QueueName) {
        self.locked().look_soon(queue);
    }

    pub(super) fn turn(&self) -> std::sync::MutexGuard<'_, LookTurn> {
        self.0.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn locked(&self) -> std::sync::MutexGuard<'_, Looks> {
        self.0.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known.
#[derive(Default)]
pub(super) struct Looks {
    pub(super) queues: BTreeMap<QueueName, QueueLook>,
    pub(super) overview: Arc<Overview>,
    pub(super) workers: Vec<ListedWorker>,
    pub(super) has_leader: bool,
    pub(super) maintenance: Option<MaintenanceMode>,
    pub(super) subscriptions: BTreeMap<String, SubscriptionLook>,
    /// Totals over time: for the plot of the last minutes.
    pub(super) points: VecDeque<TotalsPoint>,
    /// When what changes slowly was read.
    pub(super) slow_at: Option<Instant>,
    pub(super) rotation: Rotation,
    /// The name of the subscription that was looked at last.
    pub(super) last_subscription: String,
    pub(super) soon: Vec<QueueName>,
    /// Up to when it is known which queues changed.
    pub(super) changes_known_until: Millis,
    /// Commands that looks at queues may still take, and when that was counted.
    pub(super) saved_commands: f64,
    pub(super) refilled_at: Option<Instant>,
    pub(super) history: HistoryPlots,
}

/// The totals at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct TotalsPoint {
    pub(super) at: Millis,
    pub(super) waiting: u64,
    pub(super) running: u64,
    /// Ended in a second, and failed.
    pub(super) done_rate: f64,
    pub(super) failed_rate: f64,
}

/// What is known of a queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueLook {
    pub(crate) at: Millis,
    pub(crate) stats: QueueStats,
    pub(crate) control: QueueControl,
    /// Ended since the look before, in a second, and failed.
    pub(crate) done_rate: f64,
    pub(crate) failed_rate: f64,
    /// When the job became available that waits longest.
    pub(crate) oldest_at: Option<Millis>,
    /// Waiting jobs at the looks before, the oldest first.
    pub(crate) waiting: VecDeque<u64>,
    /// Dead letters some minutes ago, and when that was.
    pub(crate) dead_before: (Millis, u64),
    pub(super) is_busy: bool,
}

impl Looks {
    pub(super) fn look_soon(&mut self, queue: &QueueName) {
        // Somebody waits for it, so it comes first
        self.soon.retain(|known| known != queue);
        self.soon.insert(0, queue.clone());
    }
}

pub(super) fn to_f64(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for plots and rates")]
    let number = number as f64;
    number
}

/// What the overview shows.
#[derive(Debug, Clone, Default)]
pub(in crate::dashboard) struct Overview {
    pub(in crate::dashboard) at: Millis,
    pub(in crate::dashboard) queues_total: usize,
    /// Queues that were looked at so far.
    pub(in crate::dashboard) queues_seen: usize,
    pub(in crate::dashboard) waiting: u64,
    pub(in crate::dashboard) running: u64,
    pub(in crate::dashboard) scheduled: u64,
    pub(in crate::dashboard) retrying: u64,
    pub(in crate::dashboard) dead: u64,
    pub(in crate::dashboard) done_rate: f64,
    pub(in crate::dashboard) failed_rate: f64,
    /// When the job became available that waits longest, as far as is known.
    pub(in crate::dashboard) oldest_at: Option<Millis>,
    pub(in crate::dashboard) workers: usize,
    pub(in crate::dashboard) slots: usize,
    pub(in crate::dashboard) memory_used: u64,
    pub(in crate::dashboard) memory_max: u64,
    pub(in crate::dashboard) problems: Vec<Problem>,
    pub(in crate::dashboard) busiest: Vec<BusyQueue>,
    /// Ended and failed jobs in a second over the last minutes, as SVG.
    pub(in crate::dashboard) rates_plot: String,
    /// Waiting jobs over the last minutes, as SVG.
    pub(in crate::dashboard) waiting_plot: String,
    pub(in crate::dashboard) history: HistoryPlots,
}

/// The last hour and the last day, as SVG.
#[derive(Debug, Clone, Default)]
pub(in crate::dashboard) struct HistoryPlots {
    pub(in crate::dashboard) hour_rates: String,
    pub(in crate::dashboard) hour_latency: String,
    pub(in crate::dashboard) day_rates: String,
    pub(in crate::dashboard) day_latency: String,
}

/// A queue on the overview.
#[derive(Debug, Clone)]
pub(in crate::dashboard) struct BusyQueue {
    pub(in crate::dashboard) name: QueueName,
    pub(in crate::dashboard) waiting: u64,
    pub(in crate::dashboard) running: u64,
    pub(in crate::dashboard) dead: u64,
    pub(in crate::dashboard) is_paused: bool,
    pub(in crate::dashboard) is_closed: bool,
    pub(in crate::dashboard) oldest_at: Option<Millis>,
    /// Jobs that succeed in a second.
    pub(in crate::dashboard) done: String,
    pub(in crate::dashboard) sparkline: String,
}

impl Overview {
    pub(in crate::dashboard) fn done_text(&self) -> String {
        rate_text(self.done_rate)
    }

    pub(in crate::dashboard) fn failed_text(&self) -> String {
        rate_text(self.failed_rate)
    }

    pub(in crate::dashboard) fn has_failures(&self) -> bool {
        self.failed_rate > 0.0
    }

    pub(in crate::dashboard) fn memory_percent(&self) -> u64 {
        self.memory_used.saturating_mul(100).checked_div(self.memory_max).unwrap_or(0)
    }
}

/// A rate as people read it.
pub(super) fn rate_text(rate: f64) -> String {
    if rate == 0.0 || rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::dashboard) struct Problem {
    /// The key of its text.
    pub(in crate::dashboard) text: &'static str,
    /// What it is about: a queue, a subscription, or nothing.
    pub(in crate::dashboard) subject: String,
    pub(in crate::dashboard) number: u64,
    /// Where it is looked into or mended, and the key of that link's text.
    pub(in crate::dashboard) path: String,
    pub(in crate::dashboard) action: &'static str,
    /// Whether the action is a form to send: it changes something.
    pub(in crate::dashboard) is_form: bool,
}

/// What is known of a subscription.
#[derive(Debug, Clone)]
pub(super) struct SubscriptionLook {
    pub(super) lag: u64,
    pub(super) is_failing: bool,
    pub(super) is_disabled: bool,
}
