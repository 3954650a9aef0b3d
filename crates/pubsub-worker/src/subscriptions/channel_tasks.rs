//! Works on many channels side by side, with one task for each channel at a time. For deliveries that keep a channel's
//! order.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use common::name::ChannelName;
use store::{StoreResult, log_interruption, next_reconnect_delay, reconnect_delays};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

use super::{message_notifier::MessageListener, runner::SubscriptionRunner};

/// Check the channel again after this delay, or earlier on a notification; none: only on a notification.
pub(super) type RescheduleDelay = Option<Duration>;

/// Delay before a channel is checked again after a panic.
const PANIC_RETRY_DELAY: RescheduleDelay = Some(Duration::from_secs(1));

/// Runs `work` on each channel until the runner is stopped, then waits for running tasks.
pub(super) async fn run<F, Fut>(runner: &Arc<SubscriptionRunner>, listener: &MessageListener, work: F)
where
    F: Fn(ChannelName) -> Fut,
    Fut: Future<Output = RescheduleDelay> + Send + 'static,
{
    let mut lanes = ChannelScheduler::default();
    let mut tasks: JoinSet<(ChannelName, RescheduleDelay)> = JoinSet::new();
    let mut find_at = Some(Instant::now());
    let mut known = BTreeSet::new();
    let mut delays = reconnect_delays();
    loop {
        let next = lanes.next_due();
        let (has_ready, stop) = (!lanes.ready.is_empty(), &runner.stop);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(task) = tasks.join_next_with_id() => lanes.finish_task(task),
            ring = listener.wait() => {
                for channel in ring.channels {
                    listener.listen_to(&channel);
                    known.insert(channel.clone());
                    lanes.notify(channel);
                }
                if ring.is_all_channels {
                    find_at = Some(Instant::now());
                }
            }
            () = sleep_until_due(find_at) => match list_channels(runner).await {
                Ok(channels) => {
                    (find_at, delays) = (None, reconnect_delays());
                    let before = std::mem::replace(&mut known, channels.iter().cloned().collect());
                    before.difference(&known).for_each(|gone| listener.stop_listening(gone));
                    for channel in channels {
                        listener.listen_to(&channel);
                        lanes.check_now(channel);
                    }
                }
                Err(error) => {
                    log_interruption("looking for channels", &error);
                    find_at = Some(Instant::now() + next_reconnect_delay(&mut delays));
                }
            },
            () = sleep_until_due(next) => lanes.make_due_ready(),
            Some(place) = runner.acquire_slots(1), if has_ready => if let Some(channel) = lanes.start_next() {
                let (working, of) = (work(channel.clone()), channel.clone());
                let task = tasks.spawn(async move {
                    let again = working.await;
                    drop(place);
                    (of, again)
                });
                lanes.tasks.insert(task.id(), channel);
            },
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn list_channels(runner: &SubscriptionRunner) -> StoreResult<Vec<ChannelName>> {
    let _look = runner.acquire_redis_read().await;
    runner.store().matching_channels(&runner.subscription).await
}

async fn sleep_until_due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Channels that wait for their turn, each at most once.
#[derive(Default)]
pub(super) struct ChannelQueue {
    queue: VecDeque<ChannelName>,
    queued: HashSet<ChannelName>,
}

impl ChannelQueue {
    pub(super) fn push(&mut self, channel: ChannelName) {
        if self.queued.insert(channel.clone()) {
            self.queue.push_back(channel);
        }
    }

    pub(super) fn pop(&mut self) -> Option<ChannelName> {
        let channel = self.queue.pop_front()?;
        self.queued.remove(&channel);
        Some(channel)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[derive(Default)]
struct ChannelScheduler {
    ready: ChannelQueue,
    busy: HashSet<ChannelName>,
    /// The channel of each task.
    tasks: HashMap<Id, ChannelName>,
    /// Channels that were notified while their task ran.
    notified_while_busy: HashSet<ChannelName>,
    /// Channels that are checked at this time and not before: new messages wait behind the failed one.
    due: BTreeSet<(Instant, ChannelName)>,
    /// When each of these channels is due.
    due_at: HashMap<ChannelName, Instant>,
}

impl ChannelScheduler {
    /// A channel may have new messages.
    fn notify(&mut self, channel: ChannelName) {
        if self.busy.contains(&channel) {
            self.notified_while_busy.insert(channel);
        } else if !self.due_at.contains_key(&channel) {
            self.ready.push(channel);
        }
    }

    /// Checks a channel at once, whatever it waits for: its position may have moved, or another worker may have it
    /// now.
    fn check_now(&mut self, channel: ChannelName) {
        if let Some(at) = self.due_at.remove(&channel) {
            self.due.remove(&(at, channel.clone()));
        }
        self.notify(channel);
    }

    fn start_next(&mut self) -> Option<ChannelName> {
        let channel = self.ready.pop()?;
        self.busy.insert(channel.clone());
        Some(channel)
    }

    fn finish_task(&mut self, task: Result<(Id, (ChannelName, RescheduleDelay)), JoinError>) {
        match task {
            Ok((id, (channel, again))) => {
                self.tasks.remove(&id);
                self.finish_channel(channel, again);
            }
            Err(error) => {
                tracing::error!(%error, "delivering a channel failed");
                if let Some(channel) = self.tasks.remove(&error.id()) {
                    self.finish_channel(channel, PANIC_RETRY_DELAY);
                }
            }
        }
    }

    fn finish_channel(&mut self, channel: ChannelName, again: RescheduleDelay) {
        self.busy.remove(&channel);
        match again {
            Some(delay) if !delay.is_zero() => {
                self.notified_while_busy.remove(&channel);
                let at = Instant::now() + delay;
                self.due_at.insert(channel.clone(), at);
                self.due.insert((at, channel));
            }
            Some(_) => self.notify(channel),
            None if self.notified_while_busy.remove(&channel) => self.notify(channel),
            None => {}
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn make_due_ready(&mut self) {
        let now = Instant::now();
        while let Some((at, channel)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, channel));
                return;
            }
            self.due_at.remove(&channel);
            self.notify(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_channel_is_one_tasks_at_a_time_and_no_ring_is_lost() {
        let channel: ChannelName = "c".parse().expect("a name");
        let mut lanes = ChannelScheduler::default();
        lanes.notify(channel.clone());
        lanes.notify(channel.clone());
        assert_eq!(lanes.start_next(), Some(channel.clone()));
        assert_eq!(lanes.start_next(), None, "once");
        lanes.notify(channel.clone());
        assert_eq!(lanes.start_next(), None, "somebody is at it");
        lanes.finish_channel(channel.clone(), None);
        assert_eq!(lanes.start_next(), Some(channel.clone()), "it rang meanwhile");
        lanes.finish_channel(channel.clone(), Some(Duration::from_secs(5)));
        assert_eq!(lanes.start_next(), None, "it is not due");
        tokio::time::sleep(Duration::from_secs(6)).await;
        lanes.make_due_ready();
        assert_eq!(lanes.start_next(), Some(channel.clone()));
        lanes.finish_channel(channel, None);
        assert_eq!((lanes.start_next(), lanes.next_due()), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_has_to_wait_waits_however_often_it_rings() {
        let channel: ChannelName = "c".parse().expect("a name");
        let mut lanes = ChannelScheduler::default();
        let begin = Instant::now();
        let fail = |lanes: &mut ChannelScheduler, seconds| {
            assert_eq!(lanes.start_next(), Some(channel.clone()));
            lanes.finish_channel(channel.clone(), Some(Duration::from_secs(seconds)));
        };
        lanes.notify(channel.clone());
        fail(&mut lanes, 60);
        for _ in 0..3 {
            lanes.notify(channel.clone());
            assert_eq!(lanes.start_next(), None, "it waits");
        }
        // Its position may have moved: check it, and it waits again if not
        lanes.check_now(channel.clone());
        fail(&mut lanes, 300);
        assert_eq!((lanes.due.len(), lanes.next_due()), (1, Some(begin + Duration::from_mins(5))));
        tokio::time::sleep(Duration::from_secs(301)).await;
        lanes.make_due_ready();
        lanes.make_due_ready();
        fail(&mut lanes, 1);
        assert_eq!((lanes.due.len(), lanes.due_at.len(), lanes.start_next()), (1, 1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_whose_task_panics_is_looked_at_again() {
        let channel: ChannelName = "c".parse().expect("a name");
        let (mut lanes, mut tasks) = (ChannelScheduler::default(), JoinSet::new());
        lanes.notify(channel.clone());
        assert_eq!(lanes.start_next(), Some(channel.clone()));
        let task = tasks.spawn(async { panic!("on purpose") });
        lanes.tasks.insert(task.id(), channel.clone());
        lanes.finish_task(tasks.join_next_with_id().await.expect("there is one"));
        assert_eq!(lanes.start_next(), None, "not at once");
        tokio::time::sleep(Duration::from_secs(2)).await;
        lanes.make_due_ready();
        assert_eq!(lanes.start_next(), Some(channel));
        assert!(lanes.tasks.is_empty());
    }
}
